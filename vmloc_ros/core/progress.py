# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, a few plain log lines where standard error is anything else."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

_LINE_EVERY = 0.1  # of the total
_LINE_EVERY_S = 30.0


class ProgressBar(Protocol):
    """What advances as the work does."""

    def update(self, n: float = 1, /) -> Any:
        """Add ``n`` units of work that are done."""

    def set_postfix(self, values: Mapping[str, Any], /) -> Any:
        """Show these values after the progress from now on."""


class Overall(Protocol):
    """The work that a progress bar's is a part of."""

    def left_s(self, description: str, done: float) -> float | None:
        """Seconds left of all the work, while this bar has a share of its own done; None: unknown."""


_OVERALL: ContextVar[Overall | None] = ContextVar("overall", default=None)
_HIDDEN: ContextVar[bool] = ContextVar("hidden", default=False)


@contextmanager
def overall_progress(overall: Overall | None) -> Iterator[None]:
    """Until the context ends, every progress bar also shows the time left of all the work; None: none does."""
    token = _OVERALL.set(overall)
    try:
        yield
    finally:
        _OVERALL.reset(token)


@contextmanager
def no_progress() -> Iterator[None]:
    """Until the context ends, no progress bar shows anything."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


@contextmanager
def progress_bar(
    total: float,
    description: str,
    unit: str,
    *,
    initial: float = 0,
    disable: bool = False,
    unit_scale: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressBar]:
    """Show progress until the context ends.

    On a terminal this is a tqdm bar. Elsewhere, and where tqdm is not installed, a line is logged (INFO) whenever 10 %
    more are done or 30 s have passed since the last line, and a last one at the end.

    Args:
        total: units of work in all, with those done before.
        initial: units done before, by an interrupted run that is resumed.
        disable: show nothing.
        unit_scale: shorten the numbers of the bar (12.3k); lines always hold whole numbers.
        clock: seconds, for the lines; tests have one of their own.
    """
    disable = disable or _HIDDEN.get()
    tqdm = None if disable or not _on_terminal() else _import_tqdm()
    if disable:
        yield _NoBar()
    elif tqdm is not None:
        with tqdm(total=total, desc=description, unit=unit, initial=initial, unit_scale=unit_scale) as bar:
            yield bar if _OVERALL.get() is None else _WithOverall(bar, total, description, initial, clock)
    else:
        lines = _Lines(total, description, unit, initial, clock)
        try:
            yield lines
        finally:
            lines.close()


def with_progress(
    items: Iterable[_Item], total: int, description: str, unit: str, *, disable: bool = False
) -> Iterator[_Item]:
    """The items, with a :func:`progress_bar` that counts them."""
    with progress_bar(total, description, unit, disable=disable) as bar:
        for item in items:
            yield item
            bar.update(1)


class _NoBar:
    def update(self, n: float = 1, /) -> None:
        pass

    def set_postfix(self, values: Mapping[str, Any], /) -> None:
        pass


class _WithOverall:
    """A tqdm bar whose description also names the time left of all the work."""

    def __init__(self, bar: Any, total: float, description: str, initial: float, clock: Callable[[], float]) -> None:
        self._bar, self._total, self._description, self._done = bar, total, description, initial
        self._clock, self._shown_s = clock, -math.inf

    def update(self, n: float = 1, /) -> None:
        self._done += n
        self._bar.update(n)
        now_s = self._clock()
        if now_s - self._shown_s >= 1.0:
            self._shown_s = now_s
            text = _overall_left(self._description, self._done, self._total)
            self._bar.set_description_str(f"{self._description}{text}", refresh=False)

    def set_postfix(self, values: Mapping[str, Any], /) -> None:
        self._bar.set_postfix(values)


class _Lines:
    """Progress as log lines."""

    def __init__(self, total: float, description: str, unit: str, initial: float, clock: Callable[[], float]) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._initial = self._done = self._logged = initial
        self._clock = clock
        self._started_s = self._logged_s = clock()
        self._values: Mapping[str, Any] = {}
        _overall_left(description, initial, total)  # the stage begins now

    def update(self, n: float = 1, /) -> None:
        self._done = round(self._done + n, 6)  # sums of tenths are not exact
        now_s = self._clock()
        due = self._done - self._logged >= _LINE_EVERY * self._total or now_s - self._logged_s >= _LINE_EVERY_S
        if due and self._done < self._total:  # the line of 100 % is the last one
            self._log(now_s, last=False)

    def set_postfix(self, values: Mapping[str, Any], /) -> None:
        self._values = dict(values)

    def close(self) -> None:
        self._log(self._clock(), last=True)

    def _log(self, now_s: float, last: bool) -> None:
        self._logged, self._logged_s = self._done, now_s
        elapsed_s, worked = now_s - self._started_s, self._done - self._initial
        percent = 100.0 if self._total <= 0 else 100 * self._done / self._total
        facts = [f"{_number(self._done)} of {_number(self._total)} {self._unit}"]
        if worked > 0 and elapsed_s > 0:
            facts.append(f"{_rate(worked / elapsed_s)} {self._unit}/s")
        if last:
            facts.append(f"in {_duration(elapsed_s)}")
        elif worked > 0:
            facts.append(f"about {_duration(elapsed_s * (self._total - self._done) / worked)} left")
        values = "".join(f", {name} {_value(value)}" for name, value in self._values.items())
        values += _overall_left(self._description, self._done, self._total)
        logger.info("%s: %d %% (%s)%s", self._description, int(percent), ", ".join(facts), values)


def _overall_left(description: str, done: float, total: float) -> str:
    """The time left of all the work, as text; empty where it is not known."""
    overall = _OVERALL.get()
    left_s = None if overall is None else overall.left_s(description, 1.0 if total <= 0 else min(1.0, done / total))
    return "" if left_s is None else f"; of everything about {_duration(left_s)} left"


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _import_tqdm() -> Any:
    """The class, or None where the training extra is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _number(count: float) -> str:
    return str(int(count)) if float(count).is_integer() else f"{count:.1f}"


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 10 else f"{per_s:.2g}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
