# SPDX-License-Identifier: Apache-2.0
"""Reading a bag's streams in the order of their stamps, where that of logging would separate what belongs together.

A bag that was converted topic by topic, whose log times are all equal, or one of whose sensors is logged seconds after
the others, holds the same messages as one recorded live; only their order differs. The robot's synchronizer waits 0.2 s
for a partner. So where the log's order loses pairs, each topic is read with a cursor of its own, and the cursors are
merged by the stamps in the headers: nothing is held but the head of each topic, and as many messages more as its own
stamps are out of order.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection

from training.sources.rosbag.topics import connections_of
from vmloc_ros.bags.files import open_bag

_Item = TypeVar("_Item")

_LARGEST_WINDOW = 256
_JUMP_BACK_NS = 1_000_000_000  # as the synchronizer has it
_NOTABLE_SHARE = 0.2

# A connection, a log time and serialized bytes, as readers of bags give them.
Logged = tuple[Connection, int, bytes]


class StampLog:
    """Stamps and log times of every stream's messages, 16 bytes a message, in the order of reading.

    Args:
        streams: names of the streams, the primary one first.
    """

    def __init__(self, streams: Iterable[str]) -> None:
        self._stamps_ns = {name: array("q") for name in streams}
        self._logged_ns = {name: array("q") for name in self._stamps_ns}

    def add(self, stream: str, stamp_ns: int, logged_ns: int) -> None:
        """Note a message."""
        self._stamps_ns[stream].append(stamp_ns)
        self._logged_ns[stream].append(logged_ns)

    @property
    def has_restart(self) -> bool:
        """Whether a clock jumps back to stay (a loop, a reset): then only the log's order tells passes apart."""
        return any(_restarts(np.array(stamps, np.int64)) for stamps in self._stamps_ns.values())

    @property
    def windows(self) -> dict[str, int]:
        """By stream, how many messages must be held to bring its stamps in order."""
        return {name: _window(np.array(stamps, np.int64)) for name, stamps in self._stamps_ns.items()}

    def in_order(self, windows: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
        """Streams, stamps and log times, merged as :func:`read_by_stamps` merges the messages."""
        streams = {name: zip(repeat(name), stamps, self._logged_ns[name]) for name, stamps in self._stamps_ns.items()}
        return merged(streams, windows, lambda item: item[1])

    def nearest_s(self, primary: str, stream: str) -> NDArray[np.float64]:
        """``(N,)`` distance of each of the primary stream's messages to the nearest of another stream, seconds."""
        stamps = np.array(self._stamps_ns[primary], np.int64)
        others = np.sort(np.array(self._stamps_ns[stream], np.int64))
        if not len(others):
            return np.full(len(stamps), np.inf)
        after = np.searchsorted(others, stamps)
        before, after = others[(after - 1).clip(0)], others[after.clip(max=len(others) - 1)]
        return np.minimum(abs(stamps - before), abs(after - stamps)) * 1e-9

    def lost_pairs(self, topics: Mapping[str, str], alone: int, slop_s: float) -> str | None:
        """Why many messages of the primary stream have no partner, for a warning; None where they are few.

        Args:
            topics: by stream.
            alone: number of them.
        """
        primary, *others = topics
        total = len(self._stamps_ns[primary])
        if not others or alone < _NOTABLE_SHARE * total:
            return None
        distances_s = {topics[name]: self.nearest_s(primary, name) for name in others}
        reasons = [
            f", the nearest of {topic} is {_seconds(float(np.median(found[found > slop_s])))} away (median)"
            for topic, found in distances_s.items()
            if (found > slop_s).any()
        ]
        return (
            f"{alone} of {total} messages of {topics[primary]} have no partner within source.slop_s = {slop_s:g} s"
            f"{''.join(reasons)}; do the sensors share a clock, and did each run all the time?"
        )


def read_by_stamps(
    path: Path,
    allow_truncated: bool,
    topics: Mapping[str, str],
    windows: Mapping[str, int],
    stamp_of: Callable[[Logged], int | None],
) -> Iterator[Logged]:
    """Messages of a bag's topics in the order of their stamps.

    Args:
        topics: by stream.
        windows: see :attr:`StampLog.windows`.
        stamp_of: the stamp of a message; None leaves it out: one far ahead would hold up its topic.
    """
    with ExitStack() as stack:
        cursors = {}
        for name, topic in topics.items():
            reader = stack.enter_context(open_bag(path, allow_truncated))  # a reader has one position in its file
            cursors[name] = _stamped(reader.messages(connections_of(reader, [topic])), stamp_of)
        for message, _ in merged(cursors, windows, lambda entry: entry[1]):
            yield message


def _stamped(messages: Iterable[Logged], stamp_of: Callable[[Logged], int | None]) -> Iterator[tuple[Logged, int]]:
    for message in messages:
        if (stamp_ns := stamp_of(message)) is not None:
            yield message, stamp_ns


def merged(
    streams: Mapping[str, Iterable[_Item]], windows: Mapping[str, int], stamp_of: Callable[[_Item], int]
) -> Iterator[_Item]:
    """Items of several streams in the order of their stamps; of equal stamps those of the first stream first."""
    ordered = [_sorted_within(items, windows[name], stamp_of) for name, items in streams.items()]
    for _, item in heapq.merge(*ordered, key=lambda entry: entry[0]):  # stable
        yield item


def _sorted_within(
    items: Iterable[_Item], window: int, stamp_of: Callable[[_Item], int]
) -> Iterator[tuple[int, _Item]]:
    """Stamps and items in the order of stamps, where no item is more than ``window`` places late."""
    held: list[tuple[int, int, _Item]] = []
    for number, item in enumerate(items):
        heapq.heappush(held, (stamp_of(item), number, item))
        if len(held) > window:
            stamp_ns, _, earliest = heapq.heappop(held)
            yield stamp_ns, earliest
    for stamp_ns, _, item in sorted(held, key=lambda entry: entry[:2]):
        yield stamp_ns, item


def _window(stamps_ns: NDArray[np.int64]) -> int:
    """The largest number of places by which a message comes late; what comes later still is not waited for."""
    places = np.arange(len(stamps_ns))
    ranks = np.empty(len(stamps_ns), np.int64)
    ranks[np.argsort(stamps_ns, kind="stable")] = places
    late = (places - ranks)[places - ranks <= _LARGEST_WINDOW]
    return int(late.max(initial=0))


def _restarts(stamps_ns: NDArray[np.int64]) -> bool:
    """Whether two messages in a row are far older than the two before them: one alone has a false stamp."""
    before = np.minimum(stamps_ns[:-1], np.concatenate([stamps_ns[:1], stamps_ns[:-2]]))
    after = np.maximum(stamps_ns[1:], np.concatenate([stamps_ns[2:], stamps_ns[-1:]]))
    return bool((after < before - _JUMP_BACK_NS).any())


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.3g} s" if duration_s < 1000 else f"{duration_s:.0f} s"
