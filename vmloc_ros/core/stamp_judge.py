# SPDX-License-Identifier: Apache-2.0
"""Which stamps of arriving messages can be true; pure Python: no ROS, no clock of its own. For recordings: ``stamps``.

Rules:

* A stamp of 0 is never true.
* A stamp that goes on from its stream's latest, or fits the clock by which messages arrive as those before it did, is
  believed at once.
* Any other is held back until it is decided. When the stream goes on as before, what was held back is false. When it
  stays there, the clock has been set (a bag that loops or was sought in, a simulation that starts again): what was
  held back is released in order of arrival.
* How long it must stay depends on what contradicts it: a receiver's clock that stamps have followed closely, or
  another stream that goes on as before, makes it long; other streams of the new time end it at once.
* The first stamp of a stream is believed if it is of about the receiver's time or that of another stream, else together
  with the next that continues it, or when none comes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from vmloc_ros.core.stamps import TOLERANCE_NS

Payload = TypeVar("Payload")

_SECOND_NS = 1_000_000_000
_FEW = 5  # latest delays where they change
_HISTORY = 100  # latest delays kept of a stream
_STEADY = 10  # messages, ...
_STEADY_NS = 2 * _SECOND_NS  # ... over at least this time, ...
_SPREAD_NS = _SECOND_NS // 2  # ... whose delays differ by less than this: stamps follow the receiver's clock
_CONTRADICTED_NS = 10 * _SECOND_NS  # patience with a jump that the receiver's clock or another stream contradicts
_FOLLOWED_NS = 3 * _SECOND_NS  # with one of stamps that followed the receiver's clock, though they were far from it
_PATIENCE_NS = _SECOND_NS // 2  # with any other
_ACTIVE_NS = _SECOND_NS  # a stream silent for longer neither confirms nor contradicts
_MISSED = 3  # messages in a row that may be lost without a jump, at an unknown pace
_LONGEST_PERIOD_NS = 10 * _SECOND_NS
_HELD = 20  # the latest ones are kept, as many as may matter to what follows


class Stamped(NamedTuple, Generic[Payload]):
    """A message that is believed."""

    name: str
    stamp_ns: int
    payload: Payload


@dataclass(slots=True)
class FalseStamps:
    """Counts of a stream's false stamps, and by how much the latest of those not 0 was ahead of the others."""

    zeros: int = 0
    departed: int = 0
    departure_ns: int = 0


@dataclass(slots=True)
class _Message(Generic[Payload]):
    name: str
    stamp_ns: int
    now_ns: int
    delay_ns: int  # since the stamp, by the receiver's clock
    payload: Payload
    number: int  # in order of arrival over all streams


