# SPDX-License-Identifier: Apache-2.0
"""Wheel odometry with a wrong wheel radius, slip and a gyroscope's drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.trajectory import Trajectory
from vmloc_ros.core.geometry import Pose

Array = NDArray[np.float64]

ODOMETRY_RATE_HZ = 50.0
SCALE_SIGMA = 0.008  # of the distance, constant over a drive
GYRO_BIAS_SIGMA_RAD_S = np.radians(0.04)
GYRO_WALK_RAD_SQRT_S = np.radians(0.12)
SLIP_SIGMA = 0.02  # of every step


@dataclass(frozen=True, slots=True, eq=False)
class OdometryStep:
    """What the odometry reports at a time; the twist is in base_link, covariances are ``(6, 6)``."""

    time_s: float
    odom_from_base: Pose
    linear_m_s: Array
    angular_rad_s: Array
    pose_covariance: Array
    twist_covariance: Array


def drifting_odometry(trajectory: Trajectory, times_s: Array, rng: np.random.Generator) -> Iterator[OdometryStep]:
    """Planar odometry at equally spaced times, starting at the identity and drifting from there."""
    scale = 1 + rng.normal(0, SCALE_SIGMA)
    bias = rng.normal(0, GYRO_BIAS_SIGMA_RAD_S)
    x = y = yaw = 0.0
    position, rotation = trajectory.at(times_s)
    true_yaw = np.unwrap(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    for i, time_s in enumerate(times_s):
        speed = rate = 0.0
        if i:
            step_s = float(times_s[i] - times_s[i - 1])
            moved = rotation[i - 1].T @ (position[i] - position[i - 1])
            forward = float(moved[0]) * scale * (1 + rng.normal(0, SLIP_SIGMA))
            turn = float(true_yaw[i] - true_yaw[i - 1]) + bias * step_s
            turn += float(rng.normal(0, GYRO_WALK_RAD_SQRT_S * np.sqrt(step_s)))
            heading = yaw + np.arctan2(moved[1], moved[0])
            x, y, yaw = x + forward * np.cos(heading), y + forward * np.sin(heading), yaw + turn
            speed, rate = forward / step_s, turn / step_s
        elapsed = float(time_s - times_s[0])
        grown = np.array([0.02 + 0.01 * elapsed, 0.02 + 0.01 * elapsed, 1e-4, 1e-4, 1e-4, 0.001 + 1e-4 * elapsed])
        yield OdometryStep(
            float(time_s),
            Pose.from_xyz_rpy([x, y, 0.0], [0.0, 0.0, yaw]),
            np.array([speed, 0.0, 0.0]),
            np.array([0.0, 0.0, rate]),
            np.diag(grown),
            np.diag([0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-3]),
        )
