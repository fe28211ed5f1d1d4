# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers import tiny_objective
from training.objectives.base import PoseLoss
from training.objectives.registry import Objective, build_objective
from training.objectives.variational import bound_loss, elbo_loss
from vmloc_ros.core.models import ModelInput, Posterior, VMLoc, build_model, model_config
from vmloc_ros.core.models.fusion import Gaussian
from vmloc_ros.core.pose_codec import PoseCodec

pytestmark = pytest.mark.numeric

ESTIMATORS = ("iwae", "stl", "dreg", "dreg_lambda")


class LinearModel:
    """``decode(z)`` is a matrix: small enough for closed forms."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.matrix


class SquaredLoss(PoseLoss):
    """``|y - y*|^2 / 2`` in place of the L1 norm: Gaussian integrals, and smooth for quadrature."""

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        return 0.5 * ((predicted - target) ** 2).sum(-1)


def posterior(mean: Tensor, log_variance: Tensor) -> Posterior:
    return Posterior(Gaussian(mean, log_variance), {}, {})


def toy(seed: int) -> tuple[LinearModel, Posterior, Tensor]:
    """Three frames and a latent of 4, with leaf tensors that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    matrix, mean, log_variance, target = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (3, 4), (3, 4), (3, 6))
    )
    matrix *= 0.3
    return (
        LinearModel(matrix.requires_grad_()),
        posterior(mean.requires_grad_(), log_variance.requires_grad_()),
        target,
    )


def bound(model: Any, q: Posterior, target: Tensor, loss: PoseLoss, k: int, weight: float) -> Tensor:
    return -bound_loss(model, q, target, loss, k, weight, "iwae").loss.mean()


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


