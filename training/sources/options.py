# SPDX-License-Identifier: Apache-2.0
"""How to read a source; one set of options for all datasets, each uses those that concern it."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.sources.robotcar_options import RobotCarOptions
from vmloc_ros.core.geometry import Pose


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of data sources.

    Attributes:
        stride: use every ``stride``-th frame.
        image_topic: of a bag; empty finds the only topic of a fitting type. Likewise the other topics.
        map_frame: of a bag whose poses are transforms (/tf): where their chain begins.
        body_frame: likewise where it ends; of a bag whose pose messages name no child frame (PoseStamped).
        slop_s: an image and a cloud (or depth image) pair when their stamps differ by no more, seconds.
        pose_gap_s: frames between two poses farther apart in time are dropped, not interpolated, seconds.
        skip_invalid: 7-Scenes and bags: skip and count what has an invalid pose instead of stopping.
        register_depth: 7-Scenes: bring depth into the view of the colour camera; see ``seven_scenes``.
        depth_mount: likewise: where the depth camera is in the colour camera's optical frame: x, y, z in metres and
            fixed-axis roll, pitch, yaw in radians; None is the same place. ``vmloc extrinsics`` estimates it.
        test_from_s: of a bag: frames this long after its first one, or longer, are its test split, seconds; 0 has none.
        test_every: of a bag: every ``test_every``-th block of time is its test split; 0 has none.
        test_block_s: length of a block, seconds.
        robotcar: what concerns RobotCar alone.
    """

    stride: int = 1
    image_topic: str = ""
    depth_topic: str = ""
    cloud_topic: str = ""
    camera_info_topic: str = ""
    pose_topic: str = ""
    map_frame: str = "map"
    body_frame: str = "base_link"
    slop_s: float = 0.1
    pose_gap_s: float = 1.0
    skip_invalid: bool = False
    register_depth: bool = False
    depth_mount: tuple[float, float, float, float, float, float] | None = None
    test_from_s: float = 0.0
    test_every: int = 0
    test_block_s: float = 10.0
    robotcar: RobotCarOptions = field(default_factory=RobotCarOptions)

    @property
    def colour_from_depth(self) -> Pose | None:
        """``depth_mount`` as a pose."""
        return None if self.depth_mount is None else Pose.from_xyz_rpy(self.depth_mount[:3], self.depth_mount[3:])

    def __post_init__(self) -> None:
        if self.stride < 1 or min(self.slop_s, self.pose_gap_s) <= 0:
            raise ValueError(f"stride >= 1, slop_s > 0 and pose_gap_s > 0, got {self}")
        if self.depth_mount is not None and not self.register_depth:
            raise ValueError("depth_mount needs register_depth: depth is brought into the colour camera's view by it")
        if self.test_from_s < 0 or self.test_every < 0 or self.test_every == 1 or self.test_block_s <= 0:
            raise ValueError(f"test_from_s >= 0, test_every 0 or >= 2 and test_block_s > 0, got {self}")
        if self.test_from_s and self.test_every:
            raise ValueError("set test_from_s or test_every, not both")
