# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: the covariance is calibrated on estimates of models trained on parts of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import ListSource, yaw_pose
from rooms import CPU, MOUNTS, in_room, room_frame
from training.calibration.held_out import EstimatesBySensors, HeldOutEstimates, join
from training.config import TrainConfig, parse_config
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.splits import Split, ValidationConfig, split_folds
from training.trainer.folds import Folds
from training.trainer.model_training import ModelTraining
from training.trainer.trainer import Trainer
from training_runs import as_earlier_versions_wrote_it
from vmloc_ros.core.checkpoint import load_checkpoint, read_header
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.preprocessing import Preprocessor

BLOCK, BLOCKS, FOLDS = 6, 5, 2
DENSE = {"name": "vmloc_dense", "hidden_dim": 16, "cell_blocks": 1, "frozen": True, "map_voxel_m": 1.0}
VMLOC = {"name": "vmloc", "hidden_dim": 16, "latent_dim": 8}


def config(model: dict[str, Any], **sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "shared_by_systems": True,
        "model": {"backbone": "shufflenet_v2_x0_5", "dropout": 0.2, **model},
        "preprocess": {"modalities": ["image", "depth"], "shortest_side": 48},
        "frozen": {"views": 2, "cells": 20},
        "optimizer": {"epochs": 2, "batch_size": 6, "learning_rate": 3e-3, "ema_decay": 0.5},
        "validation": {"folds": FOLDS, "block": BLOCK},
        "pretrained": False,
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return parse_config(values, None, "test")


def blocks(other: int | None = None, without: str = "") -> PreparedDataset:
    """Blocks of frames, each a recording of its own.

    Args:
        other: block recorded at other places.
        without: sensor that the second half of the frames lacks.
    """
    sources, names = [], ("image", "depth")
    for block in range(BLOCKS):
        samples = []
        for number in range(block * BLOCK, (block + 1) * BLOCK):
            pose = in_room(number + (1000 if block == other else 0))
            here = [name for name in names if name != without or number < BLOCK * BLOCKS // 2]
            samples.append(Sample(room_frame(pose, here, number), pose))
        sources.append(ListSource(samples, mounts=MOUNTS))
    return prepare_dataset(sources, Preprocessor(config(DENSE).preprocess), progress=False)


def make_trainer(configuration: TrainConfig, data: PreparedDataset, out: Path, **options: Any) -> Trainer:
    return Trainer(configuration, data, out, map_frame="map", body_frame="base_link", device=CPU, **options)


Seen = list[tuple[dict[str, torch.Tensor], EstimatesBySensors]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Weights and held-out estimates of each finished fold."""
    seen: Seen = []
    end = Folds.end

    def watch(self: Folds, training: ModelTraining, *arguments: Any) -> None:
        end(self, training, *arguments)
        seen.append(({name: x.clone() for name, x in training.model.state_dict().items()}, self.estimates[-1]))

    monkeypatch.setattr(Folds, "end", watch)
    return seen


def test_each_frame_is_held_out_once_with_its_block() -> None:
    folds = split_folds(32, 5, 3)
    assert sorted(torch.cat([held_out for _, held_out in folds]).tolist()) == list(range(32))
    for number, (train, held_out) in enumerate(folds):
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(32))
        assert {row // 5 % 3 for row in held_out.tolist()} == {number}
    with pytest.raises(DataError, match=r"10 frames are only 2 blocks of 5, too few for 3 folds; reduce validation"):
        split_folds(10, 5, 3)


def test_only_views_that_the_other_blocks_show_are_held_out(caplog: pytest.LogCaptureFixture) -> None:
    """A line driven twice, then a second one driven once, then the first one looking sideways."""
    twice = [yaw_pose(0.1 * i) for i in range(30)] * 2
    once, sideways = [yaw_pose(0.1 * i, 5.0) for i in range(30)], [yaw_pose(0.1 * i, 0.0, 90.0) for i in range(30)]
    caplog.set_level("INFO")
    split = Split.of(ValidationConfig(folds=4, block=30), [*twice, *once, *sideways], None)
    assert [held_out.tolist() for _, held_out in split.folds] == [[*range(30)], [*range(30, 60)]]
    assert [len(train) for train, _ in split.folds] == [90, 90]
    assert split.train.tolist() == list(range(120))
    assert "60 of 120 frames show views that other blocks also show; only these are predicted" in caplog.text


def test_where_every_place_was_seen_once_all_frames_are_held_out(caplog: pytest.LogCaptureFixture) -> None:
    split = Split.of(ValidationConfig(folds=2, block=30), [yaw_pose(0.1 * i) for i in range(120)], None)
    assert sum(len(held_out) for _, held_out in split.folds) == 120
    assert "only 12 of 120 frames" in caplog.text  # two on either side of each border
    assert "reduce validation.block" in caplog.text


@pytest.mark.parametrize("model", [DENSE, VMLOC], ids=lambda model: model["name"])
def test_a_fold_does_not_depend_on_its_held_out_frames(model: dict[str, Any], watched: Seen, tmp_path: Path) -> None:
    """Blocks 0, 2 and 4 are held out of the first fold: another block 2 changes the second alone."""
    for name, other in (("a", None), ("b", 2)):
        make_trainer(config(model), blocks(other), tmp_path / f"{name}.safetensors").run(progress=False)
    first, second, first_again, second_again = (weights for weights, _ in watched)
    assert [name for name, x in first.items() if not torch.equal(x, first_again[name])] == []
    changed = {name for name, x in second.items() if not torch.equal(x, second_again[name])}
    assert changed >= ({"centre_m", "extent_m", "map.points_m"} if model is DENSE else set())
    assert len(changed) > 10


@pytest.mark.parametrize("model", [DENSE, VMLOC], ids=lambda model: model["name"])
def test_the_model_is_trained_on_all_frames_and_its_metrics_are_those_of_the_folds(
    model: dict[str, Any], watched: Seen, tmp_path: Path
) -> None:
    data, out, plain = blocks(without="depth"), tmp_path / "m.safetensors", tmp_path / "plain.safetensors"
    metrics = make_trainer(config(model), data, out).run(progress=False)
    make_trainer(config(model, validation={"folds": 0, "every": 0}), data, plain).run(progress=False)
    weights, expected = (load_checkpoint(path)[1].state_dict() for path in (out, plain))
    assert all(torch.equal(x, weights[name]) for name, x in expected.items())
    assert {path.suffix for path in tmp_path.glob("m.*")} == {".safetensors", ".pt", ".csv", ".yaml"}

    errors = []
    for _, estimates in watched:
        whole = estimates["image", "depth"]
        errors += [
            float(np.linalg.norm(data.poses[row].position_m - position))
            for row, position in zip(whole.rows.tolist(), whole.positions_m.numpy(), strict=True)
        ]
    assert len(errors) == len(data)
    assert metrics["median_position_m"] == pytest.approx(np.median(errors))
    assert metrics["held_out"] == 1.0
    header = read_header(out)
    assert header.metrics == metrics
    assert {fitted.modalities for fitted in header.uncertainty.missing} == {("image",), ("depth",)}
    held_out = [torch.cat([estimates[(name,)].rows for _, estimates in watched]) for name in ("image", "depth")]
    assert [len(rows) for rows in held_out] == [BLOCK * BLOCKS, BLOCK * BLOCKS // 2]


def test_estimates_of_folds_are_joined_if_one_has_no_outlier_scores() -> None:
    def estimates(count: int, scores: int) -> EstimatesBySensors:
        poses = torch.zeros(count, 3), torch.zeros(count, 4)
        rest = torch.zeros(count, 6, 6), torch.zeros(count, dtype=torch.bool), torch.ones(count, scores)
        return {("image",): HeldOutEstimates(torch.arange(count), *poses, *rest, True)}

    assert join([estimates(3, 4), estimates(2, 4)])["image",].outlier_scores.shape == (5, 4)
    assert join([estimates(3, 4), estimates(2, 0)])["image",].outlier_scores.shape == (5, 0)


class Cut(Exception):  # noqa: N818 (simulates a power cut)
    pass


def run_until_cut(
    configuration: TrainConfig, data: PreparedDataset, out: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, saving the state after each step, and break off before step number ``steps``."""
    monkeypatch.setattr("training.trainer.trainer._SAVE_EVERY_S", 0.0)
    step, done = ModelTraining.step, []

    def count(self: ModelTraining, *arguments: Any) -> Any:
        if len(done) == steps:
            raise Cut
        done.append(None)
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ModelTraining, "step", count)
        with pytest.raises(Cut):
            make_trainer(configuration, data, out).run(progress=False)


@pytest.mark.parametrize(("model", "steps"), [(DENSE, 25), (DENSE, 35), (VMLOC, 13), (VMLOC, 18)])
def test_a_training_cut_within_its_folds_ends_as_an_uninterrupted_one(
    model: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the second epoch of the first fold, or of the second one.

    The model itself takes 10 steps, the folds 4 and 6; all twice as many where each frame has two views.
    """
    data, whole, out = blocks(), tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    configuration = config(model)
    make_trainer(configuration, data, whole).run(progress=False)
    run_until_cut(configuration, data, out, steps, monkeypatch)
    resumed = make_trainer(configuration, data, out)
    resumed.resume()
    resumed.run(progress=False)
    assert read_header(out) == read_header(whole)
    weights, expected = (load_checkpoint(path)[1].state_dict() for path in (out, whole))
    assert all(torch.equal(x, weights[name]) for name, x in expected.items())


def test_a_state_file_with_the_keys_of_earlier_versions_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, file = blocks(), tmp_path / "m.state.pt"
    run_until_cut(config(VMLOC), data, tmp_path / "m.safetensors", 18, monkeypatch)
    state = torch.load(file, weights_only=True)
    state["answers"], state["descent"] = state.pop("estimates"), state.pop("optimizer")
    for part in state["answers"]:
        for of_set in part:
            of_set["cues"] = of_set.pop("outlier_scores")
    state["identity"]["config"] = as_earlier_versions_wrote_it(config(VMLOC))
    torch.save(state, file)
    resumed = make_trainer(config(VMLOC), data, tmp_path / "m.safetensors")
    resumed.resume()
    assert [sorted(part) for part in resumed._folds.estimates] == [[("depth",), ("image",), ("image", "depth")]]
    assert resumed._training.steps == 4
    assert resumed.run(progress=False)["held_out"] == 1.0


def test_folds_may_have_fewer_epochs_than_the_models_own_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lengths = []
    run = Trainer._train_model

    def watch(self: Trainer, name: str, *arguments: Any) -> None:
        run(self, name, *arguments)
        lengths.append((name, self._training.progress.epoch))

    monkeypatch.setattr(Trainer, "_train_model", watch)
    values = config(VMLOC, validation={"fold_epochs": 1})
    make_trainer(values, blocks(), tmp_path / "m.safetensors").run(progress=False)
    assert lengths == [("training", 2), ("fold 1 of 2", 1), ("fold 2 of 2", 1)]


def test_folds_with_validation_data_or_too_few_frames_are_errors_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    data = blocks()
    with pytest.raises(ConfigError, match=r"validation\.folds is 2, and validation data are given: .*folds=0 or give"):
        make_trainer(config(VMLOC), data, tmp_path / "m.safetensors", validation=data)
    with pytest.raises(DataError, match="12 training frames are fewer than a batch of 20"):
        make_trainer(config(VMLOC, optimizer={"batch_size": 20}), data, tmp_path / "m.safetensors")
    nearest = config({"name": "nearest"}, preprocess={"modalities": ["image"]})
    with pytest.raises(ConfigError, match=r"nearest is not trained by gradients: set validation\.folds=0"):
        make_trainer(nearest, data, tmp_path / "m.safetensors")
