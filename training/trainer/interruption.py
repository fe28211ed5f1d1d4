# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would be a KeyboardInterrupt."""


class Interruption:
    """While it is entered, the first signal is only noted; a second one interrupts at once.

    Does nothing outside the main thread, where Python allows no handlers.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._noted is not None

    def error(self) -> KeyboardInterrupt:
        """What to raise for the signal that has come."""
        return Terminated() if self._noted == signal.SIGTERM else KeyboardInterrupt()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: not Python's own, but a library's; such a one cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self._noted = not self.requested, number
        if not first:
            raise self.error()
