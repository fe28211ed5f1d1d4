# SPDX-License-Identifier: Apache-2.0
"""True poses at the stamps of frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmloc_ros.core.geometry import Pose, interpolate_poses


def label_frames(
    stamps_ns: Sequence[int], poses: list[Pose], frame_stamps_ns: Sequence[int], gap_s: float
) -> tuple[list[Pose | None], dict[str, int]]:
    """Poses interpolated at the frames' stamps; None outside the poses' time span and in gaps.

    Args:
        stamps_ns: N >= 1 strictly increasing stamps of ``poses``.
        poses: N poses.
        frame_stamps_ns: M stamps.
        gap_s: nothing is interpolated between poses farther apart in time, seconds.

    Returns:
        M poses, and the counts of frames that have none, by reason.
    """
    known, frames = np.asarray(stamps_ns, np.int64), np.asarray(frame_stamps_ns, np.int64)
    labels = interpolate_poses(known, poses, frames)
    inside = sum(label is not None for label in labels)
    after = np.searchsorted(known, frames).clip(0, len(known) - 1)
    before = (np.searchsorted(known, frames, side="right") - 1).clip(0)
    near = known[after] - known[before] <= gap_s * 1e9
    labels = [label if close else None for label, close in zip(labels, near, strict=True)]
    left = sum(label is not None for label in labels)
    return labels, {
        "frames outside the poses' time span": len(labels) - inside,
        "frames in a gap between poses": inside - left,
    }
