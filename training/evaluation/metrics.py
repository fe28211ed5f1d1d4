# SPDX-License-Identifier: Apache-2.0
"""Pose errors and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose, rotation_angle_deg

# (metres, degrees) of the long-term visual localization benchmarks
THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
PERCENTILES = (75, 90, 95)
FAR_OFF = THRESHOLDS[1]  # an estimate with a larger error in either should have been withheld
CONFIDENCE_LIMIT = 0.05  # estimates below it count as withheld: 5 % of in-distribution frames are


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
        ValueError: there are no poses, or the lengths differ.
    """
    if not truth or len(truth) != len(estimates):
        raise ValueError(f"{len(estimates)} estimates for {len(truth)} true poses")
    positions = np.stack([pose.position_m for pose in truth]) - np.stack([pose.position_m for pose in estimates])
    rotation = rotation_angle_deg(
        np.stack([pose.quaternion_wxyz for pose in truth]), np.stack([pose.quaternion_wxyz for pose in estimates])
    )
    return PoseErrors(np.linalg.norm(positions, axis=1), rotation)


def confidence_summary(errors: PoseErrors, estimates: Sequence[Estimate]) -> dict[str, float]:
    """Metrics of the confidence, over the estimates that have one; empty if none has.

    Shares of frames: ``dropped_sensor`` (an outlier sensor was dropped), ``withheld`` (confidence below
    :data:`CONFIDENCE_LIMIT`), ``far_off`` (error above :data:`FAR_OFF`), ``far_off_and_out`` (far off, not withheld).
    ``far_off_auc``, the area under the ROC curve of detecting far-off frames, where there are both kinds.
    """
    known = np.array([estimate.confidence is not None for estimate in estimates])
    if not known.any():
        return {}
    confidence = np.array([estimate.confidence for estimate in estimates if estimate.confidence is not None])
    dropped = np.array([bool(estimate.dropped_sensors) for estimate in estimates])[known]
    metres, degrees = FAR_OFF
    far = (errors.position_m[known] > metres) | (errors.rotation_deg[known] > degrees)
    withheld = confidence < CONFIDENCE_LIMIT
    shares = {
        "dropped_sensor": dropped,
        "left_out": dropped,  # deprecated name of dropped_sensor, for one release
        "withheld": withheld,
        "far_off": far,
        "far_off_and_out": far & ~withheld,
    }
    summary = {name: float(np.mean(share)) for name, share in shares.items()}
    if far.any() and not far.all():
        summary["far_off_auc"] = area_under_roc(confidence[~far], confidence[far])
    return summary


def area_under_roc(nominal: ArrayLike, outliers: ArrayLike) -> float:
    """Probability that a nominal frame has more confidence than an outlier, ties counting half (Mann-Whitney U).

    Args:
        nominal, outliers: confidence of frames, ``(N,)`` and ``(M,)``.
    """
    ordered, values = np.sort(np.asarray(nominal, np.float64)), np.asarray(outliers, np.float64)
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return float(1 - np.mean(below) / (2 * len(ordered)))
