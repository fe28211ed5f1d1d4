# SPDX-License-Identifier: Apache-2.0
"""Options for reading data; one set for all datasets, of which each uses some."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from vmloc_ros.core.cameras import ImageKind
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.image_decoders import SENSOR_BITS
from vmloc_ros.core.names import frame_name

# x, y, z in metres and fixed-axis roll, pitch, yaw in radians.
XyzRpy = tuple[float, float, float, float, float, float]

PoseSource = Literal["ins", "rtk", "gps", "vo"]
Stamps = Literal["header", "log"]
LidarName = Literal["lms_front", "lms_rear", "ldmrs", "velodyne_left", "velodyne_right"]


@dataclass(frozen=True, slots=True)
class RobotCarOptions:
    """Options of RobotCar sequences.

    Attributes:
        scene: which sequences of a folder of sequences are for training and which for testing: ``loop``, ``full``, or
            a text file with lines ``train NAME`` and ``test NAME``.
        allow_missing: use the sequences of the split that exist, instead of raising an error.
        poses: ``ins``, ``rtk`` (the post-processed file, published apart), ``gps`` (heading from the direction of
            motion, no roll and pitch) or ``vo`` (integrated; drifts, starts at the origin).
        drop_bad_status: ignore rows of the INS whose status is not INS_SOLUTION_GOOD.
        lidar: lidar whose scans are used. ``lms_front`` and ``lms_rear`` sweep an upright plane across the road, so
            past scans lie beside and behind the car: in a cylindrical projection, but not in the camera's view.
        accumulate_m: distance driven before the image, metres, whose scans make its cloud; 0 takes the latest scan
            alone. None is 0 for a Velodyne, whose scan covers the surroundings, and 20 for the others: for a planar
            scanner that is the facades on both sides in 100,000 points, driven in three to five seconds, within which
            the poses hardly drift.
        undistort: undistort images by the camera model's lookup table; otherwise frames have no intrinsics.
        extrinsics: folder of the sensors' extrinsics (of the dataset's SDK); empty looks for ``extrinsics`` in the
            sequence's folder and in the folder above.
        models: folder of the camera models and lookup tables; empty looks for ``models`` likewise.
    """

    scene: str = "loop"
    allow_missing: bool = False
    poses: PoseSource = "ins"
    drop_bad_status: bool = False
    lidar: LidarName = "lms_front"
    accumulate_m: float | None = None
    undistort: bool = True
    extrinsics: str = ""
    models: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.distance_m < float("inf"):
            raise ValueError(f"accumulate_m must be 0 or more metres, got {self.accumulate_m}")

    @property
    def distance_m(self) -> float:
        """``accumulate_m``, or its default."""
        if self.accumulate_m is not None:
            return self.accumulate_m
        return 0.0 if self.lidar.startswith("velodyne") else 20.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where sensors are mounted, ``body_from_sensor`` by modality, for bags whose transforms do not say it.

    Each is x, y, z in metres and fixed-axis roll, pitch, yaw in radians, of the frame that the messages lie in: the
    camera's optical frame (x right, y down, z forward) for image and depth. They come before those of the bag.
    """

    image: XyzRpy | None = None
    depth: XyzRpy | None = None
    lidar: XyzRpy | None = None

    @property
    def poses(self) -> dict[str, Pose]:
        """``body_from_sensor`` of the modalities that are given."""
        given = {"image": self.image, "depth": self.depth, "lidar": self.lidar}
        return {name: Pose.from_xyz_rpy(row[:3], row[3:]) for name, row in given.items() if row is not None}

    def __post_init__(self) -> None:
        for name in ("image", "depth", "lidar"):
            if not all(map(math.isfinite, getattr(self, name) or ())):
                raise ValueError(f"mounts.{name} must be finite: x, y, z, roll, pitch, yaw, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of data sources.

    Attributes:
        stride: use every ``stride``-th frame.
        image_topic: topic of a bag; empty chooses the only topic of a suitable type. Likewise the other topics.
        image_kind: bags: whether the image is ``raw``, with K and distortion of its CameraInfo, or ``rectified``, with
            P; ``auto`` decides by the topic's name, see :func:`vmloc_ros.core.cameras.is_rectified`.
        map_frame: for bags whose poses are transforms (/tf): first frame of their chain.
        body_frame: likewise the last frame, where it is empty base_link; also for bags whose pose messages name no
            child frame (PoseStamped), where it is empty base_link or what the bag makes likely, see
            :mod:`training.sources.rosbag.body`. Frames compare without a leading slash.
        mounts: bags: where sensors are mounted on the body.
        slop_s: an image and a cloud (or depth image) pair when their stamps differ by no more, seconds.
        stamps: bags: ``header``, or ``log`` to take the log times of sensors and poses in place of their stamps, for
            recordings whose headers were never stamped. A sensor's delay is then a delay of its pose.
        pose_gap_s: frames between two poses farther apart in time are dropped, not interpolated, seconds.
        image_bits: bags: pictures of 16 bits use at least so many of them: 8, 10, 12, 14 or 16; 0: what their brightest
            pixels need, or what they used in training.
        depth_unit_m: bags: metres per unit of depth images; 0: 0.001 for integers, 1 for floats (REP 118).
        allow_truncated: bags: use what is there of a recording that was cut off, with a warning that says how much.
        skip_invalid: 7-Scenes and bags: skip and count invalid poses instead of raising an error.
        register_depth: 7-Scenes: bring depth into the view of the colour camera; see ``seven_scenes``.
        depth_mount: pose of the depth camera in the colour camera's optical frame, for ``register_depth``: x, y, z in
            metres and fixed-axis roll, pitch, yaw in radians; None is the identity. ``vmloc extrinsics`` estimates it.
        test_from_s: bags: frames at least this long after the first one are the test split, seconds; 0: no test split.
        test_every: bags: every ``test_every``-th block of time is the test split; 0: no test split.
        test_block_s: length of a block, seconds.
        robotcar: options of RobotCar sequences.
    """

    stride: int = 1
    image_topic: str = ""
    depth_topic: str = ""
    cloud_topic: str = ""
    camera_info_topic: str = ""
    pose_topic: str = ""
    image_kind: ImageKind = "auto"
    map_frame: str = "map"
    body_frame: str = ""
    mounts: MountOptions = field(default_factory=MountOptions)
    slop_s: float = 0.1
    stamps: Stamps = "header"
    pose_gap_s: float = 1.0
    image_bits: int = 0
    depth_unit_m: float = 0.0
    allow_truncated: bool = False
    skip_invalid: bool = False
    register_depth: bool = False
    depth_mount: XyzRpy | None = None
    test_from_s: float = 0.0
    test_every: int = 0
    test_block_s: float = 10.0
    robotcar: RobotCarOptions = field(default_factory=RobotCarOptions)

    @property
    def colour_from_depth(self) -> Pose | None:
        """``depth_mount`` as a pose."""
        return None if self.depth_mount is None else Pose.from_xyz_rpy(self.depth_mount[:3], self.depth_mount[3:])

    def __post_init__(self) -> None:
        for name in ("map_frame", "body_frame"):
            object.__setattr__(self, name, frame_name(getattr(self, name)))
        if self.stride < 1 or min(self.slop_s, self.pose_gap_s) <= 0:
            raise ValueError(f"stride >= 1, slop_s > 0 and pose_gap_s > 0, got {self}")
        if self.image_bits not in (0, *SENSOR_BITS):
            raise ValueError(f"image_bits must be 0 or one of {SENSOR_BITS}, got {self.image_bits}")
        if not 0 <= self.depth_unit_m < float("inf"):
            raise ValueError(f"depth_unit_m must be 0 or positive metres, got {self.depth_unit_m}")
        if self.depth_mount is not None and not self.register_depth:
            raise ValueError("depth_mount needs register_depth: depth is brought into the colour camera's view by it")
        if self.test_from_s < 0 or self.test_every < 0 or self.test_every == 1 or self.test_block_s <= 0:
            raise ValueError(f"test_from_s >= 0, test_every 0 or >= 2 and test_block_s > 0, got {self}")
        if self.test_from_s and self.test_every:
            raise ValueError("set test_from_s or test_every, not both")
