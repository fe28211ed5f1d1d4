# SPDX-License-Identifier: Apache-2.0
"""The frame that poses are published in: the checkpoint's own, or a local one where its coordinates are large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.geometry import Pose

# TF users compute in float32 (RViz, point clouds, GPUs), which resolves a millimetre up to here.
_LARGE_M = 10_000.0
_LOCAL_NAME = "map"  # REP-105
_PARENT_NAME = "checkpoint_map"


@dataclass(frozen=True, slots=True, eq=False)
class MapFrame:
    """The frame of published poses.

    Attributes:
        name: the frame of published poses.
        parent: the checkpoint's frame, whose axes are parallel; None where ``name`` is the checkpoint's frame.
        origin_m: ``(3,)`` float64, origin of ``name`` in ``parent``.
    """

    name: str
    parent: str | None
    origin_m: NDArray[np.float64]

    def from_checkpoint(self, pose: Pose) -> Pose:
        """Transform a pose from the checkpoint's frame to this one."""
        return Pose(pose.position_m - self.origin_m, pose.quaternion_wxyz)


def choose_map_frame(
    checkpoint_frame: str, centre_m: Sequence[float], name: str = "", origin_m: Sequence[float] | None = None
) -> MapFrame:
    """Choose the checkpoint's frame, or a local one amid its training poses where these lie beyond 10 km.

    The automatic origin is in whole metres and depends on the checkpoint alone.

    Args:
        centre_m: mean training position in the checkpoint's frame.
        name: of the published frame; empty: the checkpoint's, or ``map`` for a local one.
        origin_m: of the published frame in the checkpoint's; None: automatic.
    """
    if origin_m is not None:
        origin = np.array(origin_m, np.float64)
    else:
        origin = np.round(centre_m) if np.abs(centre_m).max() > _LARGE_M else np.zeros(3)
    if not origin.any():
        return MapFrame(name or checkpoint_frame, None, origin)
    local = name or _LOCAL_NAME
    return MapFrame(local, checkpoint_frame if checkpoint_frame != local else _PARENT_NAME, origin)
