# SPDX-License-Identifier: Apache-2.0
"""Where the sensors sit: from parameters, tf2_ros where a distribution has it, or /tf_static alone."""

from __future__ import annotations

from typing import Any, Protocol

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time

from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose
from vmloc_ros.core.transforms import StaticTransformTree
from vmloc_ros.ros_types import MissingPackageError, message_class

_TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TransformLookup(Protocol):
    """Finds ``target_from_source`` among the transforms known so far."""

    def find(self, target: str, source: str) -> Pose | None:
        """The latest transform, or None where the frames are not connected."""

    def close(self) -> None:
        """Stop listening."""


def listen_to_transforms(node: Node) -> TransformLookup:
    """A listener to TF with the best means at hand: tf2_ros (static and moving), /tf_static, or nothing."""
    try:
        import tf2_ros
    except ImportError:
        pass
    else:
        return _Tf2Lookup(node, tf2_ros)
    try:
        return _StaticLookup(node, message_class("tf2_msgs/msg/TFMessage"))
    except MissingPackageError as error:
        node.get_logger().warning(f"extrinsics come from parameters only: {error}")
        return _NoLookup()


class _Tf2Lookup:
    """tf2_ros: also follows moving joints, such as a pan-tilt head."""

    def __init__(self, node: Node, tf2_ros: Any) -> None:
        self._unavailable = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def find(self, target: str, source: str) -> Pose | None:
        try:
            return decode_pose(self._buffer.lookup_transform(target, source, Time()))
        except self._unavailable:
            return None

    def close(self) -> None:
        self._listener.unregister()


class _StaticLookup:
    """The transforms of /tf_static; moving joints need tf2_ros."""

    def __init__(self, node: Node, message_type: Any) -> None:
        self._node = node
        self._tree = StaticTransformTree()
        self._subscription = node.create_subscription(message_type, "/tf_static", self._add, _TF_STATIC_QOS)

    def _add(self, message: Any) -> None:
        for transform in message.transforms:
            try:
                pose = decode_pose(transform)
            except MessageError as error:
                self._node.get_logger().error(f"/tf_static, {transform.child_frame_id}: {error}; ignored")
            else:
                self._tree.add(transform.header.frame_id, transform.child_frame_id, pose)

    def find(self, target: str, source: str) -> Pose | None:
        return self._tree.find(target, source)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


class _NoLookup:
    def find(self, target: str, source: str) -> Pose | None:
        return Pose.identity() if target == source else None

    def close(self) -> None:
        pass


class Extrinsics:
    """The two transforms that localization needs; parameters come before TF.

    Args:
        base_from_body: given by parameter, or None.
        camera_from_lidar: given by parameter, or None.
    """

    def __init__(self, lookup: TransformLookup, base_from_body: Pose | None, camera_from_lidar: Pose | None) -> None:
        self._lookup = lookup
        self._base_from_body, self._camera_from_lidar = base_from_body, camera_from_lidar

    def base_from_body(self, base_frame: str, body_frame: str) -> Pose | None:
        """``base_from_body``, or None while unknown."""
        if base_frame == body_frame:
            return Pose.identity()
        return self._base_from_body or self._lookup.find(base_frame, body_frame)

    def camera_from_lidar(self, camera_frame: str, lidar_frame: str) -> Pose | None:
        """``camera_from_lidar``, or None while unknown."""
        return self._camera_from_lidar or self._lookup.find(camera_frame, lidar_frame)

    def close(self) -> None:
        self._lookup.close()
