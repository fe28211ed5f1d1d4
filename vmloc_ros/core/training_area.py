# SPDX-License-Identifier: Apache-2.0
"""Where training poses were: a network knows no place that it has not been shown."""

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

    @property
    def centres_m(self) -> NDArray[np.float64]:
        """``(N, 3)`` middles of the cells, in the frame of the poses."""
        return np.asarray((self.cells + 0.5) * self.cell_m, np.float64)

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
    def from_training(training: Mapping[str, Any]) -> TrainingArea | None:
        """What a checkpoint's record of its training remembers; None where that is of an earlier version.

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
