# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the stamps of arriving messages, for diagnostics; pure Python, no ROS."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from vmloc_ros.core.stamp_judge import FalseStamps
from vmloc_ros.core.stamps import OTHER_CLOCK_NS, explain_false_stamps
from vmloc_ros.runtime.pipeline import Pipeline


class StampProblems:
    """Reports messages that were dropped for their stamps, and sensors that are stamped by different clocks.

    Args:
        pipeline: has a judge.
    """

    def __init__(self, pipeline: Pipeline[Any, Any]) -> None:
        self._pipeline = pipeline
        self._reported: dict[str, FalseStamps] = {}

    @property
    def values(self) -> dict[str, int]:
        """Number of messages that were dropped, by sensor."""
        return {f"false stamps {name}": n.zeros + n.departed for name, n in self._pipeline.false_stamps.items()}

    def report(self, topics: Mapping[str, str]) -> list[str]:
        """What is wrong: messages dropped since the previous report, and clocks that differ.

        Args:
            topics: by sensor.
        """
        counts = self._pipeline.false_stamps
        before, self._reported = self._reported, counts
        problems = []
        for name, count in counts.items():
            earlier = before.get(name, FalseStamps())
            zeros, departed = count.zeros - earlier.zeros, count.departed - earlier.departed
            if zeros or departed:
                problems.append(explain_false_stamps(topics[name], zeros, departed, count.departure_ns))
        return [*problems, *self._different_clocks(topics)]

    def _different_clocks(self, topics: Mapping[str, str]) -> list[str]:
        problems = []
        for first, second in combinations(topics, 2):
            gap_ns = self._pipeline.clock_gap_ns(first, second)
            if gap_ns is not None and abs(gap_ns) > OTHER_CLOCK_NS:
                problems.append(
                    f"{topics[first]} and {topics[second]} are stamped by different clocks, {abs(gap_ns) * 1e-9:.1f} s "
                    "apart, and cannot be paired: synchronize them"
                )
        return problems
