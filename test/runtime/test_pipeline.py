# SPDX-License-Identifier: Apache-2.0
"""The pipeline of worker threads, and the counters for diagnostics."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ros_graph import wait_until
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.synchronizer import Synchronizer
from vmloc_ros.runtime.health import Arrivals, Health
from vmloc_ros.runtime.pipeline import Pipeline

MS = 1_000_000


def synchronizer(secondary=(), deadline_ms=50) -> Synchronizer:
    return Synchronizer("image", secondary, slop_ns=10 * MS, deadline_ns=deadline_ms * MS)


def as_is(bundle):
    """Preparation that changes nothing."""
    return bundle


def collect(stamps):
    return lambda bundle: stamps.append(bundle.stamp_ns)


def test_a_slow_worker_gets_the_newest_and_drops_are_counted():
    seen, busy, go_on = [], threading.Event(), threading.Event()

    def work(bundle):
        seen.append(bundle.stamp_ns)
        busy.set()
        go_on.wait(10)

    pipeline = Pipeline(synchronizer(), as_is, work, queue_depth=2)
    pipeline.add("image", 0, None)
    assert busy.wait(10)
    pipeline.add("image", 1, None)
    wait_until(lambda: not pipeline._queue, "preparation of the next")
    for stamp in range(2, 10):
        pipeline.add("image", stamp, None)
    go_on.set()
    wait_until(lambda: len(seen) == 4, "the worker")
    pipeline.stop()
    assert (seen, pipeline.dropped) == ([0, 1, 8, 9], 6)


def test_the_next_bundle_is_prepared_while_one_is_localized_and_the_one_after_waits():
    prepared, localized, go_on = [], [], threading.Semaphore(0)

    def prepare(bundle):
        prepared.append(bundle.stamp_ns)
        return bundle.stamp_ns

    def localize(stamp_ns):
        go_on.acquire(timeout=10)
        localized.append(stamp_ns)

    pipeline = Pipeline(synchronizer(), prepare, localize, queue_depth=5)
    for stamp in range(4):
        pipeline.add("image", stamp, None)
    for count in range(3):
        wait_until(lambda count=count: prepared == list(range(2 + count)), "the next")
        assert localized == list(range(count))
        go_on.release()
    go_on.release()
    wait_until(lambda: localized == [0, 1, 2, 3], "all of them")
    pipeline.stop()


def test_bundles_that_cannot_be_prepared_do_not_stop_the_others():
    seen = []
    pipeline = Pipeline(
        synchronizer(), lambda bundle: bundle if bundle.stamp_ns % 2 else None, collect(seen), queue_depth=10
    )
    for stamp in range(6):
        pipeline.add("image", stamp, None)
    wait_until(lambda: len(seen) == 3, "those that can")
    pipeline.stop()
    assert (seen, pipeline.dropped) == ([1, 3, 5], 0)


def test_the_deadline_wakes_the_worker_without_another_message():
    seen = []
    pipeline = Pipeline(synchronizer(("lidar",)), as_is, seen.append, queue_depth=5)
    pipeline.add("image", 7, "picture")
    wait_until(lambda: seen, "the deadline")
    pipeline.stop()
    assert seen[0].messages == {"image": (7, "picture")}
    assert pipeline.statistics.primary_only == 1


def test_stop_discards_what_waits_and_ends_the_threads():
    seen = []
    pipeline = Pipeline(synchronizer(("lidar",), deadline_ms=60_000), as_is, seen.append, queue_depth=5)
    pipeline.add("image", 7, None)
    pipeline.stop()
    assert seen == []
    assert not {"preparation", "localization"} & {thread.name for thread in threading.enumerate()}


def test_on_demand_only_the_newest_is_localized_and_only_when_wanted():
    seen, wanted, checks = [], [], []

    def is_wanted():
        checks.append(None)
        return bool(wanted)

    def work(bundle):
        seen.append(bundle.stamp_ns)
        wanted.clear()

    pipeline = Pipeline(synchronizer(), as_is, work, queue_depth=5, is_wanted=is_wanted)

    def add_unwanted(stamp):
        before = len(checks)
        pipeline.add("image", stamp, None)
        wait_until(lambda: len(checks) > before, "the check")

    for stamp in range(4):
        add_unwanted(stamp)
    assert not seen
    wanted.append(True)
    pipeline.wake()
    wait_until(lambda: seen, "the newest")
    wanted.append(True)
    pipeline.wake()  # none waits: the next one is wanted
    pipeline.add("image", 7, None)
    wait_until(lambda: len(seen) == 2, "the next")
    add_unwanted(8)
    pipeline.stop()
    assert (seen, pipeline.dropped) == ([3, 7], 0)


@pytest.mark.parametrize("slow", ["preparation", "localization"])
def test_on_demand_one_call_takes_one_bundle_however_long_the_work_takes(slow):
    seen, busy, go_on, wanted = [], threading.Event(), threading.Event(), [True]

    def take_long(stage):
        if stage == slow:
            busy.set()
            go_on.wait(10)

    def prepare(bundle):
        take_long("preparation")
        return bundle

    def localize(bundle):
        take_long("localization")
        seen.append(bundle.stamp_ns)
        wanted.clear()

    pipeline = Pipeline(synchronizer(), prepare, localize, queue_depth=5, is_wanted=lambda: bool(wanted))
    pipeline.add("image", 0, None)
    assert busy.wait(10)
    pipeline.add("image", 1, None)
    time.sleep(0.1)  # enough time to take it
    go_on.set()
    wait_until(lambda: seen, "localization")
    time.sleep(0.1)
    assert seen == [0]
    wanted.append(True)
    pipeline.wake()
    wait_until(lambda: len(seen) == 2, "the one that waited")
    pipeline.stop()
    assert seen == [0, 1]


def test_reset_discards_what_waits_and_accepts_earlier_stamps():
    seen = []
    pipeline = Pipeline(synchronizer(("lidar",), deadline_ms=60_000), as_is, collect(seen), queue_depth=5)
    for name in ("image", "lidar"):
        pipeline.add(name, 50 * MS, None)
    wait_until(lambda: seen, "the first pair")
    pipeline.add("image", 55 * MS, None)
    pipeline.reset(lambda: None)
    for name in ("image", "lidar"):
        pipeline.add(name, 40 * MS, None)
    wait_until(lambda: len(seen) > 1, "the pair from before")
    pipeline.stop()
    assert seen == [50 * MS, 40 * MS]
    assert (pipeline.statistics.paired, pipeline.statistics.primary_only) == (2, 0)


@pytest.mark.parametrize("slow", ["preparation", "localization"])
def test_reset_comes_after_the_frame_in_work_and_before_every_later_one(slow):
    """Frames that are queued, prepared or being prepared at the call never reach the second thread."""
    events, busy, go_on = [], threading.Event(), threading.Event()

    def take_long(stage):
        if stage == slow:
            busy.set()
            go_on.wait(10)

    def prepare(bundle):
        take_long("preparation")
        return bundle

    def localize(bundle):
        take_long("localization")
        events.append(bundle.stamp_ns)

    pipeline = Pipeline(synchronizer(), prepare, localize, queue_depth=5)
    pipeline.add("image", 10, None)
    assert busy.wait(10)
    pipeline.add("image", 11, None)
    pipeline.add("image", 12, None)
    pipeline.reset(lambda: events.append(threading.current_thread().name))
    pipeline.add("image", 0, None)
    go_on.set()
    wait_until(lambda: events and events[-1] == 0, "the frame after it")
    pipeline.stop()
    assert events == (["localization", 0] if slow == "preparation" else [10, "localization", 0])


def estimate(confidence: float | None) -> Estimate:
    return Estimate(0, Pose.identity(), np.eye(6), ("image",), confidence=confidence)


def test_health_separates_the_total_from_the_recent():
    health = Health()
    assert health.report().latency_ms is None
    for latency_ms in range(1, 101):
        health.published(float(latency_ms), estimate(None))
    health.rejected("undecodable", "short data")
    first, second = health.report(), health.report()
    assert (first.published, first.recent_published, first.recent_errors) == (100, 100, 1)
    assert first.latest_error == "short data"
    assert first.latency_ms == (51.0, 96.0)
    assert (second.published, second.recent_published, second.recent_errors) == (100, 0, 0)
    assert (second.errors, second.latest_error) == ({"undecodable": 1}, "")


def test_health_reports_why_the_latest_pose_was_withheld_until_one_is_published():
    health = Health()
    health.published(1.0, estimate(0.7))
    health.withheld("confidence 0.1 below 0.2 for 0.0 s", 0.1)
    first = health.report()
    assert (first.withheld, first.recent_withheld, first.confidence) == (1, 1, 0.1)
    assert first.lost == "confidence 0.1 below 0.2 for 0.0 s"
    second = health.report()
    assert (second.withheld, second.recent_withheld, second.lost) == (1, 0, first.lost)
    health.published(1.0, estimate(0.8))
    third = health.report()
    assert (third.lost, third.confidence, third.withheld) == ("", 0.8, 1)


def test_an_inputs_rate_and_delay_are_those_of_the_last_seconds() -> None:
    arrivals = Arrivals(100.0)
    assert arrivals.report(100.5) == (0.0, None)
    for i in range(100):  # 10 Hz for 10 s, with growing delay
        arrivals.add(100.0 + 0.1 * i, float(i))
    rate_hz, delay_ms = arrivals.report(109.95)
    assert rate_hz == pytest.approx(10.0, abs=0.3)
    assert delay_ms == pytest.approx(75.0, abs=1.0)
    assert arrivals.report(120.0) == (0.0, None)


def test_a_rate_is_right_from_the_first_seconds_on() -> None:
    arrivals = Arrivals(0.0)
    for i in range(40):
        arrivals.add(0.05 * i, -3.0)
    assert arrivals.report(2.0) == (20.0, -3.0)
