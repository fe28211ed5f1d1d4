# SPDX-License-Identifier: Apache-2.0
"""Delivers the outcome of the next frame to everyone who waits for it, such as callers of ~/localize."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import NamedTuple


class Outcome(NamedTuple):
    """The result of processing a frame.

    Attributes:
        published: whether a pose was published.
        text: a description of the pose, or the reason why there is none.
    """

    published: bool
    text: str


class OutcomeWaiters:
    """Futures of the next outcome; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: list[Future[Outcome]] = []

    @property
    def is_awaited(self) -> bool:
        """Whether anyone waits for the next outcome."""
        return bool(self._futures)

    def expect(self) -> Future[Outcome]:
        """Return a future of the next outcome."""
        future: Future[Outcome] = Future()
        with self._lock:
            self._futures.append(future)
        return future

    def give_up(self, future: Future[Outcome]) -> None:
        """Stop waiting for a future from :meth:`expect`; does nothing once it has its result."""
        with self._lock:
            self._futures = [other for other in self._futures if other is not future]

    def resolve(self, outcome: Outcome) -> None:
        """Give every future that waits this outcome."""
        with self._lock:
            futures, self._futures = self._futures, []
        for future in futures:
            future.set_result(outcome)
