# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import helpers  # noqa: F401 (one thread for torch)
from training.losses import PoseLoss, importance_weighted_loss
from vmloc_ros.core.geometry import Pose, quaternion_log
from vmloc_ros.core.models import Posterior
from vmloc_ros.core.models.fusion import Gaussian


class LinearModel:
    """``decode(z)`` is a matrix: small enough for closed forms."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.matrix


class SquaredLoss(PoseLoss):
    """``(y - y*)^2 / 2`` in place of the L1 norm: the bound's limit is then a Gaussian integral."""

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((predicted - target) ** 2).sum(-1)


def posterior(mean: torch.Tensor, log_variance: torch.Tensor) -> Posterior:
    return Posterior(Gaussian(mean, log_variance), {}, {})


def bound(model: Any, q: Posterior, target: torch.Tensor, loss: PoseLoss, k: int, weight: float) -> torch.Tensor:
    return -importance_weighted_loss(model, q, target, loss, k, weight)


# --- Eq. 11 ------------------------------------------------------------------------------------------------------


def test_pose_loss_is_equation_11() -> None:
    loss = PoseLoss(beta=-3.0, gamma=0.5)
    predicted = torch.tensor([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3]])
    target = torch.tensor([[0.0, 4.0, 2.5, 0.0, 0.0, 0.5]])
    expected = 3.5 * math.exp(3.0) - 3.0 + 0.5 * math.exp(-0.5) + 0.5
    assert loss(predicted, target).item() == pytest.approx(expected, rel=1e-6)


def test_pose_loss_broadcasts_samples_over_the_batch() -> None:
    loss = PoseLoss()
    predicted, target = torch.randn(5, 3, 6), torch.randn(3, 6)
    together = loss(predicted, target)
    assert together.shape == (5, 3)
    for i in range(5):
        torch.testing.assert_close(together[i], loss(predicted[i], target))


def test_balance_weights_are_learnable_and_settle_at_the_logarithm_of_their_error() -> None:
    """d/d beta (e exp(-beta) + beta) = 0 at beta = log e."""
    error = torch.tensor([[0.4, 0.0, 0.3, 0.02, 0.01, 0.0]])
    loss = PoseLoss(beta=math.log(0.7), gamma=math.log(0.03))
    loss(error, torch.zeros(1, 6)).sum().backward()
    assert loss.beta.grad.item() == pytest.approx(0.0, abs=1e-5)
    assert loss.gamma.grad.item() == pytest.approx(0.0, abs=1e-5)
    loss = PoseLoss(beta=0.0, gamma=0.0)
    loss(error, torch.zeros(1, 6)).sum().backward()
    assert loss.beta.grad.item() == pytest.approx(0.3)
    assert loss.gamma.grad.item() == pytest.approx(0.97)


def test_half_turns_have_a_logarithm_that_is_not_zero() -> None:
    """w = 0: the released code's division turns these into zeros."""
    for axis in np.eye(3):
        half_turn = Pose(np.zeros(3), np.array([0.0, *axis]))
        np.testing.assert_allclose(quaternion_log(half_turn.quaternion_wxyz), axis * np.pi / 2)


# --- Eq. 7, 15 ---------------------------------------------------------------------------------------------------


