# SPDX-License-Identifier: Apache-2.0
"""Deferred handling of Ctrl-C and SIGTERM, so that the current step can be finished first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C."""


class Interruption:
    """Context in which a first SIGINT or SIGTERM is only recorded; a second one raises at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self._received is not None

    def error(self) -> KeyboardInterrupt:
        """The exception to raise for the signal received."""
        return Terminated() if self._received == signal.SIGTERM else KeyboardInterrupt()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was installed from C and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        first, self._received = not self.requested, number
        if not first:
            raise self.error()
