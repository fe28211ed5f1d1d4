# SPDX-License-Identifier: Apache-2.0
"""Where a replay starts, what it leaves out, and how it names times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.replay.timeline import duration_text, timeline_of, when_text

S = 1_000_000_000
DRIVE = np.arange(100) * S // 10 + 1_700_000_000 * S  # 9.9 s at 10 Hz
SIMULATED = DRIVE - DRIVE[0] + 3 * S  # begins 3 s after the simulation


def joined(*parts: object) -> np.ndarray:
    return np.sort(np.concatenate([np.atleast_1d(np.asarray(part, np.int64)) for part in parts]))


@pytest.mark.parametrize(
    ("logged_ns", "max_gap_s", "expected"),
    [
        (DRIVE, 10.0, (DRIVE[0], 0, 0, 9.9)),
        (joined([0, 0, 0, 0], DRIVE), 10.0, (DRIVE[0], 4, 0, 9.9)),
        (joined([0, 0, 0, 0], DRIVE), np.inf, (DRIVE[0], 4, 0, 9.9)),
        (joined([0, 0], SIMULATED), 10.0, (SIMULATED[0], 2, 0, 9.9)),
        (joined(np.zeros(80), SIMULATED), 10.0, (SIMULATED[0], 80, 0, 9.9)),
        (SIMULATED - SIMULATED[0], 10.0, (0, 0, 0, 9.9)),
        (joined(DRIVE[0] - 86400 * S, DRIVE), 10.0, (DRIVE[0], 1, 0, 9.9)),
        (joined(0, DRIVE[0] - 86400 * S, DRIVE), 10.0, (DRIVE[0], 2, 0, 9.9)),
        (joined(DRIVE[0] - 5 * S, DRIVE), 10.0, (DRIVE[0] - 5 * S, 0, 0, 14.9)),
        (joined(DRIVE, DRIVE + 7200 * S), 10.0, (DRIVE[0], 0, 1, 19.8)),
        (joined(DRIVE, DRIVE + 7200 * S), 7300.0, (DRIVE[0], 0, 0, 7209.9)),
        (joined(DRIVE, DRIVE + 30 * S, DRIVE + 80 * S), 10.0, (DRIVE[0], 0, 2, 29.7)),
        (joined(DRIVE, DRIVE[-1] + 86400 * S), 10.0, (DRIVE[0], 0, 1, 9.9)),
        (np.full(10, 7 * S), 10.0, (7 * S, 0, 0, 0.0)),
        (np.zeros(10), 10.0, (0, 0, 0, 0.0)),
        (np.array([5 * S]), 10.0, (5 * S, 0, 0, 0.0)),
        (np.empty(0, np.int64), 10.0, (0, 0, 0, 0.0)),
    ],
)
def test_a_replay_starts_with_the_recordings_own_time(logged_ns, max_gap_s, expected):
    found = timeline_of(np.asarray(logged_ns, np.int64), max_gap_s)
    assert (found.start_ns, found.early, found.skipped) == expected[:3]
    assert found.duration_s == pytest.approx(expected[3])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.floats(0.1, 100))
def test_what_is_played_is_the_span_without_its_long_gaps(times, max_gap_s):
    logged_ns = np.sort(np.array(times, np.int64))
    found = timeline_of(logged_ns, max_gap_s)
    gaps = np.diff(logged_ns[found.early :])
    assert logged_ns[found.early] == found.start_ns
    assert found.duration_s == pytest.approx(gaps[gaps <= max_gap_s * 1e9].sum() * 1e-9)
    assert found.skipped == (gaps > max_gap_s * 1e9).sum()


def test_times_are_named_by_their_date_or_by_the_simulations_clock():
    assert when_text(1_700_000_000 * S) == "2023-11-14 22:13:20 UTC"
    assert when_text(12_340_000_000) == "12.3 s"


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(12.34, "12.3 s"), (60, "1 min 0 s"), (7980, "2 h 13 min"), (90_000, "1 d 1 h"), (1.7e9, "19675 d 22 h")],
)
def test_durations_have_two_units(duration_s, text):
    assert duration_text(duration_s) == text
