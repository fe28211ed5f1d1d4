# SPDX-License-Identifier: Apache-2.0
"""Training in two processes on gloo, compared with one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import ListSource, float32_tolerance, random_frame, yaw_pose
from training.config import TrainConfig, parse_config
from training.data.dataset import PreparedDataset, prepare_dataset
from training.evaluation.metrics import pose_errors
from training.prediction import poses, predict
from training.trainer.distributed import Processes, join_processes
from training.trainer.trainer import Trainer
from training_runs import (
    SERVER,
    TIMEOUT_S,
    Running,
    arguments,
    assert_same_outcome,
    save_after_every_step,
    torchrun_environments,
    wait_in_the_fifth_step,
    write_config,
    write_scene,
)
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.models.fusion import Gaussian
from vmloc_ros.core.preprocessing import Preprocessor

CPU = torch.device("cpu")
EPOCHS = 2
BATCH = 4
FRAMES = 20  # of which 14 train: three batches of four, two are dropped
LONGEST_SUM = 3 * 4 * 19 * 23  # terms of a gradient: four frames, the pixels of the first convolution's map, three sets


def config(system: str, **sections: dict[str, Any]) -> TrainConfig:
    """Nothing is random but the order of the frames: modality dropout is taken in expectation.

    No batch norm: each process would normalise by its own part.
    """
    values: dict[str, Any] = {
        "shared_by_systems": True,
        "model": {"name": system, "backbone": "squeezenet1_1", "latent_dim": 16, "hidden_dim": 16, "dropout": 0.0},
        "preprocess": {"modalities": ["image", "lidar"], "shortest_side": 40, "cylinder": {"rows": 32, "columns": 32}},
        "augment": {"colour_jitter": 0.0, "measurement_dropout": 0.0, "modality_dropout": 0.5},
        "optimizer": {"epochs": EPOCHS, "batch_size": BATCH, "gradient_norm": 1e9, "learning_rate": 1e-4},
        "objective": {"samples": 3},
        "validation": {"every": 3, "block": 3},
        "pretrained": False,
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return parse_config(values, None, "test")


def prepared(configuration: TrainConfig) -> PreparedDataset:
    samples = [Sample(random_frame(i, (40, 48)), yaw_pose(0.3 * i, yaw_deg=2.0 * i)) for i in range(FRAMES)]
    return prepare_dataset([ListSource(samples)], Preprocessor(configuration.preprocess), progress=False)


class Noise:
    """Posterior samples that do not depend on which process has a row of the batch."""

    def __init__(self, processes: Processes) -> None:
        self.processes, self.calls = processes, 0

    def __call__(self, gaussian: Gaussian, count: int, generator: object = None) -> Tensor:
        self.calls += 1
        rows, width = gaussian.mean.shape
        sets = rows * self.processes.count // BATCH  # the batch's rows repeat, once for each set of sensors
        generator = torch.Generator().manual_seed(self.calls)
        everyones = torch.randn(count, sets, BATCH, width, generator=generator)
        mine = everyones.tensor_split(self.processes.count, dim=2)[self.processes.rank].flatten(1, 2)
        return gaussian.mean + torch.exp(0.5 * gaussian.log_variance) * mine


def watched_training(configuration: TrainConfig, out: Path, processes: Processes) -> dict[str, Any]:
    """Gradients and rows of every step of a training, its losses, and the metrics of every validation."""
    trainer = Trainer(
        configuration, prepared(configuration), out, map_frame="m", body_frame="b", device=CPU, processes=processes
    )
    seen: dict[str, Any] = {"gradients": [], "rows": [], "terms": [], "validations": []}
    step, validate, sample = trainer._training.step, trainer._validate, Gaussian.sample
    parameters = dict(trainer._training.training_step.named_parameters())

    def watch_step(rows: Tensor, *rest: Any) -> Any:
        terms = step(rows, *rest)
        gradients = {name.removeprefix("module."): x.grad for name, x in parameters.items()}
        seen["gradients"].append({name: x.clone() for name, x in gradients.items() if x is not None})
        seen["rows"].append(rows)
        seen["terms"].append({name: float(x) for name, x in terms.items()})
        return terms

    def watch_validation() -> Any:
        seen["validations"].append(validate())
        return seen["validations"][-1]

    trainer._training.step, trainer._validate = watch_step, watch_validation  # type: ignore[method-assign]
    noise = Noise(processes)
    Gaussian.sample = lambda *arguments: noise(*arguments)  # type: ignore[method-assign]
    try:
        seen["metrics"] = trainer.run(progress=False)
    finally:
        Gaussian.sample = sample  # type: ignore[method-assign]
    return seen


def train_together(environment: dict[str, str], configuration: TrainConfig, folder: Path) -> None:
    """One process of a training: write its record to ``seen_RANK.pt``, and the run into a folder named by its rank."""
    os.environ.update(environment)
    with join_processes(CPU) as (processes, device):
        assert device == CPU
        rank = processes.rank
        (folder / str(rank)).mkdir()
        seen = watched_training(configuration, folder / str(rank) / "m.safetensors", processes)
        torch.save(seen, folder / f"seen_{rank}.pt")


def by_two(configuration: TrainConfig, folder: Path) -> list[dict[str, Any]]:
    """Records of a training in two processes."""
    together = [
        SERVER.Process(target=train_together, args=(environment, configuration, folder), daemon=True)
        for environment in torchrun_environments(2)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in together] == [0, 0]
    return [torch.load(folder / f"seen_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module", params=["attention_vmloc", "vmloc"])
def trainings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """A system trained by one process and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    alone = watched_training(config(request.param), folder / "alone" / "m.safetensors", Processes())
    return folder, alone, by_two(config(request.param), folder)


