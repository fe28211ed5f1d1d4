# SPDX-License-Identifier: Apache-2.0
"""Large maps in regions: classification of frames, selection of a region's pose, and training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rooms import CODEC, CPU, MOUNTS, ORIGIN_M, PREPROCESS, TINY, in_room, input_of, prepared, room_data, room_frame
from training.config import parse_config
from training.data.dataset import PreparedDataset
from training.objectives.dense import CellsConfig, DenseObjective
from training.prediction import predict
from training.trainer.map_extent import cluster_positions, set_map_extent
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import DenseModel, ModelInput, Prediction, model_config
from vmloc_ros.core.models.dense.cell_features import CellFeatures
from vmloc_ros.core.models.dense.pose_set import PoseSet
from vmloc_ros.core.models.dense.regions import Regions
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

RGBD = replace(PREPROCESS, modalities=("image", "depth"))
RANGED = replace(PREPROCESS, modalities=("depth", "lidar"))
NAMES = ("image", "depth")


# --- which region ------------------------------------------------------------------------------------------------


def test_places_are_the_means_of_groups_of_positions() -> None:
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0, 0], [50, 0, 0], [50, 40, 0], [-30, 10, 5]])
    groups = [middle + rng.normal(0, 1, (20 + 30 * i, 3)) for i, middle in enumerate(middles)]
    positions = rng.permutation(np.concatenate(groups))
    places = cluster_positions(positions, 4)
    expected = np.array([group.mean(axis=0) for group in groups])
    order = np.lexsort(places.T)
    np.testing.assert_allclose(places[order], expected[np.lexsort(expected.T)], atol=1e-9)
    np.testing.assert_allclose(cluster_positions(positions, 1)[0], positions.mean(axis=0), atol=1e-9)


def test_more_regions_than_places_are_rejected() -> None:
    positions = np.repeat(np.array([[0.0, 0, 0], [1, 0, 0]]), 5, axis=0)
    assert len(cluster_positions(positions, 2)) == 2
    with pytest.raises(DataError, match=r"training frames are at 2 places, too few for model\.regions: 3"):
        cluster_positions(positions, 3)


def test_frames_belong_to_the_nearest_place_and_halfway_to_two() -> None:
    regions = Regions(3, {})
    regions.places_m.copy_(torch.tensor([[0.0, 0, 0], [60, 0, 0], [120, 0, 0]]))
    shares = regions.shares(torch.tensor([[0.0, 0, 0], [30, 5, 0], [110, 0, 0], [900, 0, 0]]).double())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    expected = [[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]]
    torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.06)


# --- selection of a region ---------------------------------------------------------------------------------------


class Town(DenseModel):
    """Three regions, each of which predicts the true coordinates plus its own shift, or random coordinates.

    Attributes:
        truth: of the batch.
        opinions: by modality, probabilities of the regions for each row.
        shifts_m: of each region's coordinates; None for random ones.
    """

    truth: Sequence[Pose]
    opinions: dict[str, list[list[float]]]
    shifts_m: Sequence[float | None] = (0.0, None, None)

    def cell_features(self, batch: ModelInput) -> dict[str, CellFeatures]:
        self.whole = super().cell_features(batch)
        return self.whole

    def predict(self, name: str, look: CellFeatures, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert regions is not None
        known = list(self.whole[name].cells.points_m.nan_to_num())
        points = []
        for number, measured in enumerate(look.cells.points_m.nan_to_num()):
            # A part of the batch has rows of its own: the frame is known by what was measured.
            row = int(self.whole[name].rows[[torch.equal(measured, other) for other in known].index(True)])
            pose, shift = self.truth[row], self.shifts_m[int(regions[number])]
            local = torch.from_numpy(pose.position_m - np.asarray(ORIGIN_M))
            exact = look.cells.points_m[number].double() @ torch.from_numpy(pose.rotation).T + local
            scattered = 20 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
            points.append((scattered if shift is None else exact + torch.tensor([shift, 0.0, 0.0])).float())
        return torch.stack(points), torch.full(look.cells.valid.shape, math.log(0.02))


def town(count: int, opinions: dict[str, list[list[float]]], shifts_m: Sequence[float | None]) -> tuple[Town, Any]:
    data = room_data([("depth", "lidar")] * count, RANGED)
    torch.manual_seed(0)
    model = Town(replace(TINY, regions=3), Preprocessor(RANGED).channels).eval()
    model.set_mounts(MOUNTS)
    model.set_extent(torch.zeros(3), torch.tensor(100.0))
    assert model.regions is not None
    model.regions.extents_m.fill_(10.0)
    model.truth, model.opinions, model.shifts_m = data.poses, opinions, shifts_m
    for name in model.modalities:
        classifier = model.regions.classifiers[name]
        classifier[-1].weight.data.zero_()  # the same output for every frame
        classifier[-1].bias.data.copy_(torch.tensor(opinions[name][0]).log())
    return model, input_of(data, RANGED)


def off_m(prediction: Prediction, truth: Sequence[Pose]) -> np.ndarray:
    return np.asarray([x - pose.position_m for x, pose in zip(prediction.positions_m, truth, strict=True)])


def ambiguity(prediction: Prediction) -> np.ndarray:
    assert prediction.outlier_scores is not None
    return prediction.outlier_scores[:, 2]


def doubt(prediction: Prediction) -> np.ndarray:
    assert prediction.outlier_scores is not None
    return prediction.outlier_scores[:, 3]


def test_of_the_two_likeliest_regions_the_one_with_more_inliers_gives_the_pose() -> None:
    opinions = {name: [[0.2, 0.7, 0.1]] for name in ("depth", "lidar")}
    model, batch = town(2, opinions, (0.0, None, None))
    prediction = model.locate(batch, CODEC)
    np.testing.assert_allclose(off_m(prediction, model.truth), 0.0, atol=0.02)
    np.testing.assert_array_equal(ambiguity(prediction), 0.0)
    np.testing.assert_array_equal(doubt(prediction), 0.0)


def test_only_ambiguous_frames_are_solved_again_and_each_as_if_it_were_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frames: certain, correct; ambiguous, second region correct; certain, wrong; ambiguous, first region correct."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, 0.4]])
    data = room_data([("depth", "lidar")] * 4, RANGED)
    model, _ = town(4, {name: [[0.4, 0.3, 0.3]] for name in ("depth", "lidar")}, (0.0, None, None))
    asked: list[int] = []
    answer = DenseModel._solve

    def count(self: DenseModel, looks: Any, number: int, regions: Tensor) -> PoseSet:
        asked.append(number)
        return answer(self, looks, number, regions)

    def located(chosen: list[int]) -> Prediction:
        opinion = torch.log(rows[chosen] + 1e-9)
        monkeypatch.setattr(Regions, "log_probabilities", lambda self, name, context: opinion)
        model.truth = [data.poses[row] for row in chosen]
        return model.locate(input_of(data, RANGED, chosen), CODEC)

    monkeypatch.setattr(DenseModel, "_solve", count)
    whole = located([0, 1, 2, 3])
    assert asked == [4, 2]
    np.testing.assert_allclose(off_m(whole, data.poses)[[0, 1, 3]], 0.0, atol=0.02)
    assert whole.lost is not None
    assert whole.lost.tolist() == [False, False, True, False]
    for row in range(4):
        alone = located([row])
        np.testing.assert_allclose(whole.positions_m[row], alone.positions_m[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(ambiguity(whole)[row], ambiguity(alone)[0], atol=1e-4)


def test_a_region_of_negligible_probability_is_not_solved() -> None:
    opinions = {name: [[0.01, 0.98, 0.01]] for name in ("depth", "lidar")}
    model, batch = town(1, opinions, (0.0, None, None))
    prediction = model.locate(batch, CODEC)
    assert prediction.lost is not None
    assert prediction.lost.all()
    assert prediction.covariances is not None
    np.testing.assert_allclose(prediction.covariances[0, 0, 0], 100.0**2)  # anywhere in the map, not in a region


def test_probabilities_of_the_sensors_multiply() -> None:
    """Depth takes region 0 for the likeliest, lidar region 2; both together it is region 1."""
    opinions = {"depth": [[0.55, 0.44, 0.01]], "lidar": [[0.01, 0.44, 0.55]]}
    model, batch = town(1, opinions, (4.0, 0.0, 8.0))
    np.testing.assert_allclose(off_m(model.locate(batch, CODEC), model.truth), 0.0, atol=0.02)
    for name, shift_m in (("depth", 4.0), ("lidar", 8.0)):
        alone = {other: x & (other == name) for other, x in batch.present.items()}
        found = off_m(model.locate(replace(batch, present=alone), CODEC), model.truth)
        np.testing.assert_allclose(found, [[shift_m, 0.0, 0.0]], atol=0.02)


def test_two_places_that_look_the_same_are_ambiguous_and_one_place_in_two_regions_is_not() -> None:
    opinions = {name: [[0.5, 0.5, 0.0001]] for name in ("depth", "lidar")}
    model, batch = town(1, opinions, (0.0, 30.0, None))
    np.testing.assert_allclose(ambiguity(model.locate(batch, CODEC)), 1.0, atol=0.05)
    model.shifts_m = (0.0, 0.2, None)
    np.testing.assert_array_equal(ambiguity(model.locate(batch, CODEC)), 0.0)
    np.testing.assert_array_equal(doubt(model.locate(batch, CODEC)), 0.0)


def test_where_cells_agree_in_any_region_the_region_probability_shows_the_ambiguity() -> None:
    opinions = {name: [[0.6, 0.3, 0.0001]] for name in ("depth", "lidar")}
    model, batch = town(1, opinions, (0.0, 30.0, None))
    prediction = model.locate(batch, CODEC)
    first = abs(float(off_m(prediction, model.truth)[0, 0])) < 1
    np.testing.assert_allclose(doubt(prediction), 0.3**2 / 0.6**2 if first else 1.0, rtol=1e-4)


# --- training ------------------------------------------------------------------------------------------------------


def two_rooms(count: int = 24) -> PreparedDataset:
    """Frames of two rooms of the same shape, 100 m apart, with different images."""
    samples = []
    for number in range(count):
        pose, frame = in_room(number), room_frame(in_room(number), NAMES, number)
        if number % 2:
            pose = Pose(pose.position_m + np.array([100.0, 0.0, 0.0]), pose.quaternion_wxyz)
            frame = replace(frame, image=np.full_like(frame.image, 250))
        samples.append(Sample(frame, pose))
    return prepared(samples, RGBD)


def test_each_region_is_placed_where_its_own_frames_measure() -> None:
    data = two_rooms()
    model = DenseModel(replace(TINY, regions=2), Preprocessor(RGBD).channels)
    model.set_mounts(MOUNTS)
    set_map_extent(model, data, torch.arange(len(data)), Preprocessor(RGBD), CODEC, CPU)
    regions = model.regions
    assert regions is not None
    west = int(regions.places_m[:, 0].argmin())
    positions = np.stack([pose.position_m for pose in data.poses]) - ORIGIN_M
    np.testing.assert_allclose(regions.places_m[west], positions[::2].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(regions.places_m[1 - west], positions[1::2].mean(axis=0), atol=1e-3)
    seen = [
        [
            cells.points_m[row][cells.ranged[row]].double().numpy() @ pose.rotation.T + pose.position_m - ORIGIN_M
            for row, pose in enumerate(data.poses)
        ]
        for _, cells in model.geometry(input_of(data, RGBD))
    ]
    for region, first in ((west, 0), (1 - west, 1)):
        points = np.concatenate([points for modality in seen for points in modality[first::2]])
        np.testing.assert_allclose(regions.centres_m[region], points.mean(axis=0), atol=1e-2)
        np.testing.assert_allclose(regions.extents_m[region], np.sqrt(points.var(axis=0).mean()), rtol=1e-3)
    assert float(model.extent_m) > 2 * float(regions.extents_m.max())


def test_the_loss_adds_each_classifiers_cross_entropy_to_the_cells_likelihood() -> None:
    data = two_rooms(4)
    torch.manual_seed(0)
    model = DenseModel(replace(TINY, regions=2), Preprocessor(RGBD).channels).eval()
    model.set_mounts(MOUNTS)
    set_map_extent(model, data, torch.arange(4), Preprocessor(RGBD), CODEC, CPU)
    assert model.regions is not None
    batch, target = input_of(data, RGBD), torch.from_numpy(CODEC.encode(data.poses))
    objective = DenseObjective(CellsConfig(), CODEC)
    before = float(objective.terms(model, batch, target)["loss"].detach())
    looks = model.cell_features(batch)
    for name in NAMES:
        probabilities = torch.softmax(model.regions.classifiers[name](looks[name].context), dim=1)
        west = int(model.regions.places_m[:, 0].argmin())
        right = [west if number % 2 == 0 else 1 - west for number in range(4)]
        entropy = float(-torch.log(probabilities[torch.arange(4), right]).mean().detach())
        with torch.no_grad():
            model.regions.classifiers[name][-1].bias += torch.tensor([0.7, -0.2])
        changed = torch.softmax(model.regions.classifiers[name](looks[name].context), dim=1)
        after = float(objective.terms(model, batch, target)["loss"].detach())
        expected = float(-torch.log(changed[torch.arange(4), right]).mean().detach()) - entropy
        # A frame belongs by 1e-4 to the other room, and a loss of 20 in single precision is rounded at 1e-6.
        np.testing.assert_allclose(after - before, expected, rtol=0, atol=5e-4)
        before = after


def test_a_trained_map_distinguishes_its_two_rooms_and_its_checkpoint_predicts_alike(tmp_path: Path) -> None:
    data = two_rooms()
    values = {
        "model": {
            **{key: getattr(TINY, key) for key in ("name", "backbone", "hidden_dim", "cell_blocks")},
            "regions": 2,
        },
        "preprocess": {"modalities": list(NAMES), "shortest_side": 48},
        "augment": {"modality_dropout": 0.0, "colour_jitter": 0.0, "measurement_dropout": 0.0},
        "optimizer": {"epochs": 20, "batch_size": 8, "learning_rate": 3e-3},
        "validation": {"every": 0},
        "pretrained": False,
    }
    out = tmp_path / "town.safetensors"
    trainer = Trainer(
        parse_config(values, None, "test"), data, out, map_frame="map", body_frame="base_link", device=CPU
    )
    trainer.run(progress=False)
    header, model = load_checkpoint(out)
    assert isinstance(model, DenseModel)
    assert model.regions is not None
    batch = input_of(data, RGBD)
    opinions = model.regions.log_probabilities("image", model.cell_features(batch)["image"].context)
    nearest = torch.tensor([0 if number % 2 == 0 else 1 for number in range(len(data))])
    if model.regions.places_m[0, 0] > model.regions.places_m[1, 0]:
        nearest = 1 - nearest
    assert torch.equal(opinions.argmax(dim=1), nearest)
    first = predict(model, data, torch.arange(4), Preprocessor(header.preprocess), header.pose_codec, CPU)
    trainer.model.load_state_dict(model.state_dict())
    second = predict(
        trainer.model.eval(), data, torch.arange(4), Preprocessor(header.preprocess), header.pose_codec, CPU
    )
    # Solving makes some 1e-5 m of how single precision rounds the cells' coordinates, on another processor more.
    np.testing.assert_allclose(first.positions_m, second.positions_m, rtol=0, atol=2e-3)


def test_there_is_at_least_one_region() -> None:
    with pytest.raises(ConfigError, match="regions, hypotheses must be positive"):
        model_config("vmloc_dense", regions=0)
