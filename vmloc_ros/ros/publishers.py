# SPDX-License-Identifier: Apache-2.0
"""Publishers of poses, TF and path."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import check_pose
from vmloc_ros.ros.odometry import OdometrySource
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.tf_broadcaster import MapOrigin, create_broadcaster
from vmloc_ros.runtime.map_frame import MapFrame

_OUTPUT_DEPTH = 10
# Of a twist that is zero because it is unknown: filters that weigh by variance ignore it.
_UNKNOWN_TWIST_COVARIANCE = np.diag(np.full(6, 1e6)).ravel()


def _broadcast_settings(config: NodeConfig) -> tuple[Any, ...]:
    return config.tf_mode, config.transform_tolerance_s, config.tf_rate_hz, config.tf_timeout_s


class Outputs:
    """Publishers of poses of ``base_frame`` in a map frame.

    Args:
        odometry: for ``map -> odom``; not used with another ``tf_mode``.

    Raises:
        MissingPackageError: ``tf_mode`` asks for TF and tf2_msgs is not installed.
        ConfigError: parameters contradict each other.
    """

    def __init__(
        self, node: Node, config: NodeConfig, map_frame: MapFrame, base_frame: str, odometry: OdometrySource | None
    ) -> None:
        self._broadcaster = create_broadcaster(node, config, map_frame.name, base_frame, odometry)
        self._map_origin = MapOrigin(node, map_frame) if map_frame.parent is not None else None
        self._node, self._config = node, config
        self._map_frame, self._base_frame = map_frame.name, base_frame
        self._path_poses: deque[PoseStamped] = deque(maxlen=config.path_length)
        self._lock = threading.Lock()  # one thread publishes, another adopts changed parameters
        self._publishers: list[Any] = []
        self._pose = self._create(PoseStamped, "~/pose", _OUTPUT_DEPTH)
        self._pose_with_covariance = self._create(PoseWithCovarianceStamped, "~/pose_with_covariance", _OUTPUT_DEPTH)
        self._odometry, self._path = self._optional_publishers()

    @property
    def problems(self) -> list[str]:
        """Reasons why outputs are not published."""
        return [self._broadcaster.problem] if self._broadcaster and self._broadcaster.problem else []

    @property
    def counts(self) -> dict[str, int]:
        """Counts for diagnostics."""
        if self._broadcaster is None:
            return {}
        return {"transforms published": self._broadcaster.published, "transforms withheld": self._broadcaster.withheld}

    def publish(self, stamp_ns: int, map_from_base: Pose, covariance: NDArray[np.float64]) -> None:
        """Publish one pose on all topics, with ``covariance`` ``(6, 6)`` about the map axes.

        Raises:
            ModelError: a number is not finite or a variance not positive; nothing is published.
        """
        check_pose(stamp_ns, map_from_base, covariance)
        with self._lock:
            self._publish(stamp_ns, map_from_base, covariance)

    def use(self, config: NodeConfig, odometry: OdometrySource | None) -> None:
        """Adopt changed parameters, from any thread.

        Raises:
            MissingPackageError, ConfigError: as the constructor; nothing is changed then.
        """
        with self._lock:
            before, self._config = self._config, config
            if _broadcast_settings(config) != _broadcast_settings(before):
                self._replace_broadcaster(odometry)
            self._path_poses = deque(self._path_poses, maxlen=config.path_length)
            unused = [self._odometry, self._path]
            self._odometry, self._path = self._optional_publishers(self._odometry, self._path)
            for publisher in unused:
                if publisher is not None and publisher not in (self._odometry, self._path):
                    self._publishers.remove(publisher)
                    self._node.destroy_publisher(publisher)

    def _publish(self, stamp_ns: int, map_from_base: Pose, covariance: NDArray[np.float64]) -> None:
        pose = self._pose_message(stamp_ns, map_from_base)
        self._pose.publish(pose)
        with_covariance = PoseWithCovarianceStamped(header=pose.header)
        with_covariance.pose.pose = pose.pose
        with_covariance.pose.covariance = covariance.ravel()
        self._pose_with_covariance.publish(with_covariance)
        if self._odometry is not None:
            odometry = Odometry(header=pose.header, child_frame_id=self._base_frame, pose=with_covariance.pose)
            odometry.twist.covariance = _UNKNOWN_TWIST_COVARIANCE
            self._odometry.publish(odometry)
        if self._broadcaster is not None:
            self._broadcaster.fix(stamp_ns, map_from_base)
        self._path_poses.append(pose)

    def publish_path(self) -> None:
        """Publish the path if it has subscribers; for a slow timer: a thousand poses take 10 ms to convert."""
        if self._path is None or not self._path.get_subscription_count():
            return
        with self._lock:
            poses = list(self._path_poses)
        if poses:
            self._path.publish(Path(header=poses[-1].header, poses=poses))

    def suspend(self) -> None:
        """Publish nothing until the next pose, not even repeated transforms."""
        if (broadcaster := self._broadcaster) is not None:
            broadcaster.reset()

    def reset(self) -> None:
        """Forget the poses so far, as after a jump back in time."""
        self.suspend()
        with self._lock:
            self._path_poses.clear()

    def close(self) -> None:
        for part in (self._broadcaster, self._map_origin):
            if part is not None:
                part.close()
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def _replace_broadcaster(self, odometry: OdometrySource | None) -> None:
        old = self._broadcaster
        self._broadcaster = create_broadcaster(self._node, self._config, self._map_frame, self._base_frame, odometry)
        if old is not None:
            old.close()
            if self._broadcaster is not None:
                self._broadcaster.published += old.published
                self._broadcaster.withheld += old.withheld

    def _optional_publishers(self, odometry: Any = None, path: Any = None) -> tuple[Any, Any]:
        """Publishers of ~/odometry and ~/path where the parameters ask for them; given ones are kept."""
        if self._config.publish_odometry:
            odometry = odometry or self._create(Odometry, "~/odometry", _OUTPUT_DEPTH)
        if self._config.path_length:
            path = path or self._create(Path, "~/path", 1)
        return odometry if self._config.publish_odometry else None, path if self._config.path_length else None

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
