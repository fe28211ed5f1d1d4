# SPDX-License-Identifier: Apache-2.0
"""Training of the dense systems: checkpoints, resuming, precision, twists."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rooms import CPU, MOUNTS, ORIGIN_M, PREPROCESS, in_room, prepared, room_data, room_frame
from training.config import TrainConfig, parse_config
from training.data.dataset import PreparedDataset, body_twists
from training.prediction import predict
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import DenseModel, PoseModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

RGBD = replace(PREPROCESS, modalities=("image", "depth"))


# --- training ---------------------------------------------------------------------------------------------------------


def config(**sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "shared_by_systems": True,
        "model": {
            "name": "vmloc_dense",
            "backbone": "shufflenet_v2_x0_5",
            "hidden_dim": 16,
            "dropout": 0.2,
            "cell_blocks": 1,
            "cell_stride": 8,
            "frozen": True,
        },
        "preprocess": {"modalities": ["image", "depth"], "shortest_side": 48},
        "augment": {"rotation_deg": 15.0, "zoom": 1.2, "modality_dropout": 0.3},
        "frozen": {"views": 2, "cells": 20},
        "objective": {"cells": 15},
        "optimizer": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3},
        "validation": {"every": 3, "block": 4, "interval": 3},
        "pretrained": False,
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return parse_config(values, None, "test")


@pytest.fixture(scope="module")
def data() -> PreparedDataset:
    return room_data([("image", "depth")] * 24, RGBD)


def make_trainer(configuration: TrainConfig, data: PreparedDataset, out: Path) -> Trainer:
    return Trainer(configuration, data, out, map_frame="map", body_frame="base_link", device=CPU)


def copied(model: PoseModel) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.fixture(scope="module")
def trained(data: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A whole training, and the weights before it."""
    out = tmp_path_factory.mktemp("trained") / "m.safetensors"
    trainer = make_trainer(config(), data, out)
    before = copied(trainer.model)
    trainer.run(progress=False)
    return out, before


def test_training_changes_everything_but_frozen_trunks(
    trained: tuple[Path, dict[str, Tensor]],
) -> None:
    out, before = trained
    after = load_checkpoint(out.with_name("m.last.safetensors"))[1].state_dict()
    same = {name for name, x in before.items() if torch.equal(x, after[name])}
    trunk = {name for name in before if ".pyramid." in name}
    assert trunk
    assert trunk <= same
    learnt = {name for name in before if name.startswith("predictors.") and name not in trunk}
    assert not learnt & same


