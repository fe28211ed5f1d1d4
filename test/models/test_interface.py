# SPDX-License-Identifier: Apache-2.0
"""Generality of the model interface: a pose computed from metric depth instead of regressed, and three modalities."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import ListSource, random_frame, yaw_pose
from training.config import parse_config
from training.data.dataset import prepare_dataset
from training.objectives.registry import build_objective
from training.objectives.variational import BoundConfig
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader, Uncertainty, load_checkpoint, save_checkpoint
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import MODALITIES, Frame, PinholeCamera, Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import (
    REGISTRY,
    ModelConfig,
    ModelInput,
    PoseModel,
    Prediction,
    System,
    build_model,
    model_config,
)
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

pytestmark = pytest.mark.numeric

SUBSETS = [names for count in (1, 2, 3) for names in itertools.combinations(MODALITIES, count)]


# --- a system that solves for its pose ---------------------------------------------------------------------------


class Centroid(PoseModel):
    """Estimates mean and covariance of the depth camera's points, plus an offset that is a parameter."""

    needs_geometry = True

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.offset_m = nn.Parameter(torch.zeros(3))

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        assert batch.measured is not None
        assert batch.intrinsics is not None
        if not bool(batch.present["depth"].all() & batch.intrinsics.isfinite().all()):
            raise ModelError("the centroid needs depth and the camera's intrinsics")
        clouds = [back_project(*pair) for pair in zip(batch.measured["depth"], batch.intrinsics, strict=True)]
        positions = torch.stack([cloud.mean(dim=0) for cloud in clouds]) + self.offset_m
        covariances = np.zeros((len(clouds), 6, 6))
        for matrix, cloud in zip(covariances, clouds, strict=True):
            matrix[:3, :3] = torch.cov(cloud.T, correction=0).numpy()
        upright = np.tile([1.0, 0.0, 0.0, 0.0], (len(clouds), 1))
        return Prediction(positions.double().numpy() + codec.origin_m, upright, covariances=covariances)


