# SPDX-License-Identifier: Apache-2.0
"""Absolute and relative trajectory errors, ATE and RPE (Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM
Systems", 2012)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import PoseErrors, pose_errors
from vmloc_ros.core.geometry import (
    Pose,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_from_matrix,
    quaternion_multiply,
    rotation_angle_deg,
)

Array = NDArray[np.float64]
Trajectory = tuple[Sequence[Pose], Sequence[Pose]]  # true and estimated poses of the same frames, in time order

_ROUNDING_M = 1e-6  # a sum of steps may be that much shorter than the distance
RPE_FRAMES = 1
RPE_METRES = (1, 10)  # for rooms and for streets


def trajectory_summary(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """ATE and RPE as root mean squares over all frames, or pairs of frames, of all trajectories.

    Each trajectory is aligned by itself, and no pair spans two. RPE over a distance is absent where every trajectory
    is shorter.
    """
    raw = np.concatenate([absolute_errors_m(*trajectory) for trajectory in trajectories])
    aligned = np.concatenate([absolute_errors_m(*trajectory, aligned=True) for trajectory in trajectories])
    result = {"ate_rmse_m": _rms(raw), "ate_aligned_rmse_m": _rms(aligned)}
    spans = {f"{RPE_FRAMES}frame": [pairs_by_frames(len(truth), RPE_FRAMES) for truth, _ in trajectories]}
    spans |= {f"{metres}m": [pairs_by_metres(truth, metres) for truth, _ in trajectories] for metres in RPE_METRES}
    for span, pairs in spans.items():
        errors = [relative_errors(*trajectory, found) for trajectory, found in zip(trajectories, pairs, strict=True)]
        if any(len(error) for error in errors):
            result[f"rpe_{span}_rmse_m"] = _rms(np.concatenate([error.position_m for error in errors]))
            result[f"rpe_{span}_rmse_deg"] = _rms(np.concatenate([error.rotation_deg for error in errors]))
    return result


def absolute_errors_m(truth: Sequence[Pose], estimates: Sequence[Pose], aligned: bool = False) -> Array:
    """Distances ``(N,)`` of the estimated positions from the true ones, the root mean square of which is the ATE.

    Args:
        aligned: after :func:`align`, so that only errors of the trajectory's shape remain. A localizer estimates poses
            in the map: its ATE is the one without alignment.

    Raises:
        ValueError: there are no poses, or the lengths differ.
    """
    if aligned:
        motion = align(truth, estimates)
        estimates = [motion @ pose for pose in estimates]
    return pose_errors(truth, estimates).position_m


def align(truth: Sequence[Pose], estimates: Sequence[Pose]) -> Pose:
    """Least-squares rigid motion from estimated positions to the true ones, without scale (Umeyama 1991, Eq. 40-42).

    Where it is not unique (all positions on a line), one of the solutions.
    """
    target = np.stack([pose.position_m for pose in truth])
    moved = np.stack([pose.position_m for pose in estimates])
    target_mean, moved_mean = target.mean(axis=0), moved.mean(axis=0)
    left, _, right = np.linalg.svd((target - target_mean).T @ (moved - moved_mean))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # no reflection
    rotation = (left * signs) @ right
    return Pose(target_mean - rotation @ moved_mean, quaternion_from_matrix(rotation))


def pairs_by_frames(count: int, frames: int) -> NDArray[np.int64]:
    """All pairs ``(P, 2)`` of rows that are ``frames`` apart, in a trajectory of ``count`` rows."""
    start = np.arange(max(0, count - frames))
    return np.stack([start, start + frames], axis=1)


def pairs_by_metres(truth: Sequence[Pose], metres: float) -> NDArray[np.int64]:
    """Pairs ``(P, 2)`` of every row and the first row that is at least ``metres`` farther along the true path."""
    positions = np.stack([pose.position_m for pose in truth])
    path = np.concatenate([[0.0], np.linalg.norm(np.diff(positions, axis=0), axis=1).cumsum()])
    end = np.searchsorted(path, path + metres - _ROUNDING_M)
    return np.stack([np.arange(len(path)), end], axis=1)[end < len(path)]


def relative_errors(truth: Sequence[Pose], estimates: Sequence[Pose], pairs: NDArray[np.int64]) -> PoseErrors:
    """Errors of the motion between the frames of each pair, ``(T_i^-1 T_j)^-1 (P_i^-1 P_j)`` (RPE).

    Args:
        pairs: ``(P, 2)`` rows i, j.
    """
    true_step, true_turn = _motions(truth, pairs)
    step, turn = _motions(estimates, pairs)
    return PoseErrors(np.linalg.norm(step - true_step, axis=1), rotation_angle_deg(true_turn, turn))


def _motions(poses: Sequence[Pose], pairs: NDArray[np.int64]) -> tuple[Array, Array]:
    """Translation ``(P, 3)`` and quaternion ``(P, 4)`` of the second frame of each pair in the first."""
    positions = np.stack([pose.position_m for pose in poses])
    quaternions = np.stack([pose.quaternion_wxyz for pose in poses])
    first, second = pairs.T
    rotation = matrix_from_quaternion(quaternions[first])
    step = np.einsum("pji,pj->pi", rotation, positions[second] - positions[first])
    return step, quaternion_multiply(quaternion_conjugate(quaternions[first]), quaternions[second])


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
