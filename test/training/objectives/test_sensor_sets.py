# SPDX-License-Identifier: Apache-2.0
"""Modality dropout in expectation: the mean over draws of Eq. 18, in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import tiny_config, tiny_objective
from training.data.augment import drop_modalities
from training.objectives.base import Objective
from training.objectives.registry import build_objective
from training.objectives.sensor_sets import sensor_sets
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ModelInput, PoseModel, build_model
from vmloc_ros.core.pose_codec import PoseCodec

pytestmark = pytest.mark.numeric

CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
CHANNELS = {"image": 3, "lidar": 4}
PRESENT = {"image": torch.tensor([True, True, False]), "lidar": torch.tensor([True, True, True])}
DROPOUT = 0.4


def test_a_frame_of_two_sensors_has_three_sets_and_a_frame_of_one_its_own() -> None:
    sets = sensor_sets(PRESENT, DROPOUT)
    found = {
        (frame, *(name for name in CHANNELS if sets.present[name][row])): round(float(sets.weights[row]), 6)
        for row, frame in enumerate(sets.rows.tolist())
    }
    assert found == {
        (0, "image", "lidar"): 0.6,
        (1, "image", "lidar"): 0.6,
        (2, "lidar"): 1.0,
        (0, "image"): 0.2,
        (1, "image"): 0.2,
        (0, "lidar"): 0.2,
        (1, "lidar"): 0.2,
    }
    assert sets.rows[:3].tolist() == [0, 1, 2]


def test_without_dropout_there_is_one_row_for_each_frame() -> None:
    sets = sensor_sets(PRESENT, 0.0)
    assert sets.rows.tolist() == [0, 1, 2]
    assert torch.equal(sets.present["image"], PRESENT["image"])
    assert sets.mean(torch.tensor([1.0, 2.0, 6.0])).item() == pytest.approx(3.0)


@pytest.mark.parametrize("present", [[1, 1, 1], [1, 0, 1], [0, 0, 1]])
def test_the_weights_are_the_shares_of_many_draws(present: list[int]) -> None:
    """Three modalities; the shares' standard error is at most half over the root of the draws."""
    draws, names = 40_000, ("image", "depth", "lidar")
    frame = {name: torch.tensor([bool(x)]) for name, x in zip(names, present, strict=True)}
    sets = sensor_sets(frame, 0.5)
    expected = {
        tuple(bool(sets.present[name][row]) for name in names): float(sets.weights[row])
        for row in range(len(sets.rows))
    }
    many = {name: x.expand(draws) for name, x in frame.items()}
    drawn = torch.stack(list(drop_modalities(many, 0.5, torch.Generator().manual_seed(0)).values()), dim=1)
    for kept in {*expected, *map(tuple, drawn.unique(dim=0).tolist())}:
        share = (drawn == torch.tensor(kept)).all(dim=1).float().mean().item()
        assert share == pytest.approx(expected.get(kept, 0.0), abs=5 * 0.5 / math.sqrt(draws))


def network(system: str) -> PoseModel:
    """The system with trunks of one convolution: batch norm would see other frames where sensors are drawn."""
    torch.manual_seed(0)
    config = tiny_config(system, latent_dim=8, hidden_dim=8, dropout=0.0)
    model = build_model(config, CHANNELS)
    for name, encoder in model.encoders.items():
        width = (encoder.linear if system == "attention_vmloc" else encoder.mean).in_features
        encoder.trunk = torch.nn.Conv2d(CHANNELS[name], width, 1)
    torch.nn.init.normal_(model.attention.alpha.weight, std=0.3)  # the attention starts as the identity
    return model


def frames(present: dict[str, Tensor]) -> ModelInput:
    generator = torch.Generator().manual_seed(1)
    count = len(next(iter(present.values())))
    return ModelInput(
        {name: torch.randn(count, channels, 4, 4, generator=generator) for name, channels in CHANNELS.items()},
        present,
    )


def objective_of(system: str, how: str, **settings: object) -> Objective:
    settings = {"modality_dropout": how, "samples": 3, "kl_weight": 0.01, "beta": -1.0, **settings}
    return build_objective(system, tiny_objective(system, **settings), CODEC, DROPOUT)


def value_and_gradient(objective: Objective, model: PoseModel, batch: ModelInput, target: Tensor) -> Tensor:
    """Loss, then the gradients of balance weights and of the encoders' and regressors' last layers, in one vector."""
    loss = objective.terms(model, batch, target)["loss"]
    names = ("mean", "log_variance", "linear", "log_quaternion.2")
    heads = [x for name, x in model.named_parameters() if any(part in name for part in names)]
    # A draw may leave no frame with a sensor, and then its encoder does not run.
    gradients = torch.autograd.grad(loss, [*objective.parameters(), *heads], allow_unused=True, materialize_grads=True)
    return torch.cat([loss.detach().view(1), *(x.flatten() for x in gradients)])


@pytest.mark.parametrize("system", ["vmloc", "poe_vmloc", "attention_vmloc"])
def test_the_expectation_is_the_mean_over_draws_of_equation_18_in_value_and_gradient(system: str) -> None:
    """Both are random for systems with posterior samples; 5 standard errors of the difference of the means."""
    model, batch = network(system), frames(PRESENT)
    target = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    drawn, expected = objective_of(system, "drawn"), objective_of(system, "expected")
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    found: dict[str, list[Tensor]] = {"drawn": [], "expected": []}
    for _ in range(600):
        kept = drop_modalities(PRESENT, DROPOUT, generator)
        found["drawn"].append(value_and_gradient(drawn, model, ModelInput(batch.tensors, kept), target))
        found["expected"].append(value_and_gradient(expected, model, batch, target))
    means, errors = {}, {}
    for how, values in found.items():
        stacked = torch.stack(values).double()
        means[how], errors[how] = stacked.mean(dim=0), stacked.var(dim=0) / len(stacked)
    deviation = (errors["drawn"] + errors["expected"]).sqrt().clamp(min=1e-5)
    assert bool(((means["drawn"] - means["expected"]).abs() < 5 * deviation).all())
    assert errors["expected"].sum() < errors["drawn"].sum()  # that is what it is for


@pytest.mark.parametrize("system", ["vmloc", "poe_vmloc", "attention_vmloc"])
def test_an_absent_sensor_stays_absent(system: str) -> None:
    """Whatever stands in its place in the batch changes neither value nor gradient."""
    model, batch, target = network(system), frames(PRESENT), torch.zeros(3, 6)
    results = []
    for filling in (0.0, 1e3):
        tensors = {name: x.clone() for name, x in batch.tensors.items()}
        tensors["image"][2] = filling
        torch.manual_seed(0)
        objective = objective_of(system, "expected")
        results.append(value_and_gradient(objective, model, ModelInput(tensors, PRESENT), target))
    assert torch.equal(*results)


def test_a_frame_without_any_sensor_is_an_error() -> None:
    none = {name: torch.tensor([True, False]) for name in CHANNELS}
    with pytest.raises(ModelError, match=r"no modality is present in sample \[1\]"):
        objective_of("vmloc", "expected").terms(network("vmloc"), frames(none), torch.zeros(2, 6))
