# SPDX-License-Identifier: Apache-2.0
"""Listens to TF by tf2_ros where it is installed, else by a listener of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time

from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.fixed_transforms import FixedTransforms
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.pose_buffer import describe_lag
from vmloc_ros.core.transform_tree import Edge, TransformLookup, TransformTree, describe_break, find_path
from vmloc_ros.ros.packages import MissingPackageError, message_class
from vmloc_ros.ros.tf_watch import HEAR_ALL_QOS, MOVING_TOPIC, STATIC_TOPIC, TransformWatch

TF_TYPE = "tf2_msgs/msg/TFMessage"
TF_QOS = QoSProfile(depth=100)  # as in tf2_ros
TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_PATIENCE_S = 2.0  # time for /tf_static to arrive before fixed transforms are looked for on /tf
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
        return _Tf2Lookup(node, tf2_ros, message_class(TF_TYPE))
    try:
        return _OwnLookup(node, message_class(TF_TYPE), jump_back_s, moving_frame)
    except MissingPackageError as error:
        node.get_logger().warning(f"extrinsics come from parameters only: {error}")
        return _NoLookup()


class _Tf2Lookup:
    """Lookup by tf2_ros, also over moving joints, such as a pan-tilt head."""

    def __init__(self, node: Node, tf2_ros: Any, message_type: Any) -> None:
        self._unavailable = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._watch = TransformWatch(
            node, message_type, {STATIC_TOPIC: self._add_static, MOVING_TOPIC: self._add_moving}
        )

    @property
    def problem(self) -> str | None:
        return self._watch.problem

    @property
    def hint(self) -> str:
        return self._watch.hint

    def find(self, target: str, source: str) -> Pose | None:
        target, source = frame_name(target), frame_name(source)  # tf2 refuses a leading slash
        if target == source:
            return Pose.identity()
        try:
            return decode_pose(self._buffer.lookup_transform(target, source, Time()))
        except self._unavailable:
            self._watch.missing()
            return None

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        time = Time(nanoseconds=stamp_ns)
        try:
            return decode_pose(self._buffer.lookup_transform(frame_name(target), frame_name(source), time))
        except self._unavailable as error:
            self._watch.missing()
            raise DataError(f"{self._explain(target, source, stamp_ns)}{self.hint}") from error

    def _explain(self, target: str, source: str, stamp_ns: int) -> str:
        """Why there is no transform at a stamp, in the words of our own listener; tf2's name no topic."""
        target, source = frame_name(target), frame_name(source)
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
        self._watch.close()
        self._listener.unregister()

    def _add_static(self, message: Any) -> None:
        for transform in message.transforms:
            self._buffer.set_transform_static(transform, "vmloc_ros")

    def _add_moving(self, message: Any) -> None:
        for transform in message.transforms:
            self._buffer.set_transform(transform, "vmloc_ros")


class _OwnLookup:
    """Lookup in /tf_static and, on /tf, above one frame alone; extrinsics over moving joints need tf2_ros.

    Where /tf_static does not lead to a sensor, transforms on /tf that never move serve too: static_transform_publisher
    of ROS 1 and some drivers send mounts there.
    """

    def __init__(self, node: Node, message_type: Any, jump_back_s: float, moving_frame: str | None) -> None:
        self._node, self._message_type, self._moving_frame = node, message_type, frame_name(moving_frame or "")
        self._tree = TransformTree(jump_back_s)
        self._lock = threading.Lock()
        self._subscriptions = [node.create_subscription(message_type, STATIC_TOPIC, self._add_static, TF_STATIC_QOS)]
        heard: dict[str, Callable[[Any], None]] = {STATIC_TOPIC: self._add_static}
        if moving_frame is not None:
            self._subscriptions.append(node.create_subscription(message_type, MOVING_TOPIC, self._add_moving, TF_QOS))
            heard[MOVING_TOPIC] = self._add_moving
        self._watch = TransformWatch(node, message_type, heard, self._listen_for_fixed)
        self._mounts = TransformTree()  # static transforms, and those on /tf that never move
        self._fixed: FixedTransforms | None = None  # of /tf, once a mount is missing
        self._missing_mount_s: float | None = None
        self._told: set[Edge] = set()

    @property
    def problem(self) -> str | None:
        return self._watch.problem

    @property
    def hint(self) -> str:
        return self._watch.hint

    def find(self, target: str, source: str) -> Pose | None:
        with self._lock:
            pose = self._tree.find_static(target, source)
            is_repeated = pose is None
            if is_repeated:
                pose = self._mounts.find_static(target, source)
        if pose is None:
            self._watch.missing()
            self._missing_mount_s = self._missing_mount_s or time.monotonic()
        elif is_repeated:
            self._tell(
                (source, target),
                f"the transform from {frame_name(source)} to {frame_name(target)} is not on {STATIC_TOPIC}; on "
                f"{MOVING_TOPIC} it never moves: taken as fixed",
            )
        return pose

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        try:
            with self._lock:
                return self._tree.find(target, source, stamp_ns)
        except DataError as error:
            self._watch.missing()
            raise DataError(f"{error}{self.hint}") from error

    def forget(self) -> None:
        """Do nothing: each transform was reset by its first message after the jump, which came before the image."""

    def close(self) -> None:
        self._watch.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _add_static(self, message: Any) -> None:
        for transform in message.transforms:
            self._add(transform, STATIC_TOPIC, None)

    def _add_moving(self, message: Any) -> None:
        for transform in message.transforms:
            # Joints come hundreds of times a second and are not needed.
            if frame_name(transform.child_frame_id) in self._tree.ancestors(self._moving_frame):
                self._add(transform, MOVING_TOPIC, stamp_ns(transform.header))

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
            if stamp_ns is None:
                self._mounts.add(transform.header.frame_id, transform.child_frame_id, pose)

    def _listen_for_fixed(self) -> None:
        """Subscribe to all of /tf once a mount has been missing for a while: decoding it all costs time."""
        since_s = self._missing_mount_s
        if self._fixed is None and since_s is not None and time.monotonic() - since_s > _PATIENCE_S:
            self._fixed = FixedTransforms()
            self._subscriptions.append(
                self._node.create_subscription(self._message_type, MOVING_TOPIC, self._add_fixed, HEAR_ALL_QOS)
            )

    def _add_fixed(self, message: Any) -> None:
        assert self._fixed is not None, "it is made before the subscription"
        for transform in message.transforms:
            edge = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
            if edge in self._fixed.moving:
                continue
            try:
                self._fixed.add(*edge, decode_pose(transform))
            except MessageError:  # a transform that is not needed may be invalid
                continue
            with self._lock:
                if edge in self._fixed.moving:
                    self._mounts.remove(*edge)
                elif (pose := self._fixed.fixed.get(edge)) is not None:
                    self._mounts.add(*edge, pose)

    def _tell(self, what: Edge, text: str) -> None:
        """Log a text once."""
        if what not in self._told:
            self._told.add(what)
            self._node.get_logger().info(text)


class _NoLookup:
    """No transforms: tf2_msgs is not installed."""

    problem = None
    hint = ""

    def find(self, target: str, source: str) -> Pose | None:
        return Pose.identity() if frame_name(target) == frame_name(source) else None

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        raise DataError(f"no transform from {source} to {target}: ROS package tf2_msgs is not installed")

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass
