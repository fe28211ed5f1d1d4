# SPDX-License-Identifier: Apache-2.0
"""The hand-over to the worker thread, and the node's own counts."""

from __future__ import annotations

import threading

from ros_graph import wait_until
from vmloc_ros.health import Health
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.synchronizer import Synchronizer

MS = 1_000_000


def synchronizer(secondary=(), deadline_ms=50) -> Synchronizer:
    return Synchronizer("image", secondary, slop_ns=10 * MS, deadline_ns=deadline_ms * MS)


def test_a_slow_worker_gets_the_newest_and_drops_are_counted():
    seen, busy, go_on = [], threading.Event(), threading.Event()

    def work(bundle):
        seen.append(bundle.stamp_ns)
        busy.set()
        go_on.wait(10)

    pipeline = Pipeline(synchronizer(), work, queue_depth=2)
    pipeline.add("image", 0, None)
    assert busy.wait(10)
    for stamp in range(1, 10):
        pipeline.add("image", stamp, None)
    go_on.set()
    wait_until(lambda: len(seen) == 3, "the worker")
    pipeline.stop()
    assert (seen, pipeline.dropped) == ([0, 8, 9], 7)


def test_the_deadline_wakes_the_worker_without_another_message():
    seen = []
    pipeline = Pipeline(synchronizer(("lidar",)), seen.append, queue_depth=5)
    pipeline.add("image", 7, "picture")
    wait_until(lambda: seen, "the deadline")
    pipeline.stop()
    assert seen[0].messages == {"image": (7, "picture")}
    assert pipeline.statistics.primary_only == 1


def test_stop_discards_what_waits_and_ends_the_thread():
    seen = []
    pipeline = Pipeline(synchronizer(("lidar",), deadline_ms=60_000), seen.append, queue_depth=5)
    pipeline.add("image", 7, None)
    pipeline.stop()
    assert seen == []
    assert "localization" not in [thread.name for thread in threading.enumerate()]


def test_health_separates_the_total_from_the_recent():
    health = Health()
    assert health.report().latency_ms is None
    for latency_ms in range(1, 101):
        health.published(float(latency_ms), ("image",))
    health.refused("undecodable", "short data")
    first, second = health.report(), health.report()
    assert (first.published, first.recent_published, first.recent_errors) == (100, 100, 1)
    assert first.latest_error == "short data"
    assert first.latency_ms == (51.0, 96.0)
    assert (second.published, second.recent_published, second.recent_errors) == (100, 0, 0)
    assert (second.errors, second.latest_error) == ({"undecodable": 1}, "")
