# SPDX-License-Identifier: Apache-2.0
"""Publishes the messages of a bag at the pace of their log times, as raw bytes, and ``/clock``."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, QosDurability, QosHistory, QosReliability
from rosgraph_msgs.msg import Clock

from vmloc_ros.bags.files import LATCHED_TOPICS
from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.names import find_topic
from vmloc_ros.core.progress import ProgressBar
from vmloc_ros.replay.recorder import Recorder
from vmloc_ros.ros.packages import MissingPackageError, message_class

logger = logging.getLogger(__name__)

_CLOCK_PERIOD_S = 0.01
# A subscriber seen by the publisher may not have seen the publisher yet: discovery is not symmetric.
_SETTLE_S = 0.5
_LATCHED_DEPTH = 100


class ReplayError(VmlocError):
    """No subscriber came in time, or the bag cannot be played."""


class Player:
    """Publishers for the topics of a bag, and the bag's time as a function of the steady clock.

    Args:
        rate: speed relative to the recording.
        clock: publish the bag's time on ``/clock``.
        topics: the topics to play; None: all.
        stop: ends every wait when set.

    Attributes:
        published, skipped, largest_lag_s: see :class:`vmloc_ros.replay.ReplayReport`.

    Raises:
        ConfigError: a topic is not in the bag.
        ReplayError: nothing in the bag can be played.
    """

    def __init__(
        self,
        node: Node,
        reader: AnyReader,
        rate: float,
        clock: bool,
        topics: Sequence[str] | None,
        stop: threading.Event,
    ) -> None:
        self.node, self._reader, self._rate, self._stop = node, reader, rate, stop
        self.published: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self.largest_lag_s = 0.0
        self._connections = _select(reader, topics)
        self._publishers = self._create_publishers()
        self._clock = node.create_publisher(Clock, "/clock", 1) if clock else None
        self._next_tick_s = 0.0
        self._started_s: float | None = None

    def log_time_ns(self) -> int:
        """The bag's time now when there is a ``/clock``, else the system's."""
        return self._bag_time_ns() if self._clock is not None else time.time_ns()

    def wait(self, wait_for: Sequence[str], recorder: Recorder | None, timeout_s: float) -> None:
        """Wait for subscribers of ``wait_for`` and for publishers of the topics to record."""
        publishers = self._publishers if self._clock is None else {**self._publishers, "/clock": self._clock}
        names = [find_topic(publishers, topic) for topic in wait_for]
        unknown = sorted(topic for topic, name in zip(wait_for, names, strict=True) if name is None)
        if unknown:
            raise ConfigError(f"cannot wait for subscribers of {', '.join(unknown)}: not played from this bag")
        deadline_s = time.monotonic() + timeout_s
        while unmatched := [t for t in names if t and publishers[t].get_subscription_count() == 0]:
            if self._stop.wait(0.02):
                return
            if time.monotonic() > deadline_s:
                raise ReplayError(
                    f"no subscriber of {', '.join(unmatched)} within {timeout_s:g} s; "
                    "is the node running and active, with the same ROS_DOMAIN_ID?"
                )
        while recorder is not None and not recorder.all_found.wait(0.02) and not self._stop.is_set():
            if time.monotonic() > deadline_s:
                logger.warning("nobody publishes %s yet; playing without waiting longer", ", ".join(recorder.missing))
                break
        self._stop.wait(_SETTLE_S)

    def play(self, bar: ProgressBar) -> None:
        """Publish every message once, at the pace of the log times."""
        start_ns = self._reader.start_time
        self._started_s = time.monotonic()
        played_s = 0.0
        for connection, stamp_ns, cdr_bytes in self._reader.messages(connections=self._connections):
            self._sleep_until(stamp_ns)
            if self._stop.is_set():
                return
            self._publishers[connection.topic].publish(bytes(cdr_bytes))
            self.published[connection.topic] += 1
            lag_s = (self._bag_time_ns() - stamp_ns) * 1e-9 / self._rate
            self.largest_lag_s = max(self.largest_lag_s, lag_s)
            before_s, played_s = played_s, round((stamp_ns - start_ns) * 1e-9, 1)
            bar.update(played_s - before_s)

    def linger(self, duration_s: float) -> None:
        """Keep the clock ticking for this long, in wall time."""
        self._sleep_until(self._bag_time_ns() + round(duration_s * self._rate * 1e9))

    def _bag_time_ns(self) -> int:
        if self._started_s is None:
            return int(self._reader.start_time)
        return int(self._reader.start_time) + round((time.monotonic() - self._started_s) * self._rate * 1e9)

    def _sleep_until(self, stamp_ns: int) -> None:
        """Wait for the bag's time to reach ``stamp_ns``, ticking ``/clock``; returns early when stopped."""
        while not self._stop.is_set():
            bag_time_ns = self._bag_time_ns()
            wait_s = (stamp_ns - bag_time_ns) * 1e-9 / self._rate
            if self._clock is not None:
                if time.monotonic() >= self._next_tick_s:
                    self._tick(self._clock, bag_time_ns)
                wait_s = min(wait_s, _CLOCK_PERIOD_S)
            if bag_time_ns >= stamp_ns:
                return
            self._stop.wait(wait_s)

    def _tick(self, publisher: Publisher, bag_time_ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(bag_time_ns, 1_000_000_000)
        publisher.publish(message)
        self._next_tick_s = time.monotonic() + _CLOCK_PERIOD_S

    def _create_publishers(self) -> dict[str, Publisher]:
        publishers: dict[str, Publisher] = {}
        for connection in self._connections:
            if connection.topic in publishers or connection.topic in self.skipped:
                continue
            try:
                message_type = message_class(connection.msgtype)
            except MissingPackageError as error:
                logger.warning("topic %s is not played: %s", connection.topic, error)
                self.skipped[connection.topic] = str(error)
                continue
            publishers[connection.topic] = self.node.create_publisher(
                message_type, connection.topic, _offered_qos(connection)
            )
        if not publishers:
            raise ReplayError("none of the bag's topics can be played: their message packages are not installed")
        self._connections = [c for c in self._connections if c.topic in publishers]
        return publishers


def _select(reader: AnyReader, topics: Sequence[str] | None) -> list[Connection]:
    if not reader.is2:
        raise ReplayError("a ROS 1 bag cannot be played; convert it with: rosbags-convert --src IN.bag --dst OUT")
    if topics is None:
        return [connection for connection in reader.connections if connection.topic != "/clock"]
    found = {topic: find_topic(reader.topics, topic) for topic in topics}
    unknown = sorted(topic for topic, name in found.items() if name is None)
    if unknown:
        raise ConfigError(f"topic {', '.join(unknown)} is not in the bag; it has {', '.join(sorted(reader.topics))}")
    return [connection for connection in reader.connections if connection.topic in found.values()]


def _offered_qos(connection: Connection) -> QoSProfile:
    """The QoS that the bag stores, else reliable and volatile; static transforms are always latched."""
    stored = getattr(connection.ext, "offered_qos_profiles", [])
    best_effort = any(qos.reliability == QosReliability.BEST_EFFORT for qos in stored)
    latched = connection.topic in LATCHED_TOPICS or any(
        qos.durability == QosDurability.TRANSIENT_LOCAL for qos in stored
    )
    depth = max((qos.depth for qos in stored), default=0) or 10
    keep_all = any(qos.history == QosHistory.KEEP_ALL for qos in stored)
    return QoSProfile(
        history=HistoryPolicy.KEEP_ALL if keep_all else HistoryPolicy.KEEP_LAST,
        depth=max(depth, _LATCHED_DEPTH) if latched else depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
