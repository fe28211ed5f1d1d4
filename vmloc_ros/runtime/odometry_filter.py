# SPDX-License-Identifier: Apache-2.0
"""Smooths single-shot poses with odometry: an error-state Kalman filter over position and attitude.

Pure Python and numpy: no ROS, no clock. Odometry is smooth and drifts; a network's poses (fixes) jump and do not drift.
The filter estimates the pose of the odometry's frame in the map:

* **State**: ``map_from_odom``. Odometry moves the base and not the state, so a late fix needs no replay: together with
  the odometry at its own stamp it measures the state, and state and newest odometry make the present pose.
* **Error**: that of the base's pose in the map, not of ``map_from_odom``: metres, then the rotation vector about the
  map's fixed axes, to the left of the estimate's rotation (as :attr:`Estimate.covariance`). A rotation error thus acts
  at the base, however far the odometry's origin is. When the base moves by ``d`` in map axes, a rotation error ``w``
  moves it by ``w x d``. Terms of second order are neglected (Solà, "Quaternion kinematics for the error-state Kalman
  filter", 2017).
* **Drift**: a random walk with variances in proportion to the metres, radians and seconds between two stamps, measured
  from end to end: of a loop driven without a fix only the seconds count.
* **Correlated errors**: a network's error hardly changes while it sees the same place. Errors of successive fixes with
  correlation ``c`` (a first-order Gauss-Markov process over metres and seconds) average out like independent ones with
  ``(1 + c) / (1 - c)`` times the variance (the process's spectral density at frequency zero). The update uses that
  variance, so that repeated views of one place do not shrink the covariance.
* **Gate**: a fix whose squared Mahalanobis distance, with its covariance as given, exceeds the chi-square quantile is
  rejected. Consecutive rejected fixes feed a second filter, the alternative hypothesis, which takes over once enough of
  them agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.geometry import (
    Pose,
    quaternion_conjugate,
    quaternion_exp,
    quaternion_multiply,
    rotation_vector_from_quaternion,
)
from vmloc_ros.core.pose_buffer import JUMP_BACK_S, MAX_SPEED_M_S, find_jump
from vmloc_ros.core.uncertainty import moved_covariance

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Settings of :class:`OdometryFilter`; drifts are standard deviations along or about each axis after one unit.

    Attributes:
        drift_m_per_sqrt_m: of the position, by distance.
        drift_m_per_sqrt_s: of the position, by time, also at a standstill.
        drift_rad_per_sqrt_m: of the attitude, by distance; covers slopes, which planar odometry does not measure.
        drift_rad_per_sqrt_rad: of the attitude, by turn.
        drift_rad_per_sqrt_s: of the attitude, by time.
        correlation_m: distance over which the correlation of fixes' errors falls to 1/e.
        correlation_s: time over which it does.
        gate_probability: probability that the gate accepts a fix whose error agrees with its covariance.
        restart_after: number of consecutive rejected fixes that take over if they agree with each other.
        max_speed_m_s: faster motion of the odometry counts as a reset of the odometry.
        jump_back_s: stamps that go back by more count as a reset of the clock.

    Raises:
        ConfigError: a value is out of its range.
    """

    drift_m_per_sqrt_m: float = 0.05
    drift_m_per_sqrt_s: float = 0.03
    drift_rad_per_sqrt_m: float = 0.002
    drift_rad_per_sqrt_rad: float = 0.01
    drift_rad_per_sqrt_s: float = 0.002
    correlation_m: float = 5.0
    correlation_s: float = 30.0
    gate_probability: float = 0.999
    restart_after: int = 10
    max_speed_m_s: float = MAX_SPEED_M_S
    jump_back_s: float = JUMP_BACK_S

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name.startswith("drift"):
                valid, expected = 0 <= value < math.inf, "finite and not negative"
            elif name == "gate_probability":
                valid, expected = 0 < value < 1, "between 0 and 1"
            else:
                valid, expected = 0 < value < math.inf, "finite and positive"
            if not valid:
                raise ConfigError(f"{name} of the odometry filter must be {expected}, got {value}")


class Verdict(Enum):
    """What the filter did with a fix."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    STARTED = "started"  # there was no state, or a jump of the odometry had ended it
    RESTARTED = "restarted"  # this fix and the rejected ones before it have replaced the state


@dataclass(frozen=True, slots=True, eq=False)
class FilteredPose:
    """The base's pose in the map; ``covariance`` as :attr:`vmloc_ros.core.frame.Estimate.covariance`."""

    stamp_ns: int
    map_from_base: Pose
    covariance: Array


