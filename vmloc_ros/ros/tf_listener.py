# SPDX-License-Identifier: Apache-2.0
"""Listens to TF by tf2_ros where it is installed, else by a listener of its own."""

from __future__ import annotations

import re
import threading
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time

from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.pose_buffer import describe_lag
from vmloc_ros.core.transform_tree import TransformLookup, TransformTree, describe_break, find_path
from vmloc_ros.ros.packages import MissingPackageError, message_class

TF_TYPE = "tf2_msgs/msg/TFMessage"
TF_QOS = QoSProfile(depth=100)  # as in tf2_ros
TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Child, parent, newest and oldest stamp in tf2's list of frames, which is YAML. Callers poll, and a robot may have
# hundreds of frames: a YAML parser would take 20 ms each time.
_TF2_FRAME = re.compile(
    r"^(\S+): *\n +parent: '(.*)'\n(?: .*\n)*? +most_recent_transform: ([\d.]+)\n +oldest_transform: ([\d.]+)$",
    re.MULTILINE,
)


def listen_to_transforms(node: Node, jump_back_s: float, moving_frame: str | None = None) -> TransformLookup:
    """Listen to TF by the best means installed: tf2_ros, a listener of our own, or, without tf2_msgs, nothing.

    Args:
        jump_back_s: a transform whose stamps go back by more than this starts anew.
        moving_frame: the source frame of :meth:`TransformLookup.find_at`; None if that is not used. Our own listener
            decodes only the transforms above this frame from /tf; tf2_ros decodes all.
    """
    try:
        import tf2_ros
    except ImportError:
        pass
    else:
        return _Tf2Lookup(node, tf2_ros)
    try:
        return _OwnLookup(node, message_class(TF_TYPE), jump_back_s, moving_frame)
    except MissingPackageError as error:
        node.get_logger().warning(f"extrinsics come from parameters only: {error}")
        return _NoLookup()


class _Tf2Lookup:
    """Lookup by tf2_ros, also over moving joints, such as a pan-tilt head."""

    def __init__(self, node: Node, tf2_ros: Any) -> None:
        self._unavailable = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def find(self, target: str, source: str) -> Pose | None:
        try:
            return decode_pose(self._buffer.lookup_transform(target, source, Time()))
        except self._unavailable:
            return None

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        try:
            return decode_pose(self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns)))
        except self._unavailable as error:
            raise DataError(self._explain(target, source, stamp_ns)) from error

    def _explain(self, target: str, source: str, stamp_ns: int) -> str:
        """Why there is no transform at a stamp, in the words of our own listener; tf2's name no topic."""
        rows = {child: row for child, *row in _TF2_FRAME.findall(self._buffer.all_frames_as_yaml())}
        parents = {child: parent for child, (parent, *_) in rows.items()}
        path = find_path(((parent, child) for child, parent in parents.items()), target, source)
        if path is None:
            return describe_break(parents, target, source)
        for (parent, child), _ in path:
            latest_ns, oldest_ns = (round(float(seconds) * 1e9) for seconds in rows[child][1:])
            if 0 < latest_ns < stamp_ns:  # zero: static
                return f"{parent} -> {child} on /tf: {describe_lag(latest_ns, stamp_ns)}"
            if oldest_ns > stamp_ns:
                return f"{parent} -> {child} on /tf: does not reach back to the image's stamp"
        return f"{target} -> {source} was not known at the image's stamp a moment ago"

    def forget(self) -> None:
        self._buffer.clear()  # keeps static transforms

    def close(self) -> None:
        self._listener.unregister()


class _OwnLookup:
    """Lookup in /tf_static and, on /tf, above one frame alone; extrinsics over moving joints need tf2_ros."""

    def __init__(self, node: Node, message_type: Any, jump_back_s: float, moving_frame: str | None) -> None:
        self._node, self._moving_frame = node, (moving_frame or "").lstrip("/")
        self._tree = TransformTree(jump_back_s)
        self._lock = threading.Lock()
        self._subscriptions = [node.create_subscription(message_type, "/tf_static", self._add_static, TF_STATIC_QOS)]
        if moving_frame is not None:
            self._subscriptions.append(node.create_subscription(message_type, "/tf", self._add_moving, TF_QOS))

    def _add_static(self, message: Any) -> None:
        for transform in message.transforms:
            self._add(transform, "/tf_static", None)

    def _add_moving(self, message: Any) -> None:
        for transform in message.transforms:
            # Joints come hundreds of times a second and are not needed.
            if transform.child_frame_id.lstrip("/") in self._tree.ancestors(self._moving_frame):
                self._add(transform, "/tf", stamp_ns(transform.header))

    def _add(self, transform: Any, topic: str, stamp_ns: int | None) -> None:
        try:
            pose = decode_pose(transform)
        except MessageError as error:
            self._node.get_logger().error(
                f"{topic}, {transform.child_frame_id}: {error}; ignored", throttle_duration_sec=5.0
            )
            return
        with self._lock:
            self._tree.add(transform.header.frame_id, transform.child_frame_id, pose, stamp_ns)

    def find(self, target: str, source: str) -> Pose | None:
        with self._lock:
            return self._tree.find_static(target, source)

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        with self._lock:
            return self._tree.find(target, source, stamp_ns)

    def forget(self) -> None:
        """Do nothing: each transform was reset by its first message after the jump, which came before the image."""

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)


class _NoLookup:
    """No transforms: tf2_msgs is not installed."""

    def find(self, target: str, source: str) -> Pose | None:
        return Pose.identity() if target == source else None

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        raise DataError(f"no transform from {source} to {target}: ROS package tf2_msgs is not installed")

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass
