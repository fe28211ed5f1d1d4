# SPDX-License-Identifier: Apache-2.0
"""How to read a source; one set of options for all datasets, each uses those that concern it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of data sources.

    Attributes:
        stride: use every ``stride``-th frame.
        image_topic: of a bag; empty finds the only topic of a fitting type. Likewise the other topics.
        body_frame: of a bag whose pose messages name no child frame (PoseStamped).
        slop_s: an image and a cloud (or depth image) pair when their stamps differ by no more, seconds.
        pose_gap_s: of a bag: frames between two poses farther apart in time are dropped, not interpolated, seconds.
        skip_invalid: 7-Scenes: skip and count frames with a missing pose instead of stopping.
    """

    stride: int = 1
    image_topic: str = ""
    depth_topic: str = ""
    cloud_topic: str = ""
    camera_info_topic: str = ""
    pose_topic: str = ""
    body_frame: str = "base_link"
    slop_s: float = 0.1
    pose_gap_s: float = 1.0
    skip_invalid: bool = False

    def __post_init__(self) -> None:
        if self.stride < 1 or min(self.slop_s, self.pose_gap_s) <= 0:
            raise ValueError(f"stride >= 1, slop_s > 0 and pose_gap_s > 0, got {self}")
