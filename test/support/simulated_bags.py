# SPDX-License-Identifier: Apache-2.0
"""Readers of simulated bags, for the tests of the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.geometry import Pose

SMALL: dict[str, Any] = {"image_size": (64, 48), "duration_s": 2.5, "progress": False}
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("ring", "<u2"), ("time", "<f4")])
CAMERA, LIDAR = "camera_optical_frame", "lidar_link"

Messages = dict[str, list[tuple[int, Any]]]


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def read(path: Path) -> Messages:
    """Log times and messages by topic."""
    messages: Messages = {}
    with open_bag(path) as reader:
        for connection, log_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((log_ns, message))
    return messages


def raw(path: Path) -> list[tuple[str, int, bytes]]:
    with open_bag(path) as reader:
        return [(c.topic, log_ns, bytes(data)) for c, log_ns, data in reader.messages()]


def pose_of(position: Any, orientation: Any) -> Pose:
    return Pose(
        np.array([position.x, position.y, position.z]),
        np.array([orientation.w, orientation.x, orientation.y, orientation.z]),
    )


def truth(messages: Messages) -> tuple[list[int], list[Pose]]:
    poses = [message for _, message in messages["/ground_truth/pose"]]
    return [stamp_ns(m) for m in poses], [pose_of(m.pose.position, m.pose.orientation) for m in poses]


def mounts(messages: Messages) -> dict[str, Pose]:
    [(_, tree)] = messages["/tf_static"]
    assert {t.header.frame_id for t in tree.transforms} == {"base_link"}
    return {t.child_frame_id: pose_of(t.transform.translation, t.transform.rotation) for t in tree.transforms}