def test_the_bound_is_the_log_mean_of_the_weights_of_its_samples() -> None:
    """Written out with the same noise, weights and all, by numpy in double precision."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    k, weight = 7, 0.3
    torch.manual_seed(5)
    actual = bound(LinearModel(matrix), posterior(mean, log_variance), target, PoseLoss(-1.0, 0.5).double(), k, weight)

    torch.manual_seed(5)
    noise = torch.randn(k, 3, 4, dtype=torch.float64).numpy()
    mu, sigma = mean.numpy(), np.exp(0.5 * log_variance.numpy())
    total = 0.0
    for b in range(3):
        weights = []
        for i in range(k):
            z = mu[b] + sigma[b] * noise[i, b]
            y = z @ matrix.numpy()
            error = np.abs(y - target[b].numpy())
            pose = error[:3].sum() * np.exp(1.0) - 1.0 + error[3:].sum() * np.exp(-0.5) + 0.5
            log_prior = -0.5 * np.sum(z**2) - 2 * np.log(2 * np.pi)
            log_posterior = -0.5 * np.sum(noise[i, b] ** 2) - np.log(sigma[b]).sum() - 2 * np.log(2 * np.pi)
            weights.append(np.exp(-pose + weight * (log_prior - log_posterior)))
        total += np.log(np.mean(weights))
    assert actual.item() == pytest.approx(total / 3, rel=1e-9)


def test_the_bound_of_one_sample_is_the_elbo_in_expectation() -> None:
    """k = 1, lambda = 1: E[-L_p] - KL(q || N(0, I)), both in closed form for a linear decoder and squared loss."""
    generator = torch.Generator().manual_seed(1)
    matrix = 0.5 * torch.randn(3, 6, generator=generator)
    mean, log_variance = torch.tensor([[0.5, -1.0, 0.2]]), torch.tensor([[-1.0, 0.3, -2.0]])
    target = torch.randn(1, 6, generator=generator)
    expected_loss = 0.5 * (((mean @ matrix - target) ** 2).sum() + (matrix**2 * log_variance.exp().view(3, 1)).sum())
    elbo = -expected_loss - Gaussian(mean, log_variance).kl_to_standard_normal().sum()

    many = 100_000
    repeated = posterior(mean.expand(many, 3), log_variance.expand(many, 3))
    torch.manual_seed(0)
    estimate = bound(LinearModel(matrix), repeated, target.expand(many, 6), SquaredLoss(), 1, 1.0)
    assert estimate.item() == pytest.approx(elbo.item(), abs=0.03)


def test_the_bound_rises_with_k_towards_the_log_likelihood() -> None:
    """z ~ N(0, 1), y | z ~ exp(-(y - a z)^2 / 2): log of the integral over z is known."""
    a, y = 1.5, 2.0
    matrix = torch.tensor([[a, 0, 0, 0, 0, 0]])
    target = torch.tensor([[y, 0, 0, 0, 0, 0]])
    evidence = -0.5 * math.log(1 + a**2) - 0.5 * y**2 / (1 + a**2)

    many = 40_000
    q = posterior(torch.full((many, 1), 0.2), torch.full((many, 1), -0.5))
    bounds = []
    for k in (1, 2, 5, 20, 100):
        torch.manual_seed(k)
        bounds.append(bound(LinearModel(matrix), q, target.expand(many, 6), SquaredLoss(), k, 1.0).item())
    assert bounds == sorted(bounds)
    assert bounds[0] < evidence - 0.3  # the test would see nothing if q were exact
    assert bounds[-1] == pytest.approx(evidence, abs=0.02)
    assert bounds[-1] < evidence + 0.005


def test_the_bound_is_exact_for_every_k_when_q_is_the_true_posterior() -> None:
    a, y = 1.5, 2.0
    matrix = torch.tensor([[a, 0, 0, 0, 0, 0]], dtype=torch.float64)
    target = torch.tensor([[y, 0, 0, 0, 0, 0]], dtype=torch.float64)
    evidence = -0.5 * math.log(1 + a**2) - 0.5 * y**2 / (1 + a**2)
    variance = 1 / (1 + a**2)
    q = posterior(
        torch.full((1, 1), a * y * variance, dtype=torch.float64),
        torch.full((1, 1), math.log(variance), dtype=torch.float64),
    )
    for k in (1, 3, 10):
        assert bound(LinearModel(matrix), q, target, SquaredLoss(), k, 1.0).item() == pytest.approx(evidence)


def test_without_the_kl_weight_only_the_pose_matters() -> None:
    mean, log_variance = torch.tensor([[5.0]]), torch.tensor([[-16.0]])  # far from the prior, nearly a point
    matrix = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    loss = importance_weighted_loss(
        LinearModel(matrix), posterior(mean, log_variance), torch.zeros(1, 6), PoseLoss(0.0, 0.0), 4, 0.0
    )
    assert loss.item() == pytest.approx(5.0, abs=2e-3)


def test_weights_far_below_the_smallest_float_still_give_a_finite_loss_and_gradient() -> None:
    mean = torch.zeros(1, 2, requires_grad=True)
    q = posterior(mean, torch.zeros(1, 2))
    loss = importance_weighted_loss(LinearModel(torch.ones(2, 6)), q, torch.full((1, 6), 1e4), PoseLoss(), 10, 1e-3)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(mean.grad).all())
    assert bool((mean.grad < 0).all())  # downhill is towards the target


def test_the_gradient_is_the_derivative_of_the_bound_at_fixed_noise() -> None:
    matrix = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = torch.ones(1, 6, dtype=torch.float64)
    loss = SquaredLoss().double()

    def value(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return importance_weighted_loss(LinearModel(matrix), posterior(mean, log_variance), target, loss, 5, 0.7)

    start = (
        torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[-0.5, 0.4]], dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(value, start)
