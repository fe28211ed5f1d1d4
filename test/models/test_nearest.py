# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from helpers import ListSource, random_frame, yaw_pose
from training.config import TrainConfig, parse_config
from training.data.dataset import prepare_dataset
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, read_header, save_checkpoint
from vmloc_ros.core.errors import CheckpointError, ModelError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import rotation_angle_deg
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ModelInput, build_model, model_config
from vmloc_ros.core.models.nearest import NearestImage
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

pytestmark = pytest.mark.numeric

# No batch norm: with random weights it still distinguishes images.
CONFIG = model_config("nearest", "squeezenet1_1")
WIDTH = 512
CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
UTM_M = np.array([620_123.123456789, 5_735_123.987654321, 0.1 + 0.2])  # more digits than float32 holds


def nearest(backbone: str = "squeezenet1_1") -> NearestImage:
    torch.manual_seed(0)
    model = build_model(model_config("nearest", backbone), {"image": 3}).eval()
    assert isinstance(model, NearestImage)
    return model


def unit(count: int, seed: int) -> torch.Tensor:
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def stored_images(count: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    quaternions *= np.sign(quaternions[:, :1]) / np.linalg.norm(quaternions, axis=1, keepdims=True)
    return unit(count, seed), UTM_M + rng.normal(0, 50, (count, 3)), quaternions


def images(count: int, seed: int = 0) -> ModelInput:
    tensor = torch.rand(count, 3, 64, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return ModelInput({"image": tensor}, {"image": torch.ones(count, dtype=torch.bool)})


# --- descriptors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v3_small"])
def test_descriptors_are_the_classifiers_pooled_features_of_imagenet_scaled_input(backbone: str) -> None:
    model = nearest(backbone)
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(backbone, weights=None).eval()
    classifier.features.load_state_dict(model.trunk.state_dict())
    batch = images(3)
    pixels = (batch.tensors["image"] * 127.5 + 127.5) / 255
    scaled = torchvision.transforms.functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        features = classifier.features(scaled).flatten(2).mean(-1).numpy()
        described = model.describe(batch).numpy()
    np.testing.assert_allclose(described, features / np.linalg.norm(features, axis=1)[:, None], atol=1e-5)


def test_the_backbone_neither_learns_nor_takes_batch_statistics_even_in_training_mode() -> None:
    model = nearest("mobilenet_v3_small")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    expected = model.describe(images(4))
    described = model.train().describe(images(4))
    assert torch.equal(described, expected)
    assert not described.requires_grad
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_sample_without_an_image_is_an_error() -> None:
    batch = ModelInput(images(2).tensors, {"image": torch.tensor([True, False])})
    with pytest.raises(ModelError, match=r"no modality is present in sample \[1\]"):
        nearest().describe(batch)


# --- search ------------------------------------------------------------------------------------------------------


def test_the_prediction_is_the_pose_of_greatest_cosine_as_by_brute_force() -> None:
    model, (known, positions, quaternions) = nearest(), stored_images(300)
    model.store_frames(known, positions, quaternions)
    queries = unit(40, seed=1)
    prediction = model.retrieve(queries)
    for i, descriptor in enumerate(queries.double().numpy()):
        cosines = [
            descriptor @ other / np.linalg.norm(descriptor) / np.linalg.norm(other) for other in known.double().numpy()
        ]
        best = int(np.argmax(cosines))
        np.testing.assert_array_equal(prediction.positions_m[i], positions[best])
        np.testing.assert_array_equal(prediction.quaternions_wxyz[i], quaternions[best])


def test_locate_describes_and_recalls_without_a_posterior() -> None:
    model, (_, positions, quaternions) = nearest(), stored_images(6)
    with torch.no_grad():
        model.store_frames(model.describe(images(6)), positions, quaternions)
        shuffled = [4, 0, 5]
        batch = ModelInput({"image": images(6).tensors["image"][shuffled]}, {"image": torch.ones(3, dtype=torch.bool)})
        prediction = model.locate(batch, CODEC, samples=8)
    np.testing.assert_array_equal(prediction.positions_m, positions[shuffled])
    assert len(prediction.sample_positions_m) == 0
    assert prediction.covariances is None


def test_memorising_again_replaces_the_stored_images() -> None:
    model = nearest()
    model.store_frames(*stored_images(9, seed=1))
    known, positions, quaternions = stored_images(4, seed=2)
    model.store_frames(known, positions, quaternions)
    np.testing.assert_array_equal(model.retrieve(known).positions_m, positions)


def test_without_stored_images_the_error_names_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"nearest stores no image; make a checkpoint with `vmloc train`"):
        nearest().locate(images(1), CODEC)


def test_only_images_are_taken() -> None:
    with pytest.raises(ModelError, match="takes image, not depth"):
        build_model(CONFIG, {"image": 3, "depth": 2})


# --- checkpoint --------------------------------------------------------------------------------------------------


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    preprocess = PreprocessConfig(modalities=("image",), shortest_side=32)
    save_checkpoint(path, CheckpointHeader(CONFIG, preprocess, CODEC, "map", "base_link"), state)
    return path


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_checkpoint_stores_any_number_of_images_bit_for_bit(tmp_path: Path, count: int) -> None:
    model = nearest()
    model.store_frames(*stored_images(count))
    loaded = load_checkpoint(write(tmp_path / "m.safetensors", model.state_dict()))[1].state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded[name])
        assert tensor.dtype == loaded[name].dtype
    assert loaded["positions_m"].shape == (count, 3)


