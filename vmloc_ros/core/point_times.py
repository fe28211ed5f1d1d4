# SPDX-License-Identifier: Apache-2.0
"""When a lidar measured its points: in which field a driver says so, in which unit, and by which clock.

Drivers agree on none of it (see ``docs/inputs.md``), so that a *reading* is chosen by plausibility
(:mod:`vmloc_ros.core.time_readings`). What fits no reading is left out: a scan without times costs some centimetres, a
scan with wrong ones tens of metres.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.point_time_fields import (
    UNITS_NS,
    Points,
    Span,
    difference,
    sample_rows,
    scaled,
    since,
    span_of,
    time_fields,
    type_of,
    values_of,
)
from vmloc_ros.core.time_readings import (
    AHEAD_NS,
    HEADER,
    OF_PERIOD,
    OWN,
    TimeReading,
    best_reading,
    compare_times,
    reading_from,
    why_not,
    wrap_ns_of,
)

Say = Callable[[str], object]

TIMES = "lidar_times"  # name of this reading among those of a recording

_LONGEST_PERIOD_S = 3.0  # beyond it more than one unit would be plausible
_INSIDE = 0.6  # share of points whose times must be plausible
_PATIENCE = 5  # scans
_MEMORY = 20  # scans
_FEW = 200  # points that may lie in a small part of a sweep
_CLOCK_MEMORY = 21  # scans whose offsets are averaged, against jitter of the header's stamps
_CLOCK_JUMP_NS = 250_000_000
_LEFT_OUT = "left_out"  # key of a record: why no times are used


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
        self._scans: deque[list[Span]] = deque(maxlen=_MEMORY)
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
        self.reading = best_reading(self._scans, self._period_s(), None)
        if self.reading is None and self._stamps_ns:
            self._problem = self._problem or self._why_not()

    def _read(self, reading: TimeReading, points: Points, stamp_ns: int) -> NDArray[np.float32] | None:
        """Times by a reading; None where they are not plausible."""
        fields = reading.fields
        if not set(fields) <= set(points.dtype.names or ()) or type_of(points, fields) != reading.type:
            return None
        values, unit_ns = values_of(points, fields), UNITS_NS[reading.unit]
        if reading.clock == OWN:
            times = self._by_own_clock(reading, points, values, stamp_ns)
        elif reading.clock == HEADER:
            times = scaled(values, unit_ns)
        else:
            times = since(values, stamp_ns + AHEAD_NS[reading.clock], unit_ns)
        return None if times is None else _checked(times, reading, points)

    def _by_own_clock(
        self, reading: TimeReading, points: Points, values: NDArray[Any], stamp_ns: int
    ) -> NDArray[np.float32] | None:
        """Times by a clock whose distance is the median of the latest scans', so that stamps may jitter."""
        span = span_of(points, reading.fields, stamp_ns)
        if span is None:
            return None
        times = scaled(difference(values, span.base), UNITS_NS[reading.unit])
        inside = times[np.abs(times) <= OF_PERIOD * max(reading.sweep_s, reading.period_s or 0.0)]
        if not inside.size:
            return None
        first, last = float(inside.min()), float(inside.max())
        header_s = first + reading.header_at * (last - first)  # where the stamp is assumed to lie
        offset_ns = span.offset_ns(reading.unit) + round(header_s * 1e9)
        shift_ns = self._clock.follow(offset_ns, wrap_ns_of(reading)) - offset_ns
        return times - np.float32(header_s + shift_ns * 1e-9)

    def _misfit(self, points: Points, fields: tuple[tuple[str, ...], ...], stamp_ns: int) -> NDArray[np.float32] | None:
        """Look for a (new) reading; the scan goes without times unless there is one that fits it."""
        if self.reading is not None and self._misfits == 0:
            self._scans.clear()  # those that it was chosen by
        self._remember(points, fields, stamp_ns)
        self._misfits += 1
        if self.reading is None or self._misfits >= _PATIENCE:
            found = best_reading(self._scans, self._period_s(), self._expected)
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
        self._scans.append([span for names in fields if (span := span_of(points, names, stamp_ns)) is not None])

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
        return why_not(next((spans for spans in reversed(self._scans) if spans), []), self._period_s())

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


def _checked(times: NDArray[np.float32], reading: TimeReading, points: Points) -> NDArray[np.float32] | None:
    """The times, with the sweep's middle for those that cannot be true; None where too many cannot."""
    first, last, reach_s = times.min(), times.max(), reading.reach_s
    if -reach_s <= first and last <= reach_s:
        return times if last - first > 0.25 * reading.sweep_s or len(times) < _FEW else None
    inside = np.abs(times) <= reach_s  # False for NaN
    rows = sample_rows(points)
    rows = rows[np.isfinite(times[rows])]
    if not len(rows) or np.count_nonzero(inside[rows]) < _INSIDE * len(rows):
        return None
    return np.where(inside, times, np.float32(reading.middle_s))
