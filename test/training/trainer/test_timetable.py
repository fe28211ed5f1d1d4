# SPDX-License-Identifier: Apache-2.0
"""Time left of a whole training."""

from __future__ import annotations

import logging

import pytest

from training.planning import Stage
from training.trainer.timetable import Timetable
from vmloc_ros.core.progress import no_progress, overall_progress, progress_bar


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_at_the_expected_rate_what_is_left_is_what_was_expected(clock: Clock) -> None:
    table = Timetable([Stage("a", 100.0), Stage("b", 200.0), Stage("c", 50.0)], clock)
    assert table.left_s("a", 0.0) == 350
    clock.now_s = 50
    assert table.left_s("a", 0.5) == pytest.approx(300)
    clock.now_s = 100
    assert table.left_s("b", 0.0) == pytest.approx(250)
    clock.now_s = 350
    assert table.left_s("c", 1.0) == pytest.approx(0, abs=1e-9)


def test_a_machine_of_half_the_speed_makes_all_later_stages_longer(clock: Clock) -> None:
    table = Timetable([Stage("a", 200.0), Stage("b", 200.0)], clock)
    table.left_s("a", 0.0)
    clock.now_s = 400
    assert 300 < (table.left_s("b", 0.0) or 0) <= 400


def test_stages_that_never_come_count_as_done_and_foreign_work_has_no_estimate(clock: Clock) -> None:
    table = Timetable([Stage("reading", 100.0), Stage("a", 10.0), Stage("b", 10.0)], clock)
    assert table.left_s("something else", 0.5) is None
    assert table.left_s("a", 0.0) == 20
    assert table.left_s("reading", 0.5) is None


def test_progress_lines_name_the_time_left_of_everything(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level(logging.INFO)
    table = Timetable([Stage("a", 100.0), Stage("b", 60.0)], clock)
    with overall_progress(table), progress_bar(10, "a", "steps", clock=clock) as bar:
        clock.now_s = 50
        bar.update(5)
    assert "of everything about 110 s left" in caplog.messages[0].replace("2 min", "110 s")
    with progress_bar(10, "a", "steps", clock=clock) as bar:
        bar.update(5)
    assert "of everything" not in caplog.messages[-1]


def test_hidden_progress_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with no_progress(), progress_bar(10, "a", "steps") as bar:
        bar.update(10)
    assert not caplog.messages