def test_loading_replaces_another_number_of_images() -> None:
    model, other = nearest(), nearest()
    model.store_frames(*stored_images(7))
    other.store_frames(*stored_images(3, seed=1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.descriptors, model.descriptors)
    assert torch.equal(other.quaternions_wxyz, model.quaternions_wxyz)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"descriptors": torch.zeros(5, 8)}, "size mismatch for descriptors"),
        ({"descriptors": torch.zeros(4, WIDTH)}, "differ in number"),
        ({"positions_m": torch.tensor(1.0)}, "size mismatch for positions_m"),
        ({"positions_m": None}, "Missing key"),
    ],
)
def test_descriptors_and_poses_that_do_not_fit_are_a_checkpoint_error(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    model = nearest()
    model.store_frames(*stored_images(5))
    state = {name: x for name, x in {**model.state_dict(), **change}.items() if x is not None}
    path = write(tmp_path / "m.safetensors", state)
    with pytest.raises(CheckpointError, match=rf"weights do not fit model 'nearest'.*{match}"):
        load_checkpoint(path)


# --- training ----------------------------------------------------------------------------------------------------

COUNT = 24
HELD_OUT = [i for i in range(COUNT) if (i // 4) % 2 == 1]


def train_config(**sections: Any) -> TrainConfig:
    values = {
        "model": {"name": "nearest", "backbone": "squeezenet1_1"},
        "preprocess": {"modalities": ["image"], "shortest_side": 48, "crop": [40, 40]},
        "validation": {"every": 2, "block": 4},
        "pretrained": False,
        **sections,
    }
    return parse_config(values, None, "test")


def street() -> list[Sample]:
    return [Sample(random_frame(i), yaw_pose(UTM_M[0] + i, UTM_M[1], 7.0 * i)) for i in range(COUNT)]


def make_trainer(config: TrainConfig, out: Path) -> Trainer:
    data = prepare_dataset([ListSource(street())], Preprocessor(config.preprocess), progress=False)
    return Trainer(config, data, out, map_frame="utm", body_frame="camera", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("trained") / "nearest.safetensors"
    return out, make_trainer(train_config(), out).run(progress=False)


def test_training_writes_the_checkpoint_and_nothing_else(trained: tuple[Path, dict[str, float]]) -> None:
    out, metrics = trained
    assert list(out.parent.iterdir()) == [out]
    header = read_header(out)
    assert header.metrics == metrics
    assert header.model.name == "nearest"
    assert (header.training["frames"], header.training["validation_frames"]) == (COUNT - len(HELD_OUT), len(HELD_OUT))


def test_every_training_image_recalls_its_own_pose_and_no_held_out_image_does(
    trained: tuple[Path, dict[str, float]],
) -> None:
    localizer = Localizer.load(trained[0], "cpu")
    for i, sample in enumerate(street()):
        estimate = localizer.localize(sample.frame)
        distance = np.linalg.norm(estimate.map_from_body.position_m - sample.map_from_body.position_m)
        if i in HELD_OUT:
            assert distance > 0.5
        else:
            np.testing.assert_array_equal(estimate.map_from_body.position_m, sample.map_from_body.position_m)
            angle = rotation_angle_deg(estimate.map_from_body.quaternion_wxyz, sample.map_from_body.quaternion_wxyz)
            assert angle < 1e-6


def test_metrics_and_covariance_are_of_the_held_out_frames(trained: tuple[Path, dict[str, float]]) -> None:
    out, metrics = trained
    localizer = Localizer.load(out, "cpu")
    samples = [street()[i] for i in HELD_OUT]
    estimates = [localizer.localize(sample.frame) for sample in samples]
    errors = [e.map_from_body.position_m - s.map_from_body.position_m for e, s in zip(estimates, samples, strict=True)]
    assert metrics["frames"] == len(HELD_OUT)
    assert metrics["held_out"] == 1.0
    assert metrics["median_position_m"] == pytest.approx(np.median(np.linalg.norm(errors, axis=1)))
    # The residuals are the body's, but the trace is the same along any horizontal axes.
    horizontal = np.trace(estimates[0].covariance[:2, :2])
    assert horizontal == pytest.approx(np.mean(np.square(errors)[:, :2].sum(axis=1)), rel=1e-3)


def test_fewer_frames_than_a_batch_are_enough(tmp_path: Path) -> None:
    config = train_config(optimizer={"batch_size": 512})
    assert make_trainer(config, tmp_path / "m.safetensors").run(progress=False)["frames"] == len(HELD_OUT)


def test_resuming_does_the_same_again(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    trainer = make_trainer(train_config(), out)
    trainer.resume()
    assert trainer.run(progress=False) == trained[1]
    first, again = load_checkpoint(trained[0])[1].state_dict(), load_checkpoint(out)[1].state_dict()
    assert all(torch.equal(x, again[name]) for name, x in first.items())
