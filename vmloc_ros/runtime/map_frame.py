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
    """Where poses are published.

    Attributes:
        name: the frame of published poses.
        parent: the checkpoint's frame where it is another one, else None. Its axes are parallel.
        origin_m: ``(3,)`` float64, the published frame's origin in the checkpoint's.
    """

    name: str
    parent: str | None
    origin_m: NDArray[np.float64]

    def from_checkpoint(self, pose: Pose) -> Pose:
        """A pose in the checkpoint's frame, in this one."""
        return Pose(pose.position_m - self.origin_m, pose.quaternion_wxyz)


def choose_map_frame(
    checkpoint_frame: str, centre_m: Sequence[float], name: str = "", origin_m: Sequence[float] | None = None
) -> MapFrame:
    """The checkpoint's frame, or a local one in the middle of its training poses where these are beyond 10 km.

    The automatic origin is in whole metres, and the same whenever the checkpoint is loaded.

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
