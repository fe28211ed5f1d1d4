# SPDX-License-Identifier: Apache-2.0
"""Time left of a whole training, from the expected times of its stages and the progress so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from training.planning.budget import Stage

_TRUSTED_S = 20.0  # of expected work, after which half of the deviation from the expectation is believed


class Timetable:
    """Estimates the time left of all stages, for :func:`vmloc_ros.core.progress.overall_progress`.

    Stages that were expected before the current one and were not seen took no time: prepared frames were cached.

    Args:
        stages: in their order; each is named by the description of its progress bar.
        clock: seconds; tests have one of their own.
    """

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self._stages, self._clock = list(stages), clock
        self._row, self._started_s = -1, clock()
        self._expected_s = self._spent_s = 0.0  # of the stages that are finished

    def left_s(self, description: str, done: float) -> float | None:
        """Seconds left of all stages, while the stage with this description has the share ``done`` of its work done.

        None for a description that is no stage.
        """
        row = next((i for i, stage in enumerate(self._stages) if stage.name == description), None)
        if row is None or row < self._row:
            return None
        now_s = self._clock()
        if row != self._row:
            if self._row >= 0:
                self._expected_s += self._stages[self._row].seconds
                self._spent_s += now_s - self._started_s
            self._row, self._started_s = row, now_s
        stage, spent_s = self._stages[row], now_s - self._started_s
        expected_s = done * stage.seconds
        # The machine may be slower than when it was measured: the ratio is believed the more, the more was seen of it.
        seen_s = self._expected_s + expected_s
        ratio = (self._spent_s + spent_s + _TRUSTED_S) / (seen_s + _TRUSTED_S)
        own_s = spent_s * (1 - done) / done if done > 0.02 else (1 - done) * stage.seconds * ratio
        return own_s + ratio * sum(later.seconds for later in self._stages[row + 1 :])
