# SPDX-License-Identifier: Apache-2.0
"""When a recording really begins, and which of its gaps are too long to wait for.

Log times are what a recorder's clock said. With simulated time it says 0 until the first ``/clock`` comes; latched
messages may be logged when they were published, hours before; a converter may leave zeros; and the start in a bag's
metadata may be any of these. So only the messages' own log times count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

_EARLY_SPAN_NS = 1_000_000_000
_EARLY_SHARE = 0.05
_FIRST_DATE_S = 86400 * 365  # log times of less count from a simulation's start, not from 1970


@dataclass(frozen=True, slots=True)
class Timeline:
    """How the log times of a recording are played.

    Attributes:
        start_ns: log time of the first message that is played at its time.
        early: number of messages logged long before; they go out at once, at the start.
        max_gap_ns: longer gaps are left out.
        skipped: number of such gaps.
        duration_s: seconds from the start to the last message without them.
    """

    start_ns: int
    early: int
    max_gap_ns: float
    skipped: int
    duration_s: float


def timeline_of(logged_ns: NDArray[np.int64], max_gap_s: float) -> Timeline:
    """The timeline of ``(N,)`` sorted log times; N may be 0.

    What was logged before the first message's real time is a group of few messages (below 5 %) within a second, or of
    messages logged at 0, that a gap of more than ``max_gap_s`` (after 0: a second) separates from the others.
    """
    max_gap_ns = max_gap_s * 1e9
    early = 0
    while (size := _early_group(logged_ns[early:], max_gap_ns, len(logged_ns))) is not None:
        early += size
    played = logged_ns[early:]
    gaps = np.diff(played)
    is_long = gaps > max_gap_ns
    return Timeline(
        start_ns=int(played[0]) if len(played) else 0,
        early=early,
        max_gap_ns=max_gap_ns,
        skipped=int(is_long.sum()),
        duration_s=float(gaps[~is_long].sum()) * 1e-9,
    )


def when_text(logged_ns: int) -> str:
    """A log time: of a date in UTC, of a simulation in seconds."""
    seconds = logged_ns / 1e9
    if seconds < _FIRST_DATE_S:
        return f"{seconds:.1f} s"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration_text(duration_s: float) -> str:
    """A duration in two units: ``2 h 13 min``."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    place = next(place for place, (_, size) in enumerate(units) if duration_s >= size)
    (name, size), (part, part_size) = units[place], units[place + 1]
    whole, rest = divmod(duration_s, size)
    return f"{whole:.0f} {name} {rest // part_size:.0f} {part}"


def _early_group(logged_ns: NDArray[np.int64], max_gap_ns: float, total: int) -> int | None:
    """How many messages at the beginning are not of the recording's time; None where the first one is."""
    gaps = np.diff(logged_ns)
    is_end = gaps > np.where(logged_ns[:-1] == 0, min(max_gap_ns, _EARLY_SPAN_NS), max_gap_ns)
    if not is_end.any():
        return None
    size = int(np.argmax(is_end)) + 1
    is_few = size < _EARLY_SHARE * total and logged_ns[size - 1] - logged_ns[0] <= _EARLY_SPAN_NS
    return size if is_few or logged_ns[size - 1] == 0 else None