# --- two processes against one -----------------------------------------------------------------------------------


@pytest.mark.numeric
def test_two_processes_have_the_gradients_and_terms_of_one_with_the_joint_batch(
    trainings: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    _, alone, together = trainings
    assert len(alone["gradients"]) == 3 * EPOCHS
    for seen in together:
        first, expected = seen["gradients"][0], alone["gradients"][0]
        assert first.keys() == expected.keys()
        for name, x in expected.items():
            # Each of two processes adds its half of the terms by itself. A sum in place of their mean would be twice x.
            atol = float32_tolerance(LONGEST_SUM) * float(x.abs().max())
            torch.testing.assert_close(first[name], x, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        for terms, others in zip(seen["terms"], alone["terms"], strict=True):
            assert terms == pytest.approx(others, rel=1e-4)
    for first, second in zip(together[0]["gradients"], together[1]["gradients"], strict=True):
        assert all(torch.equal(first[name], x) for name, x in second.items())


def test_each_frame_is_used_as_often_as_by_one_process_and_by_one_of_the_two_only(
    trainings: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    _, alone, together = trainings
    for whole, first, second in zip(alone["rows"], together[0]["rows"], together[1]["rows"], strict=True):
        assert len(first) == len(second)
        assert torch.equal(torch.cat([first, second]), whole)
        assert len(whole.unique()) == len(whole) == 4
    assert not torch.equal(torch.stack(alone["rows"][:3]), torch.stack(alone["rows"][3:]))  # another order


@pytest.mark.numeric
def test_metrics_are_of_all_validation_frames_in_both_processes(
    trainings: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    _, alone, together = trainings
    for seen in together:
        assert seen["metrics"]["frames"] == alone["metrics"]["frames"] == 6
        assert seen["metrics"] == pytest.approx(alone["metrics"], rel=1e-2, abs=1e-3)
    assert together[0]["metrics"] == together[1]["metrics"]
    assert together[0]["validations"] == together[1]["validations"]


def test_only_the_first_process_writes(trainings: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    folder, _, _ = trainings
    written = {path.name for path in (folder / "alone").iterdir()}
    assert {path.name for path in (folder / "0").iterdir()} == written
    assert list((folder / "1").iterdir()) == []


# --- special cases of two processes --------------------------------------------------------------------


def test_a_process_without_any_frame_of_a_modality_does_not_hang_and_all_validate_the_same_weights(
    tmp_path: Path,
) -> None:
    """One frame each, so that encoders are often unused; and batch norm, whose statistics differ by process."""
    configuration = config(
        "vmloc",
        model={"backbone": "shufflenet_v2_x0_5"},
        preprocess={"shortest_side": 48, "cylinder": {"rows": 48, "columns": 48}},
        augment={"modality_dropout": 0.9},
        objective={"modality_dropout": "drawn"},
        optimizer={"batch_size": 2, "learning_rate": 1e-3},
    )
    by_two(configuration, tmp_path)
    header, model = load_checkpoint(tmp_path / "0" / "m.last.safetensors")
    data = prepared(configuration)
    rows = torch.tensor([i for i in range(FRAMES) if (i // 3) % 3 == 1])
    estimates = predict(model, data, rows, Preprocessor(header.preprocess), header.pose_codec, CPU)
    truth = [data.poses[i] for i in rows.tolist()]
    metrics = pose_errors(truth, poses(estimates)).summary()
    assert header.metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(tmp_path: Path) -> None:
    configuration = config("vmloc", optimizer={"batch_size": 5})
    with pytest.raises(ConfigError, match=r"a batch of 5 .* cannot be shared evenly by 2 processes; .*batch_size"):
        watched_training(configuration, tmp_path / "m.safetensors", Processes(0, 2))


def test_a_system_without_gradient_training_needs_one_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nearest is not trained by gradients; run it in one process"):
        watched_training(config("nearest", preprocess={"modalities": ["image"]}), tmp_path / "m", Processes(0, 2))


def test_a_single_process_shares_nothing() -> None:
    alone, values, module = Processes(), torch.arange(3.0), torch.nn.Linear(1, 1)
    assert alone.first
    assert torch.equal(alone.share(values), values)
    assert torch.equal(alone.mean(values), values)
    assert alone.gather("x") == ["x"]
    assert alone.wrap(module, CPU) is module
    with join_processes(CPU) as (processes, device):
        assert (processes, device) == (alone, CPU)


# --- torchrun ----------------------------------------------------------------------------------------------------


def test_torchrun_trains_and_a_run_killed_within_an_epoch_is_resumed_to_the_same_result(
    tmp_path: Path,
) -> None:
    scene, settings = write_scene(tmp_path / "scene"), write_config(tmp_path / "c.yaml", optimizer={"epochs": 3})
    whole, cut = tmp_path / "whole" / "m.safetensors", tmp_path / "cut" / "m.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "training.cli", *arguments(scene, settings, whole)]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"wrote {whole}") == 1
    assert load_checkpoint(whole)[0].metrics["frames"] == 12

    # The same by hand; the second process waits for the first, which is held in its fifth step of three to an epoch.
    more: tuple[str, ...] = ()
    prepare: Any = partial(saved_and_held, tmp_path)
    for attempt in range(2):
        both = [
            Running(arguments(scene, settings, cut, *more), tmp_path / f"{attempt}_{rank}", prepare, environment)
            for rank, environment in enumerate(torchrun_environments(2))
        ]
        if attempt == 0:
            both[0].wait_for((tmp_path / "reached").exists)
            for process in both:
                process.signal(signal.SIGKILL)
            assert [process.end()[0] for process in both] == [-signal.SIGKILL] * 2
            state = torch.load(cut.with_name("m.state.pt"), weights_only=True)["progress"]
            assert (state["epoch"], state["step"]) == (1, 1)
        more, prepare = ("--resume",), None
    for process in both:
        code, _, errors = process.end()
        assert code == 0, errors
    _, printed, errors = both[1].end()
    assert printed == ""
    assert "training" not in errors, "the second process shows no bar"
    assert_same_outcome(whole, cut)


def saved_and_held(folder: Path) -> None:
    """Preparation: save after every step, and hold the first process in the fifth step."""
    save_after_every_step()
    if os.environ["RANK"] == "0":
        wait_in_the_fifth_step(folder)
