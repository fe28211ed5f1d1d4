# SPDX-License-Identifier: Apache-2.0
"""Stamps of recordings: false ones are found, true ones left alone, and a clock that was set makes none false."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.stamps import describe_departure, explain_false_stamps, find_false_stamps

MS = 1_000_000
SECOND = 1_000 * MS
HOUR = 3_600 * SECOND
T0 = 1_700_000_000 * SECOND


def drive(count: int = 200, period_ms: int = 50, start: int = T0) -> np.ndarray:
    return start + np.arange(count, dtype=np.int64) * period_ms * MS


LOGS = {
    "good": lambda stamps: stamps + 30 * MS,
    "jitter": lambda stamps: stamps + np.random.default_rng(0).integers(0, 300, len(stamps)) * MS,
    "zero": np.zeros_like,
    "equal": lambda stamps: np.full_like(stamps, T0),
    "bursts": lambda stamps: (stamps // SECOND + 1) * SECOND,
    "all at the end": lambda stamps: stamps.max(initial=T0) + np.arange(len(stamps)) * MS,
    "another clock": lambda stamps: stamps - T0 + 1_000 * SECOND,
    "fast replay": lambda stamps: T0 + (stamps - T0) // 5,
}
every_log = pytest.mark.parametrize("log", LOGS)


def falsify(stamps: np.ndarray, rows, departure_ns: int) -> np.ndarray:
    changed = stamps.copy()
    changed[rows] = 0 if departure_ns == 0 else changed[rows] + departure_ns
    return changed


FALSE = {
    "zero now and then": (slice(9, None, 20), 0),
    "zero at first": (slice(0, 9), 0),
    "an hour ahead": (slice(10, 11), HOUR),
    "an hour back": (slice(10, 11), -HOUR),
    "ahead by 3 s for 2 s": (slice(60, 100), 3 * SECOND),
    "back by 5 s for 1 s": (slice(120, 140), -5 * SECOND),
    "alternating": (slice(2, None, 3), 40 * SECOND),
    "an hour ahead at first": (slice(0, 2), HOUR),
    "an hour ahead at last": (slice(199, 200), HOUR),
    "uptime": (slice(5, None, 10), -T0 + 77 * SECOND),
    "ahead by 30 s for 3 s": (slice(20, 80), 30 * SECOND),
}


@every_log
@pytest.mark.parametrize("kind", FALSE)
def test_exactly_the_false_stamps_are_found(kind, log):
    stamps = drive()
    rows, departure_ns = FALSE[kind]
    changed = falsify(stamps, rows, departure_ns)
    report = find_false_stamps(changed, LOGS[log](stamps))
    assert np.flatnonzero(report.false).tolist() == np.arange(200)[rows].tolist()
    expected = (int(report.false.sum()), 0) if departure_ns == 0 else (0, int(report.false.sum()))
    assert (report.zeros, report.departed, report.jumps) == (*expected, 0)
    if departure_ns:
        assert report.departure_ns == pytest.approx(departure_ns, abs=SECOND)  # as exact as the log times


@every_log
def test_true_stamps_are_left_alone(log):
    stamps = drive()
    late = stamps.copy()
    late[50], late[51] = stamps[51], stamps[50]  # a straggler
    with_gap = np.concatenate([stamps[:80], stamps[80:] + 120 * SECOND])
    repeated = np.repeat(stamps, 2)
    for each in (stamps, late, with_gap, repeated, stamps[:1], stamps[:0]):
        assert not find_false_stamps(each, LOGS[log](each)).false.any()


@every_log
@pytest.mark.parametrize("period_ms", [1, 10, 1000, 5000])
def test_one_false_stamp_of_a_fast_or_slow_sensor_is_found(period_ms, log):
    stamps = drive(40, period_ms)
    changed = falsify(stamps, slice(20, 21), max(3, 5 * period_ms // 1000) * SECOND)
    report = find_false_stamps(changed, LOGS[log](stamps))
    assert np.flatnonzero(report.false).tolist() == [20]


@pytest.mark.parametrize("rounds", [2, 3, 40])
def test_rounds_of_a_loop_are_all_true(rounds):
    stamps = np.tile(drive(100), rounds)
    report = find_false_stamps(stamps, T0 + np.arange(len(stamps)) * 50 * MS)
    assert not report.false.any()
    assert report.jumps == rounds - 1


@pytest.mark.parametrize("jump", [37 * SECOND, -2 * SECOND, HOUR])
def test_a_clock_that_was_set_for_good_makes_nothing_false(jump):
    stamps = drive()
    stamps[80:] += jump
    report = find_false_stamps(stamps, drive())
    assert (report.false.any(), report.jumps) == (False, 1)


def test_a_step_of_the_clock_by_which_messages_are_logged_makes_nothing_false():
    stamps = drive()
    stamps[80:120] += 100 * SECOND
    assert not find_false_stamps(stamps, stamps + 20 * MS).false.any()


def test_all_zero_are_false():
    report = find_false_stamps(np.zeros(7, np.int64), drive(7))
    assert (report.false.all(), report.zeros) == (True, 7)


@settings(max_examples=100, deadline=None)
@given(
    false=st.dictionaries(
        st.integers(0, 199), st.one_of(st.just(None), st.integers(3_000, 10**8), st.integers(-(10**8), -3_000))
    ),
    jitter=st.lists(st.integers(0, 400), min_size=200, max_size=200),
    log=st.sampled_from(["good", "equal", "bursts"]),
)
def test_any_false_stamps_among_more_true_ones_are_found(false, jitter, log):
    """Whatever their departures: no two of them go on as the true ones do."""
    false = {row: departure for row, departure in false.items() if row % 2}
    departures = [departure for departure in false.values() if departure]
    if len({departure // 2000 for departure in departures}) < len(departures):
        return  # they make a clock of their own
    stamps = drive()
    changed = stamps.copy()
    for row, departure in false.items():
        changed[row] = 0 if departure is None else changed[row] + departure * MS
    logged = np.asarray(LOGS[log](stamps)) + (np.array(jitter) * MS if log == "good" else 0)
    report = find_false_stamps(changed, logged)
    assert np.flatnonzero(report.false).tolist() == sorted(false)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-(10**10), 2 * 10**18), st.integers(0, 2 * 10**18)), max_size=100))
def test_garbage_is_judged_without_an_error(rows):
    stamps, logged = np.array(rows, np.int64).reshape(-1, 2).T
    report = find_false_stamps(stamps, logged)
    assert report.zeros + report.departed == report.false.sum()
    assert (stamps[~report.false] > 0).all()
    assert not (len(rows) and (stamps > 0).any()) or not report.false.all()


def test_the_explanation_names_topic_number_example_and_remedy():
    assert explain_false_stamps("/a", 3, 0, 0, 80) == (
        "/a: 3 of 80 messages have a false stamp and were dropped: 3 are stamped 0 (the driver must set header.stamp)"
    )
    text = explain_false_stamps("/a", 1, 2, 3_600 * SECOND)
    assert text.startswith("/a: 3 messages have a false stamp and were dropped: 1 is stamped 0 (the driver must")
    assert "; 2 are of another clock, such as one 3600.0 s ahead of the others (check the sync" in text
    assert describe_departure(-5 * SECOND) == "5.0 s behind"
