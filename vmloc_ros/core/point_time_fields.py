# SPDX-License-Identifier: Apache-2.0
"""Fields of a lidar's points that may hold times: which they are, their values, and the range of these in a scan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[Any]  # (height, width) structured: x, y, z and the fields of times

# In the order of preference, without underscores and case; units may follow.
_NAMES = (
    "t", "time", "timestamp", "timeoffset", "offsettime", "pointtimeoffset", "pointtime", "pointtimestamp", "reltime",
    "relativetime", "timerel", "deltatime", "dt", "stamp",
)  # fmt: skip
_NAME = re.compile(rf"({'|'.join(_NAMES)})(s|sec|secs|seconds|ms|msec|us|usec|ns|nsec|nsecs|nanosec|nanoseconds)?")
_SECONDS = re.compile(r"(.*?)(s|sec|secs|seconds)")
_SUBSECONDS = {"nsec": 1, "nsecs": 1, "nanosec": 1, "nanoseconds": 1, "ns": 1, "usec": 1000, "usecs": 1000, "us": 1000}
UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

_SAMPLE = 512  # points that are judged
_FAR = 4.0  # widths of a sweep, between it and values that cannot be times
_FEW_VALUES = 20  # too few to tell them apart


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
class Span:
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
        return {"ns": 1} if len(self.fields) > 1 else UNITS_NS

    def offset_ns(self, unit: str) -> int:
        """How far the median is from the header's stamp, as stamps of the same epoch."""
        return round(self.base * self.units[unit]) - self.stamp_ns

    def middle_ns(self, unit: str) -> int:
        return self.offset_ns(unit) + round((self.low + self.high) / 2 * self.units[unit])

    def edges_s(self, unit: str, shift_ns: float) -> tuple[float, float]:
        """Start and end of the sweep, with the median at ``shift_ns``."""
        scale = self.units[unit]
        return (shift_ns + self.low * scale) * 1e-9, (shift_ns + self.high * scale) * 1e-9


def type_of(points: Points, fields: tuple[str, ...]) -> str:
    return "+".join(str(points.dtype[name].newbyteorder("=").name) for name in fields)


def values_of(points: Points, fields: tuple[str, ...]) -> NDArray[Any]:
    """``(height, width)`` values; int64 nanoseconds of a pair; differences of 32-bit integers may be negative."""
    if len(fields) == 1:
        return points[fields[0]]
    seconds, fraction = (points[name].astype(np.int64) for name in fields)
    name = _plain(fields[1])
    return seconds * 1_000_000_000 + fraction * next(ns for end, ns in _SUBSECONDS.items() if name.endswith(end))


def scaled(values: NDArray[Any], unit_ns: int) -> NDArray[np.float32]:
    """Seconds ``(N,)``; unsigned 32-bit integers count a little below zero as well, as sums of a driver wrap."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 4:
        values = values.view(values.dtype.str.replace("u", "i"))
    exact = np.float64 if values.dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        seconds = np.multiply(values, exact(unit_ns * 1e-9), dtype=exact, casting="unsafe")
        return seconds.astype(np.float32, copy=False).reshape(-1)


def since(values: NDArray[Any], start_ns: int, unit_ns: int) -> NDArray[np.float32]:
    """Seconds ``(N,)`` of stamps since a start."""
    whole = values.dtype.kind in "iu"
    times = scaled(difference(values, start_ns // unit_ns if whole else start_ns / unit_ns), unit_ns)
    return times - np.float32(start_ns % unit_ns * 1e-9) if whole and start_ns % unit_ns else times


def difference(values: NDArray[Any], base: int | float) -> NDArray[Any]:
    """``values - base``, exact, as signed or floating-point numbers; unsigned 32-bit integers wrap."""
    if values.dtype.kind == "f":
        return np.subtract(values, float(base), dtype=np.float64)
    if values.dtype.kind == "u" and values.dtype.itemsize == 4:
        return (values.astype(np.uint32) - np.uint32(int(base) % 2**32)).view(np.int32)
    return values.astype(np.int64) - int(base)


def sample_rows(points: Points) -> NDArray[np.int64]:
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


def span_of(points: Points, fields: tuple[str, ...], stamp_ns: int) -> Span | None:
    """Range of most of a field's values, however wrong the others are; None without returns."""
    rows = sample_rows(points)
    values = values_of(points[np.divmod(rows, points.shape[1])], fields)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    values = values.astype(values.dtype.newbyteorder("="))
    middle = np.partition(values, len(values) // 2)[len(values) // 2]
    base = float(middle) if values.dtype.kind == "f" else int(middle)
    low, high = np.quantile(_majority(difference(values, base).astype(np.float64)), [0.05, 0.95])
    margin = (high - low) / 18  # 5 % of the sweep on both sides
    return Span(fields, type_of(points, fields), base, float(low - margin), float(high + margin), stamp_ns)


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
