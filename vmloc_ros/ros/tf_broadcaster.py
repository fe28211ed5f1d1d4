# SPDX-License-Identifier: Apache-2.0
"""Publishes transforms on /tf and /tf_static."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time

from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.ros.odometry import OdometrySource
from vmloc_ros.ros.packages import message_class
from vmloc_ros.ros.parameters import MAP_TO_BASE, MAP_TO_ODOM, NO_TF, NodeConfig
from vmloc_ros.ros.tf_listener import TF_QOS, TF_TYPE
from vmloc_ros.runtime.map_frame import MapFrame

_LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_POLL_S = 0.02
_PATIENCE_S = 1.0  # longest wait of a fix for odometry
_LOG_PERIOD_S = 5.0


class Broadcaster(Protocol):
    """Publishes the transform that follows from a fix, a pose of the base in the map.

    Attributes:
        published, withheld: numbers of transforms.
        problem: reason why the latest fix led to no transform, or None.
    """

    published: int
    withheld: int
    problem: str | None

    def fix(self, stamp_ns: int, map_from_base: Pose) -> None:
        """Add a fix, from any thread."""

    def reset(self) -> None:
        """Discard the fixes so far; publish nothing until the next one."""

    def close(self) -> None:
        """Destroy timers and publishers."""


def create_broadcaster(
    node: Node, config: NodeConfig, map_frame: str, base_frame: str, odometry: OdometrySource | None
) -> Broadcaster | None:
    """Create the broadcaster of parameter ``tf_mode``; None for mode ``none``.

    Raises:
        MissingPackageError: tf2_msgs is not installed.
        ConfigError: parameters contradict each other.
    """
    check_broadcast(config, map_frame, base_frame)
    if config.tf_mode == NO_TF:
        return None
    if config.tf_mode == MAP_TO_BASE:
        return MapToBase(node, map_frame, base_frame)
    assert odometry is not None, "map_to_odom comes with odometry"
    return MapToOdom(node, config, map_frame, odometry)


def check_broadcast(config: NodeConfig, map_frame: str, base_frame: str) -> None:
    """Raise what :func:`create_broadcaster` would."""
    if config.tf_rate_hz and config.tf_mode != MAP_TO_ODOM:
        raise ConfigError(
            f"tf_rate_hz is {config.tf_rate_hz:g}, but {map_frame} -> {base_frame} cannot be repeated while the robot "
            f"moves; set tf_mode to {MAP_TO_ODOM}, or tf_rate_hz to 0"
        )
    if config.tf_mode != NO_TF:
        message_class(TF_TYPE)


class _Sender:
    """Publishes one transform of /tf."""

    def __init__(self, node: Node, parent: str, child: str) -> None:
        self._node = node
        self.name, self._parent, self._child = f"{parent} -> {child}", parent, child
        self._publisher = node.create_publisher(message_class(TF_TYPE), "/tf", TF_QOS)

    def send(self, stamp_ns: int, parent_from_child: Pose) -> None:
        message = transform_message(stamp_ns, self._parent, self._child, parent_from_child)
        self._publisher.publish(self._publisher.msg_type(transforms=[message]))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


class MapToBase:
    """``map -> base_link`` at each fix, with its stamp: for robots without odometry."""

    problem = None
    withheld = 0

    def __init__(self, node: Node, map_frame: str, base_frame: str) -> None:
        self._sender = _Sender(node, map_frame, base_frame)
        self.published = 0

    def fix(self, stamp_ns: int, map_from_base: Pose) -> None:
        self._sender.send(stamp_ns, map_from_base)
        self.published += 1

    def reset(self) -> None:
        """Do nothing: no fix is kept."""

    def close(self) -> None:
        self._sender.close()


class MapToOdom:
    """``map -> odom`` (REP-105), which combined with the odometry's ``odom -> base_link`` gives the fix.

    A fix waits at most 1 s until the odometry reaches its stamp. Each transform is stamped ``transform_tolerance_s``
    after its fix, as in nav2_amcl, so that lookups succeed until the next one comes. With ``tf_rate_hz`` the latest is
    repeated; all are then stamped ``transform_tolerance_s`` after the node's clock, so that stamps never go back.
    """

    def __init__(self, node: Node, config: NodeConfig, map_frame: str, odometry: OdometrySource) -> None:
        self._node, self._odometry = node, odometry
        self._sender = _Sender(node, map_frame, config.robot_frame(config.odom_frame))
        self._tolerance_ns = round(config.transform_tolerance_s * 1e9)
        self._timeout_ns = round(config.tf_timeout_s * 1e9)
        self._repeats = config.tf_rate_hz > 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Pose, float]] = deque(maxlen=100)  # stamp, pose, steady time of arrival
        self._latest: tuple[Pose, int] | None = None  # map_from_odom, node time at which it was computed
        self.published = self.withheld = 0
        self.problem: str | None = None
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [node.create_timer(_POLL_S, self._resolve, clock=steady)]
        if self._repeats:
            self._timers.append(node.create_timer(1 / config.tf_rate_hz, self._repeat))

    def fix(self, stamp_ns: int, map_from_base: Pose) -> None:
        with self._lock:
            self._waiting.append((stamp_ns, map_from_base, time.monotonic()))
        self._resolve()

    def reset(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._latest = self.problem = None

    def close(self) -> None:
        for timer in self._timers:
            self._node.destroy_timer(timer)
        self._sender.close()

    def _resolve(self) -> None:
        """Publish for waiting fixes that the odometry has reached; withhold those that have waited too long."""
        with self._lock:
            if not self._waiting:
                return
            patient: list[tuple[int, Pose, float]] = []
            for stamp_ns, map_from_base, arrived_s in self._waiting:
                try:
                    odom_from_base = self._odometry.at(stamp_ns)
                except VmlocError as error:
                    if time.monotonic() - arrived_s < _PATIENCE_S:
                        patient.append((stamp_ns, map_from_base, arrived_s))
                    else:
                        self._withhold(str(error))
                else:
                    self.withheld += len(patient)  # older fixes: the odometry is past them
                    patient.clear()
                    self._publish(stamp_ns, map_from_base @ odom_from_base.inverse())
            self._waiting = deque(patient, self._waiting.maxlen)

    def _publish(self, stamp_ns: int, map_from_odom: Pose) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        self._sender.send((now_ns if self._repeats else stamp_ns) + self._tolerance_ns, map_from_odom)
        self._latest, self.problem = (map_from_odom, now_ns), None
        self.published += 1

    def _withhold(self, reason: str) -> None:
        self.withheld += 1
        self.problem = f"no TF {self._sender.name}: {reason}"
        self._node.get_logger().warning(self.problem, throttle_duration_sec=_LOG_PERIOD_S)

    def _repeat(self) -> None:
        with self._lock:
            if self._latest is None:
                return
            map_from_odom, since_ns = self._latest
            now_ns = self._node.get_clock().now().nanoseconds
            if 0 <= now_ns - since_ns <= self._timeout_ns:
                self._sender.send(now_ns + self._tolerance_ns, map_from_odom)
            else:
                self._latest = None


class MapOrigin:
    """Publishes the pose of a local map in the checkpoint's frame on /tf_static, also for late subscribers.

    Raises:
        MissingPackageError: tf2_msgs is not installed.
    """

    def __init__(self, node: Node, frame: MapFrame) -> None:
        assert frame.parent is not None, "the map is a local one"
        self._node = node
        self._publisher = node.create_publisher(message_class(TF_TYPE), "/tf_static", _LATCHED_QOS)
        parent_from_map = Pose(frame.origin_m, Pose.identity().quaternion_wxyz)
        stamp_ns = node.get_clock().now().nanoseconds
        message = transform_message(stamp_ns, frame.parent, frame.name, parent_from_map)
        self._publisher.publish(self._publisher.msg_type(transforms=[message]))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


def transform_message(stamp_ns: int, parent: str, child: str, parent_from_child: Pose) -> TransformStamped:
    """``geometry_msgs/TransformStamped`` of a pose."""
    message = TransformStamped(child_frame_id=child)
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    message.header.frame_id = parent
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = parent_from_child.position_m.tolist()
    rotation.w, rotation.x, rotation.y, rotation.z = parent_from_child.quaternion_wxyz.tolist()
    return message
