# SPDX-License-Identifier: Apache-2.0
"""What systems that solve for their pose get in training: the same as on the robot, and mounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import ListSource, random_frame, yaw_pose
from training.config import TrainConfig, parse_config
from training.data.augment import AugmentConfig
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.model_input import batches, training_input
from training.objectives.registry import OBJECTIVES
from training.objectives.regression import PoseObjective
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import MODALITIES, Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import REGISTRY, ModelConfig, ModelInput, RegressionModel, System, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import VALIDITY, cylindrical_points

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
WHOLE = PreprocessConfig(MODALITIES, shortest_side=32)
CROPPED = replace(WHOLE, crop=(32, 36))
NO_AUGMENTATION = AugmentConfig(0.0, 0.0, 0.0)
CAMERA, LIDAR = yaw_pose(0.3, yaw_deg=5.0, z_m=1.2), yaw_pose(0.0, z_m=1.9)
MOUNTS = {"image": CAMERA, "depth": CAMERA, "lidar": LIDAR}


class Measuring(RegressionModel):
    """Learns from the mean of what was measured; keeps what it was given."""

    needs_geometry = True

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.head = nn.Linear(len(channels), 6)
        self.mounts: Mapping[str, Pose] = {}
        self.seen: list[ModelInput] = []

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        self.mounts = mounts

    def forward(self, batch: ModelInput) -> Tensor:
        self.seen.append(batch)
        assert batch.measured is not None
        means = [batch.measured[name][:, 0].float().mean(dim=(1, 2)) for name in self.modalities]
        return self.head(torch.stack(means, dim=1) / 100)


@pytest.fixture(autouse=True)
def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "measuring", System(Measuring, MODALITIES, "a toy"))
    monkeypatch.setitem(OBJECTIVES, "measuring", PoseObjective)


def frames(count: int = 3) -> list[Frame]:
    return [random_frame(seed, (40, 60), MODALITIES) for seed in range(count)]


def prepared(preprocess: PreprocessConfig, shown: list[Frame], mounts: Mapping[str, Pose] = MOUNTS) -> PreparedDataset:
    source = ListSource([Sample(frame, yaw_pose(float(i))) for i, frame in enumerate(shown)], mounts=mounts)
    return prepare_dataset([source], Preprocessor(preprocess), progress=False)


def on_the_robot(preprocess: PreprocessConfig, frame: Frame) -> ModelInput:
    preprocessor = Preprocessor(preprocess)
    codec = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
    header = CheckpointHeader(model_config("measuring"), preprocess, codec, "map", "base_link")
    return Localizer(header, Measuring(header.model, preprocessor.channels)).preprocess(frame)


def trained_on(
    data: PreparedDataset, preprocess: PreprocessConfig, config: AugmentConfig = NO_AUGMENTATION
) -> ModelInput:
    rows = torch.arange(len(data))
    generator, intrinsics = torch.Generator().manual_seed(3), data.intrinsics(rows, CPU)
    return training_input(*data.batch(rows, CPU), config, Preprocessor(preprocess), generator, intrinsics)


def assert_row_is(batch: ModelInput, row: int, single: ModelInput) -> None:
    assert batch.measured is not None
    assert batch.intrinsics is not None
    assert single.measured is not None
    assert single.intrinsics is not None
    for ours, theirs in ((batch.tensors, single.tensors), (batch.measured, single.measured)):
        assert ours.keys() == theirs.keys()
        for name, x in theirs.items():
            assert bool(batch.present[name][row]) == bool(single.present[name])
            if not batch.present[name][row]:
                continue
            assert x.dtype == ours[name].dtype
            assert torch.equal(ours[name][row], x[0])
    torch.testing.assert_close(batch.intrinsics[row], single.intrinsics[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("projection", ["cylindrical", "pinhole"])
def test_training_without_augmentation_shows_what_the_robot_shows(projection: str) -> None:
    preprocess = replace(WHOLE, lidar_projection=projection).for_system(needs_geometry=True)
    known = frames()
    known[1] = known[1] if projection == "pinhole" else replace(known[1], camera=None)
    batch = trained_on(prepared(preprocess, known), preprocess)
    for row, frame in enumerate(known):
        assert_row_is(batch, row, on_the_robot(preprocess, frame))


@pytest.mark.parametrize("preprocess", [WHOLE, CROPPED])
def test_validation_shows_what_the_robot_shows(preprocess: PreprocessConfig) -> None:
    data = prepared(preprocess, frames())
    (batch,) = batches(data, torch.arange(3), Preprocessor(preprocess), CPU, geometry=True)
    for row, frame in enumerate(frames()):
        assert_row_is(batch, row, on_the_robot(preprocess, frame))


def test_systems_that_need_no_geometry_get_none() -> None:
    data, preprocessor = prepared(WHOLE, frames()), Preprocessor(WHOLE)
    tensors, present = data.batch(torch.arange(3), CPU)
    shown = [
        training_input(tensors, present, NO_AUGMENTATION, preprocessor, torch.Generator()),
        *batches(data, torch.arange(3), preprocessor, CPU),
    ]
    assert [(batch.measured, batch.intrinsics) for batch in shown] == [(None, None)] * 2


def test_a_random_window_comes_with_its_own_measurements_and_camera() -> None:
    """Depth that encodes its pixel: each cell's ray is that of the whole image."""
    frame = random_frame(0, (32, 48), MODALITIES)
    rows, columns = np.indices((32, 48))
    data = prepared(CROPPED, [replace(frame, depth_m=(1 + rows + columns / 100).astype(np.float32))])
    whole = data.intrinsics(torch.tensor([0]), CPU)[0]
    batch = trained_on(data, CROPPED)
    assert batch.measured is not None
    assert batch.intrinsics is not None
    depth = batch.measured["depth"][0, 0]
    row, column = float(depth[5, 7]) // 1 - 1, round(float(depth[5, 7]) % 1 * 100)
    assert column != 7 + 6  # not the central window
    ours = torch.linalg.inv(batch.intrinsics[0]) @ torch.tensor([7.0, 5.0, 1.0])
    torch.testing.assert_close(ours, torch.linalg.inv(whole) @ torch.tensor([column, row, 1.0]))