def test_with_a_kl_weight_of_zero_the_bound_depends_on_the_pose_loss_alone() -> None:
    mean, log_variance = torch.tensor([[5.0]]), torch.tensor([[-16.0]])  # far from the prior, nearly a point
    matrix = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    value = bound(LinearModel(matrix), posterior(mean, log_variance), torch.zeros(1, 6), PoseLoss(0.0, 0.0), 4, 0.0)
    assert value.item() == pytest.approx(-5.0, abs=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weights_far_below_the_smallest_float_still_give_a_finite_loss_and_gradient(estimator: str) -> None:
    mean = torch.zeros(1, 2, requires_grad=True)
    target = torch.full((1, 6), 1e4)
    result = bound_loss(
        LinearModel(torch.ones(2, 6)), posterior(mean, torch.zeros(1, 2)), target, PoseLoss(), 10, 1e-3, estimator
    )
    result.loss.sum().backward()
    assert math.isfinite(result.loss.item())
    assert 1 <= result.effective_samples.item() <= 10
    assert bool(torch.isfinite(mean.grad).all())
    assert bool((mean.grad < 0).all())  # downhill is towards the target


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_value_of_the_bound(estimator: str) -> None:
    model, q, target = toy(seed=4)
    results = []
    for name in ("iwae", estimator):
        torch.manual_seed(0)
        results.append(bound_loss(model, q, target, PoseLoss(), 6, 0.2, name))
    assert torch.equal(results[0].loss, results[1].loss)
    with torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(bound_loss(model, q, target, PoseLoss(), 6, 0.2, estimator).loss, results[0].loss)


def test_the_effective_sample_size_is_k_for_equal_weights_and_one_where_a_sample_dominates() -> None:
    wide = posterior(torch.zeros(1, 1), torch.zeros(1, 1))
    equal = bound_loss(LinearModel(torch.zeros(1, 6)), wide, torch.zeros(1, 6), PoseLoss(), 8, 0.0, "iwae")
    assert equal.effective_samples.item() == pytest.approx(8)
    one = bound_loss(LinearModel(torch.full((1, 6), 1e6)), wide, torch.zeros(1, 6), PoseLoss(), 8, 0.0, "iwae")
    assert one.effective_samples.item() == pytest.approx(1)


def test_the_iwae_gradient_is_the_derivative_of_the_bound_at_fixed_noise() -> None:
    matrix = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = torch.ones(1, 6, dtype=torch.float64)
    loss = SquaredLoss().double()

    def value(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return bound(LinearModel(matrix), posterior(mean, log_variance), target, loss, 5, 0.7)

    start = (
        torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[-0.5, 0.4]], dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(value, start)


# --- Eq. 13, 14: sample by sample ------------------------------------------------------------------------------


def sample_by_sample(
    model: LinearModel, q: Posterior, target: Tensor, k: int, weight: float, estimator: str
) -> dict[str, Tensor]:
    """The gradient of the bound's sum over the batch, written out: one ``grad`` per sample, no logsumexp, no hook."""
    mean, log_variance = q.joint.mean.detach(), q.joint.log_variance.detach()
    noise, deviation = torch.randn(k, *mean.shape, dtype=mean.dtype), torch.exp(0.5 * log_variance)
    gradient = {name: torch.zeros_like(x) for name, x in leaves(model, q).items()}
    for b in range(len(target)):
        parts = []
        for i in range(k):
            z = (mean[b] + deviation[b] * noise[i, b]).requires_grad_()
            m, v = mean[b].clone().requires_grad_(), log_variance[b].clone().requires_grad_()
            log_q = torch.distributions.Normal(m, torch.exp(v / 2)).log_prob(z).sum()
            log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
            log_w = -SquaredLoss()(model.decode(z), target[b]) + weight * (log_p - log_q)
            parts.append((log_w.detach(), *torch.autograd.grad(log_w, (z, m, v, model.matrix))))
        w = torch.stack([part[0] for part in parts]).exp()
        w /= w.sum()
        for i, (_, of_z, of_m, of_v, of_matrix) in enumerate(parts):
            path = {"dreg": w[i] ** 2, "dreg_lambda": (1 - weight) * w[i] + weight * w[i] ** 2}.get(estimator, w[i])
            score = w[i] if estimator == "iwae" else 0.0  # d log w_i / d phi at fixed z_i
            gradient["mean"][b] += path * of_z + score * of_m
            gradient["log_variance"][b] += path * of_z * 0.5 * deviation[b] * noise[i, b] + score * of_v
            gradient["matrix"] += w[i] * of_matrix
    return gradient


def leaves(model: LinearModel, q: Posterior) -> dict[str, Tensor]:
    return {"mean": q.joint.mean, "log_variance": q.joint.log_variance, "matrix": model.matrix}


@pytest.mark.parametrize("weight", [0.05, 1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_those_of_the_equations_sample_by_sample(estimator: str, weight: float) -> None:
    model, q, target = toy(seed=8)
    torch.manual_seed(1)
    expected = sample_by_sample(model, q, target, 5, weight, estimator)
    torch.manual_seed(1)
    loss = bound_loss(model, q, target, SquaredLoss(), 5, weight, estimator).loss.mean()
    actual = torch.autograd.grad(-3 * loss, list(leaves(model, q).values()))  # mean over three frames
    for gradient, wanted in zip(actual, expected.values(), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_one_sample_has_weight_one_so_that_all_but_iwae_agree() -> None:
    gradients = []
    for estimator in ("stl", "dreg", "dreg_lambda"):
        model, q, target = toy(seed=2)
        torch.manual_seed(0)
        bound_loss(model, q, target, PoseLoss(), 1, 0.3, estimator).loss.mean().backward()
        gradients.append(torch.cat([q.joint.mean.grad, q.joint.log_variance.grad]))
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-14, atol=0)


# --- Bias: mean gradient over many draws against the gradient of the expected bound, by quadrature ---------------


class Case(NamedTuple):
    """A linear-Gaussian model, and an approximate posterior that differs from the exact one."""

    matrix: NDArray[np.float64]
    target: NDArray[np.float64]
    mean: NDArray[np.float64]
    log_variance: NDArray[np.float64]


CASES = {
    1: Case(np.array([[1.5, 0, 0, 0, 0, 0]]), np.array([2.0, 0, 0, 0, 0, 0]), np.array([0.2]), np.array([-0.5])),
    2: Case(
        np.array([[1.0, 0.5, 0, 0, -0.3, 0], [-0.5, 0.8, 0.2, 0, 0, 0.4]]),
        np.array([1.0, -0.5, 0.3, 0, 0.2, 0]),
        np.array([0.3, -0.4]),
        np.array([-0.5, 0.4]),
    ),
}
# Gauss-Hermite nodes per dimension, by latent size and k: the tensor grid has D k dimensions.
NODES = {(1, 1): 64, (1, 2): 64, (1, 5): 16, (2, 1): 64, (2, 2): 24}


def expected_bound(case: Case, phi: NDArray[np.float64], k: int, weight: float, nodes: int) -> float:
    """``E[log mean_i w_i]`` over the noise of all k samples, a sum over the grid of all their nodes."""
    dim = len(case.mean)
    mean, log_variance = phi[:dim], phi[dim:]
    node, share = np.polynomial.hermite_e.hermegauss(nodes)
    noise = np.stack(np.meshgrid(*[node] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    one = np.stack(np.meshgrid(*[share / share.sum()] * dim, indexing="ij"), axis=-1).reshape(-1, dim).prod(axis=-1)
    z = mean + np.exp(0.5 * log_variance) * noise
    log_ratio = 0.5 * (noise**2 + log_variance - z**2).sum(axis=-1)
    log_w = -0.5 * ((z @ case.matrix - case.target) ** 2).sum(axis=-1) + weight * log_ratio
    log_sum, probability = log_w, one
    for _ in range(k - 1):
        log_sum, probability = np.logaddexp.outer(log_sum, log_w), np.multiply.outer(probability, one)
    return float((probability * (log_sum - math.log(k))).sum())


def exact_gradient(case: Case, k: int, weight: float, nodes: int | None = None) -> NDArray[np.float64]:
    """Central differences of :func:`expected_bound` by mean and log-variance, ``(2 D,)``."""
    phi, step = np.concatenate([case.mean, case.log_variance]), 1e-4
    nodes = nodes or NODES[len(case.mean), k]
    values = [
        expected_bound(case, phi + sign * step * axis, k, weight, nodes)
        for axis in np.eye(len(phi))
        for sign in (1, -1)
    ]
    return np.diff(np.reshape(values, (-1, 2))[:, ::-1]).squeeze(-1) / (2 * step)


def mean_gradient(
    case: Case, k: int, weight: float, estimator: str, draws: int = 100_000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over independent draws, and its standard error, each ``(2 D,)``: a batch of the same frame many times."""
    mean, log_variance = (torch.tensor(np.tile(x, (draws, 1))).requires_grad_() for x in (case.mean, case.log_variance))
    target = torch.tensor(case.target).expand(draws, 6)
    model: Any = LinearModel(torch.tensor(case.matrix))
    torch.manual_seed(len(estimator))
    loss = bound_loss(model, posterior(mean, log_variance), target, SquaredLoss(), k, weight, estimator).loss.mean()
    gradients = torch.cat(torch.autograd.grad(-draws * loss, (mean, log_variance)), dim=-1).numpy()
    return gradients.mean(axis=0), gradients.std(axis=0, ddof=1) / math.sqrt(draws)


UNBIASED = [
    *((estimator, weight, 1) for estimator in ESTIMATORS for weight in (1.0, 0.01)),
    *((estimator, weight, k) for estimator in ("iwae", "dreg_lambda") for weight in (1.0, 0.3, 0.01) for k in (2, 5)),
    *(("dreg", 1.0, k) for k in (2, 5)),
]
# Estimator, lambda, k and a length, in units of the gradient's own, that the bias exceeds.
BIASED = [
    ("stl", 1.0, 2, 0.3),
    ("stl", 1.0, 5, 1.0),
    ("stl", 0.3, 5, 0.2),
    ("dreg", 0.01, 2, 0.2),
    ("dreg", 0.01, 5, 0.5),
]


def test_the_quadrature_is_converged_and_has_the_gradient_of_the_elbo_at_one_sample() -> None:
    for dim, k in NODES:
        coarse = exact_gradient(CASES[dim], k, 1.0, NODES[dim, k] - 4)
        np.testing.assert_allclose(coarse, exact_gradient(CASES[dim], k, 1.0), atol=5e-4)
    case = CASES[2]
    deviation, pull = np.exp(0.5 * case.log_variance), case.matrix @ (case.target - case.mean @ case.matrix)
    of_log_variance = 0.5 * (1 - (1 + (case.matrix**2).sum(axis=1)) * deviation**2)
    np.testing.assert_allclose(exact_gradient(case, 1, 1.0), [*(pull - case.mean), *of_log_variance], atol=1e-6)


@pytest.mark.parametrize(("estimator", "weight", "k"), UNBIASED)
def test_the_mean_gradient_is_that_of_the_bound(estimator: str, weight: float, k: int) -> None:
    for dim, case in CASES.items():
        if (dim, k) in NODES:
            mean, error = mean_gradient(case, k, weight, estimator)
            assert (np.abs(mean - exact_gradient(case, k, weight)) < 5 * error).all(), (dim, mean, error)


@pytest.mark.parametrize(("estimator", "weight", "k", "bias"), BIASED)
def test_the_mean_gradient_is_not_that_of_the_bound(estimator: str, weight: float, k: int, bias: float) -> None:
    for dim, case in CASES.items():
        if (dim, k) in NODES:
            mean, error = mean_gradient(case, k, weight, estimator)
            exact = exact_gradient(case, k, weight)
            assert (np.abs(mean - exact) > 5 * error).any()
            assert np.linalg.norm(mean - exact) > bias * np.linalg.norm(exact)


def test_dreg_has_the_smaller_variance_where_it_is_unbiased() -> None:
    """By how much is in docs/gradient_estimators.md; here k = 5, lambda = 1, where quadrature confirms both means."""
    errors = {estimator: mean_gradient(CASES[1], 5, 1.0, estimator)[1] for estimator in ("iwae", "dreg")}
    assert (errors["dreg"] < 0.5 * errors["iwae"]).all()


# --- The network -------------------------------------------------------------------------------------------------


def tiny_model(dropout: float = 0.0) -> VMLoc:
    torch.manual_seed(0)
    config = model_config(backbone="shufflenet_v2_x0_5", latent_dim=16, hidden_dim=8, dropout=dropout)
    model = build_model(config, {"image": 3, "lidar": 4})
    assert isinstance(model, VMLoc)
    torch.nn.init.normal_(model.attention.alpha.weight, std=0.5)  # it starts as the identity, without gradient inside
    return model


def frames() -> tuple[ModelInput, Tensor]:
    """Four, one of them without lidar."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(4, c, 32, 32, generator=generator) * 2 - 1 for name, c in (("image", 3), ("lidar", 4))}
    present = {"image": torch.ones(4, dtype=torch.bool), "lidar": torch.tensor([True, False, True, True])}
    return ModelInput(tensors, present), 0.1 * torch.randn(4, 6, generator=generator)


def gradients(objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by parameter name, in training mode with dropout, with the same noise in every call."""
    model = tiny_model(dropout=0.3).train()
    batch, target = frames()
    torch.manual_seed(7)
    loss = objective.terms(model, batch, target)["loss"]
    loss.backward()
    named = [*model.named_parameters(), *objective.named_parameters()]
    return loss.item(), {name: parameter.grad for name, parameter in named}


def objective(name: str, **values: Any) -> Objective:
    codec = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
    settings = {"samples": 5, "kl_weight": 0.5, "beta": -1.0, **values}
    return build_objective(name, tiny_objective(name, **settings), codec)


def test_the_estimator_changes_the_gradients_of_all_encoders_and_of_nothing_else() -> None:
    """In the authors' code the hook for Eq. 13 is not part of the graph, and its gradients equal those of iwae."""
    results = {estimator: gradients(objective("vmloc", estimator=estimator)) for estimator in ESTIMATORS}
    loss, iwae = results["iwae"]
    assert all(bool(gradient.abs().max() > 0) for gradient in iwae.values())
    for estimator, (value, gradient) in results.items():
        assert value == loss
        for name in gradient:
            if not name.startswith("encoders."):
                torch.testing.assert_close(gradient[name], iwae[name], rtol=1e-5, atol=1e-7)
        for other in ESTIMATORS[: ESTIMATORS.index(estimator)]:
            for encoder in ("encoders.image", "encoders.lidar"):
                ours, theirs = (flat(results[which][1], encoder) for which in (estimator, other))
                assert (ours - theirs).norm() > 0.05 * theirs.norm(), (estimator, other, encoder)


def flat(gradient: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([x.flatten() for name, x in gradient.items() if name.startswith(prefix)])


def test_dreg_lambda_is_unbiased_with_the_paper_s_loss_attention_and_dropout_too() -> None:
    """Against iwae, 5 standard errors of the difference; the same comparison shows the bias of dreg."""
    model = tiny_model(dropout=0.3).train()
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 1, 16, generator=generator).expand(2, draws, 16).clone()
    mean.requires_grad_()
    gradient = {}
    for estimator in ("iwae", "dreg", "dreg_lambda"):
        torch.manual_seed(3)
        q, target = posterior(mean, log_variance), torch.full((draws, 6), 0.1)
        loss = bound_loss(model, q, target, PoseLoss(-1.0, -1.0), 4, 0.3, estimator).loss.mean()
        gradient[estimator] = torch.autograd.grad(draws * loss, mean)[0]

    def standard_errors(estimator: str) -> Tensor:
        difference = gradient[estimator] - gradient["iwae"]
        return difference.mean(dim=0).abs() / (difference.std(dim=0) / math.sqrt(draws))

    assert bool((standard_errors("dreg_lambda") < 5).all())
    assert bool((standard_errors("dreg") > 10).any())


# --- MVAE's ELBO -------------------------------------------------------------------------------------------------


def test_the_elbo_is_the_closed_form_in_expectation() -> None:
    case, weight, draws = CASES[2], 0.4, 100_000
    deviation = np.exp(0.5 * case.log_variance)
    squared = ((case.mean @ case.matrix - case.target) ** 2).sum() + ((deviation[:, None] * case.matrix) ** 2).sum()
    kl = 0.5 * (case.mean**2 + deviation**2 - case.log_variance - 1).sum()
    mean, log_variance, target = (
        torch.tensor(np.tile(x, (draws, 1))) for x in (case.mean, case.log_variance, case.target)
    )
    model: Any = LinearModel(torch.tensor(case.matrix))
    torch.manual_seed(0)
    loss = elbo_loss(model, posterior(mean, log_variance), target, SquaredLoss(), weight).mean()
    # L_p of a draw has a standard deviation of about 1.
    assert loss.item() == pytest.approx(0.5 * squared + weight * kl, abs=5 / math.sqrt(draws))


def test_the_kl_of_the_elbo_is_not_sampled() -> None:
    """With a decoder that ignores z nothing random is left."""
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[-1.0, 0.3]])
    model: Any = LinearModel(torch.zeros(2, 6))
    values = {
        elbo_loss(model, posterior(mean, log_variance), torch.zeros(1, 6), SquaredLoss(), 2.0).item() for _ in range(3)
    }
    assert values == {2 * Gaussian(mean, log_variance).kl_to_standard_normal().item()}


def test_poe_vmloc_takes_one_sample_whatever_the_configuration() -> None:
    one, many = (gradients(objective("poe_vmloc", samples=samples)) for samples in (1, 10))
    assert one[0] == many[0]
    assert all(torch.equal(gradient, many[1][name]) for name, gradient in one[1].items())
    assert all(bool(gradient.abs().max() > 0) for gradient in one[1].values())
