# SPDX-License-Identifier: Apache-2.0
"""Pose errors and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.geometry import Pose, rotation_angle_deg

# (metres, degrees) of the long-term visual localization benchmarks
THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
PERCENTILES = (75, 90, 95)


@dataclass(frozen=True, slots=True, eq=False)
class PoseErrors:
    """Errors of N estimates.

    Attributes:
        position_m: ``(N,)`` Euclidean distance.
        rotation_deg: ``(N,)`` angle between orientations.
    """

    position_m: NDArray[np.float64]
    rotation_deg: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.position_m)

    def summary(self) -> dict[str, float]:
        """Median, mean, :data:`PERCENTILES` and the shares within :data:`THRESHOLDS`."""
        result: dict[str, float] = {"frames": float(len(self))}
        for name, values in (("position_m", self.position_m), ("rotation_deg", self.rotation_deg)):
            result[f"median_{name}"] = float(np.median(values))
            result[f"mean_{name}"] = float(np.mean(values))
            result |= {f"p{rank}_{name}": float(np.percentile(values, rank)) for rank in PERCENTILES}
        for metres, degrees in THRESHOLDS:
            within = (self.position_m <= metres) & (self.rotation_deg <= degrees)
            result[f"within_{metres:g}m_{degrees:g}deg"] = float(np.mean(within))
        return result


def pose_errors(truth: Sequence[Pose], estimates: Sequence[Pose]) -> PoseErrors:
    """Errors of estimates against the truth, one by one.

    Raises:
        ValueError: there are none, or the lengths differ.
    """
    if not truth or len(truth) != len(estimates):
        raise ValueError(f"{len(estimates)} estimates for {len(truth)} true poses")
    positions = np.stack([pose.position_m for pose in truth]) - np.stack([pose.position_m for pose in estimates])
    rotation = rotation_angle_deg(
        np.stack([pose.quaternion_wxyz for pose in truth]), np.stack([pose.quaternion_wxyz for pose in estimates])
    )
    return PoseErrors(np.linalg.norm(positions, axis=1), rotation)


def pose_statistics(poses: Sequence[Pose]) -> dict[str, Any]:
    """Count, bounds and mean of positions, metres."""
    positions = np.stack([pose.position_m for pose in poses])
    return {
        "poses": len(poses),
        "min_m": positions.min(axis=0).round(3).tolist(),
        "max_m": positions.max(axis=0).round(3).tolist(),
        "mean_m": positions.mean(axis=0).round(3).tolist(),
    }
