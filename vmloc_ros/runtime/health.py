# SPDX-License-Identifier: Apache-2.0
"""Counters and latencies for diagnostics; pure Python, written by several threads, read once a second."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from vmloc_ros.core.frame import Estimate

_WINDOW = 200  # latencies kept for the percentiles
_ARRIVALS_S = 5.0  # window of an input's rate and delay
_MOST_ARRIVALS = 5000
_MOST_DELAY_S = 60.0  # no queue is that long
_UNITS = {"years": 365.25 * 86_400, "days": 86_400, "hours": 3600, "minutes": 60}


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Counts since activation; those named ``recent`` since the previous report.

    Attributes:
        published: number of published poses.
        errors: number of rejected frames and messages by kind.
        latency_ms: ``(p50, p95)`` from the arrival of a frame's leading message to publication; None before the first.
        modalities: the sensors used by the latest published pose.
        dropped_sensors, posterior_std: of the latest published pose, see :class:`vmloc_ros.core.frame.Estimate`.
        latest_error: reason of the latest rejection since the previous report; empty without one.
        withheld: number of withheld poses.
        lost: why the latest pose was withheld; empty if it was published.
        confidence: of the latest pose, withheld or not; None if it has none, or there is no pose yet.
    """

    published: int
    recent_published: int
    recent_errors: int
    errors: dict[str, int]
    latency_ms: tuple[float, float] | None
    modalities: tuple[str, ...]
    dropped_sensors: tuple[str, ...]
    posterior_std: Mapping[str, float]
    latest_error: str
    withheld: int
    recent_withheld: int
    lost: str
    confidence: float | None


class Health:
    """Counts published and withheld poses and rejected frames, and keeps latencies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published = 0
        self._errors: Counter[str] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=_WINDOW)
        self._modalities: tuple[str, ...] = ()
        self._dropped_sensors: tuple[str, ...] = ()
        self._posterior_std: Mapping[str, float] = {}
        self._latest_error = ""
        self._withheld = 0
        self._lost = ""
        self._confidence: float | None = None
        self._reported = (0, 0, 0)

    def published(self, latency_ms: float, estimate: Estimate) -> None:
        """Count a published pose.

        Args:
            latency_ms: from the arrival of the frame's leading message to now.
        """
        with self._lock:
            self._published += 1
            self._latencies_ms.append(latency_ms)
            self._modalities, self._dropped_sensors = estimate.modalities, estimate.dropped_sensors
            self._posterior_std = estimate.posterior_std
            self._lost, self._confidence = "", estimate.confidence

    def withheld(self, reason: str, confidence: float | None) -> None:
        """Count a withheld pose."""
        with self._lock:
            self._withheld += 1
            self._lost, self._confidence = reason, confidence

    def clear_lost(self) -> None:
        """Report no longer that the robot is lost, without a pose."""
        with self._lock:
            self._lost, self._confidence = "", None

    def rejected(self, kind: str, reason: str) -> None:
        """Count a frame or message that could not be used."""
        with self._lock:
            self._errors[kind] += 1
            self._latest_error = reason

    def report(self) -> HealthReport:
        """Return a snapshot and start the next ``recent`` interval."""
        with self._lock:
            published_before, errors_before, withheld_before = self._reported
            errors = sum(self._errors.values())
            report = HealthReport(
                self._published,
                self._published - published_before,
                errors - errors_before,
                dict(self._errors),
                _percentiles(sorted(self._latencies_ms)),
                self._modalities,
                self._dropped_sensors,
                self._posterior_std,
                self._latest_error,
                self._withheld,
                self._withheld - withheld_before,
                self._lost,
                self._confidence,
            )
            self._reported = (self._published, errors, self._withheld)
            self._latest_error = ""
            return report


class Arrivals:
    """Rate and delay of an input over the last 5 s.

    Args:
        now_s: steady time, as in the other methods.
    """

    def __init__(self, now_s: float) -> None:
        self._lock = threading.Lock()
        self._started_s = now_s
        self._recent: deque[tuple[float, float]] = deque(maxlen=_MOST_ARRIVALS)

    def add(self, now_s: float, delay_ms: float) -> None:
        """Count a message that arrived at ``now_s``, ``delay_ms`` after its stamp."""
        with self._lock:
            self._recent.append((now_s, delay_ms))
            self._forget(now_s)

    def report(self, now_s: float) -> tuple[float, float | None]:
        """Return messages per second and their median delay in milliseconds, None without messages."""
        with self._lock:
            self._forget(now_s)
            delays_ms = sorted(delay_ms for _, delay_ms in self._recent)
        elapsed_s = min(max(now_s - self._started_s, 1.0), _ARRIVALS_S)
        return len(delays_ms) / elapsed_s, delays_ms[len(delays_ms) // 2] if delays_ms else None

    def _forget(self, now_s: float) -> None:
        while self._recent and self._recent[0][0] < now_s - _ARRIVALS_S:
            self._recent.popleft()


def describe_delay(delay_ms: float) -> str:
    """A delay in milliseconds; beyond a minute, in words, how far the clocks of sensor and computer are apart."""
    seconds = abs(delay_ms) * 1e-3
    if seconds <= _MOST_DELAY_S:
        return f"{delay_ms:.1f}"
    unit, size_s = next((unit, size_s) for unit, size_s in _UNITS.items() if seconds >= size_s)
    return f"clocks differ by {seconds / size_s:.1f} {unit}"


def _percentiles(ordered: list[float]) -> tuple[float, float] | None:
    """p50 and p95 of ascending values."""
    if not ordered:
        return None
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
