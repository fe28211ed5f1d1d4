# SPDX-License-Identifier: Apache-2.0
"""Trainings in processes of their own, which tests interrupt, kill and compare."""

from __future__ import annotations

import csv
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from helpers import yaw_pose
from training.cli import main
from training.config import TrainConfig
from training.objectives.registry import objective_config_type
from training.trainer import trainer
from training.trainer.model_training import ModelTraining
from vmloc_ros.core.checkpoint import load_checkpoint, read_header
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.models import REGISTRY

# Batch norm, dropout, posterior samples, every augmentation and averaged weights: all that could differ after resuming.
EVERYTHING = {
    "model": {"backbone": "shufflenet_v2_x0_5", "latent_dim": 16, "hidden_dim": 16, "dropout": 0.5},
    "preprocess": {"modalities": ["image", "depth"], "shortest_side": 42, "crop": [40, 40]},
    "augment": {"colour_jitter": 0.4, "measurement_dropout": 0.2, "modality_dropout": 0.4},
    "optimizer": {"epochs": 5, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9, "schedule": "cosine"},
    "validation": {"every": 2, "block": 12},
    "pretrained": False,
    "deterministic": True,
}
TIMEOUT_S = 300.0
TIMINGS = ("images_per_s", "seconds")

# Each process starts as a copy of one that has imported everything: that takes longer than a small training.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["training_runs", "training.trainer.train", "training.data.cache"])


def write_scene(root: Path, frames: int = 24) -> Path:
    """A 7-Scenes folder with one sequence of noise."""
    folder = root / "seq-01"
    folder.mkdir(parents=True)
    for number in range(frames):
        rng = np.random.default_rng(number)
        stem = f"frame-{number:06d}"
        cv2.imwrite(str(folder / f"{stem}.color.png"), rng.integers(0, 256, (36, 48, 3), np.uint8))
        cv2.imwrite(str(folder / f"{stem}.depth.png"), rng.integers(500, 3000, (36, 48)).astype(np.uint16))
        np.savetxt(folder / f"{stem}.pose.txt", yaw_pose(0.1 * number, 0.0, number).matrix)
    for split in ("TrainSplit.txt", "TestSplit.txt"):
        (root / split).write_text("sequence1\n")
    return root


def write_config(path: Path, **sections: object) -> Path:
    """Write :data:`EVERYTHING` with changes to its sections."""
    values = dict(EVERYTHING)
    for name, changes in sections.items():
        values[name] = {**values[name], **changes} if isinstance(changes, dict) else changes
    path.write_text(yaml.safe_dump(values))
    return path


def as_earlier_versions_wrote_it(config: TrainConfig) -> dict[str, Any]:
    """The mapping of a configuration with the settings of all systems, those that this one lacks at their defaults."""
    values = to_mapping(config)
    for system, entry in REGISTRY.items():
        settings = {"model": to_mapping(entry.config()), "objective": to_mapping(objective_config_type(system)())}
        for section, own in settings.items():
            values[section] = {**own, **values[section]}
    return values


def arguments(scene: Path, config: Path, out: Path, *more: str) -> list[str]:
    """Command line arguments of ``vmloc`` for a training."""
    return ["train", "--config", str(config), "--data", str(scene), "--out", str(out), "--device", "cpu", *more]


class Running:
    """A ``vmloc`` command in a process of its own.

    Args:
        command: command line arguments.
        log: its output and errors are written to this path with the suffixes ``.out`` and ``.err``.
        prepare: called in the process before the command.
        environment: environment variables to set.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        prepare: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._out, self._errors = log.with_suffix(".out"), log.with_suffix(".err")
        outputs = (str(self._out), str(self._errors))
        self.process = SERVER.Process(target=_run, args=(list(command), outputs, prepare, dict(environment or {})))
        self.process.daemon = True  # ends with the tests, however they end
        self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; fail if the process ends before."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.is_alive(), self._errors.read_text()
            assert time.monotonic() < end
            time.sleep(0.002)

    def end(self) -> tuple[int | None, str, str]:
        """Wait for the end; returns exit code, standard output and standard error."""
        self.process.join(TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode, self._out.read_text(), self._errors.read_text()


def _run(
    command: list[str],
    outputs: tuple[str, str],
    prepare: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    if prepare is not None:
        prepare()
    sys.exit(main(command))


def wait_in_the_fifth_step(gate: Path) -> None:
    """Preparation: in the fifth step, create the file ``reached`` in the folder and wait for a file ``go``."""
    step, done = ModelTraining.step, []

    def wait(*arguments: Any) -> Any:
        done.append(None)
        if len(done) == 5:
            (gate / "reached").touch()
            while not (gate / "go").exists():
                time.sleep(0.01)
        return step(*arguments)

    ModelTraining.step = wait  # type: ignore[method-assign]


def save_after_every_step() -> None:
    """Preparation: save the state after every step."""
    trainer._SAVE_EVERY_S = 0.0


def torchrun_environments(count: int) -> list[dict[str, str]]:
    """Environment variables that ``torchrun`` sets in each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def last_lines(errors: str) -> list[str]:
    """Lines of standard error without progress bars and INFO messages."""
    lines = [line.strip() for line in errors.replace("\r", "\n").splitlines()]
    return [line for line in lines if line and "%|" not in line and "/s]" not in line and not line.startswith("INFO")]


def log(out: Path, without: Sequence[str] = TIMINGS) -> list[dict[str, str]]:
    """Rows of a run's CSV file."""
    with out.with_suffix(".csv").open(newline="") as stream:
        return [{name: x for name, x in row.items() if name not in without} for row in csv.DictReader(stream)]


def assert_same_outcome(one: Path, other: Path) -> None:
    """Compare headers and weights of both checkpoints, log and configuration, bit by bit."""
    for suffix in (".safetensors", ".last.safetensors"):
        a, b = one.with_name(one.stem + suffix), other.with_name(other.stem + suffix)
        assert read_header(a) == read_header(b)
        weights, others = load_checkpoint(a)[1].state_dict(), load_checkpoint(b)[1].state_dict()
        assert [name for name, x in weights.items() if not torch.equal(x, others[name])] == []
    assert log(one) == log(other)
    assert one.with_suffix(".yaml").read_text() == other.with_suffix(".yaml").read_text()
