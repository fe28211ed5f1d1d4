# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from training.trainer import logbook
from training.trainer.logbook import Logbook, check_tensorboard
from vmloc_ros.core.errors import ConfigError, DataError, OutputError


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Values of all curves, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_columns_that_later_epochs_add_are_empty_in_earlier_rows(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "m.csv", None, 0, 0)
    book.epoch(1, 10, {"loss": 3.0})
    book.epoch(2, 20, {"loss": 2.0, "median_position_m": 0.5})
    assert read(tmp_path / "m.csv") == [
        {"epoch": "1", "loss": "3.0", "median_position_m": ""},
        {"epoch": "2", "loss": "2.0", "median_position_m": "0.5"},
    ]


def test_resuming_keeps_finished_epochs_and_removes_later_ones(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    book = Logbook(file, None, 0, 0)
    for epoch in (1, 2, 3):
        book.epoch(epoch, 10 * epoch, {"loss": epoch / 7})
    whole = file.read_text()
    Logbook(file, None, 2, 20).epoch(3, 30, {"loss": 3 / 7})
    assert file.read_text() == whole
    Logbook(file, None, 0, 0).epoch(1, 10, {"loss": 9.0})
    assert read(file) == [{"epoch": "1", "loss": "9.0"}]


def test_resuming_without_a_log_starts_a_new_one_and_a_foreign_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    Logbook(file, None, 4, 40).epoch(5, 50, {"loss": 1.0})
    assert [row["epoch"] for row in read(file)] == ["5"]
    for text in ("a,b\n1,2\n", "epoch,loss\nx,1\n"):
        file.write_text(text)
        with pytest.raises(DataError, match=r"m\.csv is not the log of a training .*; move it away"):
            Logbook(file, None, 4, 40)


@pytest.mark.parametrize("per_epoch", [1, 10])
def test_tensorboard_reads_every_value_once_also_after_resuming(tmp_path: Path, per_epoch: int) -> None:
    """The run died after the third epoch had been logged and before its state was saved."""
    folder = tmp_path / "m.tensorboard"
    book = Logbook(tmp_path / "m.csv", folder, 0, 0)
    for epoch in (1, 2, 3):
        book.step(per_epoch * epoch, {"loss": 0.5 * epoch})
        book.epoch(epoch, per_epoch * epoch, {"loss": 0.25 * epoch, "rate": 0.125})
    book.close()
    book = Logbook(tmp_path / "m.csv", folder, 2, 2 * per_epoch)
    for epoch in (3, 4):
        book.step(per_epoch * epoch, {"loss": 0.5 * epoch})
        book.epoch(epoch, per_epoch * epoch, {"loss": 0.25 * epoch, "rate": 0.125})
    book.close()
    epochs = [(per_epoch * epoch, epoch) for epoch in (1, 2, 3, 4)]
    assert curves(folder) == {
        "step/loss": [(step, 0.5 * epoch) for step, epoch in epochs],
        "epoch/loss": [(step, 0.25 * epoch) for step, epoch in epochs],
        "epoch/rate": [(step, 0.125) for step, _ in epochs],
    }


def test_a_new_run_removes_the_curves_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "m.tensorboard"
    for value in (1.0, 2.0):
        book = Logbook(tmp_path / "m.csv", folder, 0, 0)
        book.epoch(1, 10, {"loss": value})
        book.close()
    assert curves(folder) == {"epoch/loss": [(10, 2.0)]}


def test_without_tensorboard_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    monkeypatch.setattr(logbook, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--tensorboard needs the package tensorboard: pip install tensorboard"):
        check_tensorboard()


def test_tensorboard_is_not_imported_unless_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Logbook(tmp_path / "m.csv", None, 0, 0).epoch(1, 10, {"loss": 1.0})
    assert len(read(tmp_path / "m.csv")) == 1


def test_event_files_that_cannot_be_written_are_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"m\.tensorboard could not be written"):
        Logbook(tmp_path / "m.csv", tmp_path / "file" / "m.tensorboard", 0, 0)
