# SPDX-License-Identifier: Apache-2.0
"""How well training poses cover other poses; estimates elsewhere are extrapolation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vmloc_ros.core.geometry import Pose, rotation_angle_deg
from vmloc_ros.core.training_area import TrainingArea

logger = logging.getLogger(__name__)

_CHUNK = 1024
_SAME_VIEW_DEG = 20.0  # a third of a usual camera's field of view


# Training poses, and the poses that were held out of that training.
TrainAndHeldOut = tuple[Sequence[Pose], Sequence[Pose]]


def pose_record(train: Sequence[Pose], held_out: Sequence[TrainAndHeldOut], scale_m: float) -> dict[str, Any]:
    """Statistics of training and held-out poses that a checkpoint stores; logs a summary.

    Args:
        train: poses that the model is trained on.
        held_out: one entry for the model's own training, or one per fold; empty where nothing is held out.
        scale_m: scale of the pose codec, for the log.
    """
    record: dict[str, Any] = {"poses": pose_statistics(train), "area": TrainingArea.of(train).to_record()}
    bounds = record["poses"]
    extent = " x ".join(f"{high - low:.1f}" for low, high in zip(bounds["min_m"], bounds["max_m"], strict=True))
    mean = ", ".join(f"{x:.1f}" for x in bounds["mean_m"])
    logger.info("%d training poses over %s m, mean %s m, scale %.2f m", len(train), extent, mean, scale_m)
    if held_out:
        record["held_out"] = nearest = nearest_training_poses(held_out)
        logger.info(
            "%d held-out poses: nearest training pose %.2f m and %.1f deg away in the median, 95 %% within %.2f m",
            sum(len(poses) for _, poses in held_out),
            nearest["median_distance_m"],
            nearest["median_angle_deg"],
            nearest["p95_distance_m"],
        )
    return record


def warn_of_unknown_places(training: Mapping[str, Any], poses: Sequence[Pose]) -> None:
    """Log a warning if poses lie outside a checkpoint's training area; ``training`` is its record of the training."""
    area = TrainingArea.from_training(training)
    if area is None or not (count := int(area.outside(poses).sum())):
        return
    logger.warning(
        "%d of %d poses are outside the training area (farther than about %g m from every training pose); errors "
        "there are those of places that the model has never seen",
        count,
        len(poses),
        area.cell_m,
    )


def known_views(train: Sequence[Pose], held_out: Sequence[Pose]) -> NDArray[np.bool_]:
    """Whether each held-out pose has a training pose near it, ``(N,)``.

    Near is rotated by 20 degrees at most, and no farther away than a cell of :class:`TrainingArea` or, where the robot
    is fast, twice the median step from one frame to the next.
    """
    known = np.stack([pose.position_m for pose in train])
    step_m = float(np.median(np.linalg.norm(np.diff(known, axis=0), axis=1))) if len(train) > 1 else 0.0
    reach_m, cosine = max(TrainingArea.of(train).cell_m, 2 * step_m), math.cos(math.radians(_SAME_VIEW_DEG) / 2)
    tree = cKDTree(known)
    near = tree.query_ball_point(np.stack([pose.position_m for pose in held_out]), reach_m)
    turns = np.stack([pose.quaternion_wxyz for pose in train])
    return np.array(
        [
            bool(np.any(np.abs(turns[rows] @ pose.quaternion_wxyz) >= cosine))
            for pose, rows in zip(held_out, near, strict=True)
        ]
    )


def nearest_training_poses(held_out: Sequence[TrainAndHeldOut]) -> dict[str, float]:
    """Distance and angle from each held-out pose to the training pose nearest in position: median, 95th percentile.

    These are the errors of perfect retrieval, which real retrieval cannot improve on.
    """
    distance, angle = (np.concatenate(x) for x in zip(*(_nearest(*one) for one in held_out), strict=True))
    return {
        "median_distance_m": float(np.median(distance)),
        "p95_distance_m": float(np.percentile(distance, 95)),
        "median_angle_deg": float(np.median(angle)),
        "p95_angle_deg": float(np.percentile(angle, 95)),
    }


def _nearest(train: Sequence[Pose], held_out: Sequence[Pose]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres and degrees ``(N,)`` from each held-out pose to its nearest training pose."""
    known = torch.from_numpy(np.stack([pose.position_m for pose in train]))
    positions = torch.from_numpy(np.stack([pose.position_m for pose in held_out]))
    origin = known.mean(dim=0)  # cdist squares: UTM coordinates would leave millimetres in doubt
    nearest = [torch.cdist(chunk - origin, known - origin).min(dim=1) for chunk in positions.split(_CHUNK)]
    distance = torch.cat([found.values for found in nearest]).numpy()
    rows = torch.cat([found.indices for found in nearest]).tolist()
    angle = rotation_angle_deg(
        np.stack([train[row].quaternion_wxyz for row in rows]), np.stack([pose.quaternion_wxyz for pose in held_out])
    )
    return distance, angle


def pose_statistics(poses: Sequence[Pose]) -> dict[str, Any]:
    """Count, bounds and mean of positions, metres."""
    positions = np.stack([pose.position_m for pose in poses])
    return {
        "poses": len(poses),
        "min_m": positions.min(axis=0).round(3).tolist(),
        "max_m": positions.max(axis=0).round(3).tolist(),
        "mean_m": positions.mean(axis=0).round(3).tolist(),
    }
