# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 recording into the ROS graph and records topics meanwhile; needs no rosbag2."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vmloc_ros.bags.files import BagWriter, open_bag
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.progress import progress_bar
from vmloc_ros.replay.player import Player, ReplayError
from vmloc_ros.replay.recorder import Recorder
from vmloc_ros.ros.environment import use_fastdds_profile

__all__ = ["ReplayError", "ReplayReport", "replay"]

MAX_GAP_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What was played and recorded.

    Attributes:
        published: number of messages by topic.
        skipped: reason by topic that was not played.
        recorded: number of messages by recorded topic.
        largest_lag_s: largest delay of a message behind its time, in wall time.
        interrupted: stopped by SIGINT or SIGTERM before the end.
    """

    published: dict[str, int]
    skipped: dict[str, str]
    recorded: dict[str, int]
    largest_lag_s: float
    interrupted: bool


def replay(
    bag: Path | str,
    *,
    rate: float = 1.0,
    loop: bool = False,
    clock: bool = False,
    topics: Sequence[str] | None = None,
    wait_for: Sequence[str] = (),
    wait_timeout_s: float = 30.0,
    record: Path | str | None = None,
    record_topics: Sequence[str] = (),
    overwrite: bool = False,
    linger_s: float = 2.0,
    max_gap_s: float = MAX_GAP_S,
    allow_truncated: bool = False,
    progress: bool = True,
) -> ReplayReport:
    """Publish the messages of ``bag`` at the pace of their log times, from the first message on.

    The bytes are published unchanged, with the QoS that the bag stores. SIGINT and SIGTERM end the replay with the
    recording closed and complete so far. With ``loop`` stamps jump back to the start.

    Args:
        bag: rosbag2 folder, ``.mcap`` or ``.db3`` file.
        rate: speed relative to the recording.
        loop: start over at the end, until interrupted.
        clock: publish the bag's time on ``/clock`` at 100 Hz; recorded messages then get the bag's time too.
        topics: the topics to play, default all.
        wait_for: played topics (or ``/clock``) that must have a subscriber before the first message goes out.
        wait_timeout_s: how long to wait for them, and for the publishers of ``record_topics``.
        record: write the messages received on ``record_topics`` to this rosbag2 folder.
        record_topics: fully qualified names; types and QoS are taken from their publishers.
        overwrite: replace an existing recording.
        linger_s: keep recording this long after the last message, for late results.
        max_gap_s: where nothing was recorded for longer, the replay and its ``/clock`` jump to the next message;
            infinity: never.
        allow_truncated: play what is there of a recording that was cut off.
        progress: show progress.

    Raises:
        DataError: the bag or the recording cannot be opened.
        ConfigError: an argument is out of range or names a topic that is not in the bag.
        ReplayError: no subscriber for ``wait_for`` in time, or no topic can be played.
    """
    _check(rate, linger_s, max_gap_s, record, record_topics)
    use_fastdds_profile()
    with ExitStack() as stack:
        reader = stack.enter_context(open_bag(bag, allow_truncated))
        writer = None
        if record is not None:
            writer = stack.enter_context(BagWriter(record, overwrite, message_types=reader.typestore))
        stop = stack.enter_context(_stop_on_signals())
        node = stack.enter_context(_ros_node())
        player = Player(node, reader, rate, clock, topics, stop, max_gap_s)
        recorder = None
        if writer is not None:
            recorder = Recorder(node, writer, record_topics, player.log_time_ns, stop)
            stack.callback(recorder.stop)
        player.wait(wait_for, recorder, wait_timeout_s)
        duration_s = round(player.timeline.duration_s, 1)
        playing = True
        while playing:
            with progress_bar(duration_s, "replay", "s", disable=not progress) as bar:
                player.play(bar)
            playing = loop and not stop.is_set()
        player.linger(linger_s)
        recorded = recorder.stop() if recorder is not None else {}
        return ReplayReport(dict(player.published), player.skipped, recorded, player.largest_lag_s, stop.is_set())


def _check(
    rate: float, linger_s: float, max_gap_s: float, record: Path | str | None, record_topics: Sequence[str]
) -> None:
    if not 0 < rate < float("inf"):
        raise ConfigError(f"rate must be positive, got {rate}")
    if linger_s < 0:
        raise ConfigError(f"linger must not be negative, got {linger_s} s")
    if not max_gap_s > 0:
        raise ConfigError(f"the longest gap must be positive, got {max_gap_s} s")
    if (record is None) != (not record_topics):
        raise ConfigError("recording needs both a bag to write and the topics to record")


@contextmanager
def _ros_node() -> Iterator[Node]:
    """A node in a context of its own, which leaves signals and the caller's ROS context alone."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(f"vmloc_replay_{os.getpid()}", context=context, start_parameter_services=False)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; outside the main thread, which cannot handle them, it is never set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
