# SPDX-License-Identifier: Apache-2.0
"""How systems that predict map coordinates densely are trained: likelihood, moved pictures, frozen features, files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from rooms import (
    CODEC,
    CPU,
    MOUNTS,
    ORIGIN_M,
    PREPROCESS,
    TINY,
    in_room,
    input_of,
    prepared,
    room_data,
    room_frame,
)
from training.augment import AugmentConfig, move_pixels
from training.calibrate import calibrate, fit_confidence, remember
from training.config import FrozenConfig, ObjectiveConfig, TrainConfig, parse_config
from training.dataset import PreparedDataset, body_twists
from training.dense import DenseObjective, FrozenFeatures, Looks
from training.predict import predict
from training.sampler import training_input
from training.trainer import Trainer
from vmloc_ros.core.cells import Cells, camera_cells
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import MODALITIES, Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer, total_covariance
from vmloc_ros.core.models import DenseModel, ModelInput, PoseModel, Prediction, build_model
from vmloc_ros.core.models.dense import Look
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

MEAN_LENGTH = {3: math.sqrt(8 / math.pi), 2: math.sqrt(math.pi / 2)}  # of a standard normal vector
RGBD = replace(PREPROCESS, modalities=("image", "depth"))


# --- the likelihood ----------------------------------------------------------------------------------------------


class Says:
    """A model that predicts what it is given."""

    def __init__(self, points_m: Tensor, log_std: Tensor) -> None:
        self.points_m, self.log_std, self.regions = points_m, log_std, None

    def predict(self, name: str, look: Look, *_: Any) -> tuple[Tensor, Tensor]:
        return self.points_m, self.log_std


def cells_of(points: Tensor, rays: Tensor, ranged: Tensor, valid: Tensor) -> Looks:
    """One frame's cells, ``(N, 3)`` and ``(N,)``."""
    cells = Cells(points[None], rays[None], ranged[None], valid[None], torch.zeros(1, len(points)))
    return Looks({"depth": Look(torch.tensor([0]), torch.zeros(1, 1, len(points), 1), torch.zeros(1, 1), cells)})


def target_of(pose: Pose) -> Tensor:
    return torch.from_numpy(CODEC.encode([pose]))


def in_map(pose: Pose, points: Tensor) -> Tensor:
    """From the map's origin."""
    local = pose.position_m - np.asarray(ORIGIN_M)
    return (points.double() @ torch.from_numpy(pose.rotation).T + torch.from_numpy(local)).float()


def terms(model: Any, looks: Looks, pose: Pose) -> dict[str, float]:
    objective = DenseObjective(ObjectiveConfig(), CODEC)
    return {name: float(x) for name, x in objective.terms(model, looks, target_of(pose)).items()}


def test_the_loss_is_the_likelihood_of_the_residuals_length_in_closed_form() -> None:
    """A measured point, a ray in front of which the point is, and a cell that is not valid, seen from any pose."""
    pose = in_room(3)
    points = torch.tensor([[2.0, 1.0, 0.5], [0.1, 0.2, 0.3], [9.0, 9.0, 9.0]])
    rays = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8], [1.0, 0.0, 0.0]])
    ranged, valid = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    offsets = torch.tensor([[0.3, 0.4, 1.2], [0.0, 0.25, 0.0], [50.0, 0.0, 0.0]])  # the second one across its ray
    predicted = in_map(pose, points + offsets + torch.tensor([[0.0], [7.0], [0.0]]) * rays)
    std = torch.tensor([[0.5, 0.1, 3.0]])
    found = terms(Says(predicted[None], torch.log(std)), cells_of(points, rays, ranged, valid), pose)
    expected = [
        3 * (1.3 / MEAN_LENGTH[3] / 0.5 + math.log(0.5)),
        2 * (0.25 / MEAN_LENGTH[2] / 0.1 + math.log(0.1 / 7)),  # of a direction
    ]
    assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["error_depth_m"] == pytest.approx((1.3 + 0.25) / 2, rel=1e-4)


