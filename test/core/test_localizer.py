# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from helpers import random_frame
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import Residuals, Uncertainty, load_checkpoint, read_header, save_checkpoint
from vmloc_ros.core.errors import CheckpointError, ModelError
from vmloc_ros.core.frame import Frame, PointCloud
from vmloc_ros.core.localizer import Localizer, select_device
from vmloc_ros.core.models import ModelInput
from vmloc_ros.core.models.rotation import pose_vectors
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

pytestmark = pytest.mark.numeric

SMALL = PreprocessConfig(shortest_side=64)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with an attention and variances that are not at their trivial start."""
    path = tmp_path_factory.mktemp("localizer") / "model.safetensors"
    write_random_checkpoint(path)
    header, model = load_checkpoint(path)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.startswith("attention.alpha") or "log_variance" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(path, header, model.state_dict())
    return path


@pytest.fixture(scope="module")
def localizer(path: Path) -> Localizer:
    return Localizer.load(path, "cpu")


def assert_covariance(covariance: np.ndarray) -> None:
    assert covariance.shape == (6, 6)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-9 * covariance.max())
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_attributes_are_those_of_the_header(localizer: Localizer) -> None:
    assert localizer.modalities == ("image", "lidar")
    assert (localizer.map_frame, localizer.body_frame) == ("map", "base_link")
    assert localizer.device == torch.device("cpu")


def test_the_same_frame_gives_a_bit_equal_estimate(path: Path, localizer: Localizer) -> None:
    first, other = random_frame(0), random_frame(1)
    before = localizer.localize(first)
    localizer.localize(other)
    torch.manual_seed(99)
    again, reloaded = localizer.localize(first), Localizer.load(str(path), "cpu").localize(first)
    for estimate in (again, reloaded):
        np.testing.assert_array_equal(before.map_from_body.matrix, estimate.map_from_body.matrix)
        np.testing.assert_array_equal(before.covariance, estimate.covariance)
    assert not np.array_equal(before.map_from_body.matrix, localizer.localize(other).map_from_body.matrix)


def test_the_estimate_has_the_frames_stamp_and_the_modalities_that_it_uses(localizer: Localizer) -> None:
    stamp = 1_712_345_678_123_456_789
    for names in (("image", "lidar"), ("image",), ("lidar",)):
        frame = dataclasses.replace(random_frame(0, names=names), stamp_ns=stamp)
        estimate = localizer.localize(frame)
        assert estimate.stamp_ns == stamp
        assert estimate.modalities == names
        assert_covariance(estimate.covariance)
        assert np.isfinite(estimate.map_from_body.matrix).all()


def test_modalities_that_the_model_does_not_take_are_ignored(localizer: Localizer) -> None:
    with_depth = random_frame(0, names=("image", "lidar", "depth"))
    without = dataclasses.replace(with_depth, depth_m=None)
    a, b = localizer.localize(with_depth), localizer.localize(without)
    np.testing.assert_array_equal(a.map_from_body.matrix, b.map_from_body.matrix)
    assert a.modalities == ("image", "lidar")


def test_a_missing_modality_makes_the_posterior_wider(localizer: Localizer) -> None:
    """A factor less in the product of Gaussians cannot sharpen it."""
    frame = random_frame(0)
    wide = localizer.model.encode(localizer.preprocess(dataclasses.replace(frame, cloud=None))).joint
    both = localizer.model.encode(localizer.preprocess(frame)).joint
    assert bool((wide.log_variance > both.log_variance).all())


def test_no_modality_is_an_error_that_lists_the_models_modalities(localizer: Localizer) -> None:
    with pytest.raises(ModelError, match="the frame has nothing; the model needs at least one of image, lidar"):
        localizer.localize(Frame(0))
    with pytest.raises(ModelError, match="the frame has depth; the model needs"):
        localizer.localize(random_frame(0, names=("depth",)))


def test_the_pose_is_that_of_the_posterior_mean_in_a_batch_of_any_size(localizer: Localizer, path: Path) -> None:
    header, model = load_checkpoint(path)
    frames = [random_frame(seed) for seed in range(3)]
    inputs = Preprocessor(header.preprocess)(frames)
    batch = ModelInput(
        {name: torch.cat([x[name] for x in inputs]) for name in ("image", "lidar")},
        {name: torch.ones(3, dtype=torch.bool) for name in ("image", "lidar")},
    )
    with torch.inference_mode():
        positions, quaternions = header.pose_codec.decode(pose_vectors(model(batch).double()).numpy())
    for i, frame in enumerate(frames):
        pose = localizer.localize(frame).map_from_body
        np.testing.assert_allclose(pose.position_m, positions[i], atol=1e-3)
        np.testing.assert_allclose(pose.quaternion_wxyz, quaternions[i], atol=1e-5)


def test_the_covariance_is_that_of_decoded_posterior_samples_plus_the_residual(path: Path, tmp_path: Path) -> None:
    """Against a Monte-Carlo estimate with other samples, decoded and compared by scipy."""
    header, model = load_checkpoint(path)
    residual = (5.0, 4.0, 3.0, 0.2, 0.3, 0.4)
    header = dataclasses.replace(header, uncertainty=Uncertainty(residual, 20_000))
    localizer = Localizer(header, model)
    frame = random_frame(2)
    estimate = localizer.localize(frame)

    with torch.inference_mode():
        joint = model.encode(localizer.preprocess(frame)).joint
        normal = torch.distributions.Normal(joint.mean[0], torch.exp(0.5 * joint.log_variance[0]))
        torch.manual_seed(7)
        vectors = pose_vectors(model.decode(normal.sample((20_000,))).double()).numpy()
    positions = vectors[:, :3] * header.pose_codec.scale_m + header.pose_codec.origin_m
    mean = Rotation.from_quat(estimate.map_from_body.quaternion_wxyz[[1, 2, 3, 0]])
    turns = (Rotation.from_rotvec(2 * vectors[:, 3:]) * mean.inv()).as_rotvec()  # the reference is the identity
    deviations = np.concatenate([positions - estimate.map_from_body.position_m, turns], axis=1)
    expected = deviations.T @ deviations / len(deviations)
    turn = np.kron(np.eye(2), mean.as_matrix())
    expected += turn @ np.diag(np.square(residual)) @ turn.T
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(estimate.covariance / scale, expected / scale, atol=0.05)


def test_the_residuals_are_those_of_the_sensors_that_the_estimate_uses(path: Path) -> None:
    """The samples' spread does not depend on them: the difference is that of the variances, turned into the map."""
    header, model = load_checkpoint(path)
    alone = Residuals((9.0, 8.0, 7.0, 0.5, 0.6, 0.7), (2.0, 1.0), ("lidar",))
    plain = Uncertainty((3.0, 2.0, 1.0, 0.1, 0.2, 0.3))
    frame = random_frame(2, names=("lidar",))
    without, fitted = (
        Localizer(dataclasses.replace(header, uncertainty=uncertainty), model)
        for uncertainty in (plain, dataclasses.replace(plain, missing=(alone,)))
    )
    before, after = without.localize(frame), fitted.localize(frame)
    turn = np.kron(np.eye(2), before.map_from_body.rotation)
    more = np.diag(np.square(alone.residual_std) - np.square(plain.residual_std))
    scale = np.diag([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(after.covariance, scale @ (before.covariance + turn @ more @ turn.T) @ scale, atol=1e-9)
    both = random_frame(2)
    np.testing.assert_array_equal(without.localize(both).covariance, fitted.localize(both).covariance)


def test_the_covariance_grows_with_every_sensor_that_is_missing(path: Path) -> None:
    header, model = load_checkpoint(path)
    image = Residuals((2.0, 2.0, 2.0, 0.1, 0.1, 0.1), (1.0, 1.0), ("image",))
    lidar = Residuals((4.0, 4.0, 4.0, 0.2, 0.2, 0.2), (1.5, 1.0), ("lidar",))
    uncertainty = Uncertainty((0.5, 0.5, 0.5, 0.02, 0.02, 0.02), missing=(image, lidar))
    localizer = Localizer(dataclasses.replace(header, uncertainty=uncertainty), model)
    both, camera, scan = (
        localizer.localize(random_frame(2, names=names)).covariance
        for names in (("image", "lidar"), ("image",), ("lidar",))
    )
    for more, less in ((camera, both), (scan, both), (scan, camera)):
        assert np.linalg.eigvalsh(more)[0] > 0
        assert (np.diag(more) > np.diag(less)).all()


def test_weights_that_are_nan_are_an_error_and_not_a_pose(path: Path) -> None:
    header, model = load_checkpoint(path)
    with torch.no_grad():
        model.position[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="frame at 1700000000000000000 ns: the network's output is not finite"):
        Localizer(header, model).localize(random_frame(0))


@pytest.mark.parametrize("projection", ["cylindrical", "pinhole"])
def test_an_empty_cloud_is_localized(tmp_path: Path, projection: str) -> None:
    config = dataclasses.replace(SMALL, lidar_projection=projection)
    write_random_checkpoint(tmp_path / "m.safetensors", preprocess=config)
    frame = dataclasses.replace(random_frame(0), cloud=PointCloud(np.zeros((0, 3), np.float32)))
    assert_covariance(Localizer.load(tmp_path / "m.safetensors", "cpu").localize(frame).covariance)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, lidar_projection="pinhole"),
        dataclasses.replace(SMALL, modalities=("depth",), crop=(48, 48)),
        dataclasses.replace(SMALL, modalities=("image", "depth"), crop=(64, 112)),  # wider than 4:3
    ],
)
def test_warming_up_works_for_every_kind_of_model(tmp_path: Path, config: PreprocessConfig) -> None:
    write_random_checkpoint(tmp_path / "m.safetensors", preprocess=config)
    localizer = Localizer.load(tmp_path / "m.safetensors", "cpu")
    assert localizer.modalities == config.modalities
    localizer.warm_up()


def test_a_missing_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint .*none\.safetensors does not exist"):
        Localizer.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "CPU", "mps", "xpu", "vulkan"])
def test_a_device_that_does_not_work_is_an_error_that_names_it(path: Path, device: str) -> None:
    with pytest.raises(
        ModelError, match=f"device '{device}' does not work .*; use cpu, cuda, cuda:N or auto"
    ) as caught:
        Localizer.load(path, device)
    assert "\n" not in str(caught.value)


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")


def test_auto_falls_back_to_the_cpu_when_the_gpu_is_broken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zeros = torch.zeros

    def broken(*size: int, device: str = "cpu") -> torch.Tensor:
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available")
        return zeros(*size, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", broken)
    assert select_device("auto") == torch.device("cpu")
    assert "no kernel image" in caplog.text


def test_the_header_is_unchanged_by_use(path: Path, localizer: Localizer) -> None:
    localizer.localize(random_frame(0))
    assert localizer.header == read_header(path)
