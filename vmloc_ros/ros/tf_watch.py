# SPDX-License-Identifier: Apache-2.0
"""Why a transform is missing: publishers of TF whose QoS keeps their messages from listeners, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vmloc_ros.ros.subscriptions import node_of

STATIC_TOPIC, MOVING_TOPIC = "/tf_static", "/tf"
# Every publisher satisfies it; of latched ones it misses what they sent before.
HEAR_ALL_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.VOLATILE, reliability=ReliabilityPolicy.BEST_EFFORT)
_PERIOD_S = 1.0
_MEMORY_S = 5.0  # a transform that was missing for no frame within this time is no longer missing


class TransformWatch:
    """While a transform is missing, looks at TF's publishers once a second.

    Listeners of /tf_static ask for transient local durability, so that they get what was sent before they came, and
    for reliability, as tf2_ros does. A publisher that offers less never reaches them, and no error shows it. Such a
    publisher is named, and a second subscription hears what it repeats.

    Args:
        message_type: tf2_msgs/TFMessage.
        receive: called with the messages of the second subscriptions, by topic; topics without one are not watched.
        extra: called at each look, in the executor's thread.
    """

    def __init__(
        self,
        node: Node,
        message_type: Any,
        receive: Mapping[str, Callable[[Any], None]],
        extra: Callable[[], None] = lambda: None,
    ) -> None:
        self._node, self._message_type, self._receive, self._extra = node, message_type, receive, extra
        self._missed_s: float | None = None
        self._problem: str | None = None
        self._is_published = True
        self._subscriptions: dict[str, Any] = {}
        self._timer = node.create_timer(_PERIOD_S, self.look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def problem(self) -> str | None:
        """Publishers that usual listeners cannot hear, while a transform is missing; None without any."""
        return self._problem

    @property
    def hint(self) -> str:
        """What to append to the text of a missing transform; may be empty."""
        if self._problem:
            return f"; {self._problem}"
        return "" if self._is_published else f"; nobody publishes {STATIC_TOPIC}"

    def missing(self) -> None:
        """Note that a transform is missing, from any thread."""
        self._missed_s = time.monotonic()

    def look(self) -> None:
        """Look at the publishers if a transform is missing."""
        if self._missed_s is None or time.monotonic() - self._missed_s > _MEMORY_S:
            self._problem, self._is_published = None, True
            return
        found = {topic: list(self._node.get_publishers_info_by_topic(topic)) for topic in self._receive}
        self._is_published = bool(found.get(STATIC_TOPIC))
        texts = {topic: list(dict.fromkeys(_unheard(topic, publishers))) for topic, publishers in found.items()}
        for topic, problems in texts.items():
            if problems and topic not in self._subscriptions:
                self._subscriptions[topic] = self._node.create_subscription(
                    self._message_type, topic, self._receive[topic], HEAR_ALL_QOS
                )
        problem = "; ".join(text for problems in texts.values() for text in problems) or None
        if problem is not None and problem != self._problem:
            self._node.get_logger().warning(problem)
        self._problem = problem
        self._extra()

    def close(self) -> None:
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)


def _unheard(topic: str, publishers: list[Any]) -> Iterator[str]:
    """Why usual listeners do not hear a topic's publishers, by publisher."""
    for publisher in publishers:
        who, qos = node_of(publisher), publisher.qos_profile
        if topic == STATIC_TOPIC and qos.durability == DurabilityPolicy.VOLATILE:
            yield (
                f"{topic}: publisher {who} offers volatile durability: late subscribers miss what it sent, and those "
                "that ask for transient local, as tf2_ros does, never hear it; publish it transient local, as "
                "static_transform_publisher of tf2_ros does (this node hears what it repeats)"
            )
        elif qos.reliability == ReliabilityPolicy.BEST_EFFORT:
            yield (
                f"{topic}: publisher {who} offers best_effort reliability: subscribers that ask for reliable, as "
                "tf2_ros does, never hear it; publish it reliable (this node hears what it repeats)"
            )
