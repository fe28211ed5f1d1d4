# SPDX-License-Identifier: Apache-2.0
"""Smooths single-shot poses with odometry: an error-state Kalman filter over position and attitude.

Pure Python and numpy: no ROS, no clock of its own. Odometry is smooth and drifts; a network's poses (fixes) jump and do
not drift. The filter estimates where the odometry's frame lies in the map:

* **State**: ``map_from_odom``. Odometry moves the base and leaves the state alone, so a fix that comes late needs no
  replay: with the odometry at its own stamp it measures the state, and the newest odometry on top of the state is the
  pose of now.
* **Error**: that of the base's pose in the map, not of ``map_from_odom``: metres, then the rotation vector about the
  map's fixed axes that stands on the left of the estimate's rotation (as :attr:`Estimate.covariance`). So a rotation's
  error acts at the base, and not at the end of the lever to the odometry's origin, however far that is. When the base
  moves by ``d`` in map axes, a rotation error ``w`` moves it by ``w x d`` too. Terms of second order are left out
  (Sola, "Quaternion kinematics for the error-state Kalman filter", 2017).
* **Drift**: a random walk with variances in proportion to the metres, radians and seconds between two stamps, measured
  from end to end: of a loop driven without any fix only the seconds count.
* **Alike errors**: a network errs the same way as long as it sees the same place. Of fixes whose errors are correlated
  by ``c`` from one to the next (a first-order Gauss-Markov process over metres and seconds) a long row weighs as much
  as if they were independent with ``(1 + c) / (1 - c)`` times the variance (the process's spectral density at
  frequency zero), and the update takes them for that: covariances must not shrink because of fixes that say the same
  thing again.
* **Gate**: a fix whose squared Mahalanobis distance, by its covariance as given, exceeds the chi-square distribution's
  quantile is refused. Fixes refused in a row feed a second filter, which takes over once enough of them agree.
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
    """Settings of :class:`OdometryFilter`. Drifts are standard deviations along or about each axis after one unit.

    Attributes:
        drift_m_per_sqrt_m: of the position, by distance.
        drift_m_per_sqrt_s: of the position, by time: also of a robot that stands.
        drift_rad_per_sqrt_m: of the attitude, by distance; has to cover the slopes that planar odometry does not see.
        drift_rad_per_sqrt_rad: of the attitude, by turn.
        drift_rad_per_sqrt_s: of the attitude, by time.
        correlation_m: distance after which the correlation of fixes' errors is down to 1/e.
        correlation_s: time after which it is, wherever the robot is.
        gate_probability: share of good fixes that the gate lets through.
        restart_after: so many refused fixes in a row that agree with each other take over.
        max_speed_m_s: odometry that moves faster has been reset.
        jump_back_s: stamps that go back by more mean a reset of the clock.

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
    """What became of a fix."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    STARTED = "started"  # there was no state, or the odometry's jump has ended it
    RESTARTED = "restarted"  # it and the fixes refused before it have replaced the state


@dataclass(frozen=True, slots=True, eq=False)
class FilteredPose:
    """The base's pose in the map; ``covariance`` as :attr:`vmloc_ros.core.frame.Estimate.covariance`."""

    stamp_ns: int
    map_from_base: Pose
    covariance: Array


@dataclass(frozen=True, slots=True, eq=False)
class UpdateResult:
    """What became of a fix.

    Attributes:
        distance: the fix's Mahalanobis distance from the prediction; None where it was not compared.
        reason: of every verdict but accepted.
        filtered: the pose at the fix's stamp, with all that is known now.
    """

    verdict: Verdict
    distance: float | None
    reason: str
    filtered: FilteredPose


@dataclass(frozen=True, slots=True, eq=False)
class _Anchor:
    """A pose of the base in the map, with its covariance, and the odometry at its stamp: a fix, or a filter's state."""

    stamp_ns: int
    odom_from_base: Pose
    map_from_base: Pose
    covariance: Array

    @property
    def filtered(self) -> FilteredPose:
        return FilteredPose(self.stamp_ns, self.map_from_base, self.covariance)


class OdometryFilter:
    """Turns fixes and odometry into a smooth trajectory; see the module's text. Not thread-safe: callers hold a lock.

    Attributes:
        reset_reason: why the latest :meth:`reset` was; empty before the first.
    """

    def __init__(self, config: FilterConfig) -> None:
        self._config = config
        self.reset("")

    @property
    def map_from_odom(self) -> Pose | None:
        """The state; None before the start."""
        return None if self._state is None else self._state.map_from_base @ self._state.odom_from_base.inverse()

    def reset(self, reason: str) -> None:
        """Forget everything; the next fix starts anew."""
        self._state: _Anchor | None = None
        self._rival: _Anchor | None = None  # made of the fixes refused since the latest that was accepted
        self._rival_fixes = 0
        self._newest_ns = 0
        self.reset_reason = reason

    def correct(self, stamp_ns: int, odom_from_base: Pose, map_from_base: Pose, covariance: ArrayLike) -> UpdateResult:
        """Take in a fix, however late.

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
            return UpdateResult(Verdict.STARTED, None, self.reset_reason or "first fix", fix.filtered)
        prior = _carried(self._state, stamp_ns, odom_from_base, self._config)
        if stamp_ns <= self._newest_ns:
            return UpdateResult(Verdict.REJECTED, None, "not newer than the fix before", prior.filtered)
        self._newest_ns = stamp_ns
        updated, distance = _offer(fix, prior, self._state, self._config)
        if updated is None:
            return self._refuse(fix, prior, distance)
        self._state, self._rival = updated, None
        return UpdateResult(Verdict.ACCEPTED, distance, "", updated.filtered)

    def predict(self, stamp_ns: int, odom_from_base: Pose) -> FilteredPose | None:
        """The base's pose at any odometry; None before the start, and when the odometry has jumped, which resets."""
        self._reset_at_jump(stamp_ns, odom_from_base)
        if self._state is None:
            return None
        return _carried(self._state, stamp_ns, odom_from_base, self._config).filtered

    def _reset_at_jump(self, stamp_ns: int, odom_from_base: Pose) -> None:
        if self._state is None:
            return
        limits = (self._config.max_speed_m_s, self._config.jump_back_s)
        jump = find_jump(self._state.stamp_ns, self._state.odom_from_base, stamp_ns, odom_from_base, *limits)
        if jump is not None:
            self.reset(jump)

    def _refuse(self, fix: _Anchor, prior: _Anchor, distance: float) -> UpdateResult:
        """Give the fix to the rival, which takes over once enough fixes have agreed."""
        updated = None
        if self._rival is not None:
            carried = _carried(self._rival, fix.stamp_ns, fix.odom_from_base, self._config)
            updated, _ = _offer(fix, carried, self._rival, self._config)
        self._rival_fixes = 1 if updated is None else self._rival_fixes + 1
        self._rival = updated or fix
        if self._rival_fixes < self._config.restart_after:
            return UpdateResult(Verdict.REJECTED, distance, "too far from the prediction", prior.filtered)
        self._state, self._rival = self._rival, None
        reason = f"{self._rival_fixes} refused fixes in a row agree with each other"
        return UpdateResult(Verdict.RESTARTED, distance, reason, self._state.filtered)


