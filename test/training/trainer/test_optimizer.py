# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import helpers  # noqa: F401 (one thread for torch)
from training.config import OptimizerConfig
from training.objectives.base import PoseLoss
from training.trainer.optimizer import Optimizer
from vmloc_ros.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SLOPE = torch.tensor([0.5, -2.0, 1.0])


class Point(nn.Module):
    """Three weights."""

    def __init__(self, start: Sequence[float] = (1.0, 2.0, 3.0)) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))

    def parts(self) -> list[nn.Module]:
        return []


def make_optimizer(model: nn.Module, objective: nn.Module | None = None, steps: int = 6, **options: Any) -> Optimizer:
    settings = {"learning_rate": 1e-2, "weight_decay": 0.0, **options}
    return Optimizer(model, objective or Point(), OptimizerConfig(**settings), steps, CPU)


def run_steps(model: Point, optimizer: Optimizer, steps: Sequence[int], slope: Tensor = SLOPE) -> list[Tensor]:
    """The weights after each step along a constant gradient."""
    seen = []
    for number in steps:
        optimizer.step((model.x * slope).sum(), number)
        seen.append(model.x.detach().clone())
    return seen


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("cosine", 0, [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]),
        ("cosine", 2, [0.25 * (1 + math.cos(math.pi * max(i, 0) / 6)) * (1 + min(i, 1)) for i in range(6)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, warmup: int, expected: list[float]) -> None:
    """With a constant gradient, Adam changes each weight by the learning rate."""
    model = Point()
    optimizer = make_optimizer(model, schedule=schedule, warmup_steps=warmup)
    places = torch.stack([model.x.detach().clone(), *run_steps(model, optimizer, range(6))])
    np.testing.assert_allclose(-places.diff(dim=0) * SLOPE.sign(), 1e-2 * np.tile(expected, (3, 1)).T, atol=1e-6)
    np.testing.assert_allclose([optimizer.rate(i) for i in range(6)], 1e-2 * np.array(expected))


def test_weight_decay_applies_to_the_model_and_not_to_the_objective() -> None:
    model, objective = Point(), Point()
    make_optimizer(model, objective, weight_decay=0.1).step(0.0 * (model.x.sum() + objective.x.sum()), 0)
    assert bool((model.x < Point().x).all())
    assert torch.equal(objective.x, Point().x)


@pytest.mark.parametrize(("limit", "norm"), [(0.5, 0.5), (100.0, float(SLOPE.norm()))])
def test_gradients_are_clipped_to_the_largest_norm(limit: float, norm: float) -> None:
    model = Point()
    make_optimizer(model, gradient_norm=limit).step((model.x * SLOPE).sum(), 0)
    torch.testing.assert_close(model.x.grad, SLOPE * norm / SLOPE.norm(), rtol=1e-4, atol=0)


class Encoders(nn.Module):
    """Two encoders with gradients of very different size, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.strong, self.weak, self.head = Point(), Point(), Point()

    def parts(self) -> list[nn.Module]:
        return [self.strong, self.weak]


@pytest.mark.parametrize("clip", ["parts", "whole"])
def test_an_encoder_with_large_gradients_shortens_those_of_another_only_where_the_whole_is_clipped(clip: str) -> None:
    model = Encoders()
    loss = 100 * (model.strong.x * SLOPE).sum() + (model.weak.x * SLOPE).sum() + (model.head.x * SLOPE).sum()
    make_optimizer(model, gradient_norm=1.0, clip=clip).step(loss, 0)
    norms = [float(part.x.grad.norm()) for part in (model.strong, model.weak, model.head)]
    if clip == "parts":
        assert norms == pytest.approx([1.0, 1.0, 1.0], rel=1e-4)
    else:
        assert norms == pytest.approx(np.array([100, 1, 1]) / math.sqrt(100**2 + 2), rel=1e-4)


def test_balance_weights_reach_their_optimum_at_their_own_rate_and_not_at_the_network_s() -> None:
    """Of constant errors: d/dbeta (S exp(-beta) + beta) is zero where exp(beta) is the mean S."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(64, 6, generator=generator), torch.randn(64, 6, generator=generator)
    error = (predicted - target).abs()
    optimum = [error[:, part].sum(dim=1).mean().log().item() for part in (slice(3), slice(3, 6))]
    reached = {}
    for rate in (100.0, 1.0):
        loss = PoseLoss(beta=-3.0, gamma=0.0)
        optimizer = make_optimizer(Point(), loss, steps=4000, learning_rate=2e-4, balance_rate=rate, schedule="cosine")
        for number in range(4000):
            optimizer.step(loss(predicted, target).mean(), number)
        reached[rate] = [loss.beta.item(), loss.gamma.item()]
    assert reached[100.0] == pytest.approx(optimum, abs=0.02)
    assert reached[1.0] == pytest.approx([-3.0, 0.0], abs=4000 * 2e-4)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_averaged_weights_follow_their_recursion(decay: float) -> None:
    """Step n moves the mean by 1 - min(decay, (1 + n) / (10 + n)) of the way to the newest weights."""
    model = Point()
    optimizer = make_optimizer(model, ema_decay=decay)
    newest = run_steps(model, optimizer, range(6))
    expected = newest[0].double()
    for n, x in enumerate(newest[1:], start=1):
        share = min(decay, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * x.double()
    torch.testing.assert_close(optimizer.best_model.x.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(model.x, newest[-1])


def test_without_averaging_the_newest_weights_are_the_best() -> None:
    model = Point()
    assert make_optimizer(model).best_model is model


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    options = {"ema_decay": 0.9, "schedule": "cosine", "weight_decay": 0.1}
    whole, objective = Point(), Point()
    optimizer = make_optimizer(whole, objective, **options)
    run_steps(whole, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(whole.state_dict())
    run_steps(whole, optimizer, range(3, 6), slope=-SLOPE)

    again = Point((7.0, 7.0, 7.0))
    other = make_optimizer(again, Point(), **options)
    again.load_state_dict(weights)
    other.load_state_dict(saved)
    run_steps(again, other, range(3, 6), slope=-SLOPE)
    assert torch.equal(again.x, whole.x)
    assert torch.equal(other.best_model.x, optimizer.best_model.x)


class Layer(nn.Linear):
    def parts(self) -> list[nn.Module]:
        return []


def test_bfloat16_multiplies_in_half_and_keeps_weights_and_gradients_single() -> None:
    layer = Layer(3, 2)
    optimizer = make_optimizer(layer, precision="bf16")
    with optimizer.autocast():
        out = layer(torch.ones(4, 3))
    assert out.dtype == torch.bfloat16
    optimizer.step(out.float().sum(), 0)
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    with make_optimizer(layer).autocast():
        assert layer(torch.ones(4, 3)).dtype == torch.float32


def test_float16_without_a_gpu_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.precision fp16 needs a GPU; use bf16 or fp32"):
        make_optimizer(Point(), precision="fp16")