def test_the_checkpoint_has_mounts_twist_and_extent_and_the_localizer_reproduces_the_estimates(
    trained: tuple[Path, dict[str, Tensor]], data: PreparedDataset
) -> None:
    header, model = load_checkpoint(trained[0])
    assert isinstance(model, DenseModel)
    for name, mount in zip(model.modalities, model.mounts.numpy(), strict=True):
        np.testing.assert_array_equal(mount, MOUNTS[name].matrix)
    twists = data.twists[torch.tensor([i for i in range(24) if (i // 4) % 3 != 1])]
    torch.testing.assert_close(model.usual_twist, twists.nanmean(dim=0), rtol=1e-4, atol=1e-4)
    assert float(model.extent_m) >= header.pose_codec.scale_m
    again = Localizer.load(trained[0], "cpu")
    batch = predict(model, data, torch.arange(3), Preprocessor(header.preprocess), header.pose_codec, CPU)
    for number in range(3):
        frame = room_frame(in_room(number), ("image", "depth"), number)
        estimate = again.localize(frame)
        # The solver amplifies rounding errors of 1e-6 m to up to 1e-3 m with the cells of a hardly trained network.
        np.testing.assert_allclose(estimate.map_from_body.position_m, batch.positions_m[number], rtol=0, atol=0.01)
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0
        assert batch.lost is not None
        assert estimate.confidence == (0.0 if batch.lost[number] else None)


class Cut(Exception):  # noqa: N818 (simulates a power cut)
    pass


@pytest.mark.parametrize("frozen", [True, False])
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    frozen: bool, data: PreparedDataset, trained: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    configuration = config() if frozen else config(model={"frozen": False}, optimizer={"epochs": 2})
    whole = trained[0] if frozen else tmp_path / "whole.safetensors"
    if not frozen:
        make_trainer(configuration, data, whole).run(progress=False)
    cut = make_trainer(configuration, data, tmp_path / "cut.safetensors")
    step, steps = cut._training.step, []

    def count(*arguments: Any) -> Any:
        if len(steps) == cut._training.sampler.steps + 1:
            raise Cut
        steps.append(None)
        return step(*arguments)

    cut._training.step = count  # type: ignore[method-assign]
    with pytest.raises(Cut):
        cut.run(progress=False)
    resumed = make_trainer(configuration, data, tmp_path / "cut.safetensors")
    resumed.resume()
    resumed.run(progress=False)
    weights, expected = (load_checkpoint(path)[1].state_dict() for path in (tmp_path / "cut.safetensors", whole))
    assert all(torch.equal(x, weights[name]) for name, x in expected.items())


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", True), ("bf16", False), ("fp32", False)])
def test_it_trains_in_either_precision_with_frozen_and_trained_trunks(
    precision: str, frozen: bool, data: PreparedDataset, tmp_path: Path
) -> None:
    values = config(model={"frozen": frozen}, optimizer={"precision": precision, "epochs": 1, "ema_decay": 0.9})
    trainer = make_trainer(values, data, tmp_path / "m.safetensors")
    before = copied(trainer.model)
    assert math.isfinite(trainer.run(progress=False)["median_position_m"])
    after = trainer.model.state_dict()
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert any(".pyramid." in name for name in changed) != frozen


def test_a_lidar_alone_is_trained_with_a_point_map_that_the_checkpoint_stores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = room_data([("lidar",)] * 16, replace(PREPROCESS, modalities=("lidar",)))
    values = config(
        model={"name": "dense_lidar", "lidar_stride": 4, "map_voxel_m": 0.5, "frozen": False},
        preprocess={"modalities": ["lidar"]},
        augment={"rotation_deg": 0.0, "zoom": 1.0, "measurement_noise_m": 0.02},
        optimizer={"epochs": 1},
    )
    trainer = make_trainer(values, data, tmp_path / "m.safetensors")
    assert math.isfinite(trainer.run(progress=False)["median_position_m"])
    again = make_trainer(values, data, tmp_path / "m.safetensors")
    again.resume()
    monkeypatch.setattr("training.trainer.lifecycle.build_point_map", None)  # the saved state has the map
    again.run(progress=False)
    points = [
        model.map.points_m for model in (trainer.model, again.model, load_checkpoint(tmp_path / "m.safetensors")[1])
    ]
    assert len(points[0]) > 100
    assert torch.equal(points[0], points[1])
    assert torch.equal(points[0], points[2])
    origin_m = PoseCodec.fit([data.poses[i] for i in range(16) if (i // 4) % 3 != 1]).origin_m
    in_room_m = points[0] + torch.from_numpy(np.asarray(origin_m) - ORIGIN_M).float()
    on_wall = (in_room_m.abs() / torch.tensor([12.0, 8.0, 3.0]) - 1).abs().min(dim=1).values
    assert float(on_wall.median()) < 0.05


@pytest.mark.parametrize("changes", [{"rotation_deg": 5.0}, {"zoom": 1.1}])
def test_only_dense_systems_can_be_trained_with_rotated_or_zoomed_images(
    changes: dict[str, float], data: PreparedDataset, tmp_path: Path
) -> None:
    plain = {"rotation_deg": 0.0, "zoom": 1.0}
    values = config(model={"name": "vmloc", "latent_dim": 8, "frozen": False}, augment={**plain, **changes})
    with pytest.raises(ConfigError, match=r"augment\.zoom change .* not the pose that vmloc regresses: set 0 and 1"):
        make_trainer(values, data, tmp_path / "m.safetensors")


def test_only_dense_systems_can_be_frozen() -> None:
    with pytest.raises(ConfigError, match=r"test\.model: vmloc has no setting frozen"):
        parse_config({"model": {"name": "vmloc", "frozen": True}}, None, "test")


def test_frames_without_a_known_camera_cannot_be_trained_on(tmp_path: Path) -> None:
    poses = [in_room(number) for number in range(12)]
    frames = [replace(room_frame(pose, ("image", "depth"), i), camera=None) for i, pose in enumerate(poses)]
    unknown = prepared([Sample(frame, pose) for frame, pose in zip(frames, poses, strict=True)], RGBD)
    with pytest.raises(DataError, match="vmloc_dense needs the camera matrix of image and depth, but no frame has one"):
        make_trainer(config(), unknown, tmp_path / "m.safetensors")


# --- twists -----------------------------------------------------------------------------------------------------------


def test_twists_are_body_velocities_from_neighbouring_frames() -> None:
    """A banked circle of radius 5 m at 2 m/s and 10 Hz; then a standstill; then a single frame."""
    rate, radius = 0.4, 5.0
    angles = rate * np.arange(6) * 0.1
    heading = [Pose.from_xyz_rpy([0, 0, 0], [0.0, 0.0, a + math.pi / 2]) for a in angles]
    banked = Pose.from_xyz_rpy([0, 0, 0], [0.2, 0.0, 0.0])
    circle = [
        Pose(np.array([radius * math.cos(a) + 4e5, radius * math.sin(a) + 5e6, 0.0]), (turn @ banked).quaternion_wxyz)
        for a, turn in zip(angles, heading, strict=True)
    ]
    stamps = [1_700_000_000_000_000_000 + 100_000_000 * i for i in range(6)]
    sequences = torch.tensor([0] * 6 + [1, 1, 2])
    twists = body_twists([*circle, *[circle[0]] * 3], [*stamps, 0, 10**8, 0], sequences)
    assert twists.dtype == torch.float32
    turn = rate * np.array([0.0, math.sin(0.2), math.cos(0.2)])
    expected = np.concatenate([[2.0, 0.0, 0.0], turn])
    np.testing.assert_allclose(twists[1:5].numpy(), np.tile(expected, (4, 1)), atol=2e-3)
    np.testing.assert_allclose(twists[[0, 5], 3:].numpy(), np.tile(turn, (2, 1)), atol=1e-3)  # one neighbour each
    np.testing.assert_allclose(np.linalg.norm(twists[[0, 5], :3].numpy(), axis=1), 2.0, atol=1e-2)
    np.testing.assert_array_equal(twists[6:8].numpy(), 0.0)
    assert bool(torch.isnan(twists[8]).all())
