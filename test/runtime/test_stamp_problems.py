# SPDX-License-Identifier: Apache-2.0
"""What diagnostics say of stamps: what was dropped since the last report, and clocks that differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmloc_ros.core.stamp_judge import StampJudge
from vmloc_ros.core.synchronizer import Synchronizer
from vmloc_ros.runtime.pipeline import Pipeline
from vmloc_ros.runtime.stamp_problems import StampProblems

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND
TOPICS = {"image": "/camera/image_raw", "lidar": "/lidar/points"}


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    synchronizer = Synchronizer("image", ("lidar",), slop_ns=SECOND // 10, deadline_ns=SECOND // 5)
    pipeline = Pipeline(synchronizer, lambda bundle: None, print, 5, judge=StampJudge(("image", "lidar")))
    yield pipeline
    pipeline.stop()


def test_dropped_messages_are_reported_once_and_counted_for_good(pipeline: Pipeline) -> None:
    problems = StampProblems(pipeline)
    for stamp_ns in (0, 0, T0):
        pipeline.add("image", stamp_ns, None, T0)
    assert problems.report(TOPICS) == [
        "/camera/image_raw: 2 messages have a false stamp and were dropped: 2 are stamped 0 (the driver must set "
        "header.stamp)"
    ]
    assert problems.report(TOPICS) == []
    pipeline.reset(lambda: None)
    assert problems.values == {"false stamps image": 2, "false stamps lidar": 0}


@pytest.mark.parametrize(("gap_s", "is_named"), [(0, False), (0.5, False), (-9, False), (300, True), (-1.6e9, True)])
def test_sensors_of_different_clocks_are_named(pipeline: Pipeline, gap_s: float, is_named: bool) -> None:
    for i in range(5):
        stamp_ns = T0 + i * SECOND // 10
        pipeline.add("image", stamp_ns, None, stamp_ns)
        pipeline.add("lidar", stamp_ns + round(gap_s * SECOND), None, stamp_ns)
    found = StampProblems(pipeline).report(TOPICS)
    expected = f"/camera/image_raw and /lidar/points are stamped by different clocks, {abs(gap_s):.1f} s apart, and "
    assert [text.startswith(expected) for text in found] == [True] * is_named
