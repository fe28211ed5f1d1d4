# SPDX-License-Identifier: Apache-2.0
"""How well training poses cover others: a network knows no place that it has not been shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.metrics import pose_statistics
from vmloc_ros.core.geometry import Pose, rotation_angle_deg

logger = logging.getLogger(__name__)

_SMALLEST_CELL_M = 0.25
_MOST_CELLS = 1000
_CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class TrainingArea:
    """Where the training poses were, as cells of a grid; small enough to be kept in a checkpoint.

    Attributes:
        cell_m: edge of a cell.
        cells: ``(N, 3)`` int64 of the occupied ones.
    """

    cell_m: float
    cells: NDArray[np.int64]

    @staticmethod
    def of(poses: Sequence[Pose]) -> TrainingArea:
        """The finest grid, from 0.25 m on, of which the poses occupy at most 1000 cells."""
        positions = np.stack([pose.position_m for pose in poses])
        cell_m = _SMALLEST_CELL_M
        while len(cells := np.unique(np.floor(positions / cell_m).astype(np.int64), axis=0)) > _MOST_CELLS:
            cell_m *= 2
        return TrainingArea(cell_m, cells)

    def outside(self, poses: Sequence[Pose]) -> NDArray[np.bool_]:
        """Whether each pose is in no occupied cell and beside none."""
        offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
        known = {tuple(cell) for cell in (self.cells[:, None] + offsets).reshape(-1, 3).tolist()}
        asked = np.floor(np.stack([pose.position_m for pose in poses]) / self.cell_m).astype(np.int64)
        return np.array([tuple(cell) not in known for cell in asked.tolist()])

    def to_record(self) -> dict[str, Any]:
        """For a checkpoint's record."""
        return {"cell_m": self.cell_m, "cells": self.cells.tolist()}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> TrainingArea | None:
        """What :meth:`to_record` gave; None for a record of an earlier version."""
        if "cell_m" not in record or "cells" not in record:
            return None
        return TrainingArea(float(record["cell_m"]), np.array(record["cells"], np.int64).reshape(-1, 3))


def pose_record(train: Sequence[Pose], held_out: Sequence[Pose], scale_m: float) -> dict[str, Any]:
    """What a checkpoint remembers of its training poses and of how the held-out ones lie to them; logs the gist.

    Args:
        scale_m: the pose codec's, for the log.
    """
    record: dict[str, Any] = {"poses": pose_statistics(train), "area": TrainingArea.of(train).to_record()}
    bounds = record["poses"]
    extent = " x ".join(f"{high - low:.1f}" for low, high in zip(bounds["min_m"], bounds["max_m"], strict=True))
    mean = ", ".join(f"{x:.1f}" for x in bounds["mean_m"])
    logger.info("%d training poses over %s m, mean %s m, scale %.2f m", len(train), extent, mean, scale_m)
    if held_out:
        record["held_out"] = nearest = nearest_training_poses(train, held_out)
        logger.info(
            "%d held-out poses: nearest training pose %.2f m and %.1f deg away in the median, 95 %% within %.2f m",
            len(held_out),
            nearest["median_distance_m"],
            nearest["median_angle_deg"],
            nearest["p95_distance_m"],
        )
    return record


def warn_of_unknown_places(training: Mapping[str, Any], poses: Sequence[Pose]) -> None:
    """Log how many poses lie where the checkpoint, whose record is given, was never trained."""
    area = TrainingArea.from_record(training.get("area", {}))
    if area is None or not (count := int(area.outside(poses).sum())):
        return
    logger.warning(
        "%d of %d poses are outside the training area (farther than about %g m from every training pose): the "
        "errors there are those of a place that the model has never seen",
        count,
        len(poses),
        area.cell_m,
    )


def nearest_training_poses(train: Sequence[Pose], asked: Sequence[Pose]) -> dict[str, float]:
    """Distance and angle from each asked pose to the training pose nearest in position: median and 95th percentile.

    What answering with the perfect training pose would give: a bound on what retrieval can reach.
    """
    known = torch.from_numpy(np.stack([pose.position_m for pose in train]))
    positions = torch.from_numpy(np.stack([pose.position_m for pose in asked]))
    origin = known.mean(dim=0)  # cdist squares: UTM coordinates would leave millimetres in doubt
    nearest = [torch.cdist(chunk - origin, known - origin).min(dim=1) for chunk in positions.split(_CHUNK)]
    distance = torch.cat([found.values for found in nearest]).numpy()
    rows = torch.cat([found.indices for found in nearest]).tolist()
    angle = rotation_angle_deg(
        np.stack([train[row].quaternion_wxyz for row in rows]), np.stack([pose.quaternion_wxyz for pose in asked])
    )
    return {
        "median_distance_m": float(np.median(distance)),
        "p95_distance_m": float(np.percentile(distance, 95)),
        "median_angle_deg": float(np.median(angle)),
        "p95_angle_deg": float(np.percentile(angle, 95)),
    }