@dataclass(frozen=True, slots=True, eq=False)
class UpdateResult:
    """The result of a fix.

    Attributes:
        distance: the fix's Mahalanobis distance from the prediction; None where they were not compared.
        reason: of the verdict; empty for an accepted fix.
        filtered: the pose at the fix's stamp after the update, or the prediction where the fix was rejected.
    """

    verdict: Verdict
    distance: float | None
    reason: str
    filtered: FilteredPose


@dataclass(frozen=True, slots=True, eq=False)
class _Anchor:
    """Pose and covariance of the base in the map and the odometry at one stamp: a fix, or a filter's state."""

    stamp_ns: int
    odom_from_base: Pose
    map_from_base: Pose
    covariance: Array

    @property
    def filtered(self) -> FilteredPose:
        return FilteredPose(self.stamp_ns, self.map_from_base, self.covariance)


class OdometryFilter:
    """Turns fixes and odometry into a smooth trajectory, see the module's docstring; not thread-safe."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        self.reset("")

    def reset(self, reason: str) -> None:
        """Discard the state; the next fix starts anew."""
        self._state: _Anchor | None = None
        self._alternative: _Anchor | None = None  # from the fixes rejected since the latest accepted one
        self._alternative_fixes = 0
        self._newest_ns = 0
        self._reset_reason = reason

    def correct(self, stamp_ns: int, odom_from_base: Pose, map_from_base: Pose, covariance: ArrayLike) -> UpdateResult:
        """Update the state with a fix, which may come late.

        Args:
            odom_from_base: odometry at the fix's stamp.
            covariance: ``(6, 6)`` of ``map_from_base``, see :attr:`vmloc_ros.core.frame.Estimate.covariance`.

        Raises:
            ValueError: the covariance is not finite and positive definite.
        """
        fix = _Anchor(stamp_ns, odom_from_base, map_from_base, _checked(covariance))
        self._reset_at_jump(stamp_ns, odom_from_base)
        if self._state is None:
            self._state, self._newest_ns = fix, stamp_ns
            return UpdateResult(Verdict.STARTED, None, self._reset_reason or "first fix", fix.filtered)
        prior = _carried(self._state, stamp_ns, odom_from_base, self.config)
        if stamp_ns <= self._newest_ns:
            return UpdateResult(Verdict.REJECTED, None, "not newer than the fix before", prior.filtered)
        self._newest_ns = stamp_ns
        updated, distance = _gated_update(fix, prior, self._state, self.config)
        if updated is None:
            return self._reject(fix, prior, distance)
        self._state, self._alternative = updated, None
        return UpdateResult(Verdict.ACCEPTED, distance, "", updated.filtered)

    def predict(self, stamp_ns: int, odom_from_base: Pose) -> FilteredPose | None:
        """Predict the base's pose from odometry; None before the first fix and after a jump, which resets."""
        self._reset_at_jump(stamp_ns, odom_from_base)
        if self._state is None:
            return None
        return _carried(self._state, stamp_ns, odom_from_base, self.config).filtered

    def _reset_at_jump(self, stamp_ns: int, odom_from_base: Pose) -> None:
        if self._state is None:
            return
        limits = (self.config.max_speed_m_s, self.config.jump_back_s)
        jump = find_jump(self._state.stamp_ns, self._state.odom_from_base, stamp_ns, odom_from_base, *limits)
        if jump is not None:
            self.reset(jump)

    def _reject(self, fix: _Anchor, prior: _Anchor, distance: float) -> UpdateResult:
        """Update the alternative with a rejected fix; it takes over once enough fixes have agreed with it."""
        updated = None
        if self._alternative is not None:
            carried = _carried(self._alternative, fix.stamp_ns, fix.odom_from_base, self.config)
            updated, _ = _gated_update(fix, carried, self._alternative, self.config)
        self._alternative_fixes = 1 if updated is None else self._alternative_fixes + 1
        self._alternative = updated or fix
        if self._alternative_fixes < self.config.restart_after:
            return UpdateResult(Verdict.REJECTED, distance, "too far from the prediction", prior.filtered)
        self._state, self._alternative = self._alternative, None
        reason = f"{self._alternative_fixes} rejected fixes in a row agree with each other"
        return UpdateResult(Verdict.RESTARTED, distance, reason, self._state.filtered)


