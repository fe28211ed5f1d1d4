# SPDX-License-Identifier: Apache-2.0
"""Trainings in processes of their own that are killed or interrupted, resumed, and end as uninterrupted ones."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from training.cli import main
from training_runs import (
    Running,
    arguments,
    assert_same_outcome,
    last_lines,
    log,
    wait_in_the_fifth_step,
    write_config,
    write_scene,
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Data, configuration, and the checkpoint of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("resume")
    scene, config = write_scene(folder / "scene"), write_config(folder / "config.yaml")
    out = folder / "whole" / "m.safetensors"
    assert main(arguments(scene, config, out, "--no-cache")) == 0
    return scene, config, out


def state(out: Path) -> dict[str, object]:
    return torch.load(out.with_name("m.state.pt"), weights_only=True)["progress"]


def test_a_training_killed_three_times_ends_as_an_uninterrupted_one(
    setting: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Killed after its first state, while it writes a checkpoint, and at a random moment after that."""
    scene, config, whole = setting
    out = tmp_path / "m.safetensors"
    state_file = out.with_name("m.state.pt")
    moments = [
        lambda: state_file.exists(),
        lambda: any(tmp_path.glob(".m.last.safetensors.*.tmp")),
        lambda: out.with_suffix(".csv").exists() and len(log(out)) >= 2,
    ]
    delays_s = [0.0, 0.0, random.Random(0).uniform(0, 0.3)]
    more: tuple[str, ...] = ("--no-cache",)
    for moment, delay_s in zip(moments, delays_s, strict=True):
        running = Running(arguments(scene, config, out, *more), tmp_path / "log")
        running.wait_for(moment)
        time.sleep(delay_s)
        running.signal(signal.SIGKILL)
        assert running.end()[0] == -signal.SIGKILL
        assert state_file.exists()
        more = ("--no-cache", "--resume")
    assert main(arguments(scene, config, out, *more)) == 0
    assert_same_outcome(whole, out)
    assert not list(tmp_path.glob(".*")), "temporary files of a killed process are removed by the next run"


def run_to_the_middle(command: list[str], folder: Path) -> Running:
    """A training that waits in its fifth step of three to an epoch, for a file named ``go``."""
    for name in ("reached", "go"):
        (folder / name).unlink(missing_ok=True)
    running = Running(command, folder / "log", partial(wait_in_the_fifth_step, folder))
    running.wait_for((folder / "reached").exists)
    return running


def test_an_interrupted_training_saves_its_step_prints_how_to_resume_and_continues_there(
    setting: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """By Ctrl-C in its fifth step, by SIGTERM in the fifth of the rest, and then by Ctrl-C twice."""
    scene, config, whole = setting
    out = tmp_path / "m.safetensors"
    command, saved = arguments(scene, config, out, "--no-cache"), []
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        running = run_to_the_middle(command, tmp_path)
        running.signal(number)
        (tmp_path / "go").touch()
        code, _, errors = running.end()
        assert code == expected, errors
        assert last_lines(errors) == ["vmloc train: interrupted; go on with --resume"]
        saved.append((state(out)["epoch"], state(out)["step"]))
        command = arguments(scene, config, out, "--no-cache", "--resume")
    assert saved == [(1, 2), (3, 1)]

    running = run_to_the_middle(command, tmp_path)
    running.signal(signal.SIGINT)
    time.sleep(0.3)
    assert running.process.is_alive(), "the first signal waits for the end of the step"
    running.signal(signal.SIGINT)
    code, _, errors = running.end()
    assert code == 130
    assert last_lines(errors) == ["vmloc train: interrupted; go on with --resume"]
    assert state(out)["epoch"] == 4

    assert main(command) == 0
    assert_same_outcome(whole, out)


def test_a_training_interrupted_in_its_last_fold_continues_there(
    setting: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Three steps for the model, one for each fold: by Ctrl-C in the fifth."""
    config = write_config(
        tmp_path / "config.yaml",
        optimizer={"epochs": 1, "batch_size": 8},
        validation={"folds": 2, "block": 12},
    )
    whole, out = tmp_path / "whole" / "m.safetensors", tmp_path / "cut" / "m.safetensors"
    assert main(arguments(setting[0], config, whole, "--no-cache")) == 0
    running = run_to_the_middle(arguments(setting[0], config, out, "--no-cache"), tmp_path)
    running.signal(signal.SIGINT)
    (tmp_path / "go").touch()
    code, _, errors = running.end()
    assert code == 130
    assert last_lines(errors)[-1] == "vmloc train: interrupted; go on with --resume"
    saved = torch.load(out.with_name("m.state.pt"), weights_only=True)
    assert (saved["fold"], len(saved["estimates"]), saved["progress"]["step"]) == (2, 1, 1)
    assert main(arguments(setting[0], config, out, "--no-cache", "--resume")) == 0
    assert_same_outcome(whole, out)
