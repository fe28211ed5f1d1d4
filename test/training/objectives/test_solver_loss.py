# SPDX-License-Identifier: Apache-2.0
"""The likelihood of true poses under the solver's solution, as a part of the dense objective."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_t
from torch import Tensor, nn

from rooms import CODEC, CPU, MOUNTS, ORIGIN_M, PREPROCESS, TINY, in_room, input_of, room_data, room_point
from training.config import parse_config
from training.data.frozen_features import PrecomputedFeatures
from training.objectives.dense import CellsConfig, DenseObjective, solver_loss
from training.trainer.trainer import Trainer
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import build_model
from vmloc_ros.core.models.dense.cell_features import CellFeatures, correspondences
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.correspondences import Correspondences
from vmloc_ros.core.models.dense.solver import solve
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

SPREAD_M = 10.0
FREEDOM = 4


def frames(kind: str, batch: int, cells: int, std: float, seed: int = 0) -> tuple[Correspondences, Tensor, Tensor]:
    """Cells around the body with errors of the given standard deviation; rotations and translations, float64."""
    rng = np.random.default_rng(seed)
    R, t = Rotation.random(batch, random_state=seed).as_matrix(), rng.uniform(-2, 2, (batch, 3))
    rays = rng.normal(size=(batch, cells, 3))
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    body = rays * rng.uniform(1, 4, (batch, cells, 1))
    predicted = np.einsum("bij,bmj->bmi", R, body) + t[:, None] + std * rng.normal(size=body.shape)
    ranged = np.broadcast_to({"points": True, "rays": False, "both": np.arange(cells) % 2 == 0}[kind], (batch, cells))
    c = Correspondences(
        torch.from_numpy(predicted),
        torch.full((batch, cells), max(std, 0.05), dtype=torch.float64),
        torch.from_numpy(np.where(ranged[..., None], body, 0.0)),
        torch.from_numpy(rays),
        torch.from_numpy(ranged.copy()),
        torch.ones(batch, cells, dtype=torch.bool),
    )
    return c, torch.from_numpy(R), torch.from_numpy(t)


def with_predictions(c: Correspondences, points: Tensor, std: Tensor) -> Correspondences:
    return Correspondences(points, std, c.points_m, c.rays, c.ranged, c.valid)


@pytest.mark.parametrize(
    ("shift_m", "turn_rad", "std_m"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0.05),
        ([0.01, -0.02, 0.005], [0.0, 0.0, 0.0], 0.05),
        ([0.01, -0.02, 0.005], [0.004, 0.001, -0.003], 0.05),
        ([0.2, 0.1, -0.3], [0.03, 0.1, 0.02], 0.2),
    ],
)
def test_the_loss_is_the_density_of_a_t_distribution_about_the_solution(
    shift_m: list[float], turn_rad: list[float], std_m: float
) -> None:
    """All cells are moved rigidly: solution and information matrix are known in closed form."""
    c, R, t = frames("points", 1, 50, 0.0)
    turn = torch.from_numpy(Rotation.from_rotvec(turn_rad).as_matrix())
    lever = c.map_points_m - t
    moved = with_predictions(c, lever @ turn.T + t + torch.tensor(shift_m), torch.full_like(c.std_m, std_m))
    loss, watched = solver_loss(moved, R, t, SPREAD_M)

    information = np.zeros((6, 6))
    for x, y, z in (lever @ turn.T)[0].numpy():
        jacobian = np.hstack([np.eye(3), [[0, z, -y], [-z, 0, x], [y, -x, 0]]])
        information += jacobian.T @ jacobian / std_m**2
    error = -np.array([*shift_m, *turn_rad])
    density = multivariate_t(np.zeros(6), np.linalg.inv(information), df=FREEDOM)
    constant = math.lgamma((FREEDOM + 6) / 2) - math.lgamma(FREEDOM / 2) - 3 * math.log(FREEDOM * math.pi)
    assert float(loss) == pytest.approx(constant - density.logpdf(error), abs=0.02)
    assert float(watched["solver_m"]) == pytest.approx(np.linalg.norm(shift_m), abs=1e-6)
    assert float(watched["solver_nees"]) == pytest.approx(error @ information @ error / 6, rel=5e-3, abs=1e-9)


@pytest.mark.parametrize("kind", ["points", "rays", "both"])
def test_the_gradient_agrees_with_finite_differences(kind: str) -> None:
    c, R, t = frames(kind, 2, 9, 0.03)

    def value(points: Tensor, std: Tensor) -> Tensor:
        return solver_loss(with_predictions(c, points, std), R, t, SPREAD_M)[0]

    inputs = c.map_points_m.clone().requires_grad_(), c.std_m.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-3, rtol=1e-3)


def test_the_loss_is_least_at_deviations_that_make_the_covariance_consistent() -> None:
    """400 frames with errors of 0.1 m; the deviations are scaled by factors from 0.5 to 2."""
    c, R, t = frames("both", 400, 20, 0.1)
    factors = np.geomspace(0.5, 2, 15)
    found = [solver_loss(with_predictions(c, c.map_points_m, c.std_m * f), R, t, SPREAD_M) for f in factors]
    best = int(np.argmin([float(loss) for loss, _ in found]))
    # The t distribution that fits normal errors best is about a fifth narrower.
    assert 0.7 < factors[best] < 1.05
    assert float(found[7][1]["solver_nees"]) == pytest.approx(1.0, abs=0.15)


def test_unsolved_frames_add_neither_loss_nor_gradient() -> None:
    c, R, t = frames("both", 3, 40, 0.03)
    broken = c.map_points_m.clone()
    broken[1] = 100 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    broken[2, 3] = torch.inf
    points, std = broken.requires_grad_(), c.std_m.clone().requires_grad_()
    both = with_predictions(c, points, std)
    loss, _ = solver_loss(both, R, t, SPREAD_M)
    others = torch.tensor([0, 2])
    expected, _ = solver_loss(both.at(others), R[others], t[others], SPREAD_M)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    loss.backward()
    for gradient in (points.grad, std.grad):
        assert gradient is not None
        assert bool(torch.isfinite(gradient).all())
        assert not bool(gradient[1].any())
        assert bool(gradient[0].all())
        assert bool(gradient[2].any())

    points, std = broken.detach().clone().requires_grad_(), c.std_m.clone().requires_grad_()
    one = torch.tensor([1])
    loss, watched = solver_loss(with_predictions(c, points, std).at(one), R[one], t[one], SPREAD_M)
    loss.backward()
    assert [float(x.detach()) for x in (loss, *watched.values())] == [0.0] * 3
    assert points.grad is not None
    assert std.grad is not None
    assert not bool(points.grad.any() | std.grad.any())


def test_the_objective_adds_the_loss_for_the_cells_of_all_present_sensors() -> None:
    data = room_data([("image", "depth", "lidar"), ("depth",), ("lidar",), ("image", "lidar")])
    torch.manual_seed(0)
    model = build_model(TINY, Preprocessor(PREPROCESS).channels).eval()
    model.set_mounts(MOUNTS)
    by_modality = model.cell_features(input_of(data, PREPROCESS))
    seen = near_truth(by_modality, data.poses)
    target = torch.from_numpy(CODEC.encode(data.poses))
    objectives = (DenseObjective(CellsConfig(solver_weight=w), CODEC) for w in (0.0, 0.25))
    plain, weighted = (objective.terms(seen, PrecomputedFeatures(by_modality), target) for objective in objectives)
    assert set(weighted) - set(plain) == {"solver_m", "solver_nees"}
    c, _ = correspondences(
        by_modality, {name: seen.predict(name, features) for name, features in by_modality.items()}, 4
    )
    R = torch.from_numpy(np.stack([pose.rotation for pose in data.poses]))
    t = torch.from_numpy(np.stack([pose.position_m - ORIGIN_M for pose in data.poses]))
    term, _ = solver_loss(c, R, t, 8.0)
    assert float(weighted["loss"] - plain["loss"]) == pytest.approx(0.25 * float(term), rel=1e-3)
    assert float(weighted["solver_m"]) < 0.02


class NearTruth:
    """A model whose predictions have errors of 0.1 m."""

    extent_m, regions = torch.tensor(8.0), None

    def __init__(self, points_m: dict[str, Tensor]) -> None:
        self.points_m = points_m

    def predict(self, name: str, features: CellFeatures, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.points_m[name], torch.full(features.cells.valid.shape, math.log(0.1))


def near_truth(by_modality: dict[str, CellFeatures], poses: list[Pose]) -> NearTruth:
    places = {}
    for name, features in by_modality.items():
        rows = features.rows.tolist()
        R = torch.from_numpy(np.stack([poses[row].rotation for row in rows])).float()
        t = torch.from_numpy(np.stack([poses[row].position_m - ORIGIN_M for row in rows])).float()
        seen = (
            features.cells.points_m + torch.where(features.cells.ranged, 0.0, 3.0).unsqueeze(-1) * features.cells.rays
        )
        noise = 0.1 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
        places[name] = seen @ R.mT + t.unsqueeze(1) + noise
    return NearTruth(places)


# --- effect on training ---------------------------------------------------------------------------------------------


class Simple(nn.Module):
    """A model of coordinates and deviations that are linear in the features, which cannot fit all cells."""

    extent_m, regions = torch.tensor(8.0), None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def predict(self, name: str, features: CellFeatures, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self.linear(features.features.squeeze(-1).mT)
        return 8 * output[..., :3], output[..., 3]


def seen_room(numbers: range) -> tuple[PrecomputedFeatures, list[Pose]]:
    """Thirty cells a frame on the walls of the room, with features that are a nonlinear function of their position."""
    poses, points, features = [in_room(number) for number in numbers], [], []
    for number, pose in zip(numbers, poses, strict=True):
        rng = np.random.default_rng([number, 1])
        position = pose.position_m - np.asarray(ORIGIN_M)
        hits = room_point(position, rng.normal(size=(30, 3)) @ pose.rotation.T)
        points.append((hits - position) @ pose.rotation)
        features.append(hits / 8 + 0.2 * np.sin(hits / 3 + np.arange(3)) + rng.normal(0, 0.02, (30, 3)))
    at, alike = (torch.from_numpy(np.stack(x)).float() for x in (points, features))
    yes = torch.ones(at.shape[:2], dtype=torch.bool)
    cells = Cells(at, nn.functional.normalize(at, dim=-1), yes, yes, torch.zeros(at.shape[:2]))
    depth = CellFeatures(torch.arange(len(poses)), alike.mT.unsqueeze(-1), torch.zeros(len(poses), 1), cells)
    return PrecomputedFeatures({"depth": depth}), poses


def test_training_with_it_reduces_the_error_of_held_out_frames_and_makes_their_covariance_consistent() -> None:
    train, train_poses = seen_room(range(40))
    held_out, poses = seen_room(range(1000, 1040))
    target = torch.from_numpy(CODEC.encode(train_poses))
    errors, nees = [], []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model, objective = Simple(), DenseObjective(CellsConfig(solver_weight=weight), CODEC)
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.04 * (1 - step / 100)
            optimizer.zero_grad()
            objective.terms(model, train, target)["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            predicted = {name: model.predict(name, features) for name, features in held_out.by_modality.items()}
        solution = solve(correspondences(held_out.by_modality, predicted, len(poses))[0], spread_m=8.0)
        assert bool(solution.solved.all())
        error = np.stack([pose.position_m - ORIGIN_M for pose in poses]) - solution.translations.numpy()
        block = solution.covariances[:, :3, :3].numpy()
        errors.append(np.linalg.norm(error, axis=1).mean())
        nees.append(np.einsum("ni,nij,nj->n", error, np.linalg.inv(block), error).mean() / 3)
    # Of eight pairs with other weights at the start or other frames: 0.76 to 0.85, 0.35 to 0.51, and 0.8 to 1.4.
    assert errors[1] < 0.95 * errors[0], errors
    assert nees[1] < 0.7 * nees[0], nees
    assert nees[1] < 2.0, nees


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_with_it_logs_position_error_and_nees_of_the_solver(frozen: bool, tmp_path: Path) -> None:
    data = room_data([("depth",)] * 12, replace(PREPROCESS, modalities=("depth",)))
    values = {
        "model": {"name": "vmloc_dense", "backbone": "shufflenet_v2_x0_5", "hidden_dim": 8, "frozen": frozen},
        "preprocess": {"modalities": ["depth"], "shortest_side": 48},
        "objective": {"cells": 15, "solver_weight": 0.1},
        "optimizer": {"epochs": 1, "batch_size": 4, "precision": "bf16"},
        "pretrained": False,
    }
    out = tmp_path / "m.safetensors"
    trainer = Trainer(parse_config(values, None, "test"), data, out, map_frame="map", body_frame="body", device=CPU)
    assert math.isfinite(trainer.run(progress=False)["median_position_m"])
    with out.with_suffix(".csv").open() as file:
        (line,) = csv.DictReader(file)
    # Both are zero where no frame was solved: of an untrained network's cells it is chance whether any is.
    assert math.isfinite(float(line["solver_m"]))
    assert math.isfinite(float(line["solver_nees"]))
