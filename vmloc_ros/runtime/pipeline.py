# SPDX-License-Identifier: Apache-2.0
"""Passes messages from the callbacks that receive them through two worker threads; pure Python, no ROS.

::

    add -> judge ----> synchronizer -> queue -> [preparation] -> slot for -> [localization]
           drops false pairs           drops    decodes,         one frame   runs the model,
           stamps                      oldest   projects                     publishes

While the model runs on one frame the next is prepared, so that the slower of the two threads sets the rate.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from vmloc_ros.core.stamp_judge import FalseStamps, Stamped, StampJudge
from vmloc_ros.core.synchronizer import Bundle, Statistics, Synchronizer

Payload = TypeVar("Payload")
Prepared = TypeVar("Prepared")


class Pipeline(Generic[Payload, Prepared]):
    """Synchronizer, bounded queue and two threads that work on bundles in the order of their stamps.

    A bundle leaves the queue only when the slot behind preparation is free. When the threads are slower than the
    sensors, the oldest bundle in the queue is dropped for the newest, so that latency stays bounded.

    Args:
        synchronizer: used under the pipeline's lock only, with steady time.
        prepare: called in the first thread, one bundle at a time; must not raise. Returns None to drop the bundle.
        localize: called in the second thread with what ``prepare`` returned; must not raise.
        queue_depth: bundles that may wait for preparation.
        is_wanted: for work on demand: the newest bundle waits, replaced by each later one, until this returns True.
            Called while no other bundle is in work. None: work on every bundle.
        judge: drops messages whose stamp cannot be true; used as the synchronizer is. None: all are paired.
    """

    def __init__(
        self,
        synchronizer: Synchronizer[Payload],
        prepare: Callable[[Bundle[Payload]], Prepared | None],
        localize: Callable[[Prepared], None],
        queue_depth: int,
        is_wanted: Callable[[], bool] | None = None,
        judge: StampJudge[Payload] | None = None,
    ) -> None:
        self._synchronizer, self._judge = synchronizer, judge
        self._prepare, self._localize, self._is_wanted = prepare, localize, is_wanted
        self._queue: deque[Bundle[Payload]] = deque()
        self._queue_depth = queue_depth if is_wanted is None else 1
        self._prepared: Prepared | None = None
        self._is_localizing = False
        self._resets = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._dropped = 0
        self._stopping = False
        self._condition = threading.Condition()
        self._threads = [
            threading.Thread(target=self._prepare_all, name="preparation", daemon=True),
            threading.Thread(target=self._localize_all, name="localization", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def dropped(self) -> int:
        """Number of bundles dropped from the queue for newer ones; on demand, replaced ones do not count."""
        return self._dropped

    @property
    def statistics(self) -> Statistics:
        """The synchronizer's counts."""
        with self._condition:
            return self._synchronizer.statistics

    @property
    def false_stamps(self) -> dict[str, FalseStamps]:
        """The judge's counts by stream."""
        with self._condition:
            return {} if self._judge is None else self._judge.false

    def clock_gap_ns(self, first: str, second: str) -> int | None:
        """See :meth:`StampJudge.clock_gap_ns`."""
        with self._condition:
            return None if self._judge is None else self._judge.clock_gap_ns(first, second, time.monotonic_ns())

    def add(self, name: str, stamp_ns: int, payload: Payload, clock_ns: int | None = None) -> None:
        """Take a message in; returns at once.

        Args:
            clock_ns: time of arrival by the clock that stamps are expected to follow; see :class:`StampJudge`.
        """
        now_ns = time.monotonic_ns()
        with self._condition:
            if self._judge is None:
                self._enqueue(self._synchronizer.add(name, stamp_ns, payload, now_ns))
            else:
                self._pair(self._judge.add(name, stamp_ns, payload, now_ns, clock_ns), now_ns)
            self._condition.notify_all()

    def adjust(self, queue_depth: int, **durations_ns: int) -> None:
        """Change the depth of the queue, and the synchronizer's durations, see :meth:`Synchronizer.adjust`."""
        with self._condition:
            self._queue_depth = queue_depth if self._is_wanted is None else 1
            self._synchronizer.adjust(**durations_ns)
            self._condition.notify_all()

    def wake(self) -> None:
        """Have ``is_wanted`` evaluated again."""
        with self._condition:
            self._condition.notify_all()

    def reset(self, then: Callable[[], None]) -> None:
        """Discard all messages and frames, except one that is being localized.

        Args:
            then: called in the second thread before it takes the next frame; must not raise.
        """
        with self._condition:
            self._synchronizer.reset()
            if self._judge is not None:
                self._judge.reset()
            self._queue.clear()
            self._prepared = None
            self._resets += 1  # a bundle that is being prepared is from before the reset
            self._calls.append(then)
            self._condition.notify_all()

    def stop(self) -> None:
        """End both threads after the frames in work; discard what waits."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._prepared = None  # it refers to the model

    def _prepare_all(self) -> None:
        while (taken := self._next_bundle()) is not None:
            bundle, resets = taken
            prepared = self._prepare(bundle)
            with self._condition:
                if resets == self._resets:
                    self._prepared = prepared
                    self._condition.notify_all()

    def _next_bundle(self) -> tuple[Bundle[Payload], int] | None:
        """Wait for a bundle and a free slot; returns it with the number of resets so far, or None when stopping."""
        with self._condition:
            while not self._stopping:
                now_ns = time.monotonic_ns()
                if self._judge is not None:
                    self._pair(self._judge.poll(now_ns), now_ns)
                self._enqueue(self._synchronizer.poll(now_ns))
                if self._queue and self._prepared is None and self._may_start():
                    return self._queue.popleft(), self._resets
                deadline_ns = self._next_deadline_ns()
                self._condition.wait(None if deadline_ns is None else (deadline_ns - now_ns) * 1e-9)
            return None

    def _next_deadline_ns(self) -> int | None:
        deadlines_ns = [self._synchronizer.next_deadline_ns, self._judge and self._judge.next_deadline_ns]
        return min((deadline_ns for deadline_ns in deadlines_ns if deadline_ns is not None), default=None)

    def _may_start(self) -> bool:
        return self._is_wanted is None or (not self._is_localizing and self._is_wanted())

    def _localize_all(self) -> None:
        while (job := self._next_job()) is not None:
            job()
            with self._condition:
                self._is_localizing = False
                if self._is_wanted is not None:
                    self._condition.notify_all()

    def _next_job(self) -> Callable[[], None] | None:
        """Wait for a call or a prepared frame; None when stopping."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._calls or self._prepared is not None)
            if self._stopping:
                return None
            if self._calls:
                return self._calls.popleft()
            prepared, self._prepared = self._prepared, None
            self._is_localizing = True
            self._condition.notify_all()  # the slot is free
            return lambda: self._localize(prepared)

    def _pair(self, messages: list[Stamped[Payload]], now_ns: int) -> None:
        for message in messages:
            self._enqueue(self._synchronizer.add(message.name, message.stamp_ns, message.payload, now_ns))

    def _enqueue(self, bundles: list[Bundle[Payload]]) -> None:
        self._queue.extend(bundles)
        while len(self._queue) > self._queue_depth:
            self._queue.popleft()
            if self._is_wanted is None:
                self._dropped += 1
