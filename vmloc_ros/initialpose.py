# SPDX-License-Identifier: Apache-2.0
"""Initializes AMCL: forwards one confident pose of vmloc_node to /initialpose and ends.

It replaces the click on "2D Pose Estimate" in RViz. The pose keeps the image's stamp: AMCL accounts for the motion
since then.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from numpy.typing import NDArray
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.node import Node

from vmloc_ros.core.errors import ConfigError
from vmloc_ros.ros.spin import run_node

NODE_NAME = "vmloc_initialpose"
_LOG_PERIOD_S = 5.0
_ACKNOWLEDGE_S = 5.0
_SPIN_S = 0.5


class InitialPose(Node):
    """Forwards the first confident pose that comes while ``initialpose`` has a subscriber.

    Subscribes to ``vmloc_node/pose_with_covariance``, publishes ``initialpose`` (remap both as needed). Parameters:

    * ``max_position_std_m``: largest standard deviation of the position in the plane, in its worst direction.
    * ``max_yaw_std_rad``: largest standard deviation of the heading.

    Attributes:
        done: whether a pose was published.

    Raises:
        ConfigError: a parameter has a wrong type or value.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self.done = False
        self._max_position_std_m = self._limit("max_position_std_m", 1.0, "position in the plane, metres")
        self._max_yaw_std_rad = self._limit("max_yaw_std_rad", 0.25, "heading, radians")
        self._publisher = self.create_publisher(PoseWithCovarianceStamped, "initialpose", 1)
        self.create_subscription(PoseWithCovarianceStamped, "vmloc_node/pose_with_covariance", self._on_pose, 10)

    def wait_for_acknowledgement(self) -> None:
        """Return when every subscriber has the pose, or after 5 s: a node that ends earlier may lose it."""
        self._publisher.wait_for_all_acked(Duration(seconds=_ACKNOWLEDGE_S))

    def _limit(self, name: str, default: float, of: str) -> float:
        descriptor = ParameterDescriptor(
            description=f"Largest standard deviation of a confident pose's {of}.",
            read_only=True,
            floating_point_range=[FloatingPointRange(from_value=1e-6, to_value=1e6)],
        )
        try:
            return float(self.declare_parameter(name, default, descriptor).value)
        except ParameterException as error:
            raise ConfigError(f"parameter {name} is wrong: {error}") from error

    def _on_pose(self, pose: PoseWithCovarianceStamped) -> None:
        if self.done:
            return
        position_std_m, yaw_std_rad = planar_std(np.reshape(pose.pose.covariance, (6, 6)))
        spread = f"standard deviation {position_std_m:.2f} m, {yaw_std_rad:.2f} rad"
        # Zero means "unknown" in this message; comparisons with NaN are false.
        if not (0 < position_std_m <= self._max_position_std_m and 0 < yaw_std_rad <= self._max_yaw_std_rad):
            self._log(f"waiting for a confident pose: {spread}")
        elif not self._publisher.get_subscription_count():
            self._log(f"waiting for a subscriber of {self._publisher.topic_name}, such as AMCL")
        else:
            self._publisher.publish(pose)
            self.done = True
            position = pose.pose.pose.position
            self.get_logger().info(
                f"published on {self._publisher.topic_name}: x {position.x:.2f} m, y {position.y:.2f} m in "
                f"{pose.header.frame_id}, {spread}"
            )

    def _log(self, text: str) -> None:
        self.get_logger().info(text, throttle_duration_sec=_LOG_PERIOD_S)


def planar_std(covariance: NDArray[np.float64]) -> tuple[float, float]:
    """Standard deviations (m, rad) of x and y in their worst direction, and of yaw, of a pose covariance ``(6, 6)``.

    NaN where the covariance has a value that is not finite or a negative variance.
    """
    if not np.isfinite(covariance).all():
        return math.nan, math.nan
    variances = np.linalg.eigvalsh(covariance[:2, :2])[-1], covariance[5, 5]
    position_std_m, yaw_std_rad = (math.sqrt(x) if x >= 0 else math.nan for x in variances)
    return position_std_m, yaw_std_rad


def main(args: list[str] | None = None) -> int:
    """Run until a pose was forwarded, SIGINT or SIGTERM; returns the exit status, 1 when it cannot start."""
    return run_node(NODE_NAME, InitialPose, _spin, args)


def _spin(node: InitialPose) -> int:
    while rclpy.ok() and not node.done:
        rclpy.spin_once(node, timeout_sec=_SPIN_S)  # without a timeout, a signal just before the wait goes unnoticed
    if node.done:
        node.wait_for_acknowledgement()
    return 0


if __name__ == "__main__":
    sys.exit(main())
