# SPDX-License-Identifier: Apache-2.0
"""Bags of drives through a room whose measurements are exact, for tests that plan and train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rooms import CAMERA, LIDAR, ORIGIN_M, room_frame
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import (
    camera_info_message,
    image_message,
    point_cloud_message,
    pose_stamped_message,
    tf_message,
)
from vmloc_ros.core.geometry import Pose

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
SIZE = (48, 64)
_OPTICAL, _LIDAR, _BODY = "camera_optical_frame", "lidar_link", "base_link"


def pose_at(number: int, lap: int = 30) -> Pose:
    """Frame ``number`` of a drive around the room, of so many frames a lap."""
    turn = 2 * np.pi * number / lap
    position = np.array([4 * np.cos(turn), 3 * np.sin(turn), -1.0])
    return Pose.from_xyz_rpy(position, [0.0, 0.0, turn + np.pi / 2])


def write_room_bag(
    path: Path,
    sensors: Sequence[str],
    frames: int = 150,
    *,
    poses_in_tf: bool = False,
    mounts: bool = True,
    calibrated: bool = True,
) -> Path:
    """A drive of several laps with these sensors.

    Args:
        poses_in_tf: poses are transforms from map to base_link; else a PoseStamped.
        mounts: whether /tf_static says where the sensors are mounted.
        calibrated: whether there is a camera info.
    """
    with BagWriter(path) as bag:
        if mounts:
            edges = [(_BODY, _OPTICAL, CAMERA, START_NS), (_BODY, _LIDAR, LIDAR, START_NS)]
            bag.write("/tf_static", tf_message(edges), START_NS)
        for number in range(frames):
            stamp, pose = START_NS + number * STEP_NS, pose_at(number)
            frame = room_frame(Pose(pose.position_m + ORIGIN_M, pose.quaternion_wxyz), sensors, number, SIZE)
            if frame.image is not None:
                bag.write("/camera/image_raw", image_message(stamp, _OPTICAL, _wall(number), "rgb8"), stamp)
            if frame.depth_m is not None:
                bag.write("/camera/depth/image_raw", image_message(stamp, _OPTICAL, frame.depth_m, "32FC1"), stamp)
            if frame.cloud is not None:
                bag.write("/lidar/points", point_cloud_message(stamp, _LIDAR, frame.cloud), stamp)
            if calibrated and frame.camera is not None:
                bag.write("/camera/camera_info", camera_info_message(stamp, _OPTICAL, frame.camera), stamp)
            if poses_in_tf:
                bag.write("/tf", tf_message([("map", _BODY, pose, stamp)]), stamp)
            else:
                bag.write("/pose", pose_stamped_message(stamp, "map", pose), stamp)
    return path


def _wall(number: int) -> np.ndarray:
    """A picture that changes smoothly with the place."""
    v, u = np.indices(SIZE)
    waves = [np.sin(u / 5 + number / 3), np.cos(v / 7 + number / 4), np.sin((u + v) / 9 - number / 5)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
