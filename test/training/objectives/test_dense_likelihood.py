# SPDX-License-Identifier: Apache-2.0
"""Objective of the dense systems: the likelihood of a cell's coordinates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rooms import CODEC, MOUNTS, PREPROCESS, TINY, in_map, in_room, input_of, room_data
from training.data.frozen_features import PrecomputedFeatures
from training.objectives.dense import CellsConfig, DenseObjective
from vmloc_ros.core.frame import MODALITIES
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import build_model
from vmloc_ros.core.models.dense.cell_features import CellFeatures
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

MEAN_LENGTH = {3: math.sqrt(8 / math.pi), 2: math.sqrt(math.pi / 2)}  # of a standard normal vector


class Fixed:
    """A model with given predictions."""

    def __init__(self, points_m: Tensor, log_std: Tensor) -> None:
        self.points_m, self.log_std, self.regions = points_m, log_std, None

    def predict(self, name: str, features: CellFeatures, *_: Any) -> tuple[Tensor, Tensor]:
        return self.points_m, self.log_std


def cells_of(points: Tensor, rays: Tensor, ranged: Tensor, valid: Tensor) -> PrecomputedFeatures:
    """One frame's cells, ``(N, 3)`` and ``(N,)``."""
    cells = Cells(points[None], rays[None], ranged[None], valid[None], torch.zeros(1, len(points)))
    return PrecomputedFeatures(
        {"depth": CellFeatures(torch.tensor([0]), torch.zeros(1, 1, len(points), 1), torch.zeros(1, 1), cells)}
    )


def target_of(pose: Pose) -> Tensor:
    return torch.from_numpy(CODEC.encode([pose]))


def terms(model: Any, cells: PrecomputedFeatures, pose: Pose) -> dict[str, float]:
    objective = DenseObjective(CellsConfig(), CODEC)
    return {name: float(x) for name, x in objective.terms(model, cells, target_of(pose)).items()}


def test_the_loss_is_the_likelihood_of_the_residuals_length_in_closed_form() -> None:
    """A cell with a measured point, one with a ray, whose point is ahead of the sensor, and an invalid one."""
    pose = in_room(3)
    points = torch.tensor([[2.0, 1.0, 0.5], [0.1, 0.2, 0.3], [9.0, 9.0, 9.0]])
    rays = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8], [1.0, 0.0, 0.0]])
    ranged, valid = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    offsets = torch.tensor([[0.3, 0.4, 1.2], [0.0, 0.25, 0.0], [50.0, 0.0, 0.0]])  # the second one across its ray
    predicted = in_map(pose, points + offsets + torch.tensor([[0.0], [7.0], [0.0]]) * rays)
    std = torch.tensor([[0.5, 0.1, 3.0]])
    found = terms(Fixed(predicted[None], torch.log(std)), cells_of(points, rays, ranged, valid), pose)
    expected = [
        3 * (1.3 / MEAN_LENGTH[3] / 0.5 + math.log(0.5)),
        2 * (0.25 / MEAN_LENGTH[2] / 0.1 + math.log(0.1 / 7)),  # of a direction
    ]
    assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["error_depth_m"] == pytest.approx((1.3 + 0.25) / 2, rel=1e-4)


def test_a_point_behind_the_sensor_is_as_far_from_the_ray_as_from_the_sensor() -> None:
    pose, ray = in_room(4), torch.tensor([[0.0, 0.6, 0.8]])
    yes, no = torch.tensor([True]), torch.tensor([False])
    centre = torch.tensor([[0.4, 0.0, 1.2]])
    cells = cells_of(centre, ray, no, yes)
    for depth, expected in ((5.0, 0.0), (-5.0, 5.0)):
        model = Fixed(in_map(pose, centre + depth * ray)[None], torch.zeros(1, 1))
        assert terms(model, cells, pose)["error_depth_m"] == pytest.approx(expected, abs=0.11)  # rays begin at 0.1 m