def _carried(state: _Anchor, stamp_ns: int, odom_from_base: Pose, config: FilterConfig) -> _Anchor:
    """Carry a state to another stamp, usually a later one, by the odometry there."""
    step = state.odom_from_base.inverse() @ odom_from_base
    map_from_base = state.map_from_base @ step
    moved_m = map_from_base.position_m - state.map_from_base.position_m
    seconds = abs(stamp_ns - state.stamp_ns) * 1e-9
    covariance = moved_covariance(state.covariance, moved_m) + np.diag(_drift_variances(step, seconds, config))
    return _Anchor(stamp_ns, odom_from_base, map_from_base, covariance)


def _drift_variances(step: Pose, seconds: float, config: FilterConfig) -> Array:
    """Variances ``(6,)`` of the odometry's drift over a step, to add to the pose's."""
    metres = float(np.linalg.norm(step.position_m))
    radians = float(np.linalg.norm(rotation_vector_from_quaternion(step.quaternion_wxyz)))
    position = config.drift_m_per_sqrt_m**2 * metres + config.drift_m_per_sqrt_s**2 * seconds
    attitude = (
        config.drift_rad_per_sqrt_m**2 * metres
        + config.drift_rad_per_sqrt_rad**2 * radians
        + config.drift_rad_per_sqrt_s**2 * seconds
    )
    return np.repeat([position, attitude], 3)


def _gated_update(fix: _Anchor, prior: _Anchor, before: _Anchor, config: FilterConfig) -> tuple[_Anchor | None, float]:
    """Return the prior updated by a fix, None where the gate rejects it, and the fix's Mahalanobis distance.

    Args:
        prior: ``before`` carried to the fix's stamp.
        before: the state after the fix before.
    """
    turn = quaternion_multiply(
        fix.map_from_base.quaternion_wxyz, quaternion_conjugate(prior.map_from_base.quaternion_wxyz)
    )
    step_m = fix.map_from_base.position_m - prior.map_from_base.position_m
    innovation = np.concatenate([step_m, rotation_vector_from_quaternion(turn)])
    square = float(innovation @ np.linalg.solve(prior.covariance + fix.covariance, innovation))
    if _p_value(square) < 1 - config.gate_probability:
        return None, math.sqrt(square)
    return _updated(prior, innovation, _correlation_factor(before, fix, config) * fix.covariance), math.sqrt(square)


def _p_value(square: float) -> float:
    """Probability that a chi-square variable of 6 degrees of freedom exceeds ``square``, in closed form."""
    half = square / 2
    return math.exp(-half) * (1 + half + half**2 / 2)


def _correlation_factor(before: _Anchor, fix: _Anchor, config: FilterConfig) -> float:
    """Factor, at least 1, on a fix's covariance for the correlation of its error with that of the fix before."""
    metres = float(np.linalg.norm(fix.odom_from_base.position_m - before.odom_from_base.position_m))
    seconds = abs(fix.stamp_ns - before.stamp_ns) * 1e-9
    decay = metres / config.correlation_m + seconds / config.correlation_s
    return 1 / math.tanh(decay / 2)  # (1 + c) / (1 - c) of c = exp(-decay)


def _updated(prior: _Anchor, innovation: Array, noise: Array) -> _Anchor:
    """Kalman update of a prior by an innovation ``(6,)`` with measurement covariance ``noise`` ``(6, 6)``."""
    gain = np.linalg.solve(prior.covariance + noise, prior.covariance).T
    correction = gain @ innovation
    pose = Pose(
        prior.map_from_base.position_m + correction[:3],
        quaternion_multiply(quaternion_exp(correction[3:] / 2), prior.map_from_base.quaternion_wxyz),
    )
    rest = np.eye(6) - gain
    # Joseph form: stays symmetric and positive definite under rounding.
    covariance = rest @ prior.covariance @ rest.T + gain @ noise @ gain.T
    return _Anchor(prior.stamp_ns, prior.odom_from_base, pose, covariance)


def _checked(covariance: ArrayLike) -> Array:
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (6, 6) or not np.all(np.isfinite(matrix)) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError(f"a fix's covariance must be 6x6, finite and positive definite, got {matrix.tolist()}")
    return matrix
