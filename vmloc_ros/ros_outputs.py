# SPDX-License-Identifier: Apache-2.0
"""What the node publishes of an estimate: poses and TF at once, the path now and then."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from vmloc_ros.core.geometry import Pose
from vmloc_ros.ros_types import message_class

_OUTPUT_DEPTH = 10
_TF_DEPTH = 100  # as tf2_ros has it


class Outputs:
    """Publishers of poses of ``base_frame`` in ``map_frame``.

    Raises:
        MissingPackageError: TF is wanted and tf2_msgs is not installed.
    """

    def __init__(self, node: Node, map_frame: str, base_frame: str, path_length: int, publish_tf: bool) -> None:
        tf_type = message_class("tf2_msgs/msg/TFMessage") if publish_tf else None
        self._node = node
        self._map_frame, self._base_frame = map_frame, base_frame
        self._trail: deque[PoseStamped] = deque(maxlen=path_length)
        self._lock = threading.Lock()
        self._publishers: list[Any] = []
        self._pose = self._create(PoseStamped, "~/pose", _OUTPUT_DEPTH)
        self._pose_with_covariance = self._create(PoseWithCovarianceStamped, "~/pose_with_covariance", _OUTPUT_DEPTH)
        self._path = self._create(Path, "~/path", 1) if path_length else None
        self._tf = self._create(tf_type, "/tf", _TF_DEPTH) if tf_type else None

    def publish(self, stamp_ns: int, map_from_base: Pose, covariance: NDArray[np.float64]) -> None:
        """Publish one pose everywhere, with ``covariance`` ``(6, 6)`` about the map axes."""
        pose = self._pose_message(stamp_ns, map_from_base)
        self._pose.publish(pose)
        with_covariance = PoseWithCovarianceStamped(header=pose.header)
        with_covariance.pose.pose = pose.pose
        with_covariance.pose.covariance = covariance.ravel()
        self._pose_with_covariance.publish(with_covariance)
        if self._tf is not None:
            self._tf.publish(self._tf.msg_type(transforms=[self._transform_message(pose)]))
        with self._lock:
            self._trail.append(pose)

    def publish_path(self) -> None:
        """Publish the path if anyone looks; for a slow timer: a thousand poses take 10 ms to convert."""
        if self._path is None or not self._path.get_subscription_count():
            return
        with self._lock:
            poses = list(self._trail)
        if poses:
            self._path.publish(Path(header=poses[-1].header, poses=poses))

    def forget_path(self) -> None:
        """Start the path anew, as after a jump back in time."""
        with self._lock:
            self._trail.clear()

    def close(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def _create(self, message_type: Any, topic: str, depth: int) -> Any:
        publisher = self._node.create_publisher(message_type, topic, depth)
        self._publishers.append(publisher)
        return publisher

    def _pose_message(self, stamp_ns: int, pose: Pose) -> PoseStamped:
        message = PoseStamped()
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        message.header.frame_id = self._map_frame
        position, orientation = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = pose.position_m.tolist()
        orientation.w, orientation.x, orientation.y, orientation.z = pose.quaternion_wxyz.tolist()
        return message

    def _transform_message(self, pose: PoseStamped) -> TransformStamped:
        message = TransformStamped(header=pose.header, child_frame_id=self._base_frame)
        position, translation = pose.pose.position, message.transform.translation
        translation.x, translation.y, translation.z = position.x, position.y, position.z
        message.transform.rotation = pose.pose.orientation
        return message
