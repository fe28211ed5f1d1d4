# SPDX-License-Identifier: Apache-2.0
"""Records topics of the ROS graph into a rosbag2 folder, as raw bytes; needs no rosbag2."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vmloc_ros.bags.files import BagWriter
from vmloc_ros.ros.packages import MissingPackageError, message_class

logger = logging.getLogger(__name__)

_DISCOVERY_PERIOD_S = 0.2
_QUEUE_DEPTH = 1000


class Recorder:
    """Subscribes to topics as their publishers appear and writes their messages; spins in a thread of its own.

    Args:
        node: the node to subscribe with; nothing else may spin it.
        writer: an open bag; written from the recorder's thread only.
        topics: fully qualified names.
        now_ns: returns the log time of a message that arrives.
        failed: set when writing fails; :meth:`stop` then raises the reason.
    """

    def __init__(
        self,
        node: Node,
        writer: BagWriter,
        topics: Sequence[str],
        now_ns: Callable[[], int],
        failed: threading.Event,
    ) -> None:
        self._node, self._writer, self._now_ns, self._failed = node, writer, now_ns, failed
        self._missing = set(topics)
        self._counts: Counter[str] = Counter({topic: 0 for topic in topics})
        self._error: Exception | None = None
        self.all_found = threading.Event()
        node.create_timer(_DISCOVERY_PERIOD_S, self._discover, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, name="recorder", daemon=True)
        self._thread.start()

    @property
    def missing(self) -> list[str]:
        """Topics without a publisher so far."""
        return sorted(self._missing)

    def stop(self) -> dict[str, int]:
        """Stop writing, after which the bag may be closed; returns the messages written by topic."""
        self._executor.shutdown()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return dict(self._counts)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:  # raised by stop() in the thread that owns the recorder
            self._error = error
            self._failed.set()

    def _discover(self) -> None:
        for topic in sorted(self._missing):
            publishers = self._node.get_publishers_info_by_topic(topic)
            if publishers:
                self._missing.discard(topic)
                self._subscribe(topic, publishers)
        if not self._missing:
            self.all_found.set()

    def _subscribe(self, topic: str, publishers: Sequence[TopicEndpointInfo]) -> None:
        type_name, qos = publishers[0].topic_type, _matching_qos(publishers)
        if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            self._writer.latch(topic)

        def write(cdr_bytes: bytes) -> None:
            self._writer.write_raw(topic, type_name, cdr_bytes, self._now_ns())
            self._counts[topic] += 1

        try:
            self._node.create_subscription(message_class(type_name), topic, write, qos, raw=True)
        except MissingPackageError as error:
            logger.warning("topic %s is not recorded: %s", topic, error)


def _matching_qos(publishers: Sequence[TopicEndpointInfo]) -> QoSProfile:
    """The strictest profile that every publisher satisfies."""
    profiles = [publisher.qos_profile for publisher in publishers]
    reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in profiles)
    latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in profiles)
    return QoSProfile(
        depth=_QUEUE_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