def test_a_point_behind_the_sensor_is_as_far_as_the_sensor_however_near_to_the_rays_line_it_is() -> None:
    pose, ray = in_room(4), torch.tensor([[0.0, 0.6, 0.8]])
    yes, no = torch.tensor([True]), torch.tensor([False])
    centre = torch.tensor([[0.4, 0.0, 1.2]])
    looks = cells_of(centre, ray, no, yes)
    for depth, expected in ((5.0, 0.0), (-5.0, 5.0)):
        says = Says(in_map(pose, centre + depth * ray)[None], torch.zeros(1, 1))
        assert terms(says, looks, pose)["error_depth_m"] == pytest.approx(expected, abs=0.11)  # rays begin at 0.1 m


def test_an_angle_off_a_ray_is_as_unlikely_at_any_depth_and_the_cameras_own_place_is_no_way_out() -> None:
    pose, ray = in_room(6), torch.tensor([[0.0, 0.6, 0.8]])
    across, centre = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.0, 1.2]])
    looks = cells_of(centre, ray, torch.tensor([False]), torch.tensor([True]))
    losses = []
    for depth in (0.5, 5.0, 50.0):  # one degree off, which the deviation tells
        predicted = in_map(pose, centre + depth * (ray + 0.0175 * across))[None]
        losses.append(terms(Says(predicted, torch.full((1, 1), math.log(0.0175 * depth))), looks, pose)["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-2)
    for std in (0.005, 0.02, 0.1, 1.0):
        at_camera = Says(in_map(pose, centre)[None], torch.full((1, 1), math.log(std)))
        assert terms(at_camera, looks, pose)["loss"] > losses[0] + 5


def test_the_truth_has_no_residual() -> None:
    """Also with the reference turned, 400 km from the map's zero, and in half precision."""
    data = room_data([MODALITIES] * 2)
    torch.manual_seed(0)
    model = build_model(TINY, Preprocessor(PREPROCESS).channels).eval()
    model.set_mounts(MOUNTS)
    looks = model.look(input_of(data, PREPROCESS))
    target = torch.from_numpy(CODEC.encode(data.poses))
    for name, look in looks.items():
        seen = [in_map(pose, points + 3 * rays * ~ranged.unsqueeze(1)) for pose, points, rays, ranged in zip(
            data.poses, look.cells.points_m, look.cells.rays, look.cells.ranged, strict=True)]  # fmt: skip
        says = Says(torch.stack(seen), torch.zeros(look.cells.valid.shape))
        objective = DenseObjective(ObjectiveConfig(), CODEC)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = objective.terms(says, Looks({name: look}), target)
            assert float(found[f"error_{name}_m"]) < 1e-3


@pytest.mark.parametrize("dimensions", [3, 2])
def test_the_likeliest_deviation_of_normal_errors_is_theirs(dimensions: int) -> None:
    pose, true_m = in_room(5), 0.2
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5000, 3, generator=generator)
    rays = torch.tensor([1.0, 0.0, 0.0]).repeat(5000, 1)
    looks = cells_of(points, rays, torch.full((5000,), dimensions == 3), torch.ones(5000, dtype=torch.bool))
    far = 0.0 if dimensions == 3 else 5.0
    predicted = in_map(pose, points + true_m * torch.randn(5000, 3, generator=generator) + far * rays)
    log_std = torch.linspace(math.log(0.1), math.log(0.4), 61)
    losses = [terms(Says(predicted[None], x.expand(1, 5000)), looks, pose)["loss"] for x in log_std]
    assert math.exp(log_std[int(np.argmin(losses))]) == pytest.approx(true_m, rel=0.04)


def test_each_step_looks_at_so_many_cells() -> None:
    seen = []

    class Watches(Says):
        def predict(self, name: str, look: Look, *_: Any) -> tuple[Tensor, Tensor]:
            seen.append(look.cells.points_m[0, :, 0].int().tolist())
            return torch.zeros(1, look.cells.valid.shape[1], 3), torch.zeros(1, look.cells.valid.shape[1])

    points = torch.arange(50.0)[:, None].expand(-1, 3)
    yes = torch.ones(50, dtype=torch.bool)
    objective = DenseObjective(ObjectiveConfig(cells=20), CODEC)
    for seed in range(2):
        torch.manual_seed(seed)
        objective.terms(Watches(points, points), cells_of(points, points, yes, yes), target_of(in_room(0)))
    assert [len(set(cells)) for cells in seen] == [20, 20]
    assert set(seen[0]) != set(seen[1])


def test_half_precision_rounds_neither_geometry_nor_predicted_coordinates() -> None:
    data = room_data([MODALITIES] * 2)
    torch.manual_seed(0)
    model = build_model(TINY, Preprocessor(PREPROCESS).channels).eval()
    model.set_mounts(MOUNTS)
    batch = input_of(data, PREPROCESS)
    exact = model.look(batch)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for name, look in model.look(batch).items():
            assert torch.equal(look.cells.points_m, exact[name].cells.points_m)
            assert torch.equal(look.cells.rays, exact[name].cells.rays)
            coordinates, log_std = model.predict(name, look)
            assert coordinates.dtype == log_std.dtype == torch.float32
            assert float((coordinates != coordinates.bfloat16()).float().mean()) > 0.9


# --- moved pictures ----------------------------------------------------------------------------------------------

MOVING = AugmentConfig(0.0, 0.0, 0.0, rotation_deg=30.0, zoom=1.5)


def sloping(count: int = 5, size: tuple[int, int] = (40, 56)) -> tuple[dict[str, Tensor], Tensor]:
    """A plane's depth, and an image that holds each pixel's own ray (x and y where z is 1)."""
    v, u = torch.meshgrid(torch.arange(size[0]).float(), torch.arange(size[1]).float(), indexing="ij")
    intrinsics = torch.tensor([[50.0, 0.0, 26.0], [0.0, 45.0, 21.0], [0.0, 0.0, 1.0]])
    x, y = (u - 26) / 50, (v - 21) / 45
    depth = 4 / (1 + 0.3 * x - 0.2 * y)  # of the plane z + 0.3 x - 0.2 y = 4
    image = torch.stack([x, y, torch.ones_like(x)])
    pictures = {"image": image, "depth": torch.stack([depth, torch.ones_like(depth)])}
    return {name: p.repeat(count, 1, 1, 1) for name, p in pictures.items()}, intrinsics.repeat(count, 1, 1)


def test_moved_pictures_show_the_same_points_through_their_new_cameras() -> None:
    pictures, intrinsics = sloping()
    moved, cameras, old = move_pixels(pictures, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert not torch.allclose(cameras[0], cameras[1])
    cells = camera_cells(cameras, torch.eye(4, dtype=torch.float64), (40, 56), 1, moved["depth"])
    inside = cells.ranged.unflatten(1, (40, 56))
    assert 0.5 < float(inside.float().mean()) < 1
    normal = torch.tensor([0.3, -0.2, 1.0])
    beside_m = (cells.points_m @ normal - 4)[cells.ranged].abs()
    assert float(beside_m.max()) < 0.05  # the nearest old pixel is within 0.71 pixels: 1.5 cm of depth each
    rays = cells.rays / cells.rays[..., 2:]
    interior = torch.nn.functional.avg_pool2d(inside.float(), 5, 1, 2) > 0.99
    shown = moved["image"].flatten(2).mT[interior.flatten(1)]
    torch.testing.assert_close(shown, rays[interior.flatten(1)], rtol=0, atol=1e-4)
    assert not bool(moved["depth"][:, 0][moved["depth"][:, 1] == 0].any())
    assert old is not None
    assert torch.equal(old, inside)  # the whole plane was measured


def test_an_unknown_camera_stays_unknown_and_a_range_image_stays_as_it_is() -> None:
    pictures, intrinsics = sloping(2)
    intrinsics[1] = torch.nan
    scans = torch.rand(2, 6, 16, 40)
    moved, cameras, _ = move_pixels({**pictures, "lidar": scans}, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert torch.equal(moved["lidar"], scans)
    assert cameras.isfinite().flatten(1).all(dim=1).tolist() == [True, False]


def test_a_lidar_in_the_cameras_view_moves_with_it() -> None:
    pictures, intrinsics = sloping()
    both = {"image": pictures["image"], "lidar": pictures["depth"]}
    moved, _, _ = move_pixels(both, intrinsics, MOVING, torch.Generator().manual_seed(0))
    expected, _, _ = move_pixels(pictures, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert torch.equal(moved["lidar"], expected["depth"])


def test_pictures_of_two_sizes_cannot_be_moved_together() -> None:
    pictures, intrinsics = sloping()
    pictures["depth"] = pictures["depth"][..., :50]
    with pytest.raises(DataError, match=r"differ in size after scaling \(image 40x56, depth 40x50\)"):
        move_pixels(pictures, intrinsics, MOVING, torch.Generator())


def test_cells_that_were_turned_out_of_the_picture_are_invalid_and_nothing_else_changes() -> None:
    """Of a room whose every pixel was measured: what has no depth afterwards shows nothing. Cropped, too."""
    preprocess = replace(RGBD, crop=(40, 44))
    data, rows = room_data([("image", "depth")] * 4, preprocess), torch.arange(4)
    batch = training_input(
        *data.batch(rows, CPU), MOVING, Preprocessor(preprocess), torch.Generator(), data.intrinsics(rows, CPU)
    )
    assert batch.shown is not None
    assert batch.measured is not None
    assert torch.equal(batch.shown, batch.measured["depth"][:, 1] > 0)
    torch.manual_seed(0)
    model = build_model(TINY, {"image": 3, "depth": 2}).eval()
    model.set_mounts(MOUNTS)
    looks, before = model.look(batch), model.look(replace(batch, shown=None))
    shown = batch.shown[:, ::4, ::4].flatten(1)
    assert 0.5 < float(shown.float().mean()) < 0.95
    for name, look in looks.items():
        assert bool(before[name].cells.valid.all())
        assert torch.equal(look.cells.valid, shown)
        assert torch.equal(look.cells.ranged, before[name].cells.ranged)
        assert torch.equal(look.cells.points_m, before[name].cells.points_m)
        assert torch.equal(look.cells.rays, before[name].cells.rays)
        assert torch.equal(look.features, before[name].features)


def test_what_is_not_moved_shows_everything() -> None:
    pictures, intrinsics = sloping()
    still, cameras, shown = move_pixels(pictures, intrinsics, AugmentConfig(0.0, 0.0, 0.0), torch.Generator())
    assert shown is None
    assert torch.equal(cameras, intrinsics)
    assert all(torch.equal(still[name], picture) for name, picture in pictures.items())


# --- frozen features ---------------------------------------------------------------------------------------------


def frozen_model(names: tuple[str, ...] = ("image", "depth"), **changes: Any) -> DenseModel:
    torch.manual_seed(0)
    channels = Preprocessor(PREPROCESS).channels
    model = build_model(replace(TINY, frozen=True, context=True, **changes), {name: channels[name] for name in names})
    model.set_mounts(MOUNTS)
    return model.eval()


def features_of(
    data: PreparedDataset, augmentation: AugmentConfig, config: FrozenConfig, seed: int = 0, rows: Tensor | None = None
) -> FrozenFeatures:
    chosen = torch.arange(len(data)) if rows is None else rows
    preprocess = RGBD if "lidar" not in data.batch(chosen[:1], CPU)[0] else PREPROCESS
    model = frozen_model(preprocess.modalities)
    return FrozenFeatures(model, data, chosen, Preprocessor(preprocess), augmentation, config, seed, CPU)


def flat(features: FrozenFeatures, rows: list[int]) -> Mapping[str, Tensor]:
    tensors, present = features.batch(torch.tensor(rows), CPU)
    return {**tensors, **present}


STRONG = AugmentConfig(0.4, 0.2, 0.0, rotation_deg=20.0, zoom=1.3)


def test_frozen_features_are_what_the_model_sees_of_each_frame() -> None:
    """In some order of cells, the same for features and geometry; 20 frames are more than are computed at once."""
    data = room_data([("image", "depth")] * 20, RGBD)
    features = features_of(data, STRONG, FrozenConfig(views=1, cells=0))
    assert len(features) == 20
    looks = features.looks(*features.batch(torch.arange(20), CPU)).looks
    expected = frozen_model().look(input_of(data, RGBD))
    for name, look in looks.items():
        seen = expected[name]
        assert look.features.shape[2:] == (seen.cells.valid.shape[1], 1)
        for frame in range(20):
            distance = torch.cdist(look.cells.points_m[frame], seen.cells.points_m[frame])
            order = distance.argmin(dim=1)
            assert sorted(order.tolist()) == list(range(len(order)))
            assert torch.equal(look.cells.points_m[frame], seen.cells.points_m[frame, order])
            assert torch.equal(look.cells.rays[frame], seen.cells.rays[frame, order])
            ours, theirs = look.features[frame, :, :, 0].float(), seen.features[frame].flatten(1)[:, order]
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-3)  # kept in half precision
        torch.testing.assert_close(look.context.float(), seen.context, rtol=0.01, atol=1e-3)
    assert [pose.position_m.tolist() for pose in features.poses] == [pose.position_m.tolist() for pose in data.poses]


def test_of_several_views_the_first_is_plain_and_the_others_vary() -> None:
    data = room_data([("image", "depth")] * 3, RGBD)
    features = features_of(data, STRONG, FrozenConfig(views=3, cells=50), rows=torch.tensor([0, 2]))
    assert len(features) == 6
    assert [pose.position_m[0] for pose in features.poses] == [data.poses[i].position_m[0] for i in (0, 2)] * 3
    looks = features.looks(*features.batch(torch.arange(6), CPU)).looks
    model = frozen_model()
    plain = model.look(input_of(data, RGBD, [0, 2]))["depth"].cells
    cells = looks["depth"].cells
    assert cells.points_m.shape == (6, 50, 3)
    for view in range(6):
        distance = torch.cdist(cells.rays[view], plain.rays[view % 2]).min(dim=1).values
        assert (float(distance.max()) < 1e-3) == (view < 2)
    assert not torch.equal(cells.rays[2], cells.rays[4])
    pose = data.poses[0]  # whatever the view, what was measured lies on the walls
    for view in (0, 2, 4):
        measured = cells.points_m[view][cells.ranged[view]]
        on_wall = (in_map(pose, measured).abs() / torch.tensor([12.0, 8.0, 3.0]) - 1).abs().min(dim=1).values
        assert float(on_wall.median()) < 0.02


def test_the_seed_decides_the_views() -> None:
    data = room_data([("image", "depth")] * 2, RGBD)
    one, again, other = (features_of(data, STRONG, FrozenConfig(2, 30), seed) for seed in (0, 0, 1))
    first, second, third = (flat(features, [0, 1, 2, 3]) for features in (one, again, other))
    assert first.keys() == second.keys() == third.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert not torch.equal(first["image.features"], third["image.features"])


def test_frozen_features_know_which_sensors_each_frame_has() -> None:
    data = room_data([("image",), ("image", "depth", "lidar"), ("lidar",), ("depth",)])
    features = features_of(data, AugmentConfig(0.0, 0.0, 0.0), FrozenConfig(1, 20))
    looks = features.looks(*features.batch(torch.tensor([3, 2, 1, 0]), CPU))
    assert len(looks) == 4 or max(len(look.rows) for look in looks.looks.values()) == len(looks)
    assert {name: look.rows.tolist() for name, look in looks.looks.items()} == {
        "image": [2, 3],
        "depth": [0, 2],
        "lidar": [1, 2],
    }
    alone = features.looks(*features.batch(torch.tensor([0]), CPU)).looks
    assert list(alone) == ["image"]
    assert not bool(alone["image"].cells.ranged.any())
    model = frozen_model(MODALITIES)
    objective = DenseObjective(ObjectiveConfig(), CODEC)
    loss = objective(model, looks, torch.from_numpy(CODEC.encode(data.poses[::-1])))
    assert bool(torch.isfinite(loss))


# --- training ----------------------------------------------------------------------------------------------------


def config(**sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
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


def test_training_leaves_frozen_trunks_as_they_were_and_changes_all_else(
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


def test_the_checkpoint_brings_mounts_and_the_place_of_the_map_and_answers_alike(
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
        np.testing.assert_allclose(estimate.map_from_body.position_m, batch.positions_m[number], rtol=0, atol=1e-4)
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0
        assert batch.lost is not None
        assert estimate.confidence == (0.0 if batch.lost[number] else None)


class Cut(Exception):  # noqa: N818 (stands for a power cut, not for an error)
    pass


@pytest.mark.parametrize("frozen", [True, False])
def test_a_resumed_training_ends_as_one_that_was_not_cut(
    frozen: bool, data: PreparedDataset, trained: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    configuration = config() if frozen else config(model={"frozen": False}, optimizer={"epochs": 2})
    whole = trained[0] if frozen else tmp_path / "whole.safetensors"
    if not frozen:
        make_trainer(configuration, data, whole).run(progress=False)
    cut = make_trainer(configuration, data, tmp_path / "cut.safetensors")
    step, steps = cut._step, []

    def count(*arguments: Any) -> Any:
        if len(steps) == cut._steps_per_epoch + 1:
            raise Cut
        steps.append(None)
        return step(*arguments)

    cut._step = count  # type: ignore[method-assign]
    with pytest.raises(Cut):
        cut.run(progress=False)
    resumed = make_trainer(configuration, data, tmp_path / "cut.safetensors")
    resumed.resume()
    resumed.run(progress=False)
    weights, expected = (load_checkpoint(path)[1].state_dict() for path in (tmp_path / "cut.safetensors", whole))
    assert all(torch.equal(x, weights[name]) for name, x in expected.items())


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", True), ("bf16", False), ("fp32", False)])
def test_it_trains_in_either_precision_with_trunks_that_learn_or_not(
    precision: str, frozen: bool, data: PreparedDataset, tmp_path: Path
) -> None:
    values = config(model={"frozen": frozen}, optimizer={"precision": precision, "epochs": 1, "ema_decay": 0.9})
    trainer = make_trainer(values, data, tmp_path / "m.safetensors")
    before = copied(trainer.model)
    assert math.isfinite(trainer.run(progress=False)["median_position_m"])
    after = trainer.model.state_dict()
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert any(".pyramid." in name for name in changed) != frozen


def test_a_lidar_alone_is_trained_with_a_map_of_its_points_that_the_checkpoint_keeps(tmp_path: Path) -> None:
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
def test_turned_or_zoomed_pictures_are_for_dense_systems_alone(
    changes: dict[str, float], data: PreparedDataset, tmp_path: Path
) -> None:
    plain = {"rotation_deg": 0.0, "zoom": 1.0}
    values = config(model={"name": "vmloc", "latent_dim": 8, "frozen": False}, augment={**plain, **changes})
    with pytest.raises(ConfigError, match=r"augment\.zoom change .* not the pose that vmloc learns: set 0 and 1"):
        make_trainer(values, data, tmp_path / "m.safetensors")


def test_only_dense_systems_can_be_frozen(data: PreparedDataset, tmp_path: Path) -> None:
    values = config(model={"name": "vmloc", "latent_dim": 8}, augment={"rotation_deg": 0.0, "zoom": 1.0})
    with pytest.raises(ConfigError, match=r"model\.frozen: vmloc trains its trunks; only dense systems need not"):
        make_trainer(values, data, tmp_path / "m.safetensors")


def test_frames_without_a_known_camera_cannot_be_trained_on(tmp_path: Path) -> None:
    poses = [in_room(number) for number in range(12)]
    frames = [replace(room_frame(pose, ("image", "depth"), i), camera=None) for i, pose in enumerate(poses)]
    unknown = prepared([Sample(frame, pose) for frame, pose in zip(frames, poses, strict=True)], RGBD)
    with pytest.raises(DataError, match="vmloc_dense needs the camera matrix of image and depth, and no frame says it"):
        make_trainer(config(), unknown, tmp_path / "m.safetensors")


# --- twists ------------------------------------------------------------------------------------------------------


def test_twists_are_the_bodys_own_velocities_from_its_neighbours_in_the_recording() -> None:
    """A circle of 5 m at 2 m/s, banked, 10 Hz; then a stop, and a frame by itself."""
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


# --- covariance and confidence of systems that have their own ----------------------------------------------------

NUMBERED = PreprocessConfig(("image",), shortest_side=32)
NUMBERED_CODEC = PoseCodec((1e5, 2e5, 0.0), 30.0, (1.0, 0.0, 0.0, 0.0))


class Solves(PoseModel):
    """Errs by three times what its covariances say in position, twice in rotation; tells what it thinks of an answer.

    A frame's picture holds its number, from which all else is drawn.
    """

    needs_geometry = True

    def __init__(self) -> None:
        super().__init__(("image",))

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        assert batch.measured is not None
        digits = batch.measured["image"][:, :2, 0, 0].long()
        numbers = (digits[:, 0] + 200 * digits[:, 1]).tolist()
        answers = [numbered(number) for number in numbers]
        own = np.stack([covariance for _, _, covariance in answers])
        oddities = np.stack([np.random.default_rng([9, number]).exponential([0.1, 1.0]) for number in numbers])
        poses = [answer for _, answer, _ in answers]
        features = torch.stack([torch.from_numpy(np.random.default_rng([8, n]).normal(size=5)) for n in numbers])
        return Prediction(
            np.stack([pose.position_m for pose in poses]),
            np.stack([pose.quaternion_wxyz for pose in poses]),
            covariances=own,
            features={"image": features.float()},
            oddities=oddities,
        )


def numbered(number: int) -> tuple[Pose, Pose, np.ndarray]:
    """Truth, answer and covariance."""
    rng = np.random.default_rng([7, number])
    truth = Pose.from_xyz_rpy(rng.uniform(0, 50, 3) + NUMBERED_CODEC.origin_m, rng.normal(0, [0.1, 0.1, 2.0]))
    mixing = rng.normal(size=(6, 6)) * np.repeat([0.05, 0.01], 3)[:, None]
    covariance = mixing @ mixing.T + np.diag(np.repeat([0.02, 0.004], 3) ** 2)
    error = np.repeat([3.0, 2.0], 3) * rng.multivariate_normal(np.zeros(6), covariance)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ truth.rotation
    turned[:3, 3] = truth.position_m + error[:3]
    return truth, Pose.from_matrix(turned), covariance


def numbered_data(first: int, count: int) -> PreparedDataset:
    samples = []
    for number in range(first, first + count):
        image = np.zeros((32, 32, 3), np.uint8)
        image[..., 0], image[..., 1] = number % 200, number // 200
        samples.append(Sample(Frame(number * 100_000_000, image), numbered(number)[0]))
    return prepared(samples, NUMBERED)


@pytest.fixture(scope="module")
def calibrated() -> tuple[CheckpointHeader, PreparedDataset]:
    held_out = numbered_data(0, 500)
    header = CheckpointHeader(TINY, NUMBERED, NUMBERED_CODEC, "map", "base_link")
    return calibrate(header, Solves(), held_out, torch.arange(500), CPU), held_out


def test_a_solvers_covariance_is_scaled_until_its_ellipsoids_hold_what_they_say(
    calibrated: tuple[CheckpointHeader, PreparedDataset],
) -> None:
    """On other frames of the kind: 95 % in position and in rotation, from covariances three and two times too small."""
    header, _ = calibrated
    other = numbered_data(500, 500)
    prediction = predict(Solves(), other, torch.arange(500), Preprocessor(NUMBERED), NUMBERED_CODEC, CPU)
    inside = np.zeros(2)
    for row in range(500):
        truth, answer, _ = numbered(500 + row)
        covariance = total_covariance(prediction, row, header.uncertainty, ("image",))
        position = truth.position_m - answer.position_m
        rotation = Rotation.from_matrix(truth.rotation @ answer.rotation.T).as_rotvec()
        for part, error in enumerate((position, rotation)):
            block = covariance[3 * part : 3 * part + 3, 3 * part : 3 * part + 3]
            inside[part] += error @ np.linalg.solve(block, error) < 7.815
    assert (np.abs(inside / 500 - 0.95) < 0.03).all(), inside / 500
    np.testing.assert_allclose(header.uncertainty.inflation, [3.0, 2.0], rtol=0.15)


def test_a_solvers_own_doubts_are_part_of_the_confidence_and_of_the_checkpoint(
    calibrated: tuple[CheckpointHeader, PreparedDataset], tmp_path: Path
) -> None:
    header, held_out = calibrated
    model = Solves()
    memories = remember(header, model, numbered_data(1000, 200), torch.arange(200), CPU)
    confidence = fit_confidence(header, model, held_out, torch.arange(500), memories, CPU)
    assert confidence is not None
    assert len(confidence.tails["image",]) == 2 + 2 + 1  # of the sensor, of the solver, of all
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, header, model.state_dict(), confidence)
    loaded = load_confidence(path)
    assert loaded is not None
    other = predict(model, numbered_data(2000, 400), torch.arange(400), Preprocessor(NUMBERED), NUMBERED_CODEC, CPU)
    seen = {"image": other.features["image"].numpy()}
    poses = other.positions_m, other.quaternions_wxyz
    judged = loaded.judge(("image",), seen, *poses, other.oddities)
    np.testing.assert_array_equal(judged, confidence.judge(("image",), seen, *poses, other.oddities))
    assert abs(np.mean(judged < 0.2) - 0.2) < 0.06  # good frames of the kind: uniform
    for cue, typical in ((0, 0.1), (1, 1.0)):
        odd = other.oddities.copy()
        odd[:, cue] = 12 * typical
        assert float(np.median(loaded.judge(("image",), seen, *poses, odd))) < 0.01