@dataclass(slots=True, eq=False)
class _Stream(Generic[Payload]):
    name: str
    stamp_ns: int | None = None  # of the latest believed message
    now_ns: int = 0  # when it arrived
    delays_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    steps_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_STEADY))  # between stamps, ahead alone
    held: list[_Message[Payload]] = field(default_factory=list)  # each continues the one before
    held_ns: int = 0  # when the first of them arrived ...
    held_delay_ns: int = 0  # ... and its delay
    jump_ns: int = 0  # the latest that was accepted ...
    jumped_ns: int | None = None  # ... and when
    false: FalseStamps = field(default_factory=FalseStamps)

    @property
    def delay_ns(self) -> int:
        """The median of the latest delays, of few where they change: at another rate than the receiver's clock."""
        latest = list(self.delays_ns) if self.is_steady else list(self.delays_ns)[-_FEW:]
        return sorted(latest)[len(latest) // 2]

    @property
    def period_ns(self) -> int:
        """The median of the latest steps, 0 before there are two."""
        return sorted(self.steps_ns)[len(self.steps_ns) // 2] if len(self.steps_ns) > 1 else 0

    @property
    def is_steady(self) -> bool:
        """Whether stamps have followed the receiver's clock."""
        if len(self.delays_ns) < _STEADY or self.arrivals_ns[-1] - self.arrivals_ns[0] < _STEADY_NS:
            return False
        ordered, tenth = sorted(self.delays_ns), len(self.delays_ns) // 10
        return ordered[-1 - tenth] - ordered[tenth] <= _SPREAD_NS

    @property
    def interval_ns(self) -> int:
        """The median time between arrivals; 0 before there are two."""
        intervals_ns = sorted(later - earlier for earlier, later in pairwise(self.arrivals_ns))
        return intervals_ns[len(intervals_ns) // 2] if intervals_ns else 0

    @property
    def heard_ns(self) -> int:
        """When the latest message arrived, believed or held."""
        return self.held[-1].now_ns if self.held else self.now_ns


class StampJudge(Generic[Payload]):
    """Passes messages on whose stamps can be true; see the module's rules. Not thread-safe: callers hold a lock.

    Args:
        streams: their names.
        tolerance_ns: a smaller departure from what is expected is jitter, delay, or a straggler.
    """

    def __init__(self, streams: tuple[str, ...], tolerance_ns: int = TOLERANCE_NS) -> None:
        self._tolerance_ns = tolerance_ns
        self._streams: dict[str, _Stream[Payload]] = {name: _Stream(name) for name in streams}
        self._number = 0

    @property
    def false(self) -> dict[str, FalseStamps]:
        """A snapshot of the counts by stream, since construction; they survive resets."""
        return {name: replace(stream.false) for name, stream in self._streams.items()}

    def clock_gap_ns(self, first: str, second: str, now_ns: int) -> int | None:
        """By how much the second stream's stamps are ahead of the first's; None unless both have arrived lately."""
        streams = self._streams[first], self._streams[second]
        if any(not stream.delays_ns or now_ns - stream.now_ns > _CONTRADICTED_NS for stream in streams):
            return None
        return streams[0].delay_ns - streams[1].delay_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """When to call :meth:`poll` next; None if nothing is held back."""
        return min((self._until_ns(stream) for stream in self._streams.values() if stream.held), default=None)

    def add(
        self, name: str, stamp_ns: int, payload: Payload, now_ns: int, clock_ns: int | None = None
    ) -> list[Stamped[Payload]]:
        """Take a message in and return those that are now believed, in order of arrival.

        Args:
            now_ns: steady time of arrival.
            clock_ns: time of arrival by the clock that stamps are expected to follow; None: by the steady one.

        Raises:
            KeyError: the stream was not declared.
        """
        stream = self._streams[name]
        if stamp_ns <= 0:
            stream.false.zeros += 1
            return self.poll(now_ns)
        self._number += 1
        delay_ns = (now_ns if clock_ns is None else clock_ns) - stamp_ns
        message = _Message(name, stamp_ns, now_ns, delay_ns, payload, self._number)
        believed = self._begin(stream, message) if stream.stamp_ns is None else self._go_on(stream, message)
        return self._pass_on(believed) + self.poll(now_ns)

    def poll(self, now_ns: int) -> list[Stamped[Payload]]:
        """Return what was held back for long enough at ``now_ns``."""
        due = [stream for stream in self._streams.values() if stream.held and self._until_ns(stream) <= now_ns]
        for stream in due:
            stayed_ns = stream.held[-1].now_ns - stream.held_ns
            needs_to_stay = stream.stamp_ns is not None and (stream.is_steady or self._is_contradicted(stream))
            if needs_to_stay and stayed_ns < self._patience_ns(stream) // 2:
                self._drop_held(stream)  # nothing came after it
        released = [message for stream in due for message in self._accept(stream, now_ns)]
        return self._pass_on(sorted(released, key=lambda message: message.number))

    def reset(self) -> None:
        """Forget all messages, as before the first one; none is counted as false."""
        self._streams = {name: _Stream(name, false=stream.false) for name, stream in self._streams.items()}

    def _begin(self, stream: _Stream[Payload], message: _Message[Payload]) -> list[_Message[Payload]]:
        """Decide on a message of a stream of which none is believed yet."""
        is_believed = self._is_vouched_for(stream, message)
        is_believed |= bool(stream.held) and self._continues(stream, stream.held[-1], message)
        self._hold(stream, message)
        return self._accept(stream, message.now_ns) if is_believed else []

    def _go_on(self, stream: _Stream[Payload], message: _Message[Payload]) -> list[_Message[Payload]]:
        """Decide on a message of a stream that has others."""
        assert stream.stamp_ns is not None, "one is believed"
        if self._is_next(stream, stream.stamp_ns, stream.now_ns, message):
            self._drop_held(stream)
            return [message]
        if self._fits_clock(stream, message):
            # The clock that stamps follow has been set, and its new time came after the stamps.
            held = stream.held if stream.held and self._continues(stream, stream.held[-1], message) else []
            if not held:
                self._drop_held(stream)
            stream.held = []
            return [*held, message]
        is_regular = self._is_regular(stream, message)
        self._hold(stream, message, or_else=is_regular)
        return self._accept(stream, message.now_ns) if is_regular else []

    # --- what is believed at once ---

    def _is_next(self, stream: _Stream[Payload], stamp_ns: int, now_ns: int, message: _Message[Payload]) -> bool:
        """Whether a message goes on from an earlier one of its stream."""
        step_ns, elapsed_ns = message.stamp_ns - stamp_ns, message.now_ns - now_ns
        if abs(step_ns) <= self._tolerance_ns:
            return True
        if 0 < step_ns <= elapsed_ns:  # perhaps after a delay
            return True
        if step_ns < 0 or stream.is_steady:  # then the receiver's clock tells more
            return False
        return step_ns <= self._tolerance_ns + max(elapsed_ns, _MISSED * stream.period_ns)

    def _fits_clock(self, stream: _Stream[Payload], message: _Message[Payload]) -> bool:
        """Whether a message's delay is as of those before it; it may be shorter after a congestion."""
        if stream.is_steady:
            least_ns = min(stream.delays_ns)
            return least_ns - self._tolerance_ns <= message.delay_ns <= stream.delay_ns + self._tolerance_ns
        # Not the latest alone: where the receiver's clock is set, stragglers of the old time come after that.
        latest = list(stream.delays_ns)[-2 * _FEW :]
        return any(abs(message.delay_ns - delay_ns) <= self._tolerance_ns for delay_ns in latest)

    def _is_vouched_for(self, stream: _Stream[Payload], message: _Message[Payload]) -> bool:
        """Whether a stream's first message is of about the receiver's time, or that of another stream."""
        others = [other.delay_ns for other in self._streams.values() if other is not stream and other.delays_ns]
        return any(abs(message.delay_ns - delay_ns) <= self._tolerance_ns for delay_ns in (0, *others))

    # --- what is held back ---

    def _hold(self, stream: _Stream[Payload], message: _Message[Payload], or_else: bool = False) -> None:
        """Hold a message back, with those before it if it continues them, ``or_else`` in any case."""
        if not (or_else or (stream.held and self._continues(stream, stream.held[-1], message))):
            self._drop_held(stream)
        if not stream.held:
            stream.held_ns, stream.held_delay_ns = message.now_ns, message.delay_ns
        stream.held.append(message)
        if len(stream.held) > _HELD:
            self._count(stream, stream.held.pop(0))

    def _continues(self, stream: _Stream[Payload], earlier: _Message[Payload], message: _Message[Payload]) -> bool:
        """Whether a message continues one that is held back."""
        if abs(message.delay_ns - earlier.delay_ns) <= self._tolerance_ns:
            return True
        if stream.stamp_ns is None and 0 < message.stamp_ns - earlier.stamp_ns <= _LONGEST_PERIOD_NS:
            return True
        return self._is_next(stream, earlier.stamp_ns, earlier.now_ns, message)

    @staticmethod
    def _is_regular(stream: _Stream[Payload], message: _Message[Payload]) -> bool:
        """Whether the latest three stamps show a long period that is not known yet."""
        if stream.period_ns or len(stream.held) != 1 or stream.stamp_ns is None:
            return False
        first, second = stream.held[0].stamp_ns - stream.stamp_ns, message.stamp_ns - stream.held[0].stamp_ns
        return min(first, second) > 0 and max(first, second) <= min(_LONGEST_PERIOD_NS, 2 * min(first, second))

    def _drop_held(self, stream: _Stream[Payload]) -> None:
        for message in stream.held:
            self._count(stream, message)
        stream.held = []

    @staticmethod
    def _count(stream: _Stream[Payload], message: _Message[Payload]) -> None:
        stream.false.departed += 1
        if stream.delays_ns:
            stream.false.departure_ns = stream.delay_ns - message.delay_ns

    # --- what was held back for long enough ---

    def _until_ns(self, stream: _Stream[Payload]) -> int:
        """When what is held back will be accepted, if nothing contradicts it until then."""
        return stream.held_ns + self._patience_ns(stream)

    def _patience_ns(self, stream: _Stream[Payload]) -> int:
        if stream.stamp_ns is None:
            return _PATIENCE_NS
        least_ns = _MISSED * stream.interval_ns
        if self._is_contradicted(stream):
            return max(least_ns, _CONTRADICTED_NS)
        others = self._others(stream)
        if others and all(others):
            return 0
        return max(least_ns, _FOLLOWED_NS if stream.is_steady else _PATIENCE_NS)

    def _is_contradicted(self, stream: _Stream[Payload]) -> bool:
        """Whether a jump is contradicted by the receiver's clock, which stamps have followed, or by another stream."""
        if stream.stamp_ns is None:
            return False
        is_live = abs(stream.delay_ns) <= self._tolerance_ns and stream.is_steady
        return is_live or any(agrees is False for agrees in self._others(stream))

    def _others(self, stream: _Stream[Payload]) -> list[bool | None]:
        """What the other streams in use say of a jump."""
        return [self._agrees(stream, other) for other in self._streams.values() if self._is_in_use(stream, other)]

    @staticmethod
    def _is_in_use(stream: _Stream[Payload], other: _Stream[Payload]) -> bool:
        return other is not stream and other.stamp_ns is not None and other.heard_ns >= stream.held_ns - _ACTIVE_NS

    def _agrees(self, stream: _Stream[Payload], other: _Stream[Payload]) -> bool | None:
        """Whether another stream has the new time, or has jumped by as much; None where it was not heard since."""
        delay_ns = other.held_delay_ns if other.held else other.delay_ns
        if abs(delay_ns - stream.held_delay_ns) <= self._tolerance_ns:
            return True
        jump_ns = stream.delay_ns - stream.held_delay_ns
        if other.held:
            return abs(other.delay_ns - other.held_delay_ns - jump_ns) <= self._tolerance_ns
        is_recent = other.jumped_ns is not None and other.jumped_ns > stream.held_ns - _CONTRADICTED_NS
        if is_recent and abs(other.jump_ns - jump_ns) <= self._tolerance_ns:
            return True
        return False if other.now_ns > stream.held_ns else None

    @staticmethod
    def _accept(stream: _Stream[Payload], now_ns: int) -> list[_Message[Payload]]:
        """Release what is held back; the stream goes on from there."""
        if not stream.held:
            return []
        if stream.delays_ns:
            stream.jump_ns, stream.jumped_ns = stream.delay_ns - stream.held_delay_ns, now_ns
        stream.stamp_ns = None
        stream.delays_ns.clear()
        stream.arrivals_ns.clear()
        held, stream.held = stream.held, []
        return held

    # --- what is passed on ---

    def _pass_on(self, messages: list[_Message[Payload]]) -> list[Stamped[Payload]]:
        for message in messages:
            self._believe(self._streams[message.name], message)
        return [Stamped(message.name, message.stamp_ns, message.payload) for message in messages]

    def _believe(self, stream: _Stream[Payload], message: _Message[Payload]) -> None:
        step_ns = 0 if stream.stamp_ns is None else message.stamp_ns - stream.stamp_ns
        if step_ns > 0:
            stream.steps_ns.append(step_ns)
        if stream.stamp_ns is None or not -self._tolerance_ns <= step_ns <= 0:  # else a straggler
            stream.stamp_ns = message.stamp_ns
        stream.now_ns = message.now_ns
        stream.delays_ns.append(message.delay_ns)
        stream.arrivals_ns.append(message.now_ns)
