# SPDX-License-Identifier: Apache-2.0
"""Arriving messages: false stamps are dropped, true ones passed on, and clocks that were set are followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.stamp_judge import StampJudge

MS = 1_000_000
SECOND = 1_000 * MS
HOUR = 3_600 * SECOND
NOW = 1_700_000_000 * SECOND  # the receiver's clock, when its steady clock is at 0
BAG = 1_600_000_000 * SECOND  # stamps of a recording that is played

Arrival = tuple[int, str, int, str]  # steady time, stream, stamp, what is expected: true, false or either


def stream(
    name: str, start_ns: int, period_ms: int, seconds: float, lag_ms: int = 20, rate: float = 1.0, from_s: float = 0.0
) -> list[Arrival]:
    """Messages of a sensor whose stamps begin with ``start_ns`` at steady time 0; ``rate`` times as fast as time."""
    first, last = round(from_s * 1000 * rate / period_ms), round((from_s + seconds) * 1000 * rate / period_ms)
    taken = [i * period_ms * MS for i in range(first, last)]
    return [(round(t / rate) + lag_ms * MS, name, start_ns + t, "true") for t in taken]


def changed(
    arrivals: list[Arrival], change: Callable[[int, int], int | None], name: str | None = None
) -> list[Arrival]:
    """Give messages other stamps: ``change(number, steady time)`` is their departure in ns, None for a stamp of 0."""
    out, numbers = [], dict.fromkeys({each[1] for each in arrivals}, -1)
    for now, stream_name, stamp, expected in sorted(arrivals):
        numbers[stream_name] += 1
        departure = change(numbers[stream_name], now) if name in (None, stream_name) else 0
        false = 0 if departure is None else stamp + departure
        out.append((now, stream_name, stamp, expected) if departure == 0 else (now, stream_name, false, "false"))
    return out


def between(first_s: float, last_s: float, departure_ns: int) -> Callable[[int, int], int]:
    return lambda _, now: departure_ns if first_s * SECOND <= now < last_s * SECOND else 0


def feed(judge: StampJudge, arrivals: Iterable[Arrival], clock: Callable[[int], int | None]) -> list[Arrival]:
    """The messages that are believed; between arrivals the judge is polled when it asks for it."""
    believed: list[Arrival] = []
    for arrival in sorted(arrivals):
        now = arrival[0]
        while (deadline := judge.next_deadline_ns) is not None and deadline <= now:
            believed += [each.payload for each in judge.poll(deadline)]
        believed += [each.payload for each in judge.add(arrival[1], arrival[2], arrival, now, clock(now))]
    while (deadline := judge.next_deadline_ns) is not None:
        believed += [each.payload for each in judge.poll(deadline)]
    return believed


def wall(now: int) -> int:
    return NOW + now


def judge_all(
    arrivals: list[Arrival], clock: Callable[[int], int | None] = wall, lost: int = 0, streams=("image", "lidar")
) -> StampJudge:
    """Check that each message came out as is expected of it, in order of arrival by stream, but for ``lost`` ones."""
    judge: StampJudge = StampJudge(streams)
    believed = feed(judge, arrivals, clock)
    assert [each for each in believed if each[3] == "false"] == []
    missing = [each for each in sorted(arrivals) if each[3] == "true" and each not in believed]
    assert len(missing) <= lost, missing
    for name in streams:
        stamped = [each[0] for each in believed if each[1] == name]
        assert stamped == sorted(stamped)
    counts = judge.false.values()
    assert sum(each.zeros + each.departed for each in counts) == len(arrivals) - len(believed)
    return judge


def robot(seconds: float = 12.0, start: int = NOW, rate: float = 1.0, **options: float) -> list[Arrival]:
    images = stream("image", start, 50, seconds, rate=rate, **options)
    return images + stream("lidar", start, 100, seconds, lag_ms=60, rate=rate, **options)


LIVE, PLAYED = (NOW, wall), (BAG, wall)
SIMULATED = (5 * SECOND, lambda now: 5 * SECOND + now // (10 * MS) * 10 * MS)
UNCLOCKED = (BAG, lambda now: None)  # simulated time without a clock
CLOCKS = {"live": LIVE, "played": PLAYED, "simulated": SIMULATED, "unclocked": UNCLOCKED}
every_clock = pytest.mark.parametrize(("start", "clock"), CLOCKS.values(), ids=CLOCKS)


@every_clock
def test_true_stamps_pass_at_once(start, clock):
    judge: StampJudge = StampJudge(("image", "lidar"))
    for number, arrival in enumerate(sorted(robot(start=start))):
        came = judge.add(arrival[1], arrival[2], arrival, arrival[0], clock(arrival[0]))
        assert number < 5 or [each.payload for each in came] == [arrival]


FALSE = {
    "zero now and then": lambda i, now: None if i % 20 == 10 else 0,
    "zero at first": lambda i, now: None if i < 5 else 0,
    "all zero": lambda i, now: None,
    "an hour ahead": lambda i, now: HOUR if i == 30 else 0,
    "an hour ahead at first": lambda i, now: HOUR if i == 0 else 0,
    "an hour ahead at once": lambda i, now: HOUR if i == 1 else 0,
    "an hour back": lambda i, now: -HOUR if i == 30 else 0,
    "ahead by 3 s for 2 s": between(5.0, 7.0, 3 * SECOND),
    "back by 5 s for 1 s": between(5.0, 6.0, -5 * SECOND),
    "alternating": lambda i, now: 40 * SECOND if i % 3 == 2 else 0,
    "uptime now and then": lambda i, now: 700 * SECOND - NOW if i % 10 == 9 else 0,
}


@every_clock
@pytest.mark.parametrize("kind", FALSE)
@pytest.mark.parametrize("name", ["image", "lidar"])
def test_false_stamps_of_a_sensor_are_dropped_and_no_other(kind, name, start, clock):
    # Of two messages that come first and disagree, none is known to be true.
    lost = int(kind == "an hour ahead at once")
    judge = judge_all(changed(robot(start=start), FALSE[kind], name), clock, lost)
    other = judge.false["lidar" if name == "image" else "image"]
    assert (other.zeros, other.departed) == (0, 0)


@pytest.mark.parametrize("kind", FALSE)
@pytest.mark.parametrize("clock", ["live", "played", "simulated"])
def test_false_stamps_of_a_sensor_alone_are_dropped_and_no_other(kind, clock):
    start, clock_ns = CLOCKS[clock]
    images = stream("image", start, 50, 12.0)
    judge_all(changed(images, FALSE[kind]), clock_ns, int(kind == "an hour ahead at once"), ("image",))


@pytest.mark.parametrize("period_ms", [1000, 2000])
@pytest.mark.parametrize("departure", [3 * SECOND, -5 * SECOND, HOUR])
def test_false_stamps_of_a_slow_sensor_are_dropped(period_ms, departure):
    arrivals = robot(60) + stream("depth", NOW, period_ms, 60)
    judge_all(changed(arrivals, between(40, 42, departure), "depth"), streams=("image", "lidar", "depth"))


def test_how_far_the_false_stamps_were_ahead_is_known():
    judge = judge_all(changed(robot(), between(5.0, 7.0, 3 * SECOND), "image"))
    assert judge.false["image"].departure_ns == 3 * SECOND


# --- clocks that are set, paused or play at another rate ---


@pytest.mark.parametrize("rate", [0.2, 1.0, 2.0, 5.0, 10.0, 30.0])
@pytest.mark.parametrize("clock", ["with /clock", "without"])
def test_a_recording_is_played_at_any_rate(rate, clock):
    def bag_time(now: int) -> int:
        return BAG + round(now // (10 * MS) * 10 * MS * rate)

    judge_all(robot(5.0, BAG, rate), bag_time if clock == "with /clock" else wall)


@pytest.mark.parametrize("sensors", [("image", "lidar"), ("image",)])
@pytest.mark.parametrize("clock", ["with /clock", "without"])
@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_each_round_of_a_recording_that_loops_is_passed_on(sensors, clock, rate):
    arrivals = []
    for i in range(3):
        start = BAG - round(i * 8 * SECOND * rate)
        arrivals += [each for each in robot(8.0, start, rate, from_s=i * 8.0) if each[1] in sensors]

    def bag_time(now: int) -> int:
        return BAG + round((now // (10 * MS) * 10 * MS) % (8 * SECOND) * rate)

    # One sensor alone that jumps is not believed at once: of what is held back the latest is kept.
    lost = 0 if len(sensors) > 1 or clock == "with /clock" else 2 * 60
    judge_all(arrivals, bag_time if clock == "with /clock" else wall, lost, sensors)


def test_another_recording_that_begins_after_a_sensor_was_silent_is_passed_on():
    """The silent sensor has not jumped by as much, but to the same time."""
    alone = [(now + 2 * SECOND, *rest) for now, *rest in stream("image", BAG + 60 * SECOND, 50, 2.0)]
    both = [(now + 4 * SECOND, *rest) for now, *rest in robot(2.0, BAG - HOUR)]
    judge_all(robot(2.0, BAG) + alone + both)


def test_one_sensor_of_another_recording_is_passed_on_though_the_other_jumped_before():
    alone = [(now + 4 * SECOND, *rest) for now, *rest in stream("image", BAG + 60 * SECOND, 50, 0.3)]
    judge_all(robot(2.0, BAG) + [(now + 2 * SECOND, *rest) for now, *rest in robot(1.0, BAG - HOUR)] + alone)


def test_a_pause_costs_nothing():
    later = [(now + 30 * SECOND, name, stamp, "true") for now, name, stamp, _ in robot(5.0, BAG, from_s=5.0)]
    judge_all(robot(5.0, BAG) + later)


def test_a_system_clock_that_is_set_takes_the_stamps_with_it():
    """A step of NTP."""
    later = [(now, name, stamp + 100 * SECOND, "true") for now, name, stamp, _ in robot(6.0, from_s=6.0)]
    judge_all(robot(6.0) + later, lambda now: wall(now) + (100 * SECOND if now >= 6 * SECOND else 0))


def test_another_recording_that_begins_at_once_is_passed_on():
    later = [(now, name, stamp - 90 * SECOND, "true") for now, name, stamp, _ in robot(6.0, BAG, from_s=6.0)]
    judge_all(robot(6.0, BAG) + later)


def test_a_sensor_whose_clock_was_set_for_good_is_followed_after_ten_seconds():
    images, scans = stream("image", NOW, 50, 30.0), stream("lidar", NOW, 100, 30.0)
    later = [(now, name, stamp + 37 * SECOND * (now > 6 * SECOND), "either") for now, name, stamp, _ in images]
    believed = feed(StampJudge(("image", "lidar")), later + scans, wall)
    jumped = [each for each in believed if each[1] == "image" and each[0] > 6 * SECOND]
    assert {each[2] - NOW - each[0] for each in jumped} == {37 * SECOND - 20 * MS}
    assert 14 * SECOND < jumped[0][0] < 16 * SECOND  # the latest of those held back
    assert len([each for each in jumped if each[0] > 16 * SECOND]) == 280


@pytest.mark.parametrize("gap", [5 * SECOND, HOUR])
def test_a_sensor_that_was_silent_goes_on(gap):
    later = [(now + gap, name, stamp + gap, "true") for now, name, stamp, _ in stream("image", NOW, 50, 5.0)]
    judge_all(robot(5.0) + later)


def test_a_sensor_that_starts_late_and_one_of_another_clock_are_heard():
    uptime = stream("lidar", 300 * SECOND, 100, 10.0)
    judge = judge_all(stream("image", NOW, 50, 20.0, from_s=5.0) + uptime)
    assert judge.clock_gap_ns("image", "lidar", 10 * SECOND) == pytest.approx(300 * SECOND - NOW, abs=SECOND)
    assert judge.clock_gap_ns("image", "lidar", HOUR) is None


def test_messages_that_were_delayed_together_are_true():
    """The network stood still for 4 s."""
    arrivals = [(max(now, 9 * SECOND) if 5 * SECOND < now < 9 * SECOND else now, *rest) for now, *rest in robot()]
    judge_all([(now, name, stamp, expected) for now, name, stamp, expected in arrivals])


def test_a_single_message_is_passed_on_when_none_follows():
    judge_all([(0, "image", BAG, "true")])
    judge_all([(0, "image", BAG, "true"), (5 * SECOND, "image", BAG - 60 * SECOND, "true")])


def test_a_single_message_of_another_recording_is_passed_on_soon_after_pauses():
    bursts = [(now + i * 20 * SECOND, *rest) for i in range(4) for now, *rest in stream("image", BAG, 100, 0.3)]
    alone = (90 * SECOND, "image", BAG + HOUR, "true")
    judge: StampJudge = StampJudge(("image",))
    feed(judge, bursts, wall)
    assert judge.add(*alone[1:3], alone, alone[0], wall(alone[0])) == []
    assert [each.payload for each in judge.poll(alone[0] + SECOND)] == [alone]


def test_a_sensor_of_a_long_period_that_is_sent_fast_is_passed_on():
    judge_all([(i * 30 * MS, "image", BAG + 2 * i * SECOND, "true") for i in range(10)])


def test_after_a_reset_any_time_is_believed_and_counts_go_on():
    judge = judge_all(changed(robot(3.0), FALSE["zero at first"], "image"))
    judge.reset()
    earlier = stream("image", NOW - HOUR, 50, 1.0)
    assert len(feed(judge, earlier, wall)) == len(earlier)
    assert judge.false["image"].zeros == 5


def test_an_undeclared_stream_is_rejected():
    with pytest.raises(KeyError):
        StampJudge(("image",)).add("lidar", NOW, None, 0)


# --- any false stamps among true ones ---

departures = st.one_of(
    st.none(), st.integers(2_100, 10**9).map(lambda ms: ms * MS), st.integers(2_100, 10**9).map(lambda ms: -ms * MS)
)


@settings(max_examples=150, deadline=None)
@given(
    false=st.dictionaries(st.integers(0, 200), departures, max_size=30),
    lag=st.integers(0, 300),
    jitter=st.lists(st.integers(0, 80), min_size=240, max_size=240),
    clock=st.sampled_from(sorted(CLOCKS)),
)
def test_any_false_stamps_are_dropped_while_true_ones_come_between(false, lag, jitter, clock):
    """Two in a row, or those of a sensor's first messages, may agree by chance."""
    false = {i: departure for i, departure in false.items() if i - 1 not in false and i > 2}
    start, clock_ns = CLOCKS[clock]
    images = changed(stream("image", start, 50, 12.0, lag_ms=lag), lambda i, now: false.get(i, 0))
    images = [(now + jitter[i] * MS, *rest) for i, (now, *rest) in enumerate(images)]
    scans = stream("lidar", start, 100, 12.0)
    judge = judge_all([*images, *scans], clock_ns)
    zeros = sum(stamp <= 0 for _, _, stamp, _ in images)
    assert (judge.false["image"].zeros, judge.false["image"].departed) == (zeros, len(false) - zeros)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2_000), st.sampled_from(["image", "lidar", "depth"]), st.integers(-100, 10**5)),
        max_size=150,
    )
)
def test_whatever_comes_each_message_is_passed_on_once_or_counted(events):
    judge: StampJudge = StampJudge(("image", "lidar", "depth"))
    now, arrivals = 0, []
    for wait, name, stamp in events:
        now += wait * MS
        arrivals.append((now, name, stamp * MS, str(len(arrivals))))
    believed = feed(judge, arrivals, wall)
    assert len({each[3] for each in believed}) == len(believed)
    assert len(believed) + sum(each.zeros + each.departed for each in judge.false.values()) == len(arrivals)
