# SPDX-License-Identifier: Apache-2.0
"""Which stamps of a recording cannot be true; pure Python and numpy, no ROS. For arriving messages: ``stamp_judge``.

A clock that is set once (a bag played in a loop, a simulation that starts again, a camera that is synchronized) goes on
from there. A false stamp does not: the messages after it continue those before it. So the messages of a topic are
parted where their stamps jump, and the parts are joined again to timelines: parts that continue each other across what
lies between them. Of two timelines that take turns, the one with fewer messages is false, whether it is of one message
or of many. Timelines that follow each other are both true, unless one is a short piece beside a long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TOLERANCE_NS = 1_000_000_000  # a smaller departure is jitter, delay, or a straggler
OTHER_CLOCK_NS = 10_000_000_000  # stamps farther apart than this are of different clocks, not of a slow sensor
_MISSED = 3  # messages in a row that may be lost without a jump, where log times say nothing
_ALIKE, _ALIKE_NS = 0.3, 500_000_000  # log times say something if this part of the stamps is within this time of them
_SHORT = 0.1  # a timeline of no more messages than this part of the largest one ...
_SHORT_NS = 10_000_000_000  # ... that lasts no longer than this is false
_ONE_OF = 0.2  # and so is a single message beside five
_LATEST = 50  # timelines that a part may continue: keeps garbage from taking quadratic time


@dataclass(frozen=True, slots=True)
class StampReport:
    """Which messages of a topic have a false stamp.

    Attributes:
        false: ``(N,)`` bool.
        zeros: number of messages stamped 0, or before 1970, as by drivers that do not set ``header.stamp``.
        departed: number of the other false ones.
        departure_ns: by how much the first of these is ahead of the stamps around it, where log times or the topic's
            period say it; negative: behind; 0 without one.
        jumps: number of times that the clock was set, for good.
    """

    false: NDArray[np.bool_]
    zeros: int = 0
    departed: int = 0
    departure_ns: int = 0
    jumps: int = 0


def find_false_stamps(stamps_ns: NDArray[np.int64], logged_ns: NDArray[np.int64]) -> StampReport:
    """Judge all messages of one topic together.

    Args:
        stamps_ns: ``(N,)`` stamps of the headers, in the order of the recording.
        logged_ns: ``(N,)`` log times. They may be wrong, all equal for instance: then the stamps are judged by each
            other and by their period.
    """
    false = stamps_ns <= 0
    rows = np.flatnonzero(~false)
    zeros = len(false) - len(rows)
    if len(rows) < 2:
        return StampReport(false, zeros)
    times = _Times(stamps_ns[rows], logged_ns[rows])
    starts = times.starts
    if len(starts) == 1:
        return StampReport(false, zeros)
    timelines = _timelines(times, [*starts.tolist(), len(rows)])
    kept = _kept(timelines, times)
    lost = [run for timeline in timelines if timeline not in kept for run in timeline.runs]
    for run in lost:
        false[rows[run.first : run.last + 1]] = True
    departed = sum(len(run) for run in lost)
    departure_ns = times.departure_ns(min(lost, key=lambda run: run.first), false[rows]) if lost else 0
    return StampReport(false, zeros, departed, departure_ns, len(kept) - 1)


def explain_false_stamps(topic: str, zeros: int, departed: int, departure_ns: int, total: int | None = None) -> str:
    """What is wrong with a topic's stamps, and the remedy, as a sentence.

    Args:
        departure_ns: of an example among the departed, see :class:`StampReport`.
        total: number of all messages; None leaves it out.
    """
    causes = [f"{zeros} {'is' if zeros == 1 else 'are'} stamped 0 (the driver must set header.stamp)"] if zeros else []
    if departed:
        example = f"such as one {describe_departure(departure_ns)} the others" if departure_ns else "unlike the others"
        causes.append(
            f"{departed} {'is' if departed == 1 else 'are'} of another clock, {example} (check the synchronization of "
            "the sensor's clock)"
        )
    count = zeros + departed
    messages = f"{count} {'message' if count == 1 else 'messages'}" if total is None else f"{count} of {total} messages"
    dropped = "has a false stamp and was dropped" if count == 1 else "have a false stamp and were dropped"
    return f"{topic}: {messages} {dropped}: {'; '.join(causes)}"


def describe_departure(departure_ns: int) -> str:
    """A departure in words, such as "3.0 s ahead of"."""
    return f"{abs(departure_ns) * 1e-9:.1f} s {'ahead of' if departure_ns > 0 else 'behind'}"


@dataclass(frozen=True, slots=True)
class _Run:
    """Successive messages without a jump between them, by first and last row."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last + 1 - self.first


