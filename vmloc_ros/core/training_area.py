# SPDX-License-Identifier: Apache-2.0
"""The area that training poses cover; a network's estimates outside of it are extrapolations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.geometry import Pose

_SMALLEST_CELL_M = 0.25
_MOST_CELLS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class TrainingArea:
    """Cells of a grid that contain training poses, few enough to be stored in a checkpoint.

    Attributes:
        cell_m: edge of a cell.
        cells: ``(N, 3)`` int64 indices of the occupied cells.
    """

    cell_m: float
    cells: NDArray[np.int64]

    @staticmethod
    def of(poses: Sequence[Pose]) -> TrainingArea:
        """The finest grid with an edge of 0.25 m times a power of two in which poses occupy at most 1000 cells."""
        positions = np.stack([pose.position_m for pose in poses])
        cell_m = _SMALLEST_CELL_M
        while len(cells := np.unique(np.floor(positions / cell_m).astype(np.int64), axis=0)) > _MOST_CELLS:
            cell_m *= 2
        return TrainingArea(cell_m, cells)

    @property
    def centres_m(self) -> NDArray[np.float64]:
        """``(N, 3)`` centres of the cells, in the frame of the poses."""
        return np.asarray((self.cells + 0.5) * self.cell_m, np.float64)

    def outside(self, poses: Sequence[Pose]) -> NDArray[np.bool_]:
        """``(len(poses),)`` bool: the pose is neither in an occupied cell nor in one of its 26 neighbours."""
        offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
        known = {tuple(cell) for cell in (self.cells[:, None] + offsets).reshape(-1, 3).tolist()}
        cells = np.floor(np.stack([pose.position_m for pose in poses]) / self.cell_m).astype(np.int64)
        return np.array([tuple(cell) not in known for cell in cells.tolist()])

    def to_record(self) -> dict[str, Any]:
        """Plain values for a checkpoint's training record."""
        return {"cell_m": self.cell_m, "cells": self.cells.tolist()}

    @staticmethod
    def from_training(training: Mapping[str, Any]) -> TrainingArea | None:
        """The area stored in a checkpoint's training record; None where an earlier version wrote the record.

        Raises:
            CheckpointError: it is malformed.
        """
        if "area" not in training:
            return None
        record = training["area"]
        try:
            return TrainingArea(float(record["cell_m"]), np.array(record["cells"], np.int64).reshape(-1, 3))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's record of the training area is malformed ({error!r})") from error
