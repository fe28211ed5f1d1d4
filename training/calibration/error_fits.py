# SPDX-License-Identifier: Apache-2.0
"""Fits of covariances to errors of held-out frames: inflation, margin, coupling, floor and growth."""

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

_PIECES = 8  # of a recording, each compared with a covariance fitted to the others
_LOG_DEGREES = (math.log(2.1), math.log(100.0))  # limits of Student's degrees of freedom where a floor is fitted
_GREATEST_GROWTH = 0.5  # a factor of 12 for the largest outlier scores
_TINY = 1e-9


def fit_inflation(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[float, float]:
    """Factors on the standard deviations of position and rotation, with which 95 % ellipsoids hold 95 % of the errors.

    They are at least 1: covariances are never made smaller.

    Args:
        covariances: ``(N, 6, 6)`` before the inflation.
    """
    position, rotation = (
        max(1.0, float(np.quantile(ratio, 0.95))) for ratio in _ellipsoid_ratios(truth, estimates, covariances)
    )
    return position, rotation


def fit_margin(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[float, float]:
    """Factors at least 1 on the standard deviations of position and rotation, for recordings yet to come.

    Errors of neighbouring frames are correlated, so another drive's errors differ more from these than these differ
    among each other. The margin comes from cross-validation: for each eighth of the frames, the covariance is inflated
    until it holds 95 % of the other seven; times the margin, such covariances hold 95 % of the eighths.

    Args:
        truth, estimates: in the order of recording; with fewer than 50 the factors are 1.
        covariances: ``(N, 6, 6)`` up to a scale.
    """
    if len(truth) < FEWEST:
        return 1.0, 1.0
    factors = []
    for ratio in _ellipsoid_ratios(truth, estimates, covariances):
        pieces = np.array_split(np.arange(len(ratio)), _PIECES)
        held_out = [ratio[piece] / np.quantile(np.delete(ratio, piece), 0.95) for piece in pieces]
        factors.append(max(1.0, float(np.quantile(np.concatenate(held_out), 0.95))))
    return factors[0], factors[1]


def _ellipsoid_ratios(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> tuple[Array, Array]:
    """Size ``(N,)`` of the ellipsoid through the truth, relative to the 95 % ellipsoid: of position and of rotation."""
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)

    def of(part: str) -> Array:
        rows = PARTS[part]
        return np.sqrt(nees(errors[:, rows], matrices[:, rows, rows]) / chi2.ppf(0.95, dimensions_of(part)))

    return of("position"), of("rotation")


def fit_coupling(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> float:
    """Factor in [0, 1] on the correlations between position and rotation.

    The greatest with which the 95 % ellipsoid of all six dimensions holds 95 % of the errors; where there is none, the
    one with which it holds the most. The ellipsoids of position alone and of rotation alone do not change.

    Args:
        covariances: ``(N, 6, 6)`` after :func:`fit_inflation`.
    """
    errors = map_errors(truth, estimates)

    def coverage(coupling: float) -> float:
        values = nees(errors, inflated_covariance(covariances, (1.0, 1.0), coupling))
        return float(np.mean(chi2.cdf(values, 6) <= 0.95))

    factors = np.linspace(1.0, 0.0, 21).tolist()
    shares = [coverage(factor) for factor in factors]
    enough = [factor for factor, share in zip(factors, shares, strict=True) if share >= 0.95]
    return enough[0] if enough else factors[int(np.argmax(shares))]


def fit_floor(
    truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike, neg_log_p: ArrayLike
) -> tuple[Array, tuple[float, float]]:
    """Errors that covariances do not contain: a floor, and the growth of errors with a frame's outlier score.

    By maximum likelihood: errors are Student-t distributed with scale ``(a^2 C + b^2 I) exp(2 g s)``, a at least 1 and
    g at least 0. The floor is ``b / a``; a itself is left to :func:`fit_inflation`. The degrees of freedom are fitted
    as well: under a Gaussian, a few gross errors would raise the floor.

    Args:
        covariances: C, ``(N, 6, 6)``, the explained part of the errors, up to a scale.
        neg_log_p: outlier scores s, ``(N,)``.

    Returns:
        Standard deviations ``(6,)`` to add to covariances, equal for the three axes of position and of rotation; and g
        of position and of rotation, see :func:`vmloc_ros.core.uncertainty.growth_factors`.
    """
    errors, matrices = map_errors(truth, estimates), np.asarray(covariances)
    fitted = []
    for part in ("position", "rotation"):
        rows = PARTS[part]
        variances, axes = np.linalg.eigh(matrices[:, rows, rows])
        squares = np.einsum("nij,ni->nj", axes, errors[:, rows]) ** 2
        fitted.append(_fit_floor_and_growth(squares, variances, np.asarray(neg_log_p)))
    (position, position_growth), (rotation, rotation_growth) = fitted
    return np.repeat([position, rotation], 3), (position_growth, rotation_growth)


def _fit_floor_and_growth(squares: Array, variances: Array, neg_log_p: Array) -> tuple[float, float]:
    """Floor and growth of squared errors ``(N, 3)`` along the axes of covariances with variances ``(N, 3)``."""
    typical = math.log(float(np.sqrt(np.mean(squares))) + _TINY)

    def loss(parameters: Array) -> float:
        """Mean negative log-likelihood, but for a constant; of log a, log b, log of the degrees of freedom, and g."""
        a, b, degrees = np.exp(parameters[:3])
        growth = (parameters[3], parameters[3])
        scale = (a**2 * variances + b**2) * growth_factors(neg_log_p, growth)[:, :1] ** 2
        falling = (degrees + 3) / 2 * np.log1p(np.sum(squares / scale, axis=1) / degrees)
        norm = gammaln(degrees / 2) + 1.5 * math.log(degrees) - gammaln((degrees + 3) / 2)
        return float(np.mean(np.log(scale).sum(axis=1) / 2 + falling) + norm)

    # Scale alone, floor alone and both may each be a minimum. Where errors do not determine the scale, by a likelihood
    # ratio test, take the least.
    bounds = [(0.0, 10.0), (typical - 10.0, typical + 2.0), _LOG_DEGREES, (0.0, _GREATEST_GROWTH)]
    starts = [(scale, typical - depth, 2.0, 0.0) for scale in (0.0, 2.0) for depth in (0.5, 3.0)]
    found = [minimize(loss, start, bounds=bounds) for start in starts]
    indistinct = min(one.fun for one in found) + chi2.ppf(0.95, 1) / 2 / len(squares)
    best = min((one for one in found if one.fun <= indistinct), key=lambda one: one.x[0])
    return math.exp(best.x[1] - best.x[0]), float(best.x[3])
