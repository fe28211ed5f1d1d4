# SPDX-License-Identifier: Apache-2.0
"""The node's subscriptions, and why one receives nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.runtime.health import Arrivals, describe_delay

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

CAMERA_INFO = "camera_info"

_OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
_UNKNOWN_NAME = "_NODE_NAME_UNKNOWN_"  # of rmw: before the name is discovered, and of programs that are no nodes
# Requested and offered values that do not match. This node requests no deadline and no liveliness, which every
# publisher satisfies.
_UNMET = {
    "reliability": (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT),
    "durability": (DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE),
}


class Input:
    """One subscription that reports why it receives nothing.

    Uses sensor-data QoS (best effort, keep last), which every publisher satisfies; parameters
    ``qos_overrides.<topic>.subscription.{reliability,durability,depth,history}`` change it.

    Args:
        name: the modality, or another short name for messages.
        depth: of the QoS queue.
        receive: called with ``name`` and each message.
        optional: never report a problem.

    Attributes:
        count: number of received messages.
        description: what is subscribed to, as text.

    Raises:
        ConfigError: a QoS parameter or the topic's name is invalid.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        message_type: Any,
        topic: str,
        depth: int,
        receive: Callable[[str, Any], None],
        optional: bool = False,
    ) -> None:
        self.name, self.count = name, 0
        self._node, self._receive, self._optional = node, receive, optional
        self._type_name = f"{message_type.__module__.split('.')[0]}/msg/{message_type.__name__}"
        self._received_s = time.monotonic()
        self._arrivals = Arrivals(self._received_s)
        self._reported: str | None = None
        self._incompatible: str | None = None  # policy reported by the middleware, of an unknown publisher
        self._qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        try:
            self._subscription = node.create_subscription(
                message_type,
                topic,
                self._on_message,
                self._qos,
                qos_overriding_options=QoSOverridingOptions(_OVERRIDABLE),
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=self._on_incompatible_qos, use_default_callbacks=False
                ),
            )
        # rclpy raises RuntimeError and ParameterException for invalid qos_overrides.
        except (RuntimeError, ParameterException, NameValidationException) as error:
            raise ConfigError(f"cannot subscribe to {topic}: {error}") from error
        self.topic = self._subscription.topic_name
        self.description = f"{name} {self.topic} ({self._type_name})"

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    @property
    def values(self) -> dict[str, str]:
        """Rate and delay, for diagnostics."""
        rate_hz, delay_ms = self._arrivals.report(time.monotonic())
        delay = "" if delay_ms is None else describe_delay(delay_ms)
        return {f"rate {self.name} [Hz]": f"{rate_hz:.1f}", f"delay {self.name} [ms]": delay}

    def problem(self, timeout_s: float) -> str | None:
        """The reason why nothing arrives, or None; logs each change once."""
        if self._optional:
            return None
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        mismatches = self._mismatches(publishers)
        problem = mismatches or self._silence(publishers, timeout_s)
        if problem != self._reported:
            self._reported = problem
            if mismatches:
                self._node.get_logger().error(mismatches)
            elif problem:
                self._node.get_logger().warning(problem)
            else:
                self._node.get_logger().info(f"{self.name} arrives on {self.topic}")
        return problem

    def _on_message(self, message: Any) -> None:
        self.count += 1
        self._received_s = time.monotonic()
        delay_ns = self._node.get_clock().now().nanoseconds - stamp_ns(message.header)
        self._arrivals.add(self._received_s, delay_ns * 1e-6)
        self._incompatible = None
        self._receive(self.name, message)

    def _on_incompatible_qos(self, event: Any) -> None:
        self._incompatible = qos_policy_name_from_kind(event.last_policy_kind).lower()

    def _mismatches(self, publishers: list[Any]) -> str | None:
        """Name every publisher that can never reach this subscription, with the reason; None without one."""
        found = [text for publisher in publishers for text in self._mismatches_of(publisher)]
        if found:
            self._incompatible = None  # the graph names the publisher, the event does not
        elif self._incompatible and publishers:
            found = [
                f"{self.topic}: the {self._incompatible} QoS of a publisher does not match this node's; set parameter "
                f"{self._override(self._incompatible)}"
            ]
        return "; ".join(dict.fromkeys(found)) or None

    def _mismatches_of(self, publisher: Any) -> Iterator[str]:
        """Mismatches in the graph; where the middleware does not show a publisher's QoS, the event reports them."""
        who = node_of(publisher)
        if publisher.topic_type != self._type_name:
            yield (
                f"{self.topic} is published as {publisher.topic_type} by {who}, expected {self._type_name}; "
                f"choose the right topic for parameter {_parameter_of(self.name)}"
            )
            return
        for policy, unmet in _UNMET.items():
            requested, offered = getattr(self._qos, policy), getattr(publisher.qos_profile, policy)
            if (requested, offered) == unmet:
                yield (
                    f"{self.topic}: publisher {who} offers {offered.short_key} {policy}, this node asks for "
                    f"{requested.short_key}; start it with parameter {self._override(policy)}:={offered.short_key}"
                )

    def _override(self, policy: str) -> str:
        return f"qos_overrides.{self.topic}.subscription.{policy}"

    def _silence(self, publishers: list[Any], timeout_s: float) -> str | None:
        if time.monotonic() - self._received_s < timeout_s:
            return None
        if not publishers:
            parameter = _parameter_of(self.name)
            return f"no {self.name} on {self.topic}: nobody publishes it; check parameter {parameter}"
        return f"no {self.name} on {self.topic}: its publisher {node_of(publishers[0])} is silent"


def modalities_in_use(wanted: tuple[str, ...], offered: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities to subscribe to, in the model's order.

    Args:
        wanted: parameter ``modalities``; empty for all.
        offered: what the model takes.

    Raises:
        ConfigError: the model does not take one of them.
    """
    unknown = [name for name in wanted if name not in offered]
    if unknown:
        raise ConfigError(
            f"parameter modalities names {', '.join(unknown)}, which the checkpoint's model does not take; it takes "
            f"{', '.join(offered)}"
        )
    return tuple(name for name in offered if name in wanted) if wanted else offered


def create_inputs(
    node: Node,
    config: NodeConfig,
    modalities: tuple[str, ...],
    needs_camera_info: bool,
    receive: Callable[[str, Any], None],
) -> list[Input]:
    """Subscribe to these modalities, and to the camera's intrinsics where the model or the overlay uses them."""
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
    inputs = [Input(node, name, *kinds[name], config.input_depth, receive) for name in modalities]
    if needs_camera_info or {IMAGE, LIDAR} <= set(modalities):
        optional = not needs_camera_info
        inputs.append(Input(node, CAMERA_INFO, *kinds[CAMERA_INFO], config.input_depth, receive, optional))
    return inputs


def _parameter_of(name: str) -> str:
    return "cloud_topic" if name == LIDAR else f"{name}_topic"


def node_of(publisher: Any) -> str:
    """The full name of a publisher's node, of an entry of ``Node.get_publishers_info_by_topic``."""
    if publisher.node_name == _UNKNOWN_NAME:
        return "(name unknown)"
    namespace = publisher.node_namespace.rstrip("/")
    return f"{namespace}/{publisher.node_name}" if namespace else publisher.node_name
