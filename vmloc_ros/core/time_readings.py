# SPDX-License-Identifier: Apache-2.0
"""How a field of times is read: in which unit, by which clock; chosen by which readings are plausible.

A sweep lasts 5 to 250 ms; as units differ by a factor of a thousand, at most one of them makes it last so long. Times
are relative to the header's stamp, or stamps of the header's clock, where that puts them near the stamp; else stamps of
TAI or GPS, or of a clock of their own at a constant distance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmloc_ros.core.point_time_fields import UNITS_NS, Span

HEADER, STAMPS, OWN = "header", "stamps", "own clock"
# Ahead of UTC, since the leap second of 2016 (IERS Bulletin C); PTP counts TAI.
AHEAD_NS = {STAMPS: 0, "TAI": 37_000_000_000, "GPS": 18_000_000_000}
_RANK = {clock: rank for rank, clock in enumerate((HEADER, *AHEAD_NS, OWN))}

_SHORTEST_S, _LONGEST_S = 0.005, 0.25  # of a sweep, as long as the period between scans is unknown
OF_PERIOD = 1.25  # how much longer a sweep may last than the period
_REACH = 1.5  # how far from the stamp times may lie, in periods
_USUAL_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True)
class TimeReading:
    """How a lidar's points say when they were measured.

    Attributes:
        field: its name; of two fields for seconds and their fraction both, with a plus between.
        type: numpy's name of its type.
        unit: ``s``, ``ms``, ``us`` or ``ns``.
        clock: ``header``: relative to the header's stamp; ``stamps``: of the header's clock; ``TAI``, ``GPS``; or
            ``own clock``, at a distance from the header's that is learnt.
        sweep_s: how long a sweep lasts.
        period_s: time between the headers' stamps, None while unknown.
        header_at: where in the sweep the header's stamp lies: 0 is its start, 1 its end. Assumed for ``own clock``.
    """

    field: str
    type: str
    unit: str
    clock: str
    sweep_s: float
    period_s: float | None
    header_at: float

    @property
    def reach_s(self) -> float:
        """How far from the header's stamp a point's time may lie."""
        return _REACH * max(self.sweep_s, self.period_s or _USUAL_PERIOD_S)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.field.split("+"))

    @property
    def middle_s(self) -> float:
        """Time of the sweep's middle: of points whose own is not known."""
        return (0.5 - self.header_at) * self.sweep_s

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes it another reading."""
        return self.field, self.type, self.unit, self.clock

    def __str__(self) -> str:
        reference = {HEADER: "since the header's stamp", STAMPS: "of the header's clock"}
        reference |= {name: f"{name}, {ns // 10**9} s ahead" for name, ns in AHEAD_NS.items() if ns}
        return (
            f"field {self.field!r}, {self.type}, {self.unit} {reference.get(self.clock, 'of a clock of its own')}; "
            f"a sweep lasts {1e3 * self.sweep_s:.3g} ms, with the stamp {self._place}"
        )

    @property
    def _place(self) -> str:
        places = {0.0: "at its start", 0.5: "at its middle", 1.0: "at its end"}
        near = (name for at, name in places.items() if abs(self.header_at - at) < 0.1)
        after_ms = 1e3 * self.header_at * self.sweep_s
        return next(near, f"{abs(after_ms):.0f} ms {'after' if after_ms > 0 else 'before'} its start")


def reading_from(record: Any) -> TimeReading | None:
    """The reading of a :attr:`PointTimes.record`; None where there is none."""
    try:
        return TimeReading(**record)
    except TypeError:
        return None


def compare_times(trained: TimeReading | None, own: TimeReading | None) -> tuple[str, str]:
    """How a robot's reading differs from that in training: a warning where it matters for the pose, and a remark.

    Both may be empty. Field, unit and type do not matter, as the result is seconds since the header's stamp.
    """
    both = f"other than in training ({trained or 'none'})"
    if trained is None or own is None:
        return ("" if trained is own else f"{own or 'none'}, {both}: poses in motion may be worse"), ""
    if (trained.clock == OWN) != (own.clock == OWN):
        return f"{own}, {both}: poses in motion may be off by half a sweep", ""
    differs = abs(trained.header_at - own.header_at) > 0.25 or abs(own.sweep_s / trained.sweep_s - 1) > 0.25
    return "", f"{own}, {both}, which matters little" if differs else ""


def wrap_ns_of(reading: TimeReading) -> int | None:
    return 2**32 * UNITS_NS[reading.unit] if reading.type == "uint32" else None


def best_reading(
    scans: Sequence[list[Span]], period_s: float | None, expected: TimeReading | None
) -> TimeReading | None:
    """The reading that fits most scans; of equal ones the expected, else the likeliest."""
    fitting = [reading for spans in scans for reading in _fitting(spans, period_s)]
    fitting += _on_own_clock(scans, period_s, 0.5 if expected is None else expected.header_at)
    votes = Counter(reading.key for reading in fitting)
    if not votes:
        return None
    fields = ["+".join(span.fields) for spans in scans for span in spans]
    known = None if expected is None else expected.key
    best = min(votes, key=lambda key: (-votes[key], key != known, _RANK[key[3]], fields.index(key[0])))
    chosen = [reading for reading in fitting if reading.key == best]
    sweep_s, header_at = (float(np.median([getattr(x, name) for x in chosen])) for name in ("sweep_s", "header_at"))
    return replace(chosen[0], sweep_s=round(sweep_s, 6), header_at=round(header_at, 2))


def _fitting(spans: list[Span], period_s: float | None) -> Iterator[TimeReading]:
    """Readings of a scan that put its times near the header's stamp."""
    for span in spans:
        if (unit := _plausible_unit(span, period_s)) is None:
            continue
        shifts_ns: dict[str, float] = {HEADER: _relative(span) * span.units[unit]}
        shifts_ns |= {clock: span.offset_ns(unit) - ahead_ns for clock, ahead_ns in AHEAD_NS.items()}
        for clock, shift_ns in shifts_ns.items():
            first, last = span.edges_s(unit, shift_ns)
            at = -first / (last - first)
            reading = TimeReading("+".join(span.fields), span.type, unit, clock, last - first, period_s, at)
            if max(-first, last) <= reading.reach_s:
                yield reading


