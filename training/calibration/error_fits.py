# SPDX-License-Identifier: Apache-2.0
"""Whether covariances tell the truth: NEES and how often the true pose is inside the ellipsoids they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import gammaln
from scipy.stats import chi2

from training.data.splits import FEWEST
from training.evaluation.consistency import PARTS, dimensions_of, map_errors, nees
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import growth_factors, inflated_covariance

Array = NDArray[np.float64]


_PIECES = 8  # of a recording, each judged by the others
_TAILS = (math.log(2.1), math.log(100.0))  # logarithms of Student's degrees of freedom where a floor is fitted
_FASTEST = 0.5  # growth: a factor of 12 for the oddest frames
_TINY = 1e-9


def fit_inflation(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[float, float]:
    """Factors at least 1 on the standard deviations of position and rotation, from held-out errors.

    With them the 95 % ellipsoids hold 95 % of these errors, if not more: covariances are never made smaller.

    Args:
        covariances: ``(N, 6, 6)`` as they would be without.
    """
    position, rotation = (
        max(1.0, float(np.quantile(reached, 0.95))) for reached in _reached(truth, estimates, covariances)
    )
    return position, rotation


def fit_margin(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[float, float]:
    """Factors at least 1 on the standard deviations of position and rotation, for recordings yet to come.

    Errors of neighbouring frames are alike: those of another drive differ more from these than these do among each
    other. Each eighth of the frames is therefore judged by a covariance that holds 95 % of the other seven; with the
    factors, such covariances hold 95 % of what was left out.

    Args:
        truth, estimates: in the order of recording; fewer than 50 leave the factors at 1.
        covariances: ``(N, 6, 6)`` up to a scale.
    """
    if len(truth) < FEWEST:
        return 1.0, 1.0
    factors = []
    for reached in _reached(truth, estimates, covariances):
        pieces = np.array_split(np.arange(len(reached)), _PIECES)
        left_out = [reached[piece] / np.quantile(np.delete(reached, piece), 0.95) for piece in pieces]
        factors.append(max(1.0, float(np.quantile(np.concatenate(left_out), 0.95))))
    return factors[0], factors[1]


def _reached(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[Array, Array]:
    """How much larger ``(N,)`` the 95 % ellipsoid had to be to reach the truth: of position, and of rotation."""
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)

    def of(part: str) -> Array:
        rows = PARTS[part]
        return np.sqrt(nees(errors[:, rows], matrices[:, rows, rows]) / chi2.ppf(0.95, dimensions_of(part)))

    return of("position"), of("rotation")


def fit_coupling(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> float:
    """Factor in [0, 1] on the correlations between position and rotation, from held-out errors.

    The greatest of which the ellipsoid of all six dimensions holds 95 % of these errors; where there is none, the one
    of which it holds the most. What the ellipsoids of position and of rotation hold does not change.

    Args:
        covariances: ``(N, 6, 6)`` after :func:`fit_inflation`.
    """
    errors = map_errors(truth, estimates)

    def held(coupling: float) -> float:
        values = nees(errors, inflated_covariance(covariances, (1.0, 1.0), coupling))
        return float(np.mean(chi2.cdf(values, 6) <= 0.95))

    factors = np.linspace(1.0, 0.0, 21).tolist()
    shares = [held(factor) for factor in factors]
    enough = [factor for factor, share in zip(factors, shares, strict=True) if share >= 0.95]
    return enough[0] if enough else factors[int(np.argmax(shares))]


def fit_floor(
    truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike, neg_log_p: ArrayLike
) -> tuple[Array, tuple[float, float]]:
    """What errors say that covariances do not know: a floor, and how errors grow with a frame's oddness.

    A maximum of likelihood: errors are taken to be drawn from Student's t distribution of scale
    ``(a^2 C + b^2 I) exp(2 g o)`` with a at least 1 and g at least 0; the floor is ``b / a``, and a itself is left to
    :func:`fit_inflation`. The degrees of freedom are fitted, too: to a Gaussian, a few gross errors would say that the
    floor is high.

    Args:
        covariances: C, ``(N, 6, 6)``, which know only a part of what is wrong.
        neg_log_p: o, ``(N,)``.

    Returns:
        Standard deviations ``(6,)`` to add to covariances, equal for the three axes of position and of rotation; and g
        of position and of rotation, see :func:`vmloc_ros.core.uncertainty.growth_factors`.
    """
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)
    floors, growth = [], []
    for part in ("position", "rotation"):
        rows = PARTS[part]
        variances, axes = np.linalg.eigh(matrices[:, rows, rows])
        squares = np.einsum("nij,ni->nj", axes, errors[:, rows]) ** 2
        typical = math.log(float(np.sqrt(np.mean(squares))) + _TINY)

        def loss(logs: Array, squares: Array = squares, variances: Array = variances) -> float:
            a, b, tails = np.exp(logs[:3])
            total = (a**2 * variances + b**2) * growth_factors(neg_log_p, (logs[3], logs[3]))[:, :1] ** 2
            falling = (tails + 3) / 2 * np.log1p(np.sum(squares / total, axis=1) / tails)
            norm = gammaln(tails / 2) + 1.5 * math.log(tails) - gammaln((tails + 3) / 2)
            return float(np.mean(np.log(total).sum(axis=1) / 2 + falling) + norm)

        # Scale alone, floor alone and both may each be a valley; where errors do not tell the scale, it is the least.
        bounds = [(0.0, 10.0), (typical - 10.0, typical + 2.0), _TAILS, (0.0, _FASTEST)]
        starts = [(scale, typical - depth, 2.0, 0.0) for scale in (0.0, 2.0) for depth in (0.5, 3.0)]
        found = [minimize(loss, start, bounds=bounds) for start in starts]
        best = min(found, key=lambda one: (round(one.fun, 4), one.x[0]))
        floors += [math.exp(best.x[1] - best.x[0])] * 3
        growth.append(float(best.x[3]))
    return np.array(floors), (growth[0], growth[1])