def _carried(state: _Anchor, stamp_ns: int, odom_from_base: Pose, config: FilterConfig) -> _Anchor:
    """The state at another stamp, later as a rule, by the odometry of then."""
    step = state.odom_from_base.inverse() @ odom_from_base
    map_from_base = state.map_from_base @ step
    moved_m = map_from_base.position_m - state.map_from_base.position_m
    seconds = abs(stamp_ns - state.stamp_ns) * 1e-9
    covariance = moved_covariance(state.covariance, moved_m) + np.diag(_drift_variances(step, seconds, config))
    return _Anchor(stamp_ns, odom_from_base, map_from_base, covariance)


def _drift_variances(step: Pose, seconds: float, config: FilterConfig) -> Array:
    """Variances ``(6,)`` that the odometry's drift adds to the pose over a step."""
    metres = float(np.linalg.norm(step.position_m))
    radians = float(np.linalg.norm(rotation_vector_from_quaternion(step.quaternion_wxyz)))
    position = config.drift_m_per_sqrt_m**2 * metres + config.drift_m_per_sqrt_s**2 * seconds
    attitude = (
        config.drift_rad_per_sqrt_m**2 * metres
        + config.drift_rad_per_sqrt_rad**2 * radians
        + config.drift_rad_per_sqrt_s**2 * seconds
    )
    return np.repeat([position, attitude], 3)


def _offer(fix: _Anchor, prior: _Anchor, before: _Anchor, config: FilterConfig) -> tuple[_Anchor | None, float]:
    """The prior updated by a fix, None where the gate refuses it, and the fix's Mahalanobis distance.

    Args:
        prior: the state ``before``, which is that after the latest fix, carried to this one.
    """
    turn = quaternion_multiply(
        fix.map_from_base.quaternion_wxyz, quaternion_conjugate(prior.map_from_base.quaternion_wxyz)
    )
    step_m = fix.map_from_base.position_m - prior.map_from_base.position_m
    innovation = np.concatenate([step_m, rotation_vector_from_quaternion(turn)])
    square = float(innovation @ np.linalg.solve(prior.covariance + fix.covariance, innovation))
    if _share_beyond(square) < 1 - config.gate_probability:
        return None, math.sqrt(square)
    return _updated(prior, innovation, _weakening(before, fix, config) * fix.covariance), math.sqrt(square)


def _share_beyond(square: float) -> float:
    """Probability that a chi-square variable of 6 degrees of freedom is larger."""
    half = square / 2
    return math.exp(-half) * (1 + half + half**2 / 2)


def _weakening(before: _Anchor, fix: _Anchor, config: FilterConfig) -> float:
    """Factor on a fix's covariance for what its error has in common with that of the fix before, at least 1."""
    metres = float(np.linalg.norm(fix.odom_from_base.position_m - before.odom_from_base.position_m))
    seconds = abs(fix.stamp_ns - before.stamp_ns) * 1e-9
    decay = metres / config.correlation_m + seconds / config.correlation_s
    return 1 / math.tanh(decay / 2)  # (1 + c) / (1 - c) of c = exp(-decay)


def _updated(prior: _Anchor, innovation: Array, noise: Array) -> _Anchor:
    """The Kalman update of a prior by what leads from it to a fix ``(6,)`` with covariance ``noise`` ``(6, 6)``."""
    gain = np.linalg.solve(prior.covariance + noise, prior.covariance).T
    correction = gain @ innovation
    pose = Pose(
        prior.map_from_base.position_m + correction[:3],
        quaternion_multiply(quaternion_exp(correction[3:] / 2), prior.map_from_base.quaternion_wxyz),
    )
    rest = np.eye(6) - gain
    # Joseph's form: symmetric and positive whatever the rounding.
    covariance = rest @ prior.covariance @ rest.T + gain @ noise @ gain.T
    return _Anchor(prior.stamp_ns, prior.odom_from_base, pose, covariance)


def _checked(covariance: ArrayLike) -> Array:
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (6, 6) or not np.all(np.isfinite(matrix)) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError(f"a fix's covariance must be 6x6, finite and positive definite, got {matrix.tolist()}")
    return matrix
