# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training.cli import main
from training.config import TrainConfig, load_config
from training.trainer.model_training import ModelTraining
from training.trainer.run_files import RunFiles
from training_runs import arguments, as_earlier_versions_wrote_it, last_lines, log, write_config, write_scene
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import OutputError


def test_every_file_of_a_run_is_named_after_its_checkpoint() -> None:
    files = RunFiles(Path("runs/chess.v2.safetensors"))
    names = [files.best, files.last, files.state, files.log, files.config, files.events]
    suffixes = ["safetensors", "last.safetensors", "state.pt", "csv", "yaml", "tensorboard"]
    assert names == [Path(f"runs/chess.v2.{suffix}") for suffix in suffixes]


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = [".m.safetensors.abc.tmp", ".m.last.safetensors.x_1.tmp", ".m.state.pt.q.tmp", ".m.csv.1.tmp"]
    others = ["m.safetensors", "m.state.pt", ".other.safetensors.abc.tmp", ".m.safetensors", "m.csv.tmp"]
    for name in mine + others:
        (tmp_path / name).write_text("x")
    RunFiles(tmp_path / "m.safetensors").remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


# --- the configuration -------------------------------------------------------------------------------------------


def test_the_configuration_saved_with_a_run_can_be_given_again(tmp_path: Path) -> None:
    files, config = RunFiles(tmp_path / "m.safetensors"), TrainConfig(seed=3, pretrained="weights.pth")
    files.save_config(config)
    again = load_config([files.config])
    assert again == config
    files.check_config(again, [files.config])


def test_the_configuration_that_an_earlier_version_kept_with_a_run_can_be_given_again(tmp_path: Path) -> None:
    files, config = RunFiles(tmp_path / "m.safetensors"), load_config([], ["model.name=mapnet", "seed=3"])
    values = as_earlier_versions_wrote_it(config)
    files.config.write_text(yaml.safe_dump(values, sort_keys=False))
    again = load_config([files.config])
    assert again == config
    files.check_config(again, [files.config])
    with pytest.raises(OutputError, match="is given as configuration"):
        files.check_config(load_config([files.config], ["seed=4"]), [files.config])
    files.config.write_text(yaml.safe_dump(values, sort_keys=False) + "# the best of five\n")
    with pytest.raises(OutputError, match="is given as configuration"):
        files.check_config(again, [files.config])


@pytest.mark.parametrize("config", [TrainConfig(seed=3), TrainConfig(seed=4)])
def test_a_configuration_that_the_user_wrote_is_not_overwritten(tmp_path: Path, config: TrainConfig) -> None:
    files = RunFiles(tmp_path / "m.safetensors")
    files.config.write_text("seed: 3  # the best of five\n")
    with pytest.raises(OutputError, match=r"m\.yaml is given as configuration, and .*; choose another OUT"):
        files.check_config(config, [tmp_path / ".." / tmp_path.name / "m.yaml"])
    files.check_config(config, [])  # an earlier run's
    (tmp_path / "other.yaml").write_text("")
    files.check_config(config, [tmp_path / "other.yaml"])


# --- a full disk -------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond it fails, as on a full disk; Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], RunFiles]:
    """A training that was stopped in its second epoch; the command that started it."""
    folder = tmp_path_factory.mktemp("disk")
    scene, config = write_scene(folder / "scene"), write_config(folder / "config.yaml")
    out = folder / "run" / "m.safetensors"
    command = arguments(scene, config, out, "--no-cache", "--set", "optimizer.epochs=2")
    step, done = ModelTraining.step, []

    def stop(*given: Any) -> Any:
        done.append(None)
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(*given)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ModelTraining, "step", stop)
        assert main(command) == 130
    return command, RunFiles(out)


def assert_intact(files: RunFiles) -> None:
    identity = torch.load(files.state, weights_only=True)["identity"]
    assert files.load_state(identity)["progress"]["epoch"] == 1
    for path in (files.best, files.last):
        load_checkpoint(path)
    assert len(log(files.best)) >= 1
    assert load_config([files.config]).optimizer.epochs == 2
    names = {path.name for path in files.best.parent.iterdir()}
    assert names == {f"m.{suffix}" for suffix in ("safetensors", "last.safetensors", "state.pt", "csv", "yaml")}