def test_an_angular_error_costs_the_same_at_any_depth_and_the_cameras_own_position_costs_more() -> None:
    pose, ray = in_room(6), torch.tensor([[0.0, 0.6, 0.8]])
    across, centre = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.0, 1.2]])
    cells = cells_of(centre, ray, torch.tensor([False]), torch.tensor([True]))
    losses = []
    for depth in (0.5, 5.0, 50.0):  # one degree off, with a deviation to match
        predicted = in_map(pose, centre + depth * (ray + 0.0175 * across))[None]
        losses.append(terms(Fixed(predicted, torch.full((1, 1), math.log(0.0175 * depth))), cells, pose)["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-2)
    for std in (0.005, 0.02, 0.1, 1.0):
        at_camera = Fixed(in_map(pose, centre)[None], torch.full((1, 1), math.log(std)))
        assert terms(at_camera, cells, pose)["loss"] > losses[0] + 5


def test_residuals_of_true_points_are_zero() -> None:
    """Also with a rotated reference, an origin in UTM, and under autocast."""
    data = room_data([MODALITIES] * 2)
    torch.manual_seed(0)
    model = build_model(TINY, Preprocessor(PREPROCESS).channels).eval()
    model.set_mounts(MOUNTS)
    cells = model.cell_features(input_of(data, PREPROCESS))
    target = torch.from_numpy(CODEC.encode(data.poses))
    for name, features in cells.items():
        seen = [in_map(pose, points + 3 * rays * ~ranged.unsqueeze(1)) for pose, points, rays, ranged in zip(
            data.poses, features.cells.points_m, features.cells.rays, features.cells.ranged, strict=True)]  # fmt: skip
        fixed = Fixed(torch.stack(seen), torch.zeros(features.cells.valid.shape))
        objective = DenseObjective(CellsConfig(), CODEC)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = objective.terms(fixed, PrecomputedFeatures({name: features}), target)
            assert float(found[f"error_{name}_m"]) < 1e-3


@pytest.mark.parametrize("dimensions", [3, 2])
def test_the_loss_is_least_at_the_standard_deviation_of_normal_errors(dimensions: int) -> None:
    pose, true_m = in_room(5), 0.2
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5000, 3, generator=generator)
    rays = torch.tensor([1.0, 0.0, 0.0]).repeat(5000, 1)
    cells = cells_of(points, rays, torch.full((5000,), dimensions == 3), torch.ones(5000, dtype=torch.bool))
    far = 0.0 if dimensions == 3 else 5.0
    predicted = in_map(pose, points + true_m * torch.randn(5000, 3, generator=generator) + far * rays)
    log_std = torch.linspace(math.log(0.1), math.log(0.4), 61)
    losses = [terms(Fixed(predicted[None], x.expand(1, 5000)), cells, pose)["loss"] for x in log_std]
    assert math.exp(log_std[int(np.argmin(losses))]) == pytest.approx(true_m, rel=0.04)


def test_each_step_uses_a_random_choice_of_the_configured_number_of_cells() -> None:
    seen = []

    class Recording(Fixed):
        def predict(self, name: str, features: CellFeatures, *_: Any) -> tuple[Tensor, Tensor]:
            seen.append(features.cells.points_m[0, :, 0].int().tolist())
            return torch.zeros(1, features.cells.valid.shape[1], 3), torch.zeros(1, features.cells.valid.shape[1])

    points = torch.arange(50.0)[:, None].expand(-1, 3)
    yes = torch.ones(50, dtype=torch.bool)
    objective = DenseObjective(CellsConfig(cells=20), CODEC)
    for seed in range(2):
        torch.manual_seed(seed)
        objective.terms(Recording(points, points), cells_of(points, points, yes, yes), target_of(in_room(0)))
    assert [len(set(cells)) for cells in seen] == [20, 20]
    assert set(seen[0]) != set(seen[1])


def test_half_precision_rounds_neither_geometry_nor_predicted_coordinates() -> None:
    data = room_data([MODALITIES] * 2)
    torch.manual_seed(0)
    model = build_model(TINY, Preprocessor(PREPROCESS).channels).eval()
    model.set_mounts(MOUNTS)
    batch = input_of(data, PREPROCESS)
    exact = model.cell_features(batch)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for name, features in model.cell_features(batch).items():
            assert torch.equal(features.cells.points_m, exact[name].cells.points_m)
            assert torch.equal(features.cells.rays, exact[name].cells.rays)
            coordinates, log_std = model.predict(name, features)
            assert coordinates.dtype == log_std.dtype == torch.float32
            assert float((coordinates != coordinates.bfloat16()).float().mean()) > 0.9
