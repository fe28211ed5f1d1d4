# SPDX-License-Identifier: Apache-2.0
"""When a lidar measured its points: in which field a driver says so, in which unit, and by which clock.

Drivers agree on none of it (see ``docs/inputs.md``), so that a *reading* is chosen by plausibility. A sweep lasts 5 to
250 ms; as units differ by a factor of a thousand, at most one of them makes it last so long. Times are relative to the
header's stamp, or stamps of the header's clock, where that puts them near the stamp; else stamps of TAI or GPS, or of a
clock of their own at a constant distance. What fits no reading is left out: a scan without times costs some
centimetres, a scan with wrong ones tens of metres.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[Any]  # (height, width) structured: x, y, z and the fields of times
Say = Callable[[str], object]

# In the order of preference, without underscores and case; units may follow.
_NAMES = (
    "t", "time", "timestamp", "timeoffset", "offsettime", "pointtimeoffset", "pointtime", "pointtimestamp", "reltime",
    "relativetime", "timerel", "deltatime", "dt", "stamp",
)  # fmt: skip
_NAME = re.compile(rf"({'|'.join(_NAMES)})(s|sec|secs|seconds|ms|msec|us|usec|ns|nsec|nsecs|nanosec|nanoseconds)?")
_SECONDS = re.compile(r"(.*?)(s|sec|secs|seconds)")
_SUBSECONDS = {"nsec": 1, "nsecs": 1, "nanosec": 1, "nanoseconds": 1, "ns": 1, "usec": 1000, "usecs": 1000, "us": 1000}
_UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

TIMES = "lidar_times"  # name of this reading among those of a recording

HEADER, STAMPS, OWN = "header", "stamps", "own clock"
# Ahead of UTC, since the leap second of 2016 (IERS Bulletin C); PTP counts TAI.
_AHEAD_NS = {STAMPS: 0, "TAI": 37_000_000_000, "GPS": 18_000_000_000}
_RANK = {clock: rank for rank, clock in enumerate((HEADER, *_AHEAD_NS, OWN))}

_SHORTEST_S, _LONGEST_S = 0.005, 0.25  # of a sweep, as long as the period between scans is unknown
_LONGEST_PERIOD_S = 3.0  # beyond it more than one unit would be plausible
_OF_PERIOD = 1.25  # how much longer a sweep may last than the period
_REACH = 1.5  # how far from the stamp times may lie, in periods
_USUAL_PERIOD_S = 0.1
_SAMPLE = 512  # points that are judged
_INSIDE = 0.6  # share of points whose times must be plausible
_FAR = 4.0  # widths of a sweep, between it and values that cannot be times
_FEW_VALUES = 20  # too few to tell them apart
_PATIENCE = 5  # scans
_MEMORY = 20  # scans
_FEW = 200  # points that may lie in a small part of a sweep
_CLOCK_MEMORY = 21  # scans whose offsets are averaged, against jitter of the header's stamps
_CLOCK_JUMP_NS = 250_000_000
_LEFT_OUT = "left_out"  # key of a record: why no times are used


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
        reference |= {name: f"{name}, {ns // 10**9} s ahead" for name, ns in _AHEAD_NS.items() if ns}
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


@lru_cache(maxsize=256)
def time_fields(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Fields that may hold points' times, the likeliest first; those for seconds and their fraction as pairs."""
    plain = {name: _plain(name) for name in names}
    pairs = list(_pairs(plain))
    paired = {name for pair in pairs for name in pair}
    found = [(match[1], name) for name, text in plain.items() if (match := _NAME.fullmatch(text))]
    single = sorted((_NAMES.index(base), name) for base, name in found if name not in paired)
    return (*((name,) for _, name in single), *pairs)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _pairs(plain: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, text in plain.items():
        if match := _SECONDS.fullmatch(text):
            fractions = [other for other, t in plain.items() if t in {match[1] + end for end in _SUBSECONDS}]
            yield from ((name, fraction) for fraction in fractions[:1] if fraction != name)


@dataclass(frozen=True, slots=True)
class _Span:
    """Times of one field in one scan, in its own unit.

    Attributes:
        base: the median; an integer for fields of integers.
        low, high: ends of the sweep, relative to ``base``.
    """

    fields: tuple[str, ...]
    type: str
    base: int | float
    low: float
    high: float
    stamp_ns: int

    @property
    def units(self) -> dict[str, int]:
        return {"ns": 1} if len(self.fields) > 1 else _UNITS_NS

    def offset_ns(self, unit: str) -> int:
        """How far the median is from the header's stamp, as stamps of the same epoch."""
        return round(self.base * self.units[unit]) - self.stamp_ns

    def middle_ns(self, unit: str) -> int:
        return self.offset_ns(unit) + round((self.low + self.high) / 2 * self.units[unit])

    def edges_s(self, unit: str, shift_ns: float) -> tuple[float, float]:
        """Start and end of the sweep, with the median at ``shift_ns``."""
        scale = self.units[unit]
        return (shift_ns + self.low * scale) * 1e-9, (shift_ns + self.high * scale) * 1e-9


class PointTimes:
    """Seconds between the header's stamp and each point's measurement, for the scans of one lidar, in order.

    It settles on a reading with the first scan that decides it (with two for a clock of its own), and gives it up when
    the scans no longer fit. A single scan that does not fit goes without times: all its points are of the sweep's
    middle.

    Args:
        topic: for messages.
        record: of the recording, see :attr:`record`; what it says is not announced again.
        inform: called once with a text about the chosen reading.
        warn: called once with a text for each kind of trouble.

    Attributes:
        reading: None where scans have no times, or as long as no reading fits.
        without: number of scans that have a field for times and went without them.
    """

    def __init__(
        self,
        topic: str = "the lidar",
        record: Any = None,
        inform: Say = lambda text: None,
        warn: Say = lambda text: None,
    ) -> None:
        self.reading, self.without = reading_from(record), 0
        self._topic, self._inform, self._warn = topic, inform, warn
        self._scans: deque[list[_Span]] = deque(maxlen=_MEMORY)
        self._stamps_ns: deque[int] = deque(maxlen=_MEMORY)
        self._clock = _ClockOffset()
        self._misfits = 0  # successive ones
        self._problem = record.get(_LEFT_OUT, "") if isinstance(record, dict) else ""
        self._said = {self._problem, str(self.reading)}
        self._expected: TimeReading | None = None
        self._is_compared = True

    @property
    def record(self) -> dict[str, Any] | None:
        """How times are read, or why they are left out, as JSON has it; None where scans have none."""
        if self.reading is not None:
            return asdict(self.reading)
        return {_LEFT_OUT: self._problem} if self._problem else None

    def announce(self) -> None:
        """Say how times are read, or why they are left out; for what was known from the beginning."""
        self._said.clear()
        if self.reading is not None:
            self._adopt(self.reading)
        elif self._problem:
            self._leave_out(self._problem)

    def expect(self, record: Any) -> None:
        """Warn where the scans turn out to be read otherwise than in training, by its record."""
        self._expected, self._is_compared = reading_from(record), False

    def restarted(self) -> PointTimes:
        """For reading the same scans once more from the beginning: what was said is not said again."""
        times = PointTimes(self._topic, self.record, self._inform, self._warn)
        times._said = self._said
        return times

    def seconds(self, points: Points, stamp_ns: int, unreadable: str = "") -> NDArray[np.float32] | None:
        """Times ``(N,)`` of the points, row by row; None where the scan has none that can be understood.

        Points whose own time cannot be true count as measured in the sweep's middle.

        Args:
            points: with the candidates of :func:`time_fields`.
            stamp_ns: the header's.
            unreadable: what is wrong with a field for times that is not in ``points``.
        """
        fields = time_fields(points.dtype.names or ())
        if points.size == 0:
            return np.zeros(0, np.float32) if fields else None
        times = None if self.reading is None else self._read(self.reading, points, stamp_ns)
        if times is not None:
            self._misfits = 0
        elif fields:
            times = self._misfit(points, fields, stamp_ns)
        elif unreadable:
            self._leave_out(unreadable)
        if not self._is_compared and (self.reading is not None or not fields or self._misfits >= _PATIENCE):
            self._compare()
        return times

    def observe(self, points: Points, stamp_ns: int, unreadable: str = "") -> None:
        """Take a scan of a recording in for :meth:`settle`, before any is read."""
        fields = time_fields(points.dtype.names or ())
        if points.size and (fields or unreadable):
            self._problem = unreadable
            self._remember(points, fields, stamp_ns)

    def settle(self) -> None:
        """Choose the reading that fits most of the observed scans."""
        self.reading = _best_reading(self._scans, self._period_s(), None)
        if self.reading is None and self._stamps_ns:
            self._problem = self._problem or self._why_not()

    def _read(self, reading: TimeReading, points: Points, stamp_ns: int) -> NDArray[np.float32] | None:
        """Times by a reading; None where they are not plausible."""
        fields = reading.fields
        if not set(fields) <= set(points.dtype.names or ()) or _type(points, fields) != reading.type:
            return None
        values, unit_ns = _values(points, fields), _UNITS_NS[reading.unit]
        if reading.clock == OWN:
            times = self._by_own_clock(reading, points, values, stamp_ns)
        elif reading.clock == HEADER:
            times = _scaled(values, unit_ns)
        else:
            times = _since(values, stamp_ns + _AHEAD_NS[reading.clock], unit_ns)
        return None if times is None else _checked(times, reading, points)

    def _by_own_clock(
        self, reading: TimeReading, points: Points, values: NDArray[Any], stamp_ns: int
    ) -> NDArray[np.float32] | None:
        """Times by a clock whose distance is the median of the latest scans', so that stamps may jitter."""
        span = _span(points, reading.fields, stamp_ns)
        if span is None:
            return None
        times = _scaled(_difference(values, span.base), _UNITS_NS[reading.unit])
        inside = times[np.abs(times) <= _OF_PERIOD * max(reading.sweep_s, reading.period_s or 0.0)]
        if not inside.size:
            return None
        first, last = float(inside.min()), float(inside.max())
        header_s = first + reading.header_at * (last - first)  # where the stamp is assumed to lie
        offset_ns = span.offset_ns(reading.unit) + round(header_s * 1e9)
        shift_ns = self._clock.follow(offset_ns, _wrap_ns(reading)) - offset_ns
        return times - np.float32(header_s + shift_ns * 1e-9)

    def _misfit(self, points: Points, fields: tuple[tuple[str, ...], ...], stamp_ns: int) -> NDArray[np.float32] | None:
        """Look for a (new) reading; the scan goes without times unless there is one that fits it."""
        if self.reading is not None and self._misfits == 0:
            self._scans.clear()  # those that it was chosen by
        self._remember(points, fields, stamp_ns)
        self._misfits += 1
        if self.reading is None or self._misfits >= _PATIENCE:
            found = _best_reading(self._scans, self._period_s(), self._expected)
            times = None if found is None else self._read(found, points, stamp_ns)
            if found is not None and times is not None:
                self._adopt(found)
                return times
        self.without += 1
        if self._misfits >= _PATIENCE:
            self.reading = None
            self._leave_out(self._problem or self._why_not())
        elif self.reading is not None:
            self._say("those of a scan do not fit those before it, and are left out; no more such scans are reported")
        return None if self.reading is None else np.full(points.size, self.reading.middle_s, np.float32)

    def _remember(self, points: Points, fields: tuple[tuple[str, ...], ...], stamp_ns: int) -> None:
        self._stamps_ns.append(stamp_ns)
        self._scans.append([span for names in fields if (span := _span(points, names, stamp_ns)) is not None])

    def _period_s(self) -> float | None:
        steps = np.diff(np.array(self._stamps_ns, np.int64)) * 1e-9
        steps = steps[steps > 0]
        period = float(np.median(steps)) if len(steps) >= 3 else None
        return period if period is None or period <= _LONGEST_PERIOD_S else None

    def _adopt(self, reading: TimeReading) -> None:
        self.reading, self._problem, self._misfits, self._clock = reading, "", 0, _ClockOffset()
        if reading.clock == OWN:
            self._say(
                f"{reading}. That place is assumed, and times may be off by half a sweep: synchronize the lidar's "
                "clock with that of its header's stamps (PTP)"
            )
        elif str(reading) not in self._said:
            self._said.add(str(reading))
            self._inform(f"points' times of {self._topic}: {reading}")

    def _leave_out(self, problem: str) -> None:
        self._problem = problem
        if _LEFT_OUT not in self._said:
            self._said.add(_LEFT_OUT)
            self._say(f"left out, and scans used as if measured at once: {problem}")

    def _why_not(self) -> str:
        """Field, range and nearest reading of the latest scan."""
        return _why_not(next((spans for spans in reversed(self._scans) if spans), []), self._period_s())

    def _compare(self) -> None:
        self._is_compared = True
        warning, remark = compare_times(self._expected, self.reading)
        if warning:
            self._say(warning)
        if remark:
            self._inform(f"points' times of {self._topic}: {remark}")

    def _say(self, text: str) -> None:
        """Warn once."""
        if text not in self._said:
            self._said.add(text)
            self._warn(f"points' times of {self._topic}: {text}")


class _ClockOffset:
    """Distance of another clock from the header's: the median of the latest scans'."""

    def __init__(self) -> None:
        self._latest_ns: deque[int] = deque(maxlen=_CLOCK_MEMORY)

    def follow(self, offset_ns: int, wrap_ns: int | None) -> int:
        """Take a scan's offset in; returns the median, near ``offset_ns`` where the clock wraps after ``wrap_ns``."""
        if self._latest_ns:
            if wrap_ns is not None:
                reference = self._latest_ns[-1]
                steps = round((offset_ns - reference) / wrap_ns)
                self._latest_ns = deque((x + steps * wrap_ns for x in self._latest_ns), _CLOCK_MEMORY)
            if abs(offset_ns - self._latest_ns[-1]) > _CLOCK_JUMP_NS:  # it was set anew
                self._latest_ns.clear()
        self._latest_ns.append(offset_ns)
        reference = self._latest_ns[0]
        return reference + round(float(np.median([x - reference for x in self._latest_ns])))


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


def _type(points: Points, fields: tuple[str, ...]) -> str:
    return "+".join(str(points.dtype[name].newbyteorder("=").name) for name in fields)


def _values(points: Points, fields: tuple[str, ...]) -> NDArray[Any]:
    """``(height, width)`` values; int64 nanoseconds of a pair; differences of 32-bit integers may be negative."""
    if len(fields) == 1:
        return points[fields[0]]
    seconds, fraction = (points[name].astype(np.int64) for name in fields)
    name = _plain(fields[1])
    return seconds * 1_000_000_000 + fraction * next(ns for end, ns in _SUBSECONDS.items() if name.endswith(end))


def _scaled(values: NDArray[Any], unit_ns: int) -> NDArray[np.float32]:
    """Seconds ``(N,)``; unsigned 32-bit integers count a little below zero as well, as sums of a driver wrap."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 4:
        values = values.view(values.dtype.str.replace("u", "i"))
    exact = np.float64 if values.dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        seconds = np.multiply(values, exact(unit_ns * 1e-9), dtype=exact, casting="unsafe")
        return seconds.astype(np.float32, copy=False).reshape(-1)


def _since(values: NDArray[Any], start_ns: int, unit_ns: int) -> NDArray[np.float32]:
    """Seconds ``(N,)`` of stamps since a start."""
    whole = values.dtype.kind in "iu"
    times = _scaled(_difference(values, start_ns // unit_ns if whole else start_ns / unit_ns), unit_ns)
    return times - np.float32(start_ns % unit_ns * 1e-9) if whole and start_ns % unit_ns else times


def _difference(values: NDArray[Any], base: int | float) -> NDArray[Any]:
    """``values - base``, exact, as signed or floating-point numbers; unsigned 32-bit integers wrap."""
    if values.dtype.kind == "f":
        return np.subtract(values, float(base), dtype=np.float64)
    if values.dtype.kind == "u" and values.dtype.itemsize == 4:
        return (values.astype(np.uint32) - np.uint32(int(base) % 2**32)).view(np.int32)
    return values.astype(np.int64) - int(base)


def _wrap_ns(reading: TimeReading) -> int | None:
    return 2**32 * _UNITS_NS[reading.unit] if reading.type == "uint32" else None


def _checked(times: NDArray[np.float32], reading: TimeReading, points: Points) -> NDArray[np.float32] | None:
    """The times, with the sweep's middle for those that cannot be true; None where too many cannot."""
    first, last, reach_s = times.min(), times.max(), reading.reach_s
    if -reach_s <= first and last <= reach_s:
        return times if last - first > 0.25 * reading.sweep_s or len(times) < _FEW else None
    inside = np.abs(times) <= reach_s  # False for NaN
    rows = _sample_rows(points)
    rows = rows[np.isfinite(times[rows])]
    if not len(rows) or np.count_nonzero(inside[rows]) < _INSIDE * len(rows):
        return None
    return np.where(inside, times, np.float32(reading.middle_s))


def _sample_rows(points: Points) -> NDArray[np.int64]:
    """Flat indices of some points with a return, spread evenly over rows and columns."""
    count = points.size
    steps = np.arange(min(count, _SAMPLE), dtype=np.float64)
    # Multiples of the golden ratio leave no gap, and meet no row or column more often than others.
    flat = (steps if count <= _SAMPLE else (steps * 0.6180339887498949) % 1 * count).astype(np.int64)
    row, column = np.divmod(flat, points.shape[1])
    sample = points[row, column]
    xyz = np.stack([sample[name].astype(np.float64) for name in "xyz"])
    returns = np.isfinite(xyz).all(axis=0) & xyz.any(axis=0)
    return np.asarray(flat[returns])


def _span(points: Points, fields: tuple[str, ...], stamp_ns: int) -> _Span | None:
    """Range of most of a field's values, however wrong the others are; None without returns."""
    rows = _sample_rows(points)
    values = _values(points[np.divmod(rows, points.shape[1])], fields)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    values = values.astype(values.dtype.newbyteorder("="))
    middle = np.partition(values, len(values) // 2)[len(values) // 2]
    base = float(middle) if values.dtype.kind == "f" else int(middle)
    low, high = np.quantile(_majority(_difference(values, base).astype(np.float64)), [0.05, 0.95])
    margin = (high - low) / 18  # 5 % of the sweep on both sides
    return _Span(fields, _type(points, fields), base, float(low - margin), float(high + margin), stamp_ns)


def _majority(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without those that are far away from the shortest interval with half of them."""
    values = np.sort(values)
    half = len(values) // 2
    widths = values[half:] - values[: len(values) - half]
    start = int(np.argmin(widths))
    reach = 1.5 * widths[start]  # to the ends of an even sweep, wherever in it the interval lies
    near = values[(values >= values[start] - reach) & (values <= values[start + half] + reach)]
    is_cluster = 0 < _FAR * (near[-1] - near[0]) < np.ptp(np.quantile(values, [0.05, 0.95]))
    return near if is_cluster and len(values) >= _FEW_VALUES else values


def _best_reading(
    scans: Sequence[list[_Span]], period_s: float | None, expected: TimeReading | None
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


def _fitting(spans: list[_Span], period_s: float | None) -> Iterator[TimeReading]:
    """Readings of a scan that put its times near the header's stamp."""
    for span in spans:
        if (unit := _plausible_unit(span, period_s)) is None:
            continue
        shifts_ns: dict[str, float] = {HEADER: _relative(span) * span.units[unit]}
        shifts_ns |= {clock: span.offset_ns(unit) - ahead_ns for clock, ahead_ns in _AHEAD_NS.items()}
        for clock, shift_ns in shifts_ns.items():
            first, last = span.edges_s(unit, shift_ns)
            at = -first / (last - first)
            reading = TimeReading("+".join(span.fields), span.type, unit, clock, last - first, period_s, at)
            if max(-first, last) <= reading.reach_s:
                yield reading


def _on_own_clock(scans: Sequence[list[_Span]], period_s: float | None, header_at: float) -> Iterator[TimeReading]:
    """Readings by clocks that keep their distance from the header's stamps, of scans that show it.

    Where in the sweep the stamp lies cannot be known. Its middle, taken where training knew no better, makes scans no
    worse than without times, which are taken to be measured at the stamp.
    """
    earlier: dict[tuple[str, ...], _Span] = {}
    for spans in scans:
        for span in spans:
            unit, before = _plausible_unit(span, period_s), earlier.get(span.fields)
            earlier[span.fields] = span
            if unit is None or before is None or before.stamp_ns == span.stamp_ns:
                continue
            first, last = span.edges_s(unit, 0.0)
            reading = TimeReading("+".join(span.fields), span.type, unit, OWN, last - first, period_s, header_at)
            step_ns, wrap_ns = span.middle_ns(unit) - before.middle_ns(unit), _wrap_ns(reading)
            step_ns -= round(step_ns / wrap_ns) * wrap_ns if wrap_ns else 0
            if abs(step_ns) < 0.5e9 * (last - first) + 1e-3 * abs(span.stamp_ns - before.stamp_ns):
                yield reading


def _relative(span: _Span) -> int | float:
    """The median as relative to the header's stamp: wrapped sums of unsigned integers are negative."""
    return (span.base + 2**31) % 2**32 - 2**31 if span.type == "uint32" else span.base


def _plausible_unit(span: _Span, period_s: float | None) -> str | None:
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
    return min(_SHORTEST_S, period_s / 20), _OF_PERIOD * period_s


def _why_not(spans: list[_Span], period_s: float | None) -> str:
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
