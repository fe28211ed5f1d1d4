# SPDX-License-Identifier: Apache-2.0
"""The node's subscriptions, and what keeps them from delivering."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.ros_parameters import NodeConfig

CAMERA_INFO = "camera_info"


class Input:
    """One subscription that notices when it should hear something and does not.

    Uses sensor-data QoS (best effort, keep last), which every publisher can serve; parameters
    ``qos_overrides.<topic>.subscription.{reliability,depth,history}`` change it.

    Raises:
        ConfigError: such a parameter is wrong, or the topic's name.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        message_type: Any,
        topic: str,
        depth: int,
        receive: Callable[[str, Any], None],
    ) -> None:
        self.name, self.count = name, 0
        self._node, self._receive = node, receive
        self._type_name = f"{message_type.__module__.split('.')[0]}/msg/{message_type.__name__}"
        self._heard_s = time.monotonic()
        self._reported: str | None = None
        self._qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        try:
            self._subscription = node.create_subscription(
                message_type,
                topic,
                self._on_message,
                self._qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        # RuntimeError and ParameterException are what rclpy raises for wrong qos_overrides.
        except (RuntimeError, ParameterException, NameValidationException) as error:
            raise ConfigError(f"cannot subscribe to {topic}: {error}") from error
        self.topic = self._subscription.topic_name

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def problem(self, timeout_s: float) -> str | None:
        """Why nothing arrives, in words, or None while all is well. Logs each change once."""
        wrong_type = self._wrong_type()
        problem = wrong_type or self._silence(timeout_s)
        if problem != self._reported:
            self._reported = problem
            if wrong_type:
                self._node.get_logger().error(wrong_type)
            elif problem:
                self._node.get_logger().warning(problem)
            else:
                self._node.get_logger().info(f"{self.name} arrives on {self.topic}")
        return problem

    def _on_message(self, message: Any) -> None:
        self.count += 1
        self._heard_s = time.monotonic()
        self._receive(self.name, message)

    def _wrong_type(self) -> str | None:
        for publisher in self._node.get_publishers_info_by_topic(self.topic):
            if publisher.topic_type != self._type_name:
                return (
                    f"{self.topic} is published as {publisher.topic_type} by {publisher.node_name}, expected "
                    f"{self._type_name}; choose the right topic for parameter {_parameter_of(self.name)}"
                )
        return None

    def _silence(self, timeout_s: float) -> str | None:
        if time.monotonic() - self._heard_s < timeout_s:
            return None
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        if not publishers:
            parameter = _parameter_of(self.name)
            return f"no {self.name} on {self.topic}: nobody publishes it; check parameter {parameter}"
        for publisher in publishers:
            compatibility, reason = qos_check_compatible(publisher.qos_profile, self._qos)
            if compatibility == QoSCompatibility.ERROR:
                return f"no {self.name} on {self.topic}: QoS does not match {publisher.node_name}'s: {reason}"
        return f"no {self.name} on {self.topic}: its publisher {publishers[0].node_name} is silent"


def create_inputs(
    node: Node,
    config: NodeConfig,
    modalities: tuple[str, ...],
    with_camera_info: bool,
    receive: Callable[[str, Any], None],
) -> list[Input]:
    """Subscribe to what a model with these modalities takes."""
    compressed = config.image_transport == "compressed"
    kinds: dict[str, tuple[Any, str]] = {
        IMAGE: (
            CompressedImage if compressed else Image,
            f"{config.image_topic}/compressed" if compressed else config.image_topic,
        ),
        DEPTH: (Image, config.depth_topic),
        LIDAR: (PointCloud2, config.cloud_topic),
        CAMERA_INFO: (CameraInfo, config.camera_info_topic),
    }
    names = (*modalities, CAMERA_INFO) if with_camera_info else modalities
    return [Input(node, name, *kinds[name], config.input_depth, receive) for name in names]


def _parameter_of(name: str) -> str:
    return "cloud_topic" if name == LIDAR else f"{name}_topic"
