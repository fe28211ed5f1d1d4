# SPDX-License-Identifier: Apache-2.0
"""Small recordings for tests: their content, and writers of every storage format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from helpers import yaw_pose
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import (
    camera_info_message,
    image_message,
    odometry_message,
    point_cloud_message,
    pose_stamped_message,
    tf_message,
)
from vmloc_ros.core.frame import PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose, rotation_angle_deg

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
CAMERA = PinholeCamera(8, 6, 5.0, 5.0, 3.5, 2.5)
BASE_FROM_CAMERA = Pose.from_xyz_rpy([0.2, 0.0, 1.0], [-np.pi / 2, 0.0, -np.pi / 2])
BASE_FROM_LIDAR = Pose.from_xyz_rpy([0.0, 0.1, 1.5], [0.0, 0.0, 0.3])

Message = tuple[str, Any, int]  # topic, message, stamp


def picture(value: int) -> np.ndarray:
    return np.full((6, 8, 3), value, np.uint8)


def images(count: int = 10, topic: str = "/camera/image_raw", start: int = T0, step: int = 100 * MS) -> list[Message]:
    """Every pixel of image i has the value i."""
    stamps = [start + i * step for i in range(count)]
    return [(topic, image_message(t, "camera_optical_frame", picture(i), "rgb8"), t) for i, t in enumerate(stamps)]


def depths(count: int = 10, topic: str = "/camera/depth/image_raw") -> list[Message]:
    stamps = [T0 + i * 100 * MS for i in range(count)]
    return [
        (topic, image_message(t, "camera_optical_frame", np.full((6, 8), 1000 + i, np.uint16), "16UC1"), t)
        for i, t in enumerate(stamps)
    ]


def clouds(count: int = 10, offset: int = 30 * MS) -> list[Message]:
    """x of every point of cloud i is i + 1; clouds lag behind the images."""
    stamps = [T0 + i * 100 * MS + offset for i in range(count)]
    return [
        (
            "/lidar/points",
            point_cloud_message(
                t, "lidar_link", PointCloud(np.full((5, 3), i + 1, np.float32), np.full(5, i, np.float32))
            ),
            t,
        )
        for i, t in enumerate(stamps)
    ]


def true_pose(stamp_ns: int) -> Pose:
    """1 m/s along x and 30 deg/s: linear, so that interpolation between poses is exact."""
    seconds = (stamp_ns - T0) * 1e-9
    return yaw_pose(seconds, -2 * seconds, 30 * seconds)


def poses(first: int = -2, last: int = 30, topic: str = "/ground_truth/pose", step: int = 70 * MS) -> list[Message]:
    stamps = [T0 + i * step for i in range(first, last)]
    return [(topic, pose_stamped_message(t, "map", true_pose(t)), t) for t in stamps]


def odometry(topic: str = "/odom", child: str = "base_footprint") -> list[Message]:
    stamps = [T0 + i * 50 * MS for i in range(-2, 40)]
    return [(topic, odometry_message(t, "odom", child, true_pose(t)), t) for t in stamps]


def calibration() -> list[Message]:
    transforms = [
        ("base_link", "camera_optical_frame", BASE_FROM_CAMERA, T0),
        ("base_link", "lidar_link", BASE_FROM_LIDAR, T0),
    ]
    return [
        ("/tf_static", tf_message(transforms), T0 - 1),
        ("/camera/camera_info", camera_info_message(T0, "camera_optical_frame", CAMERA), T0),
    ]


def write_bag(path: Path, *streams: Iterable[Message]) -> Path:
    with BagWriter(path) as bag:
        for topic, message, stamp in sorted(itertools.chain(*streams), key=lambda entry: entry[2]):
            bag.write(topic, message, stamp)
    return path


def source(path: Path, modalities: tuple[str, ...] = ("image", "lidar"), **options: Any) -> RosbagSource:
    return RosbagSource(path, SourceOptions(**options), modalities)


def assert_pose(actual: Pose, expected: Pose) -> None:
    np.testing.assert_allclose(actual.position_m, expected.position_m, atol=1e-6)
    assert rotation_angle_deg(actual.quaternion_wxyz, expected.quaternion_wxyz) < 1e-6
