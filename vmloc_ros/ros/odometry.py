# SPDX-License-Identifier: Apache-2.0
"""The odometry's pose at an image's stamp, from TF or from an Odometry topic."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from nav_msgs.msg import Odometry
from rclpy.node import Node

from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.pose_buffer import PoseBuffer
from vmloc_ros.core.transform_tree import TransformLookup
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.subscriptions import Input, node_of

_DEPTH = 100  # messages kept while the executor is busy: half a second at 200 Hz


class OdometrySource(Protocol):
    """A source of ``odom_from_base``."""

    def at(self, stamp_ns: int) -> Pose:
        """Interpolate at a stamp. Raises DataError: not known there (yet); its text names what is missing."""

    def subscribe(self, node: Node) -> list[Input]:
        """Create the subscriptions that the source needs beside the transform listener's; returns them."""

    def reset(self) -> None:
        """Forget the odometry so far, after a jump back in time."""


def create_odometry(config: NodeConfig, base_frame: str, lookup: TransformLookup) -> OdometrySource:
    """Create the source that the parameters choose."""
    if config.odometry_topic:
        return OdometryFromTopic(config, base_frame, lookup)
    return OdometryFromTf(config.robot_frame(config.odom_frame), base_frame, lookup)


class OdometryFromTf:
    """Odometry from the transforms between ``odom_frame`` and ``base_frame``."""

    def __init__(self, odom_frame: str, base_frame: str, lookup: TransformLookup) -> None:
        self._odom_frame, self._base_frame, self._lookup = odom_frame, base_frame, lookup

    def at(self, stamp_ns: int) -> Pose:
        return self._lookup.find_at(self._odom_frame, self._base_frame, stamp_ns)

    def subscribe(self, node: Node) -> list[Input]:
        return []

    def reset(self) -> None:
        self._lookup.forget()


class OdometryFromTopic:
    """Odometry from nav_msgs/Odometry of ``base_frame``, or of a frame that static TF connects with it."""

    def __init__(self, config: NodeConfig, base_frame: str, lookup: TransformLookup) -> None:
        self._topic, self._base_frame = config.odometry_topic, base_frame
        self._odom_frame = config.robot_frame(config.odom_frame)
        self._lookup = lookup
        self._lock = threading.Lock()
        self._track = PoseBuffer(config.jump_back_s)
        self._child_frame = base_frame
        self._error: str | None = None  # of the latest message
        self._node: Node | None = None

    def at(self, stamp_ns: int) -> Pose:
        with self._lock:
            if self._error:
                raise DataError(f"{self._topic}: {self._error}")
            try:
                odom_from_child, child_frame = self._track.at(stamp_ns), self._child_frame
            except DataError as error:
                raise DataError(f"{self._topic}: {error}{self._publishers()}") from error
        if child_frame == self._base_frame:
            return odom_from_child
        child_from_base = self._lookup.find(child_frame, self._base_frame)
        if child_from_base is None:
            raise DataError(
                f"{self._topic} has child frame {child_frame}, and TF has no transform from {self._base_frame} to it; "
                f"publish it on /tf_static, or correct parameter base_frame{self._lookup.hint}"
            )
        return odom_from_child @ child_from_base

    def subscribe(self, node: Node) -> list[Input]:
        self._input = Input(node, "odometry", Odometry, self._topic, _DEPTH, self._add)
        self._node = node
        return [self._input]

    def _publishers(self) -> str:
        """Names of the topic's publishers where its odometry alternates; else empty."""
        if self._node is None or self._track.alternation is None:
            return ""
        publishers = self._node.get_publishers_info_by_topic(self._input.topic)
        return f"; its publishers: {', '.join(sorted(map(node_of, publishers))) or 'unknown'}"

    def reset(self) -> None:
        """Do nothing: the track was reset by its first message after the jump, which came before the image."""

    def _add(self, name: str, message: Any) -> None:
        with self._lock:
            try:
                if frame_name(message.header.frame_id) != self._odom_frame:
                    raise DataError(
                        f"its frame is {message.header.frame_id!r}, expected {self._odom_frame!r}; correct parameter "
                        "odom_frame, or the topic"
                    )
                self._track.add(stamp_ns(message.header), decode_pose(message))
            except (DataError, MessageError) as error:
                self._error = str(error)
            else:
                self._child_frame, self._error = frame_name(message.child_frame_id) or self._base_frame, None
