# SPDX-License-Identifier: Apache-2.0
"""Static transforms where tf2 is not available (bags, ROS without a distribution); moved covariances."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose


class StaticTransformTree:
    """Extrinsics as /tf_static publishes them; frame names compare without a leading slash."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Pose]] = {}

    def add(self, parent: str, child: str, parent_from_child: Pose) -> None:
        """Add or replace the transform of ``child``."""
        self._parents[child.lstrip("/")] = (parent.lstrip("/"), parent_from_child)

    def find(self, target: str, source: str) -> Pose | None:
        """``target_from_source``, or None where the frames are not connected."""
        target_chain, source_chain = self._to_root(target.lstrip("/")), self._to_root(source.lstrip("/"))
        for frame, ancestor_from_target in target_chain.items():
            if frame in source_chain:
                return ancestor_from_target.inverse() @ source_chain[frame]
        return None

    def lookup(self, target: str, source: str) -> Pose:
        """``target_from_source``.

        Raises:
            DataError: the frames are not connected.
        """
        pose = self.find(target, source)
        if pose is None:
            parents = {parent for parent, _ in self._parents.values()}
            known = ", ".join(sorted({*self._parents, *parents}))
            raise DataError(f"no static transform from {source!r} to {target!r}; frames known: {known or 'none'}")
        return pose

    def _to_root(self, frame: str) -> dict[str, Pose]:
        """Every ancestor of a frame, itself first, with ``ancestor_from_frame``."""
        chain = {frame: Pose.identity()}
        while frame in self._parents:
            parent, parent_from_frame = self._parents[frame]
            if parent in chain:  # a loop in a broken /tf_static
                break
            chain[parent] = parent_from_frame @ chain[frame]
            frame = parent
        return chain


def moved_covariance(covariance: ArrayLike, offset_m: ArrayLike) -> NDArray[np.float64]:
    """Covariance of a pose whose origin moves by a rigid lever arm.

    A rotation error ``w`` about the map axes displaces the tip of the arm by ``w x offset``, hence the
    Jacobian ``[[I, -[offset]x], [0, I]]`` on (position, rotation about the map axes).

    Args:
        covariance: ``(6, 6)``, order (x, y, z, rot_x, rot_y, rot_z) about the map axes.
        offset_m: ``(3,)`` from the old origin to the new one, in map axes.
    """
    x, y, z = np.asarray(offset_m, np.float64)
    jacobian = np.eye(6)
    jacobian[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
    return np.asarray(jacobian @ np.asarray(covariance, np.float64) @ jacobian.T)