def test_measurements_are_those_after_augmentation_and_dropout() -> None:
    config = AugmentConfig(0.4, 0.5, 0.0, measurement_noise_m=0.2)
    data = prepared(WHOLE, frames())
    batch, plain = trained_on(data, WHOLE, config), trained_on(data, WHOLE)
    assert batch.measured is not None
    assert plain.measured is not None
    again = Preprocessor(WHOLE).normalise(batch.measured)
    for name, x in batch.tensors.items():
        torch.testing.assert_close(x, again[name])
        assert not torch.equal(batch.measured[name], plain.measured[name])
    points = cylindrical_points(batch.measured["lidar"])
    lost = (plain.measured["lidar"][:, VALIDITY] > 0) & (batch.measured["lidar"][:, VALIDITY] == 0)
    assert bool(lost.any())
    assert not bool(points.movedim(1, -1)[lost].any())


# --- the trainer -------------------------------------------------------------------------------------------------


def config() -> TrainConfig:
    values = {
        "model": {"name": "measuring"},
        "preprocess": {"modalities": list(MODALITIES), "shortest_side": 32, "crop": [32, 36]},
        "optimizer": {"epochs": 1, "batch_size": 4},
        "validation": {"every": 2, "block": 4},
        "pretrained": False,
    }
    return parse_config(values, None, "test")


def make_trainer(data: PreparedDataset, out: Path, validation: PreparedDataset | None = None) -> Trainer:
    return Trainer(config(), data, out, map_frame="map", body_frame="base_link", device=CPU, validation=validation)


def test_a_training_gives_the_model_mounts_and_geometry(tmp_path: Path) -> None:
    trainer = make_trainer(prepared(CROPPED, frames(8)), tmp_path / "model.safetensors")
    model = trainer.model
    assert isinstance(model, Measuring)
    assert model.mounts == MOUNTS
    trainer.run(progress=False)
    assert model.seen
    for batch in model.seen:
        assert batch.measured is not None
        assert batch.intrinsics is not None
        assert {x.shape[-2:] for name, x in batch.measured.items() if name != "lidar"} == {(32, 36)}
        assert bool(batch.intrinsics.isfinite().all())


def test_validation_data_of_another_body_are_rejected(tmp_path: Path) -> None:
    data, other = (prepared(CROPPED, frames(8), mounts) for mounts in (MOUNTS, {**MOUNTS, "lidar": CAMERA}))
    with pytest.raises(DataError, match="the mount of lidar is"):
        make_trainer(data, tmp_path / "model.safetensors", other)
