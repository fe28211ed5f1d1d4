# SPDX-License-Identifier: Apache-2.0
"""Pairs each message of a primary stream (the image) with the nearest message of every secondary stream.

Pure Python: no ROS, no clock of its own. The node feeds it on arrival with ``now_ns`` from a steady clock,
the bag source feeds it a recording with ``now_ns`` from the log time: training pairs as the robot does.

Rules:

* Nearest stamp within the slop wins; of two equally near, the earlier.
* A primary is released once its match can no longer improve (every secondary stream has reached its stamp) or its
  deadline has passed, then with the best candidates so far, or alone. Nothing waits longer than its deadline.
* With ``learns_periods``, a primary does not wait for a message that will be farther away than the one at hand: the
  shortest of a stream's latest periods predicts its next message. If that comes earlier, the nearer match is missed.
* Every primary yields exactly one bundle unless it is late (not newer than the last bundle) or a duplicate;
  bundles leave in increasing order of stamp.
* A secondary may serve several primaries: with a 20 Hz camera and a 10 Hz lidar each image gets its nearest
  scan, where exclusive use would leave every other image without one.
* When the primary stream has been silent for a while, secondaries go on alone after the deadline, each at its
  own stamp.
* A stream whose stamps jump back (bag loop, simulation reset) resets everything; pending primaries are
  released first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

Payload = TypeVar("Payload")

_PERIODS = 10  # latest periods kept of a stream
_PERIODS_NEEDED = 5  # before they are used
_EARLIEST = 0.9  # factor on the shortest period, for jitter


@dataclass(frozen=True, slots=True)
class Bundle(Generic[Payload]):
    """Messages that belong together.

    Attributes:
        stamp_ns: the primary's stamp, or the secondary's own when it goes alone.
        arrival_ns: ``now_ns`` when the message that gave the stamp was added.
        messages: ``(stamp_ns, payload)`` by stream name; streams without a match are absent.
    """

    stamp_ns: int
    arrival_ns: int
    messages: Mapping[str, tuple[int, Payload]]


@dataclass(slots=True)
class Statistics:
    """Counts since construction; they survive resets.

    ``nearest_gap_ns`` shows why pairing fails: for each secondary the signed distance (secondary - primary) of the
    message nearest to the latest unpaired primary; None when there was no message at all.
    """

    paired: int = 0
    primary_only: int = 0
    secondary_only: int = 0
    late: int = 0
    duplicate: int = 0
    secondary_unused: int = 0
    resets: int = 0
    nearest_gap_ns: dict[str, int | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Message(Generic[Payload]):
    stamp_ns: int
    arrival_ns: int
    payload: Payload
    used: bool = False


class Synchronizer(Generic[Payload]):
    """Bounded, non-blocking pairing of streams; see the module's rules. Not thread-safe: callers hold a lock.

    Args:
        primary: name of the stream that decides when a bundle exists.
        secondary: names of the streams that accompany it; may be empty.
        slop_ns: largest distance between a primary's stamp and its match.
        deadline_ns: longest time from a primary's arrival to its release.
        capacity: messages kept per stream; a full primary buffer releases its oldest early.
        silence_ns: after this long without a primary, secondaries go on alone.
        jump_back_ns: a stamp older than its stream's newest by more than this is a reset, not a straggler.
        learns_periods: release a primary as soon as no secondary that keeps its period can be nearer.

    Raises:
        ValueError: a duration is negative, a capacity below 1 or a name occurs twice.
    """

    def __init__(
        self,
        primary: str,
        secondary: tuple[str, ...],
        *,
        slop_ns: int,
        deadline_ns: int,
        capacity: int = 50,
        silence_ns: int = 1_000_000_000,
        jump_back_ns: int = 1_000_000_000,
        learns_periods: bool = False,
    ) -> None:
        if min(slop_ns, deadline_ns, silence_ns, jump_back_ns) < 0 or capacity < 1:
            raise ValueError("slop, deadline, silence and jump must not be negative, capacity must be at least 1")
        if len({primary, *secondary}) != 1 + len(secondary):
            raise ValueError(f"stream names must differ, got {(primary, *secondary)}")
        self._primary = primary
        self._secondary = secondary
        self._slop_ns, self._deadline_ns = slop_ns, deadline_ns
        self._silence_ns, self._jump_back_ns = silence_ns, jump_back_ns
        self._capacity, self._learns_periods = capacity, learns_periods
        self._statistics = Statistics()
        self._now_ns = 0
        self._heard_ns: int | None = None  # arrival of the last primary, or of the very first message
        self._clear()

    def adjust(self, *, slop_ns: int, deadline_ns: int, silence_ns: int) -> None:
        """Change durations; messages that wait are judged by the new ones."""
        self._slop_ns, self._deadline_ns, self._silence_ns = slop_ns, deadline_ns, silence_ns

    @property
    def statistics(self) -> Statistics:
        """A snapshot of the counts."""
        return replace(self._statistics, nearest_gap_ns=dict(self._statistics.nearest_gap_ns))

    @property
    def next_deadline_ns(self) -> int | None:
        """When to call :meth:`poll` next; None if only a new message can release something."""
        pending = self._buffers[self._primary]
        if pending:
            return min(message.arrival_ns for message in pending) + self._deadline_ns
        alone = [
            message.arrival_ns
            for name in self._secondary
            for message in self._buffers[name]
            if not message.used and message.stamp_ns > self._released_ns
        ]
        if not alone or self._heard_ns is None:
            return None
        return max(min(alone) + self._deadline_ns, self._heard_ns + self._silence_ns)

    def add(self, name: str, stamp_ns: int, payload: Payload, now_ns: int) -> list[Bundle[Payload]]:
        """Add a message and return the bundles that it releases. Raises KeyError: the stream was not declared."""
        bundles: list[Bundle[Payload]] = []
        buffer = self._buffers[name]
        newest = self._newest_ns.get(name)
        if newest is not None and stamp_ns < newest - self._jump_back_ns:
            bundles = self._release_primaries(len(self._buffers[self._primary]))
            self._clear()
            self._statistics.resets += 1
            buffer, newest = self._buffers[name], None
        if self._heard_ns is None or name == self._primary:
            self._heard_ns = now_ns
        index = bisect_left(buffer, stamp_ns, key=lambda message: message.stamp_ns)
        waiting = index < len(buffer) and buffer[index].stamp_ns == stamp_ns
        if waiting or stamp_ns == self._newest_ns.get(name):
            self._statistics.duplicate += 1
        elif name == self._primary and stamp_ns <= self._released_ns:
            self._statistics.late += 1
        else:
            buffer.insert(index, _Message(stamp_ns, now_ns, payload))
            if newest is not None and stamp_ns > newest:
                self._periods_ns[name].append(stamp_ns - newest)
            self._newest_ns[name] = max(stamp_ns, self._newest_ns.get(name, stamp_ns))
        return bundles + self.poll(now_ns)

    def poll(self, now_ns: int) -> list[Bundle[Payload]]:
        """Release all bundles that are decided or past their deadline at ``now_ns``."""
        self._now_ns = now_ns
        pending = self._buffers[self._primary]
        ready = max(0, len(pending) - self._capacity)
        for index in range(ready, len(pending)):
            overdue = now_ns - pending[index].arrival_ns >= self._deadline_ns
            if overdue or self._is_decided(pending[index].stamp_ns):
                ready = index + 1
        bundles = self._release_primaries(ready)
        if not self._buffers[self._primary] and self._is_primary_silent():
            bundles += self._release_alone(now_ns - self._deadline_ns)
        self._prune()
        return bundles

    def flush(self) -> list[Bundle[Payload]]:
        """Release everything that is pending, as at the end of a recording."""
        bundles = self._release_primaries(len(self._buffers[self._primary]))
        if self._newest_ns.get(self._primary) is None or self._is_primary_silent():
            bundles += self._release_alone(self._now_ns)
        self._prune()
        return bundles

    def reset(self) -> None:
        """Drop all messages without releasing them, as after a jump back in time."""
        self._clear()
        self._statistics.resets += 1

    def _clear(self) -> None:
        names = (self._primary, *self._secondary)
        self._buffers: dict[str, list[_Message[Payload]]] = {name: [] for name in names}
        self._newest_ns: dict[str, int] = {}
        self._periods_ns: dict[str, deque[int]] = {name: deque(maxlen=_PERIODS) for name in names}
        self._released_ns = -(1 << 63)
        self._heard_ns = None

    def _is_decided(self, stamp_ns: int) -> bool:
        return all(self._has_nearest(name, stamp_ns) for name in self._secondary)

    def _has_nearest(self, name: str, stamp_ns: int) -> bool:
        """Whether no later message of a stream can be nearer to a stamp than those received."""
        newest_ns, periods_ns = self._newest_ns.get(name), self._periods_ns[name]
        if newest_ns is None or newest_ns >= stamp_ns:
            return newest_ns is not None
        if not self._learns_periods or len(periods_ns) < _PERIODS_NEEDED:
            return False
        return newest_ns + _EARLIEST * min(periods_ns) - stamp_ns > stamp_ns - newest_ns

    def _is_primary_silent(self) -> bool:
        return self._heard_ns is not None and self._now_ns - self._heard_ns >= self._silence_ns

    def _release_primaries(self, count: int) -> list[Bundle[Payload]]:
        """Release the ``count`` oldest primaries: older ones never wait behind a newer one that is ready."""
        pending = self._buffers[self._primary]
        released, pending[:] = pending[:count], pending[count:]
        return [self._bundle(message) for message in released]

    def _bundle(self, primary: _Message[Payload]) -> Bundle[Payload]:
        messages = {self._primary: (primary.stamp_ns, primary.payload)}
        for name in self._secondary:
            nearest = self._nearest(name, primary.stamp_ns)
            gap_ns = None if nearest is None else nearest.stamp_ns - primary.stamp_ns
            if nearest is None or gap_ns is None or abs(gap_ns) > self._slop_ns:
                self._statistics.nearest_gap_ns[name] = gap_ns
                continue
            nearest.used = True
            messages[name] = (nearest.stamp_ns, nearest.payload)
        if len(messages) > 1:
            self._statistics.paired += 1
        else:
            self._statistics.primary_only += 1
        self._released_ns = primary.stamp_ns
        return Bundle(primary.stamp_ns, primary.arrival_ns, messages)

    def _nearest(self, name: str, stamp_ns: int) -> _Message[Payload] | None:
        # min() keeps the first of equals: the earlier one.
        return min(self._buffers[name], key=lambda message: abs(message.stamp_ns - stamp_ns), default=None)

    def _release_alone(self, arrived_before_ns: int) -> list[Bundle[Payload]]:
        """Release unused secondaries that arrived by then, each by itself, in order of stamp."""
        alone = [
            (message, name)
            for name in self._secondary
            for message in self._buffers[name]
            if not message.used and message.arrival_ns <= arrived_before_ns
        ]
        bundles: list[Bundle[Payload]] = []
        for message, name in sorted(alone, key=lambda pair: pair[0].stamp_ns):
            if message.stamp_ns <= self._released_ns:
                continue
            message.used = True
            self._statistics.secondary_only += 1
            self._released_ns = message.stamp_ns
            bundles.append(Bundle(message.stamp_ns, message.arrival_ns, {name: (message.stamp_ns, message.payload)}))
        return bundles

    def _prune(self) -> None:
        """Drop secondaries that cannot be nearest to a later primary, and the oldest beyond the capacity."""
        for name in self._secondary:
            buffer = self._buffers[name]
            past = bisect_left(buffer, self._released_ns + 1, key=lambda message: message.stamp_ns)
            excess = max(0, past - 1, len(buffer) - self._capacity)
            self._statistics.secondary_unused += sum(not message.used for message in buffer[:excess])
            del buffer[:excess]
