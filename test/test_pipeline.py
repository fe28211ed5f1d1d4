# SPDX-License-Identifier: Apache-2.0
"""The hand-over to the worker thread, and the node's own counts."""

from __future__ import annotations

import threading
import time

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


def let_work(pipeline: Pipeline) -> None:
    """Give the worker every chance to take up what waits."""
    for _ in range(5):
        called = threading.Event()
        pipeline.call(called.set)
        assert called.wait(10)
        time.sleep(0.01)


def test_on_demand_only_the_newest_goes_on_and_only_when_wanted():
    seen, wanted = [], []

    def work(bundle):
        seen.append(bundle.stamp_ns)
        wanted.clear()

    pipeline = Pipeline(synchronizer(), work, queue_depth=5, wanted=lambda: bool(wanted))
    for stamp in range(4):
        pipeline.add("image", stamp, None)
        let_work(pipeline)
    assert not seen
    wanted.append(True)
    pipeline.wake()
    wait_until(lambda: seen, "the newest")
    wanted.append(True)
    pipeline.wake()  # nothing is left: the next to come is wanted
    pipeline.add("image", 7, None)
    wait_until(lambda: len(seen) == 2, "the next")
    pipeline.add("image", 8, None)
    let_work(pipeline)
    pipeline.stop()
    assert (seen, pipeline.dropped) == ([3, 7], 0)


def test_calls_run_in_the_worker_between_two_bundles():
    events, busy, go_on = [], threading.Event(), threading.Event()

    def work(bundle):
        events.append(bundle.stamp_ns)
        busy.set()
        go_on.wait(10)

    pipeline = Pipeline(synchronizer(), work, queue_depth=5)
    pipeline.add("image", 0, None)
    assert busy.wait(10)
    pipeline.add("image", 1, None)
    pipeline.call(lambda: events.append(threading.current_thread().name))
    go_on.set()
    wait_until(lambda: len(events) == 3, "all of them")
    pipeline.stop()
    assert events == [0, "localization", 1]


def test_reset_forgets_what_waits_and_takes_stamps_that_were_past():
    seen = []
    pipeline = Pipeline(
        synchronizer(("lidar",), deadline_ms=60_000), lambda bundle: seen.append(bundle.stamp_ns), queue_depth=5
    )
    for name in ("image", "lidar"):
        pipeline.add(name, 50 * MS, None)
    wait_until(lambda: seen, "the first pair")
    pipeline.add("image", 55 * MS, None)
    pipeline.reset()
    for name in ("image", "lidar"):
        pipeline.add(name, 40 * MS, None)
    wait_until(lambda: len(seen) > 1, "the pair from before")
    pipeline.stop()
    assert seen == [50 * MS, 40 * MS]
    assert (pipeline.statistics.paired, pipeline.statistics.primary_only) == (2, 0)


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


def test_health_tells_why_the_latest_pose_was_withheld_until_one_is_published():
    health = Health()
    health.published(1.0, ("image",), confidence=0.7)
    health.withheld("confidence 0.1 below 0.2 for 0.0 s", 0.1)
    first = health.report()
    assert (first.withheld, first.recent_withheld, first.confidence) == (1, 1, 0.1)
    assert first.lost == "confidence 0.1 below 0.2 for 0.0 s"
    second = health.report()
    assert (second.withheld, second.recent_withheld, second.lost) == (1, 0, first.lost)
    health.published(1.0, ("image",), confidence=0.8)
    third = health.report()
    assert (third.lost, third.confidence, third.withheld) == ("", 0.8, 1)
