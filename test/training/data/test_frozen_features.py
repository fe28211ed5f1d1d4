# SPDX-License-Identifier: Apache-2.0
"""Features of frozen encoders, computed once and drawn from in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rooms import CODEC, CPU, MOUNTS, PREPROCESS, TINY, in_map, input_of, room_data
from training.data.augment import AugmentConfig
from training.data.dataset import PreparedDataset
from training.data.frozen_features import FrozenConfig, FrozenFeatures, PrecomputedFeatures
from training.objectives.dense import CellsConfig, DenseObjective
from vmloc_ros.core.frame import MODALITIES
from vmloc_ros.core.models import DenseModel, build_model
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

RGBD = replace(PREPROCESS, modalities=("image", "depth"))


def frozen_model(names: tuple[str, ...] = ("image", "depth"), **changes: Any) -> DenseModel:
    torch.manual_seed(0)
    channels = Preprocessor(PREPROCESS).channels
    model = build_model(replace(TINY, frozen=True, context=True, **changes), {name: channels[name] for name in names})
    model.set_mounts(MOUNTS)
    return model.eval()


def compute(
    data: PreparedDataset, augmentation: AugmentConfig, config: FrozenConfig, seed: int = 0, rows: Tensor | None = None
) -> FrozenFeatures:
    chosen = torch.arange(len(data)) if rows is None else rows
    preprocess = RGBD if "lidar" not in data.batch(chosen[:1], CPU)[0] else PREPROCESS
    model = frozen_model(preprocess.modalities)
    return FrozenFeatures(model, data, chosen, Preprocessor(preprocess), augmentation, config, seed, CPU)


def in_step(features: FrozenFeatures, rows: torch.Tensor) -> PrecomputedFeatures:
    """What a training step gets of the rows."""
    return features.step_input(rows, *features.batch(rows, CPU), torch.Generator())


def flat(features: FrozenFeatures, rows: list[int]) -> Mapping[str, Tensor]:
    tensors, present = features.batch(torch.tensor(rows), CPU)
    return {**tensors, **present}


STRONG = AugmentConfig(0.4, 0.2, 0.0, rotation_deg=20.0, zoom=1.3)


def test_frozen_features_are_what_the_model_sees_of_each_frame() -> None:
    """In some order of cells, the same for features and geometry; 20 frames are more than are computed at once."""
    data = room_data([("image", "depth")] * 20, RGBD)
    features = compute(data, STRONG, FrozenConfig(views=1, cells=0))
    assert len(features) == 20
    computed = in_step(features, torch.arange(20)).by_modality
    expected = frozen_model().cell_features(input_of(data, RGBD))
    for name, found in computed.items():
        seen = expected[name]
        assert found.features.shape[2:] == (seen.cells.valid.shape[1], 1)
        for frame in range(20):
            distance = torch.cdist(found.cells.points_m[frame], seen.cells.points_m[frame])
            order = distance.argmin(dim=1)
            assert sorted(order.tolist()) == list(range(len(order)))
            assert torch.equal(found.cells.points_m[frame], seen.cells.points_m[frame, order])
            assert torch.equal(found.cells.rays[frame], seen.cells.rays[frame, order])
            ours, theirs = found.features[frame, :, :, 0].float(), seen.features[frame].flatten(1)[:, order]
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-3)  # kept in half precision
        torch.testing.assert_close(found.context.float(), seen.context, rtol=0.01, atol=1e-3)
    assert [pose.position_m.tolist() for pose in features.poses] == [pose.position_m.tolist() for pose in data.poses]


def test_of_several_views_the_first_is_plain_and_the_others_vary() -> None:
    data = room_data([("image", "depth")] * 3, RGBD)
    features = compute(data, STRONG, FrozenConfig(views=3, cells=50), rows=torch.tensor([0, 2]))
    assert len(features) == 6
    assert [pose.position_m[0] for pose in features.poses] == [data.poses[i].position_m[0] for i in (0, 2)] * 3
    computed = in_step(features, torch.arange(6)).by_modality
    model = frozen_model()
    plain = model.cell_features(input_of(data, RGBD, [0, 2]))["depth"].cells
    cells = computed["depth"].cells
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
    one, again, other = (compute(data, STRONG, FrozenConfig(2, 30), seed) for seed in (0, 0, 1))
    first, second, third = (flat(features, [0, 1, 2, 3]) for features in (one, again, other))
    assert first.keys() == second.keys() == third.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert not torch.equal(first["image.features"], third["image.features"])


def test_frozen_features_store_which_sensors_each_frame_has() -> None:
    data = room_data([("image",), ("image", "depth", "lidar"), ("lidar",), ("depth",)])
    features = compute(data, AugmentConfig(0.0, 0.0, 0.0), FrozenConfig(1, 20))
    batch = in_step(features, torch.tensor([3, 2, 1, 0]))
    assert {name: found.rows.tolist() for name, found in batch.by_modality.items()} == {
        "image": [2, 3],
        "depth": [0, 2],
        "lidar": [1, 2],
    }
    alone = in_step(features, torch.tensor([0])).by_modality
    assert list(alone) == ["image"]
    assert not bool(alone["image"].cells.ranged.any())
    model = frozen_model(MODALITIES)
    objective = DenseObjective(CellsConfig(), CODEC)
    loss = objective.terms(model, batch, torch.from_numpy(CODEC.encode(data.poses[::-1])))["loss"]
    assert bool(torch.isfinite(loss))
