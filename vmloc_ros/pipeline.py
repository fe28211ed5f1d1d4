# SPDX-License-Identifier: Apache-2.0
"""Hands messages from the callbacks that receive them to one worker thread; pure Python, no ROS."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from vmloc_ros.synchronizer import Bundle, Statistics, Synchronizer

Payload = TypeVar("Payload")


class Pipeline(Generic[Payload]):
    """Synchronizer, bounded queue and worker thread: adding is cheap, the work happens elsewhere.

    When the worker is slower than the sensors the oldest bundle in the queue makes room for the newest, so
    latency stays bounded.

    Args:
        synchronizer: used under the pipeline's lock only, with steady time.
        process: called in the worker thread, one bundle at a time; must not raise.
        queue_depth: bundles that may wait for the worker.
        wanted: on demand: the newest bundle waits, and later ones take its place, until this says yes. It is asked
            when something is added, and at :meth:`wake`. None: every bundle is wanted.
    """

    def __init__(
        self,
        synchronizer: Synchronizer[Payload],
        process: Callable[[Bundle[Payload]], None],
        queue_depth: int,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        self._synchronizer = synchronizer
        self._process = process
        self._wanted = wanted
        self._queue: deque[Bundle[Payload]] = deque()
        self._queue_depth = queue_depth if wanted is None else 1
        self._calls: deque[Callable[[], None]] = deque()
        self._dropped = 0
        self._stopping = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="localization", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Bundles that were overtaken by newer ones; none on demand."""
        return self._dropped

    @property
    def statistics(self) -> Statistics:
        """The synchronizer's counts."""
        with self._condition:
            return self._synchronizer.statistics

    def add(self, name: str, stamp_ns: int, payload: Payload) -> None:
        """Take a message in; returns at once."""
        with self._condition:
            self._enqueue(self._synchronizer.add(name, stamp_ns, payload, time.monotonic_ns()))
            self._condition.notify()

    def wake(self) -> None:
        """Have ``wanted`` asked anew."""
        with self._condition:
            self._condition.notify()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called in the worker thread, before the bundles that wait; it must not raise."""
        with self._condition:
            self._calls.append(function)
            self._condition.notify()

    def reset(self) -> None:
        """Forget the messages that wait."""
        with self._condition:
            self._synchronizer.reset()
            self._queue.clear()

    def stop(self) -> None:
        """End the worker after the bundle in its hands; what waits is discarded."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None when stopping."""
        with self._condition:
            while not self._stopping:
                if self._calls:
                    return self._calls.popleft()
                now_ns = time.monotonic_ns()
                self._enqueue(self._synchronizer.poll(now_ns))
                if self._queue and (self._wanted is None or self._wanted()):
                    return partial(self._process, self._queue.popleft())
                deadline_ns = self._synchronizer.next_deadline_ns
                self._condition.wait(None if deadline_ns is None else (deadline_ns - now_ns) * 1e-9)
            return None

    def _enqueue(self, bundles: list[Bundle[Payload]]) -> None:
        self._queue.extend(bundles)
        while len(self._queue) > self._queue_depth:
            self._queue.popleft()
            if self._wanted is None:
                self._dropped += 1
