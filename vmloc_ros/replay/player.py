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
from rosbags.interfaces import Connection, QosDurability, QosHistory, QosReliability
from rosgraph_msgs.msg import Clock

from vmloc_ros.bags.files import LATCHED_TOPICS, BagReader, types_of
from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.names import find_topic
from vmloc_ros.core.progress import ProgressBar
from vmloc_ros.replay.recorder import Recorder
from vmloc_ros.replay.timeline import duration_text, timeline_of, when_text
from vmloc_ros.ros.packages import MissingPackageError, message_class

logger = logging.getLogger(__name__)

_CLOCK_PERIOD_S = 0.01
# A subscriber seen by the publisher may not have seen the publisher yet: discovery is not symmetric.
_SETTLE_S = 0.5
_LATCHED_DEPTH = 100
_LONG_WAIT_S = 5.0  # longer ones are announced


class ReplayError(VmlocError):
    """No subscriber came in time, or the bag cannot be played."""


class Player:
    """Publishers for the topics of a bag, and the bag's time as a function of the steady clock.

    Args:
        rate: speed relative to the recording.
        clock: publish the bag's time on ``/clock``.
        topics: the topics to play; None: all.
        stop: ends every wait when set.
        max_gap_s: longer gaps between messages are left out.

    Attributes:
        timeline: which messages are played at their time.
        published, skipped, largest_lag_s: see :class:`vmloc_ros.replay.ReplayReport`.

    Raises:
        ConfigError: a topic is not in the bag.
        ReplayError: nothing in the bag can be played.
    """

    def __init__(
        self,
        node: Node,
        reader: BagReader,
        rate: float,
        clock: bool,
        topics: Sequence[str] | None,
        stop: threading.Event,
        max_gap_s: float,
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
        self._left_out_ns = 0
        self.timeline = timeline_of(reader.log_times(self._connections), max_gap_s)
        self._announce()

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
        self._wait_for_subscribers({topic: publishers[topic] for topic in names if topic}, deadline_s, timeout_s)
        if recorder is not None:
            self._wait_for_publishers(recorder, deadline_s, timeout_s)
        self._stop.wait(_SETTLE_S)

    def play(self, bar: ProgressBar) -> None:
        """Publish every message once, at the pace of the log times, without the long gaps between them."""
        start_ns = newest_ns = self.timeline.start_ns
        self._started_s, self._left_out_ns = time.monotonic(), 0
        played_s = 0.0
        for connection, logged_ns, cdr_bytes in self._reader.messages(connections=self._connections):
            if logged_ns - newest_ns > self.timeline.max_gap_ns:
                self._leave_out(newest_ns, logged_ns)
            self._sleep_until(logged_ns)
            if self._stop.is_set():
                return
            self._publishers[connection.topic].publish(bytes(cdr_bytes))
            self.published[connection.topic] += 1
            if logged_ns < start_ns:
                continue
            newest_ns = max(newest_ns, logged_ns)
            lag_s = (self._bag_time_ns() - logged_ns) * 1e-9 / self._rate
            self.largest_lag_s = max(self.largest_lag_s, lag_s)
            before_s, played_s = played_s, round((logged_ns - start_ns - self._left_out_ns) * 1e-9, 1)
            bar.update(played_s - before_s)

    def linger(self, duration_s: float) -> None:
        """Keep the clock ticking for this long, in wall time."""
        self._sleep_until(self._bag_time_ns() + round(duration_s * self._rate * 1e9))

    def _announce(self) -> None:
        """Say what is not played at the time at which it was logged."""
        timeline = self.timeline
        claimed_s = (timeline.start_ns - self._reader.start_time) * 1e-9
        if not timeline.early and claimed_s > _LONG_WAIT_S:
            logger.warning(
                "the bag says that it begins %s before its first message; the replay starts there, at %s",
                duration_text(claimed_s),
                when_text(timeline.start_ns),
            )
        if timeline.early:
            logger.warning(
                "%d message(s) were logged at 0 or long before the others; they go out at once, at the start, %s",
                timeline.early,
                when_text(timeline.start_ns),
            )
        if timeline.skipped:
            logger.warning(
                "%d gap(s) of more than %s without messages are left out (--max-gap)",
                timeline.skipped,
                duration_text(timeline.max_gap_ns * 1e-9),
            )
        if (
            timeline.duration_s == 0
            and sum(connection.msgcount for connection in self._connections) > timeline.early + 1
        ):
            logger.warning("all messages have one log time; they go out as fast as they can")

    def _wait_for_subscribers(self, publishers: dict[str, Publisher], deadline_s: float, timeout_s: float) -> None:
        announced = False
        while unmatched := [topic for topic, publisher in publishers.items() if not publisher.get_subscription_count()]:
            if not announced and deadline_s - time.monotonic() < timeout_s - _SETTLE_S:
                announced = True
                logger.info("waiting up to %g s for a subscriber of %s", timeout_s, ", ".join(unmatched))
            if self._stop.wait(0.02):
                return
            if time.monotonic() > deadline_s:
                raise ReplayError(
                    f"no subscriber of {', '.join(unmatched)} within {timeout_s:g} s; "
                    "is the node running and active, with the same ROS_DOMAIN_ID?"
                )

    def _wait_for_publishers(self, recorder: Recorder, deadline_s: float, timeout_s: float) -> None:
        if not recorder.all_found.wait(_SETTLE_S):
            logger.info("waiting up to %g s for a publisher of %s", timeout_s, ", ".join(recorder.missing))
        while not recorder.all_found.wait(0.02) and not self._stop.is_set():
            if time.monotonic() > deadline_s:
                logger.warning("nobody publishes %s yet; playing without waiting longer", ", ".join(recorder.missing))
                break

    def _leave_out(self, newest_ns: int, logged_ns: int) -> None:
        """Let the bag's time jump over a gap, at whose end a message was logged."""
        logger.info(
            "nothing was recorded for %s after %s; skipped",
            duration_text((logged_ns - newest_ns) * 1e-9),
            when_text(newest_ns),
        )
        self._left_out_ns += logged_ns - newest_ns

    def _bag_time_ns(self) -> int:
        start_ns = self.timeline.start_ns + self._left_out_ns
        if self._started_s is None:
            return start_ns
        return start_ns + round((time.monotonic() - self._started_s) * self._rate * 1e9)

    def _sleep_until(self, stamp_ns: int) -> None:
        """Wait for the bag's time to reach ``stamp_ns``, ticking ``/clock``; returns early when stopped."""
        left_s = (stamp_ns - self._bag_time_ns()) * 1e-9 / self._rate
        if left_s > _LONG_WAIT_S:
            logger.info("nothing was recorded before %s; waiting %s", when_text(stamp_ns), duration_text(left_s))
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
        self._connections = self._of_one_type(self._connections)
        missing: set[str] = set()
        for connection in self._connections:
            if connection.topic in publishers or connection.topic in missing:
                continue
            try:
                message_type = message_class(connection.msgtype)
            except MissingPackageError as error:
                logger.warning("topic %s is not played: %s", connection.topic, error)
                self.skipped[connection.topic] = str(error)
                missing.add(connection.topic)
                continue
            publishers[connection.topic] = self.node.create_publisher(
                message_type, connection.topic, _offered_qos(connection)
            )
        if not publishers:
            raise ReplayError("none of the bag's topics can be played: their message packages are not installed")
        self._connections = [c for c in self._connections if c.topic in publishers]
        return publishers

    def _of_one_type(self, connections: Sequence[Connection]) -> list[Connection]:
        """The connections of each topic's most frequent type: one topic of the graph has one type."""
        kept = {}
        for topic in {connection.topic for connection in connections}:
            kept[topic], *others = types_of(self._reader, topic).items()
            if others:
                listing = ", ".join(f"{count} messages of type {kind}" for kind, count in others)
                self.skipped[topic] = f"{listing}; a topic has one type, and most messages are {kept[topic][0]}"
                logger.warning("topic %s: not played: %s", topic, self.skipped[topic])
        return [connection for connection in connections if connection.msgtype == kept[connection.topic][0]]


def _select(reader: BagReader, topics: Sequence[str] | None) -> list[Connection]:
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
