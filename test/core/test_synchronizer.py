# SPDX-License-Identifier: Apache-2.0
"""Pairing by stamp: one bundle per image, the nearest partner, bounded waiting, recovery from jumps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.synchronizer import Bundle, Synchronizer

MS = 1_000_000
SECOND = 1_000 * MS


def make(secondary=("lidar",), slop_ms=60, deadline_ms=200, **options) -> Synchronizer:
    return Synchronizer("image", secondary, slop_ns=slop_ms * MS, deadline_ns=deadline_ms * MS, **options)


def feed(sync: Synchronizer, messages: list[tuple[int, str, int]]) -> list[Bundle]:
    """Feed ``(arrival_ms, name, stamp_ms)`` in the order given; payloads are the stamps."""
    return [b for now, name, stamp in messages for b in sync.add(name, stamp * MS, stamp, now * MS)]


def pairs(bundles: list[Bundle], name: str = "lidar") -> list[tuple[int, int | None]]:
    return [(b.messages["image"][1], b.messages[name][1] if name in b.messages else None) for b in bundles]


def test_image_waits_until_the_nearest_scan_is_known():
    sync = make()
    assert feed(sync, [(0, "lidar", 0), (30, "image", 40)]) == []
    assert pairs(feed(sync, [(100, "lidar", 70)])) == [(40, 70)]


def test_of_two_equally_near_scans_the_earlier_wins():
    assert pairs(feed(make(), [(0, "lidar", 0), (30, "image", 30), (60, "lidar", 60)])) == [(30, 0)]


def test_no_scan_of_a_sensor_that_keeps_its_period_is_awaited_if_it_will_be_farther_away():
    scans = [(i * 100, "lidar", i * 100) for i in range(6)]
    waits, learns = make(), make(learns_periods=True)
    for sync in (waits, learns):
        feed(sync, scans)
    assert feed(waits, [(540, "image", 540)]) == []
    assert pairs(feed(learns, [(540, "image", 540)])) == [(540, 500)]
    assert feed(learns, [(560, "image", 560)]) == []  # nearer to the next
    assert pairs(feed(learns, [(600, "lidar", 600)])) == [(560, 600)]


def test_a_lost_scan_makes_no_longer_period_and_an_unknown_period_is_awaited():
    sync = make(learns_periods=True)
    feed(sync, [(i * 100, "lidar", i * 100) for i in (0, 2, 4, 5)])
    assert feed(sync, [(520, "image", 520)]) == []  # of too few scans
    feed(sync, [(i * 100, "lidar", i * 100) for i in (6, 8, 10)])
    assert feed(sync, [(1060, "image", 1060)]) == []
    assert pairs(feed(sync, [(1100, "lidar", 1100)])) == [(1060, 1100)]


def test_periods_are_learned_anew_after_a_jump_back():
    sync = make(learns_periods=True)
    feed(sync, [(i * 100, "lidar", 60_000 + i * 100) for i in range(6)])
    feed(sync, [(600, "lidar", 0), (650, "lidar", 50)])
    assert feed(sync, [(660, "image", 60)]) == []


def test_exact_match_is_released_at_once():
    assert pairs(feed(make(), [(0, "lidar", 10), (1, "image", 10)])) == [(10, 10)]


def test_without_secondary_streams_an_image_is_released_at_once():
    assert [b.stamp_ns for b in feed(make(secondary=()), [(0, "image", 7)])] == [7 * MS]


def test_a_scan_serves_several_images():
    bundles = feed(make(), [(0, "lidar", 0), (1, "image", 10), (51, "image", 40), (100, "lidar", 100)])
    assert pairs(bundles) == [(10, 0), (40, 0)]


def test_scan_outside_the_slop_is_not_used_and_the_gap_is_reported():
    sync = make(slop_ms=20)
    assert pairs(feed(sync, [(0, "lidar", 0), (50, "image", 50), (100, "lidar", 100)])) == [(50, None)]
    assert sync.statistics.nearest_gap_ns == {"lidar": -50 * MS}


def test_deadline_releases_with_the_best_candidate_so_far():
    sync = make()
    feed(sync, [(0, "lidar", 0), (50, "image", 50)])
    assert sync.next_deadline_ns == 250 * MS
    assert sync.poll(249 * MS) == []
    assert pairs(sync.poll(250 * MS)) == [(50, 0)]
    assert sync.next_deadline_ns is None


def test_images_go_on_alone_when_the_lidar_is_dead():
    sync = make()
    bundles = feed(sync, [(i * 50, "image", i * 50) for i in range(10)])
    bundles += sync.poll(10 * SECOND)
    assert pairs(bundles) == [(i * 50, None) for i in range(10)]
    assert sync.statistics.primary_only == 10


def test_scans_go_on_alone_when_the_camera_dies_and_images_resume():
    sync = make(silence_ns=SECOND)
    bundles = feed(sync, [(0, "image", 0), (0, "lidar", 0)])
    bundles += feed(sync, [(i * 100, "lidar", i * 100) for i in range(1, 20)])
    bundles += sync.poll(sync.next_deadline_ns)
    alone = [b for b in bundles if "image" not in b.messages]
    assert [b.stamp_ns // MS for b in alone] == [i * 100 for i in range(1, 19)]
    assert all(b.messages["lidar"][0] == b.stamp_ns for b in alone)
    assert pairs(feed(sync, [(1950, "image", 1950), (2000, "lidar", 2000)])) == [(1950, 1900)]


def test_scans_are_not_released_alone_between_the_images_of_a_slow_camera():
    sync = make(slop_ms=10, deadline_ms=100, silence_ns=SECOND)
    messages = [(i * 100, "lidar", i * 100) for i in range(50)]
    messages += [(i * 500 + 30, "image", i * 500 + 30) for i in range(10)]
    bundles = feed(sync, sorted(messages))
    assert len(bundles) == 10
    assert all("image" in b.messages for b in bundles)
    assert sync.statistics.secondary_unused > 30


def test_late_and_duplicate_images_are_counted_not_released():
    sync = make(secondary=())
    bundles = feed(sync, [(0, "image", 100), (1, "image", 100), (2, "image", 90), (3, "image", 110)])
    assert [b.stamp_ns // MS for b in bundles] == [100, 110]
    assert (sync.statistics.late, sync.statistics.duplicate) == (1, 1)


def test_jump_back_releases_what_waits_and_starts_afresh():
    sync = make(jump_back_ns=SECOND)
    bundles = feed(sync, [(0, "lidar", 60_000), (1, "image", 60_010), (50, "image", 100), (60, "lidar", 110)])
    assert bundles[0].stamp_ns == 60_010 * MS
    assert pairs(bundles)[-1] == (100, 110)
    assert sync.statistics.resets == 1


def test_a_stamp_far_in_the_future_does_not_stop_the_stream():
    sync = make(secondary=(), jump_back_ns=SECOND)
    bundles = feed(sync, [(0, "image", 0), (50, "image", 10**9), (100, "image", 100), (150, "image", 150)])
    assert [b.stamp_ns // MS for b in bundles] == [0, 10**9, 100, 150]


def test_three_streams_wait_for_both_partners():
    sync = make(secondary=("lidar", "depth"))
    assert feed(sync, [(0, "image", 0), (1, "lidar", 0)]) == []
    (bundle,) = feed(sync, [(2, "depth", 1)])
    assert {name: stamp // MS for name, (stamp, _) in bundle.messages.items()} == {
        "image": 0,
        "lidar": 0,
        "depth": 1,
    }


def test_flush_releases_the_end_of_a_recording():
    sync = make()
    feed(sync, [(0, "lidar", 0), (10, "image", 10)])
    assert pairs(sync.flush()) == [(10, 0)]
    lidar_only = make()
    feed(lidar_only, [(0, "lidar", 0), (100, "lidar", 100)])
    assert [b.stamp_ns // MS for b in lidar_only.flush()] == [0, 100]


@pytest.mark.parametrize("options", [{"slop_ms": -1}, {"deadline_ms": -1}, {"capacity": 0}])
def test_impossible_options_are_rejected(options):
    with pytest.raises(ValueError, match="must"):
        make(**options)


def test_streams_of_the_same_name_are_rejected():
    with pytest.raises(ValueError, match="differ"):
        make(secondary=("lidar", "lidar"))


stamps_ms = st.lists(st.integers(0, 3_000), unique=True, max_size=40)


@settings(max_examples=200, deadline=None)
@given(images=stamps_ms, scans=stamps_ms, delay=st.integers(0, 150), slop=st.integers(0, 300))
def test_streams_in_order_are_paired_like_brute_force(images, scans, delay, slop):
    """Whatever the periods, a lidar that lags less than the deadline is paired as if all was known."""
    sync = make(slop_ms=slop, deadline_ms=4_000, capacity=100, silence_ns=10 * SECOND)
    messages = [(t, "image", t) for t in images] + [(t + delay, "lidar", t) for t in scans]
    bundles = feed(sync, sorted(messages)) + sync.flush()
    expected = []
    for image in sorted(images):
        nearest = min(sorted(scans), key=lambda scan: abs(scan - image), default=None)
        expected.append((image, nearest if nearest is not None and abs(nearest - image) <= slop else None))
    assert pairs([b for b in bundles if "image" in b.messages]) == expected


@settings(max_examples=200, deadline=None)
@given(
    images=stamps_ms,
    period=st.integers(30, 150),
    jitter=st.lists(st.integers(-1, 1), min_size=40, max_size=40),
    lost=st.sets(st.integers(0, 39)),
    delay=st.integers(0, 150),
)
def test_learned_periods_change_no_pair_of_a_sensor_that_keeps_its_period_and_delay_none(
    images, period, jitter, lost, delay
):
    """Scans jitter, lag and get lost."""
    scans = [i * period + jitter[i] + 5 for i in range(40) if i not in lost]
    messages = sorted([(t, "image", t) for t in images] + [(t + delay, "lidar", t) for t in scans])
    came: list[dict] = []
    for learns in (False, True):
        sync = make(deadline_ms=4_000, capacity=100, silence_ns=10 * SECOND, learns_periods=learns)
        came.append({})
        for message in messages:
            came[-1] |= {
                pair: message[0] for pair in pairs([b for b in feed(sync, [message]) if "image" in b.messages])
            }
        came[-1] |= {pair: 10_000 for pair in pairs([b for b in sync.flush() if "image" in b.messages])}
    assert came[0].keys() == came[1].keys()
    assert all(came[1][pair] <= came[0][pair] for pair in came[0])


event = st.tuples(st.integers(0, 300), st.sampled_from(["image", "lidar", "depth"]), st.integers(-2_500, 2_500))


@settings(max_examples=300, deadline=None)
@given(events=st.lists(event, max_size=120), capacity=st.integers(1, 8), learns=st.booleans())
def test_any_stream_yields_each_image_once_in_order_on_time_and_stays_bounded(events, capacity, learns):
    """Stamps wander around the arrival time: gaps, stragglers, duplicates and jumps of the clock."""
    sync = make(secondary=("lidar", "depth"), capacity=capacity, learns_periods=learns)
    now, received, in_buffers = 0, 0, 0
    released: list[Bundle] = []
    newest_of_epoch = None
    for wait, name, offset in events:
        now += wait
        resets_left = sync.statistics.resets
        bundles = sync.add(name, (now + offset) * MS, now, now * MS)
        received += name == "image"
        for bundle in bundles:
            if newest_of_epoch is not None and bundle.stamp_ns <= newest_of_epoch:
                assert sync.statistics.resets > resets_left
                resets_left += 1
            newest_of_epoch = bundle.stamp_ns
            assert all(abs(stamp - bundle.stamp_ns) <= 60 * MS for stamp, _ in bundle.messages.values())
            released.append(bundle)
        if sync.statistics.resets > resets_left:
            newest_of_epoch = None
        deadline = sync.next_deadline_ns
        assert deadline is None or deadline > now * MS
        in_buffers = max(in_buffers, *(len(buffer) for buffer in sync._buffers.values()))
    released += sync.flush()
    stats = sync.statistics
    images = [b.stamp_ns for b in released if "image" in b.messages]
    discarded_images = received - len(images)
    assert 0 <= discarded_images <= stats.late + stats.duplicate
    assert stats.paired + stats.primary_only == len(images)
    assert stats.secondary_only == len(released) - len(images)
    assert in_buffers <= capacity


@pytest.mark.parametrize("lag_ms", [-4, 0, 7])
def test_sensors_of_one_rate_are_paired_as_message_filters_does(lag_ms):
    """Where it can be imported: a ROS distribution has it."""
    message_filters = pytest.importorskip("message_filters", reason="message_filters is not installed")
    time, messages = pytest.importorskip("rclpy.time"), pytest.importorskip("sensor_msgs.msg")
    kinds = {"image": messages.Image, "lidar": messages.PointCloud2}
    filters = {name: message_filters.SimpleFilter() for name in kinds}
    theirs: list[tuple[int, ...]] = []
    both = message_filters.ApproximateTimeSynchronizer(list(filters.values()), 50, 0.02)
    both.registerCallback(lambda *pair: theirs.append(tuple(m.header.stamp.nanosec // MS for m in pair)))
    stamps = [(i * 40 + 10, "image") for i in range(20)] + [(i * 40 + 10 + lag_ms, "lidar") for i in range(20)]
    sync, ours = make(slop_ms=20), []
    for stamp, name in sorted(stamps):
        message = kinds[name]()
        message.header.stamp = time.Time(nanoseconds=stamp * MS).to_msg()
        filters[name].signalMessage(message)
        ours += pairs(feed(sync, [(stamp, name, stamp)]))
    assert ours + pairs(sync.flush()) == theirs