def back_project(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points ``(N, 3)`` in the optical frame of the valid cells of ``(2, H, W)``."""
    rows, columns = torch.nonzero(depth[1], as_tuple=True)
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=1).float()
    return depth[0, rows, columns].unsqueeze(1) * (pixels @ torch.linalg.inv(intrinsics).T)


# A third of this picture has cells whose centres are centres of pixels: nearest-neighbour scaling is then exact.
CAMERA = PinholeCamera(width=180, height=120, fx=150.0, fy=140.0, cx=70.0, cy=66.0)
SCALED = PreprocessConfig(modalities=("image", "depth"), shortest_side=40, depth_range_m=(0.0, 10.0))
CROPPED = PreprocessConfig(
    modalities=("image", "depth"), shortest_side=40, crop=(32, 36), depth_range_m=(0.0, 10.0)
)  # rows 4..35 of 40, columns 12..47 of 60
WALL_M = 12.0  # beyond the range that the network's own input is clipped to


def rays() -> np.ndarray:
    """``(H, W, 3)`` directions of the pixels, z = 1."""
    v, u = np.indices((CAMERA.height, CAMERA.width))
    return np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], axis=-1)


def wall(normal: tuple[float, float, float] = (0.0, 0.0, 1.0), distance_m: float = WALL_M) -> Frame:
    """Image and depth of a camera that faces the plane ``normal . X = distance``."""
    depth = distance_m / (rays() @ np.array(normal))
    image = np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), np.uint8)
    return Frame(7, image, depth.astype(np.float32), camera=CAMERA)


@pytest.fixture
def centroid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "centroid", System(Centroid, ("image", "depth"), "a toy"))


def served(preprocess: PreprocessConfig, path: Path) -> Localizer:
    """The toy system, saved with an offset of (1, 2, 3) m and loaded again."""
    header = CheckpointHeader(
        model_config("centroid"),
        preprocess,
        PoseCodec((100.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0)),
        "map",
        "camera",
        uncertainty=Uncertainty(residual_std=(0.1, 0.2, 0.3, 0.01, 0.02, 0.03)),
    )
    model = build_model(header.model, Preprocessor(preprocess).channels)
    with torch.no_grad():
        model.offset_m.copy_(torch.tensor([1.0, 2.0, 3.0]))
    save_checkpoint(path, header, model.state_dict())
    return Localizer.load(path, "cpu")


@pytest.mark.parametrize(("preprocess", "rows", "columns"), [(SCALED, 40, 60), (CROPPED, 32, 36)])
@pytest.mark.usefixtures("centroid")
def test_a_solver_gets_metric_depth_and_its_covariance_is_used(
    preprocess: PreprocessConfig, rows: int, columns: int, tmp_path: Path
) -> None:
    """Closed form: the window's centre is the image's, and its cells are evenly spaced by 3 pixels."""
    estimate = served(preprocess, tmp_path / "toy.safetensors").localize(wall())
    centre = WALL_M * rays().mean(axis=(0, 1))
    np.testing.assert_allclose(estimate.map_from_body.position_m, centre + np.array([101.0, 2.0, 3.0]), atol=1e-4)
    np.testing.assert_allclose(estimate.map_from_body.rotation, np.eye(3), atol=1e-12)
    spacing = 3 * WALL_M / np.array([CAMERA.fx, CAMERA.fy])
    variances = [*(spacing**2 * (np.array([columns, rows]) ** 2 - 1) / 12), 0, 0, 0, 0]
    residuals = np.square([0.1, 0.2, 0.3, 0.01, 0.02, 0.03])
    np.testing.assert_allclose(estimate.covariance, np.diag(variances + residuals), rtol=1e-4, atol=1e-5)
    assert estimate.modalities == ("image", "depth")
    assert estimate.posterior_std == {}
    assert estimate.confidence is None


@pytest.mark.parametrize("preprocess", [SCALED, CROPPED])
@pytest.mark.usefixtures("centroid")
def test_every_cell_of_the_window_back_projects_onto_the_wall(preprocess: PreprocessConfig, tmp_path: Path) -> None:
    normal = (0.5, -0.3, 0.8)
    batch = served(preprocess, tmp_path / "toy.safetensors").preprocess(wall(normal, 6.0))
    assert batch.measured is not None
    assert batch.intrinsics is not None
    points = back_project(batch.measured["depth"][0], batch.intrinsics[0])
    assert batch.measured["depth"].shape[-2:] == batch.tensors["depth"].shape[-2:]
    assert len(points) == batch.tensors["depth"][0, 0].numel()
    np.testing.assert_allclose(points.numpy() @ normal, 6.0, atol=1e-4)


@pytest.mark.usefixtures("centroid")
def test_measured_is_the_networks_input_before_clipping_and_scaling(tmp_path: Path) -> None:
    batch = served(CROPPED, tmp_path / "toy.safetensors").preprocess(wall((0.5, -0.3, 0.8), 8.0))
    assert batch.measured is not None
    depth = batch.measured["depth"][0, 0]
    assert float(depth.min()) < CROPPED.depth_range_m[1] < float(depth.max())
    torch.testing.assert_close(batch.tensors["depth"][0, 0], (depth / 5 - 1).clamp(-1, 1))
    assert batch.measured["image"].dtype == torch.uint8
    torch.testing.assert_close(batch.tensors["image"], batch.measured["image"] / 127.5 - 1)


@pytest.mark.usefixtures("centroid")
def test_errors_of_a_solver_about_missing_input_name_the_frames_stamp(tmp_path: Path) -> None:
    localizer = served(SCALED, tmp_path / "toy.safetensors")
    frame = wall()
    with pytest.raises(ModelError, match=r"^frame at 8 ns: the centroid needs"):
        localizer.localize(replace(frame, stamp_ns=8, depth_m=None))
    with pytest.raises(ModelError, match=r"the camera of image and depth is not known"):
        localizer.localize(replace(frame, stamp_ns=9, camera=None))
    localizer.warm_up()


# --- three modalities --------------------------------------------------------------------------------------------

CHANNELS = {"image": 3, "depth": 2, "lidar": 4}
FIELDS = {"image": "image", "depth_m": "depth", "cloud": "lidar"}
TINY = {"backbone": "shufflenet_v2_x0_5", "latent_dim": 16, "hidden_dim": 8, "dropout": 0.0}


def three_modal_input(subsets: list[tuple[str, ...]]) -> ModelInput:
    """One sample for each subset; noise where a modality is absent."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"image": (3, 32, 48), "depth": (2, 32, 48), "lidar": (4, 32, 64)}
    return ModelInput(
        {name: torch.rand(len(subsets), *size, generator=generator) * 2 - 1 for name, size in sizes.items()},
        {name: torch.tensor([name in subset for subset in subsets]) for name in sizes},
    )


def test_with_three_modalities_the_posterior_is_the_product_of_those_present() -> None:
    torch.manual_seed(0)
    model = build_model(model_config(**TINY), CHANNELS).eval()
    for encoder in model.encoders.values():
        nn.init.normal_(encoder.log_variance.weight, std=0.5)
    with torch.no_grad():
        every = model.encode(three_modal_input([MODALITIES] * len(SUBSETS)))
        some = model.encode(three_modal_input(SUBSETS))
    for row, subset in enumerate(SUBSETS):
        precisions = {name: torch.exp(-every.experts[name].log_variance[row]) for name in subset}
        total = 1 + sum(precisions.values())
        mean = sum(precision * every.experts[name].mean[row] for name, precision in precisions.items()) / total
        torch.testing.assert_close(some.joint.mean[row], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.joint.log_variance[row], -torch.log(total), rtol=1e-4, atol=1e-5)


def test_a_training_step_on_a_subset_of_modalities_changes_only_their_encoders() -> None:
    torch.manual_seed(0)
    model = build_model(model_config(**TINY), CHANNELS).train()
    objective = build_objective("vmloc", BoundConfig(samples=3), PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0)))
    for subset in SUBSETS:
        model.zero_grad()
        objective.terms(model, three_modal_input([subset] * 4), torch.zeros(4, 6))["loss"].backward()
        moved = {
            name
            for name, encoder in model.encoders.items()
            if any(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
        }
        assert moved == set(subset)


def three_modal_frame(seed: int) -> Frame:
    return random_frame(seed, (48, 64), MODALITIES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    """A model after two epochs on noise with modality dropout."""
    out = tmp_path_factory.mktemp("three") / "model.safetensors"
    preprocess = {"modalities": list(MODALITIES), "shortest_side": 32, "cylinder": {"rows": 32, "columns": 64}}
    config = parse_config(
        {
            "model": TINY,
            "preprocess": preprocess,
            "optimizer": {"epochs": 2, "batch_size": 8},
            "validation": {"every": 0},
            "pretrained": False,
        },
        None,
        "test",
    )
    samples = [Sample(three_modal_frame(i), yaw_pose(float(i), 0.0, 5.0 * i)) for i in range(16)]
    data = prepare_dataset([ListSource(samples)], Preprocessor(config.preprocess), progress=False)
    device = torch.device("cpu")
    Trainer(config, data, out, map_frame="map", body_frame="base_link", device=device).run(progress=False)
    assert load_checkpoint(out)[1].modalities == MODALITIES
    return Localizer.load(out, "cpu")


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_a_model_trained_on_three_modalities_localizes_with_any_subset_of_them(
    trained: Localizer, names: tuple[str, ...]
) -> None:
    whole = three_modal_frame(99)
    absent = {field: None for field, name in FIELDS.items() if name not in names}
    estimate = trained.localize(replace(whole, **absent))
    assert estimate.modalities == names
    assert set(estimate.posterior_std) == {"joint", *names}
    assert 0 < estimate.posterior_std["joint"] < min(estimate.posterior_std[name] for name in names)
    assert np.linalg.eigvalsh(estimate.covariance).min() > 0


def test_a_frame_without_any_of_three_modalities_is_an_error(trained: Localizer) -> None:
    with pytest.raises(ModelError, match="the frame has nothing; the model needs at least one of image, depth, lidar"):
        trained.localize(Frame(1))
