# SPDX-License-Identifier: Apache-2.0
"""Transforms on /tf that never move, as tf's static_transform_publisher of ROS 1 sent the mounts of sensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.transform_tree import Edge

_STILL_M, _STILL_QUATERNION = 1e-3, 5e-4  # the latter is a milliradian
_LEAST = 3  # messages


class FixedTransforms:
    """Finds the transforms that stay the same in all messages.

    A joint that merely has not moved yet counts as fixed until it does: say which transforms were taken.

    Attributes:
        moving: parent and child of transforms that have moved.
    """

    def __init__(self) -> None:
        self.moving: set[Edge] = set()
        self._seen: dict[Edge, tuple[int, Pose]] = {}

    def add(self, parent: str, child: str, parent_from_child: Pose) -> None:
        """Add a transform; it is compared with its first."""
        edge = frame_name(parent), frame_name(child)
        if edge in self.moving:
            return
        count, first = self._seen.get(edge, (0, parent_from_child))
        if fixed_pose(np.stack([_row(first), _row(parent_from_child)])) is None:
            self.moving.add(edge)
            self._seen.pop(edge)
        else:
            self._seen[edge] = count + 1, first

    @property
    def fixed(self) -> dict[Edge, Pose]:
        """``parent_from_child`` of what came three times or more and never moved."""
        return {edge: pose for edge, (count, pose) in self._seen.items() if count >= _LEAST}


def fixed_pose(rows: NDArray[np.float64]) -> Pose | None:
    """The first of poses ``(N, 7)`` x y z qw qx qy qz that differ by less than 1 mm and 1 mrad; else None."""
    if not np.isfinite(rows).all() or not np.linalg.norm(rows[0, 3:]):
        return None
    # A quaternion and its negative are one rotation.
    signs = np.where(rows[:, 3:] @ rows[0, 3:] < 0, -1.0, 1.0)
    apart = np.abs(rows[:, 3:] * signs[:, None] - rows[0, 3:])
    if np.abs(rows[:, :3] - rows[0, :3]).max() > _STILL_M or apart.max() > _STILL_QUATERNION:
        return None
    return Pose(rows[0, :3], rows[0, 3:])


def _row(pose: Pose) -> NDArray[np.float64]:
    return np.concatenate([pose.position_m, pose.quaternion_wxyz])
