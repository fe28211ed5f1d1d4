# SPDX-License-Identifier: Apache-2.0
"""Motions that one sensor measured from frame to frame, and what of clock, mount and scale explains them best by poses.

The model has nine parameters: the time by which the sensor's stamps are late, the rotation and position by which its
mount is wrong, the ratio of its metres to those of the poses, and that of its angles (a wrong focal length stretches
them). All are estimated together, since each alone would take what another one causes. The time is searched over
a second to either side, then all are refined by Gauss-Newton with Cauchy's weights. Covariances come from the spread of
the gradients of short blocks of the recording (the sandwich estimator of M-estimation, clustered), or from the
measurements' own covariances where those are larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from training.check.findings import Loss
from training.check.pose_curve import PoseCurve
from vmloc_ros.core.geometry import Pose

Array = NDArray[np.float64]

LONGEST_LAG_S = 1.0
_GRID_S = 0.04  # robots and hands shake more slowly than 4 Hz
_NEAR_S = 0.25  # lags around the best that are tried again with the right scale of errors
_FEWEST = 12  # motions
_BLOCK = 6  # motions in a row whose errors may be correlated
_CAUCHY = 2.4
_LEAST_LAG_STD_S = 0.5e-3  # poses between two others are not known better
_ROUNDS = 6
_FLOOR = np.repeat([0.002, 2e-4], 3) ** 2  # m and rad: no measurement is better, whatever its covariance says
_CHI2_MEDIAN = 2.366  # of three degrees of freedom
_DIFFERENCE = np.array([5e-4, *[1e-5] * 3, *[1e-4] * 3, 1e-5, 1e-5])
# Of clock, rotation, position, scale of metres and of angles: what may be expected before looking.
_PRIOR_STD = np.array([10.0, *[0.1] * 3, *[0.2] * 3, 0.2, 0.2])
LAG, TURN, SHIFT, METRES, ANGLES = 0, slice(1, 4), slice(4, 7), 7, 8


class Motion(NamedTuple):
    """A sensor's motion from one time to another, as it measured it.

    Attributes:
        first_s: time of the first measurement, by the sensor's stamps.
        second_s: of the second.
        shift_m: ``(3,)`` where the second was taken in the first one's frame; not known by a camera.
        turn_rad: ``(3,)`` rotation vector from the first to the second, in the first one's axes.
        covariance: ``(6, 6)`` of shift and turn.
        stretch: number of the stretch.
    """

    first_s: float
    second_s: float
    shift_m: Array
    turn_rad: Array
    covariance: Array
    stretch: int


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """The parameters that explain motions best.

    Attributes:
        values: ``(9,)``: lag (s: the sensor measured what the poses say so much later; negative where stamps are late),
            rotation vector and position (m) of the correction of the mount in the sensor's frame, the sensor's metres
            per metre of the poses, and angles likewise.
        covariance: ``(9, 9)``.
        explained: share of the motions' (weighted) square that the poses explain: 1 is all, 0 none.
        motion: how large the motions are, measured or by the poses, in standard deviations of a measurement.
        shift_errors_m: ``(M, 3)`` measured minus expected shifts.
        turn_errors_rad: ``(M, 3)``.
        lags_s: ``(K,)`` lags tried.
        costs: ``(K,)`` what is left unexplained at each: 1 is all.
    """

    values: Array
    covariance: Array
    explained: float
    motion: float
    shift_errors_m: Array
    turn_errors_rad: Array
    lags_s: Array
    costs: Array

    @property
    def typical_error(self) -> Loss:
        """Median distance between measured and expected motions."""
        shift, turn = (np.linalg.norm(x, axis=1) for x in (self.shift_errors_m, self.turn_errors_rad))
        return Loss(float(np.median(shift)), float(np.median(turn)))

    @property
    def std(self) -> Array:
        """``(9,)`` standard deviations."""
        return np.sqrt(np.diag(self.covariance))


def explain(
    motions: Sequence[Motion], curve: PoseCurve, body_from_sensor: Pose | None, has_shift: bool, bias_rad: float = 0.0
) -> Explanation | None:
    """What of clock, mount and scale explains the motions; None where they are too few.

    Args:
        motions: in the order of time.
        curve: of the body.
        body_from_sensor: mount to begin from; None: not known. Then turns alone are compared, after the rotation that
            aligns them best, and the mount's corrections mean nothing.
        has_shift: whether shifts are measured.
        bias_rad: by how much turns may be wrong that more of them do not average out.
    """
    if body_from_sensor is not None:
        fit = _Fit(motions, curve, body_from_sensor, has_shift, bias_rad)
        return fit.solve() if fit.count >= _FEWEST else None
    fit = _Fit(motions, curve, Pose.identity(), has_shift=False)
    return _Fit(motions, curve, fit.aligned(), False, bias_rad).solve() if fit.count >= _FEWEST else None


class _Fit:
    def __init__(
        self, motions: Sequence[Motion], curve: PoseCurve, mount: Pose, has_shift: bool, bias_rad: float = 0.0
    ) -> None:
        first, second = (np.array([getattr(m, name) for m in motions]) for name in ("first_s", "second_s"))
        known = np.ones(len(motions), bool)
        for lag in (-LONGEST_LAG_S, LONGEST_LAG_S):
            for times in (first, second):
                known &= curve.at(times + lag)[2]
        self._every = motions
        self.count = int(known.sum())
        self._first, self._second, self._known = first[known], second[known], known
        chosen = [m for m, here in zip(motions, known, strict=True) if here]
        self._curve, self._mount, self._has_shift, self._bias_rad = curve, mount, has_shift, bias_rad
        self._shifts = np.array([m.shift_m for m in chosen]).reshape(-1, 3)
        self._turns = np.array([m.turn_rad for m in chosen]).reshape(-1, 3)
        covariances = np.array([m.covariance for m in chosen]).reshape(-1, 6, 6) + np.diag(_FLOOR)
        self._shift_whitener = _whitener(covariances[:, :3, :3])
        self._turn_whitener = _whitener(covariances[:, 3:, 3:])
        stretches = np.array([m.stretch for m in chosen], np.int64)
        self._blocks = _blocks(stretches)
        self._prior = 1 / _PRIOR_STD**2
        if has_shift:
            self._prior[ANGLES] = 1e12  # what measures shifts measures angles truly
        self._scales = np.ones(2)

    def solve(self) -> Explanation:
        lags = np.arange(-LONGEST_LAG_S, LONGEST_LAG_S + _GRID_S / 2, _GRID_S)
        x, costs = self._best_of(lags)
        share = costs / self._cost_of(self._whitened_motion())
        self._rescale(x)  # the scale of the errors is known once the lag is
        x, _ = self._best_of(lags[np.abs(lags - x[LAG]) < _NEAR_S])
        self._rescale(x)
        for _ in range(_ROUNDS):
            x = self._step(x, free=np.ones(9, bool))
            x[LAG] = np.clip(x[LAG], -LONGEST_LAG_S, LONGEST_LAG_S)
            self._rescale(x)
        covariance = self._covariance(x)
        residuals, weights = self._whitened(x)
        still = self._whitened_motion()
        left = float((weights[:, None] * residuals**2).sum() / (weights[:, None] * still**2).sum().clip(1e-12))
        shift, turn = self._predict(x, self._sensor_at(x[LAG]))
        motion = max(self._size(self._shifts, self._turns), self._size(shift, turn))
        return Explanation(x, covariance, 1 - left, motion, self._shifts - shift, self._turns - turn, lags, share)

    def aligned(self) -> Pose:
        """The mount whose rotation brings the body's turns onto the sensor's (Kabsch), at the lag that fits best."""
        found = []
        for lag in np.arange(-LONGEST_LAG_S, LONGEST_LAG_S + _GRID_S / 2, _GRID_S):
            _, turns = self._predict(_start(lag), self._sensor_at(lag))
            rotation, loss = Rotation.align_vectors(turns, self._turns)
            found.append((loss, rotation))
        body_from_sensor = min(found, key=lambda one: one[0])[1]
        return Pose(np.zeros(3), body_from_sensor.as_quat()[[3, 0, 1, 2]])

    def _best_of(self, lags: Array) -> tuple[Array, Array]:
        """The best parameters at any of the lags, and the cost at each ``(K,)``."""
        found = [self._at_lag(lag) for lag in lags]
        costs = np.array([cost for cost, _ in found])
        return found[int(costs.argmin())][1], costs

    def _at_lag(self, lag: float) -> tuple[float, Array]:
        x = _start(lag)
        x = self._step(x, np.arange(9) != LAG)
        return self._cost_of(self._whitened(x)[0]), x

    def _step(self, x: Array, free: NDArray[np.bool_]) -> Array:
        residuals, weights = self._whitened(x)
        jacobian = self._jacobian(x, free)
        weighted = jacobian * weights[:, None, None]
        hessian = np.einsum("mij,mik->jk", weighted, jacobian) + np.diag(self._prior[free])
        apart = (x - _start(0.0))[free]
        gradient = np.einsum("mij,mi->j", weighted, residuals) + self._prior[free] * apart
        moved = x.copy()
        moved[free] -= np.linalg.solve(hessian, gradient)
        return moved

    def _jacobian(self, x: Array, free: NDArray[np.bool_]) -> Array:
        """Of the whitened residuals ``(M, R, F)``."""
        here = self._sensor_at(x[LAG])
        start, columns = self._residuals(x, here), []
        for number in np.flatnonzero(free):
            moved = x.copy()
            moved[number] += _DIFFERENCE[number]
            there = self._sensor_at(moved[LAG]) if number == LAG else here
            columns.append((self._residuals(moved, there) - start) / _DIFFERENCE[number])
        return np.stack(columns, axis=2)

    def _sensor_at(self, lag: float) -> tuple[Array, Array, Array, Array]:
        """Positions and rotations of the body at both ends of every motion."""
        p, R, _ = self._curve.at(np.concatenate([self._first, self._second]) + lag)
        count = len(self._first)
        return p[:count], R[:count], p[count:], R[count:]

    def _predict(self, x: Array, ends: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        """Shifts and turns ``(M, 3)`` that the poses let expect."""
        p1, R1, p2, R2 = ends
        mount = self._mount.rotation @ Rotation.from_rotvec(x[TURN]).as_matrix()
        lever = self._mount.position_m + x[SHIFT]
        away = (p2 - p1) * x[METRES] + (R2 - R1) @ lever
        S1 = R1 @ mount
        shift = np.einsum("mji,mj->mi", S1, away)
        turn = Rotation.from_matrix(np.einsum("mji,mjk->mik", S1, R2 @ mount)).as_rotvec() * x[ANGLES]
        return shift, turn

    def _residuals(self, x: Array, ends: tuple[Array, Array, Array, Array]) -> Array:
        """Whitened ``(M, 6)``, or ``(M, 3)`` of the turns alone."""
        shift, turn = self._predict(x, ends)
        return self._whiten(shift - self._shifts, turn - self._turns)

    def _whiten(self, shifts: Array, turns: Array) -> Array:
        turned = np.einsum("mij,mj->mi", self._turn_whitener, turns) / self._scales[1]
        if not self._has_shift:
            return turned
        shifted = np.einsum("mij,mj->mi", self._shift_whitener, shifts) / self._scales[0]
        return np.concatenate([shifted, turned], axis=1)

    def _whitened(self, x: Array) -> tuple[Array, Array]:
        """Residuals and Cauchy's weights ``(M,)``."""
        residuals = self._residuals(x, self._sensor_at(x[LAG]))
        square = (residuals**2).mean(axis=1)
        return residuals, 1 / (1 + square / _CAUCHY**2)

    def _whitened_motion(self) -> Array:
        return self._whiten(self._shifts, self._turns)

    def _size(self, shifts: Array, turns: Array) -> float:
        """Root mean square of motions by the measurements' own covariances."""
        return float(np.sqrt((self._whiten(shifts, turns) ** 2 * self._scale_squares()).mean()))

    def _scale_squares(self) -> Array:
        return np.repeat(self._scales**2, 3)[-6 if self._has_shift else -3 :]

    def _cost_of(self, residuals: Array) -> float:
        return float(np.log1p((residuals**2).mean(axis=1) / _CAUCHY**2).sum())

    def _rescale(self, x: Array) -> None:
        self._scales = np.ones(2)
        residuals = self._residuals(x, self._sensor_at(x[LAG]))
        parts = [residuals[:, :3], residuals[:, 3:]] if self._has_shift else [residuals, residuals]
        self._scales = np.array([max(np.sqrt(np.median((p**2).sum(axis=1)) / _CHI2_MEDIAN), 0.3) for p in parts])

    def _covariance(self, x: Array) -> Array:
        free = np.ones(9, bool)
        residuals, weights = self._whitened(x)
        jacobian = self._jacobian(x, free)
        weighted = jacobian * weights[:, None, None]
        inverse = np.linalg.inv(np.einsum("mij,mik->jk", weighted, jacobian) + np.diag(self._prior))
        gradients = np.einsum("mij,mi->mj", weighted, residuals)
        sums = np.stack([np.bincount(self._blocks, column) for column in gradients.T], axis=1)
        count = len(sums)
        sandwich = inverse @ (sums.T @ sums) @ inverse * count / max(count - 1, 1)
        grown = np.sqrt(np.maximum(np.diag(sandwich) / np.diag(inverse), 1.0))
        return inverse * np.outer(grown, grown) + np.diag(self._systematic())

    def _systematic(self) -> Array:
        """Variances ``(9,)`` of what does not average out: a bias of turns passes for a turned mount and a scale."""
        variances = np.zeros(9)
        variances[LAG] = _LEAST_LAG_STD_S**2
        usual = float(np.sqrt((self._turns**2).sum(axis=1).mean()))
        variances[TURN] = variances[ANGLES] = (self._bias_rad / max(usual, 1e-6)) ** 2
        return variances


def _start(lag: float) -> Array:
    x = np.zeros(9)
    x[LAG], x[METRES], x[ANGLES] = lag, 1.0, 1.0
    return x


def _whitener(covariances: Array) -> Array:
    """Square roots ``(M, 3, 3)`` of the inverses."""
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(covariances)), 1, 2)


def _blocks(stretches: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(M,)`` number of the block of each motion: a few in a row of one stretch."""
    places = np.arange(len(stretches))
    begins = np.flatnonzero(np.diff(stretches, prepend=-1) != 0)
    within = places - begins[np.searchsorted(begins, places, side="right") - 1]
    keys = np.stack([stretches, within // _BLOCK], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel()
