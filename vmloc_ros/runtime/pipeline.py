# SPDX-License-Identifier: Apache-2.0
"""Hands messages from the callbacks that receive them to two worker threads in a row; pure Python, no ROS.

::

    add -> synchronizer -> queue -> [preparation] -> one place -> [localization]
            pairs          newest    decodes,        waits till   runs the model,
                           wins      projects        it is free   publishes

While the model answers one frame the next is prepared, so that frames come as fast as the slower of the two.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from vmloc_ros.core.synchronizer import Bundle, Statistics, Synchronizer

Payload = TypeVar("Payload")
Prepared = TypeVar("Prepared")


class Pipeline(Generic[Payload, Prepared]):
    """Synchronizer, bounded queue and two threads: adding is cheap, the work happens elsewhere, in order of stamps.

    A bundle leaves the queue only when the place behind preparation is free. When the workers are slower than the
    sensors the oldest bundle in the queue makes room for the newest, so latency stays bounded.

    Args:
        synchronizer: used under the pipeline's lock only, with steady time.
        prepare: called in the first thread, one bundle at a time; must not raise. None: nothing is left to answer.
        answer: called in the second thread with what was prepared; must not raise.
        queue_depth: bundles that may wait for preparation.
        wanted: on demand: the newest bundle waits, and later ones take its place, until this says yes, which it is
            asked when no other is on its way. None: every bundle is wanted.
    """

    def __init__(
        self,
        synchronizer: Synchronizer[Payload],
        prepare: Callable[[Bundle[Payload]], Prepared | None],
        answer: Callable[[Prepared], None],
        queue_depth: int,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        self._synchronizer = synchronizer
        self._prepare, self._answer = prepare, answer
        self._wanted = wanted
        self._queue: deque[Bundle[Payload]] = deque()
        self._queue_depth = queue_depth if wanted is None else 1
        self._prepared: Prepared | None = None
        self._is_answering = False
        self._resets = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._dropped = 0
        self._stopping = False
        self._condition = threading.Condition()
        self._threads = [
            threading.Thread(target=self._prepare_all, name="preparation", daemon=True),
            threading.Thread(target=self._answer_all, name="localization", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

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
            self._condition.notify_all()

    def wake(self) -> None:
        """Have ``wanted`` asked anew."""
        with self._condition:
            self._condition.notify_all()

    def reset(self, then: Callable[[], None]) -> None:
        """Forget all messages but the frame that is being answered.

        Args:
            then: called in the second thread before the next frame; must not raise.
        """
        with self._condition:
            self._synchronizer.reset()
            self._queue.clear()
            self._prepared = None
            self._resets += 1  # what is being prepared belongs to the past
            self._calls.append(then)
            self._condition.notify_all()

    def stop(self) -> None:
        """End the threads after what is in their hands; what waits is discarded."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._prepared = None  # it holds the model

    def _prepare_all(self) -> None:
        while (taken := self._next_bundle()) is not None:
            bundle, resets = taken
            prepared = self._prepare(bundle)
            with self._condition:
                if resets == self._resets:
                    self._prepared = prepared
                    self._condition.notify_all()

    def _next_bundle(self) -> tuple[Bundle[Payload], int] | None:
        """Wait for a bundle, and for the place behind; with the count of resets. None when stopping."""
        with self._condition:
            while not self._stopping:
                now_ns = time.monotonic_ns()
                self._enqueue(self._synchronizer.poll(now_ns))
                if self._queue and self._prepared is None and self._is_wanted():
                    return self._queue.popleft(), self._resets
                deadline_ns = self._synchronizer.next_deadline_ns
                self._condition.wait(None if deadline_ns is None else (deadline_ns - now_ns) * 1e-9)
            return None

    def _is_wanted(self) -> bool:
        return self._wanted is None or (not self._is_answering and self._wanted())

    def _answer_all(self) -> None:
        while (job := self._next_job()) is not None:
            job()
            with self._condition:
                self._is_answering = False
                if self._wanted is not None:
                    self._condition.notify_all()

    def _next_job(self) -> Callable[[], None] | None:
        """Wait for something to do; None when stopping."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._calls or self._prepared is not None)
            if self._stopping:
                return None
            if self._calls:
                return self._calls.popleft()
            prepared, self._prepared = self._prepared, None
            self._is_answering = True
            self._condition.notify_all()  # the place is free
            return lambda: self._answer(prepared)

    def _enqueue(self, bundles: list[Bundle[Payload]]) -> None:
        self._queue.extend(bundles)
        while len(self._queue) > self._queue_depth:
            self._queue.popleft()
            if self._wanted is None:
                self._dropped += 1