@dataclass(slots=True, eq=False)
class _Timeline:
    """Runs that continue each other; ``first`` and ``last`` are numbers of runs."""

    runs: list[_Run]
    first: int
    last: int

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def takes_turns_with(self, other: _Timeline) -> bool:
        return self.first < other.last and other.first < self.last


class _Times:
    """Stamps and log times of a topic's messages, without those stamped 0."""

    def __init__(self, stamps_ns: NDArray[np.int64], logged_ns: NDArray[np.int64]) -> None:
        self._stamps_ns, self._logged_ns = stamps_ns, logged_ns
        self._steps_ns, self._logged_steps_ns = np.diff(stamps_ns), np.diff(logged_ns)
        ordered_steps_ns = np.diff(np.unique(stamps_ns))  # without jumps, of which there may be one at each message
        self._period_ns = int(np.median(ordered_steps_ns)) if len(ordered_steps_ns) else 0
        departures_ns = np.sort(stamps_ns - logged_ns)
        alike = np.searchsorted(departures_ns, departures_ns + _ALIKE_NS, "right") - np.arange(len(departures_ns))
        self._is_logged_well = bool(alike.max() >= _ALIKE * len(departures_ns))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The rows at which a run begins."""
        return np.concatenate([[0], 1 + np.flatnonzero(~self._is_continuous)]).astype(np.int64)

    def continues(self, last: int, first: int) -> bool:
        """Whether the message of row ``first`` continues the timeline whose latest is that of row ``last``."""
        step_ns = int(self._stamps_ns[first] - self._stamps_ns[last])
        clocks_ns = self._logged_ns, self._elapsed_ns
        return any(abs(step_ns - int(clock[first] - clock[last])) <= TOLERANCE_NS for clock in clocks_ns)

    def duration_ns(self, run: _Run) -> int:
        return int(self._stamps_ns[run.last] - self._stamps_ns[run.first])

    def departure_ns(self, run: _Run, false: NDArray[np.bool_]) -> int:
        """By how much a run is ahead of the nearest true message before it, else after it."""
        true = np.flatnonzero(~false)
        if not len(true):
            return 0
        near = true[max(int(np.searchsorted(true, run.first)) - 1, 0)]
        clock_ns = self._logged_ns if self._is_logged_well else self._elapsed_ns
        stamp_step_ns = self._stamps_ns[run.first] - self._stamps_ns[near]
        return int(stamp_step_ns - (clock_ns[run.first] - clock_ns[near]))

    @cached_property
    def _is_continuous(self) -> NDArray[np.bool_]:
        """``(N - 1,)`` bool: a step is as long as in the log, or one that a late or lost message explains."""
        longest_ns = TOLERANCE_NS if self._is_logged_well else max(TOLERANCE_NS, _MISSED * self._period_ns)
        is_small = (self._steps_ns >= -TOLERANCE_NS) & (self._steps_ns <= longest_ns)
        return np.asarray(is_small | (np.abs(self._steps_ns - self._logged_steps_ns) <= TOLERANCE_NS))

    @cached_property
    def _elapsed_ns(self) -> NDArray[np.int64]:
        """``(N,)`` time that passed by the stamps' own steps; a jump counts as a period."""
        steps_ns = np.where(self._is_continuous, self._steps_ns, self._period_ns)
        return np.concatenate([[0], np.cumsum(steps_ns)]).astype(np.int64)


def _timelines(times: _Times, bounds: list[int]) -> list[_Timeline]:
    """Join the runs between these rows to timelines."""
    timelines: list[_Timeline] = []  # the one continued latest comes last
    for number, (first, end) in enumerate(pairwise(bounds)):
        run = _Run(first, end - 1)
        recent = range(len(timelines) - 1, max(-1, len(timelines) - 1 - _LATEST), -1)
        found = next((i for i in recent if times.continues(timelines[i].runs[-1].last, first)), None)
        if found is None:
            timelines.append(_Timeline([run], number, number))
            continue
        timeline = timelines.pop(found)
        timeline.runs.append(run)
        timeline.last = number
        timelines.append(timeline)
    return timelines


def _kept(timelines: list[_Timeline], times: _Times) -> list[_Timeline]:
    """The timelines that are true."""
    kept: list[_Timeline] = []
    # Of equally many messages, those that come first are true.
    for timeline in sorted(timelines, key=lambda timeline: (-len(timeline), timeline.first)):
        is_short = (
            kept
            and len(timeline) <= max(_SHORT * len(kept[0]), min(1.0, _ONE_OF * len(kept[0])))
            and sum(times.duration_ns(run) for run in timeline.runs) <= _SHORT_NS
        )
        if not is_short and not any(timeline.takes_turns_with(other) for other in kept):
            kept.append(timeline)
    return kept
