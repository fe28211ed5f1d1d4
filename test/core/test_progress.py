# SPDX-License-Identifier: Apache-2.0
"""Progress: a redrawn bar on a terminal, a bounded number of plain lines everywhere else."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from vmloc_ros.core.progress import logger, progress_bar, with_progress


class Stream(io.StringIO):
    """Standard error that is a terminal, or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


Attach = Callable[[bool], Stream]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Attach]:
    """Makes standard error and the log one stream; called by the test, as pytest sets sys.stderr after its fixtures."""
    stream_handler = logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(stream_handler)

    def attach(terminal: bool) -> Stream:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        stream_handler.setStream(stream)
        return stream

    yield attach
    logger.removeHandler(stream_handler)
    logger.setLevel(logging.NOTSET)


def lines(stream: Stream) -> list[str]:
    assert "\r" not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_a_pipe_gets_a_line_every_ten_percent_and_one_at_the_end(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(3000, "training", "img", clock=clock) as bar:
        for step in range(300):
            clock.now_s += 0.25
            bar.update(10)
            bar.set_postfix({"epoch": "1", "loss": 1 / (step + 1)})
    shown = lines(pipe)
    assert len(shown) == 10
    assert shown[0] == "training: 10 % (300 of 3000 img, 40 img/s, about 68 s left), epoch 1, loss 0.0345"
    assert shown[-1] == "training: 100 % (3000 of 3000 img, 40 img/s, in 75 s), epoch 1, loss 0.00333"


def test_slow_work_gets_a_line_every_thirty_seconds(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(1000, "training", "img", clock=clock) as bar:
        for _ in range(90):
            clock.now_s += 1.0
            bar.update(1)
        assert [line.partition(",")[0] for line in lines(pipe)] == [
            "training: 3 % (30 of 1000 img",
            "training: 6 % (60 of 1000 img",
            "training: 9 % (90 of 1000 img",
        ]
    assert lines(pipe)[0] == "training: 3 % (30 of 1000 img, 1 img/s, about 16 min left)"
    assert lines(pipe)[3] == "training: 9 % (90 of 1000 img, 1 img/s, in 90 s)"


def test_a_million_updates_make_few_lines(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    for _ in with_progress(range(100_000), 100_000, "reading", "frames"):
        pass
    with progress_bar(1.0, "reading", "frames", clock=clock) as bar:
        for _ in range(100_000):
            bar.update(1e-5)
    assert len(lines(pipe)) <= 22


def test_a_total_of_zero_has_the_final_line(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(0, "reading", "frames", clock=clock):
        pass
    assert lines(pipe) == ["reading: 100 % (0 of 0 frames, in 0 s)"]


def test_a_resumed_run_counts_what_was_done_before_but_not_in_its_rate(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(1000, "training", "img", initial=600, clock=clock) as bar:
        clock.now_s += 10.0
        bar.update(100)
        clock.now_s += 30.0
        bar.update(300)
    assert lines(pipe) == [
        "training: 70 % (700 of 1000 img, 10 img/s, about 30 s left)",
        "training: 100 % (1000 of 1000 img, 10 img/s, in 40 s)",
    ]


def test_a_resumed_run_with_nothing_left_to_do_has_the_final_line(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(1000, "training", "img", initial=1000, clock=clock):
        pass
    assert lines(pipe) == ["training: 100 % (1000 of 1000 img, in 0 s)"]


def test_work_that_fails_has_a_final_line_with_how_far_it_came(attach: Attach) -> None:
    pipe = attach(False)

    def items() -> Iterator[int]:
        yield from range(7)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(with_progress(items(), 100, "reading", "frames"))
    assert len(lines(pipe)) == 1
    assert lines(pipe)[0].startswith("reading: 7 % (7 of 100 frames, ")


def test_tenths_of_seconds_add_up_to_the_whole(attach: Attach, clock: Clock) -> None:
    pipe = attach(False)
    with progress_bar(0.3, "replay", "s", clock=clock) as bar:
        for _ in range(3):
            clock.now_s += 0.1
            bar.update(0.1)
    assert lines(pipe)[-1] == "replay: 100 % (0.3 of 0.3 s, 1 s/s, in 0 s)"


def test_a_terminal_gets_a_bar_and_no_lines(attach: Attach) -> None:
    pytest.importorskip("tqdm")
    terminal = attach(True)
    with progress_bar(8, "training", "img", initial=2) as bar:
        bar.update(6)
        bar.set_postfix({"loss": 0.5})
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "training" in shown
    assert "| 8/8 [" in shown
    assert "loss=0.5" in shown
    assert shown.count("\n") == 1


def test_a_terminal_without_tqdm_gets_lines(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(with_progress("abc", 3, "reading", "frames")) == ["a", "b", "c"]
    assert [line.partition(" (")[0] for line in lines(terminal)] == ["reading: 33 %", "reading: 66 %", "reading: 100 %"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_disabled_bar_shows_nothing(terminal: bool, attach: Attach) -> None:
    shown = attach(terminal)
    with progress_bar(2, "training", "img", disable=True) as bar:
        bar.update(2)
        bar.set_postfix({"loss": 0.5})
    assert list(with_progress("ab", 2, "reading", "frames", disable=True)) == ["a", "b"]
    assert shown.getvalue() == ""


def test_no_standard_error_at_all_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(2, "training", "img") as bar:
        bar.update(2)