@pytest.mark.parametrize("full", ["config", "best", "state"])
def test_a_full_disk_is_an_error_of_one_line_and_existing_files_stay(
    begun: tuple[list[str], RunFiles], capsys: pytest.CaptureFixture[str], full: str
) -> None:
    command, files = begun
    assert_intact(files)
    path = getattr(files, full)
    if full == "best":  # whatever the next epoch reaches is to be better
        state = torch.load(files.state, weights_only=True)
        state["progress"]["best"] = math.inf
        torch.save(state, files.state)
    before = files.state.read_bytes()
    with files_of_at_most(path.stat().st_size * 3 // 4):
        code = main([*command, "--resume"])
    assert code == 1
    lines = last_lines(capsys.readouterr().err)
    assert len(lines) == 1
    assert lines[0].startswith(f"vmloc train: {path} could not be written: ")
    assert lines[0].endswith("; an existing file was left as it was")
    assert files.state.read_bytes() == before
    assert_intact(files)


def test_a_log_that_cannot_be_written_is_an_error_of_one_line(
    begun: tuple[list[str], RunFiles], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, files = begun
    before = files.log.read_text()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("csv.DictWriter.writerows", fail)
    assert main([*command, "--resume"]) == 1
    (line,) = last_lines(capsys.readouterr().err)
    assert "m.csv could not be written: [Errno 28] No space left on device" in line
    assert files.log.read_text() == before
    assert_intact(files)


def test_a_folder_that_cannot_be_written_is_an_error_before_the_data_are_read(
    begun: tuple[list[str], RunFiles], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.trainer.train.open_all", None)
    command, _ = begun
    out = command.index("--out") + 1
    assert main([*command[:out], "/proc/self/m.safetensors", *command[out + 1 :]]) == 1  # not even for root
    (line,) = last_lines(capsys.readouterr().err)
    assert line.startswith("vmloc train: /proc/self/m.safetensors could not be written")


def test_missing_tensorboard_is_an_error_before_the_data_are_read(
    begun: tuple[list[str], RunFiles], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.trainer.logbook.find_spec", lambda name: None)
    monkeypatch.setattr("training.trainer.train.open_all", None)
    assert main([*begun[0], "--resume", "--tensorboard"]) == 1
    (line,) = last_lines(capsys.readouterr().err)
    assert line == "vmloc train: --tensorboard needs the package tensorboard: pip install tensorboard"


# --- logs of a run -----------------------------------------------------------------------------


def test_csv_log_and_tensorboard_have_the_same_values(begun: tuple[list[str], RunFiles], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = list(begun[0])
    out = tmp_path / "m.safetensors"
    command[command.index("--out") + 1] = str(out)
    assert main([*command, "--tensorboard"]) == 0
    rows = log(out, without=())
    columns = [
        "epoch",
        "loss",
        "effective_samples",
        "kl",
        "variance_image",
        "variance_depth",
        "images_per_s",
        "seconds",
        "rate",
    ]
    metrics = [f"{kind}_{of}" for of in ("position_m", "rotation_deg") for kind in ("median", "mean")]
    assert list(rows[0]) == columns + metrics
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        values = {name: float(x) for name, x in row.items()}
        assert 1 <= values["effective_samples"] <= 10
        assert values["kl"] >= 0
        assert min(values[name] for name in ("variance_image", "variance_depth", "images_per_s", "seconds")) > 0
    events = EventAccumulator(str(out.with_suffix(".tensorboard")))
    events.Reload()
    for name in rows[0]:
        if name != "epoch":
            logged = [(event.step, event.value) for event in events.Scalars(f"epoch/{name}")]
            assert [step for step, _ in logged] == [3, 6]
            assert [x for _, x in logged] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
    assert to_mapping(load_config([out.with_suffix(".yaml")]))["optimizer"]["epochs"] == 2