def _on_own_clock(scans: Sequence[list[Span]], period_s: float | None, header_at: float) -> Iterator[TimeReading]:
    """Readings by clocks that keep their distance from the header's stamps, of scans that show it.

    Where in the sweep the stamp lies cannot be known. Its middle, taken where training knew no better, makes scans no
    worse than without times, which are taken to be measured at the stamp.
    """
    earlier: dict[tuple[str, ...], Span] = {}
    for spans in scans:
        for span in spans:
            unit, before = _plausible_unit(span, period_s), earlier.get(span.fields)
            earlier[span.fields] = span
            if unit is None or before is None or before.stamp_ns == span.stamp_ns:
                continue
            first, last = span.edges_s(unit, 0.0)
            reading = TimeReading("+".join(span.fields), span.type, unit, OWN, last - first, period_s, header_at)
            step_ns, wrap_ns = span.middle_ns(unit) - before.middle_ns(unit), wrap_ns_of(reading)
            step_ns -= round(step_ns / wrap_ns) * wrap_ns if wrap_ns else 0
            if abs(step_ns) < 0.5e9 * (last - first) + 1e-3 * abs(span.stamp_ns - before.stamp_ns):
                yield reading


def _relative(span: Span) -> int | float:
    """The median as relative to the header's stamp: wrapped sums of unsigned integers are negative."""
    return (span.base + 2**31) % 2**32 - 2**31 if span.type == "uint32" else span.base


def _plausible_unit(span: Span, period_s: float | None) -> str | None:
    """The unit in which a sweep lasts as long as sweeps do; at most one does."""
    shortest_s, longest_s = _limits_s(period_s)
    resolution = float(np.spacing(np.float32(span.base))) if span.type == "float32" else 0.0
    if resolution > 0.1 * (span.high - span.low):
        return None  # absolute seconds in a float32 come in steps of 128 s
    lasts = {unit: (span.high - span.low) * scale * 1e-9 for unit, scale in span.units.items()}
    return next((unit for unit, sweep_s in lasts.items() if shortest_s <= sweep_s <= longest_s), None)


def _limits_s(period_s: float | None) -> tuple[float, float]:
    """Shortest and longest sweep; a lidar may look around for a part of the period only."""
    if period_s is None:
        return _SHORTEST_S, _LONGEST_S
    return min(_SHORTEST_S, period_s / 20), OF_PERIOD * period_s


def why_not(spans: list[Span], period_s: float | None) -> str:
    if not spans:
        return "no point with a return has a finite time"
    span, (shortest_s, longest_s) = spans[0], _limits_s(period_s)
    length = span.high - span.low
    field = (
        f"field {'+'.join(span.fields)!r} ({span.type}) is {span.base + span.low:.10g} to {span.base + span.high:.10g}"
    )
    limits = f"between {1e3 * shortest_s:.3g} and {1e3 * longest_s:.3g} ms"
    if length == 0:
        return f"{field}, the same for all points"
    unit = min(span.units, key=lambda unit: abs(np.log(length * span.units[unit] * 1e-9 / _USUAL_PERIOD_S)))
    first, last = span.edges_s(unit, _relative(span) * span.units[unit])
    return (
        f"{field}; nearest reading: {unit} since the header's stamp, by which a sweep lasts {1e3 * (last - first):.4g} "
        f"ms, from {first:.4g} to {last:.4g} s; expected {limits}, near the stamp"
    )
