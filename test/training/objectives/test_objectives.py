# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from helpers import float32_tolerance, tiny_objective
from training.objectives.registry import build_objective
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ModelInput, Posterior, build_model, model_config
from vmloc_ros.core.models.fusion import Gaussian, product_of_experts
from vmloc_ros.core.pose_codec import PoseCodec

pytestmark = pytest.mark.numeric

EMPTY = ModelInput({}, {})
BALANCE = {"beta": -1.0, "gamma": 0.5}
CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
MEAN_OF_ERRORS = float32_tolerance(36)  # of at most six frames, with six numbers each


class Fixed(nn.Module):
    """A system whose estimates are its parameters, whatever the input."""

    clip_length = 3

    def __init__(self, estimates: Tensor) -> None:
        super().__init__()
        self.estimates = nn.Parameter(estimates)

    def forward(self, batch: ModelInput) -> Tensor:
        return self.estimates


class FixedForEach(nn.Module):
    """A system of two sensors whose estimate is the mean of those of the sensors that are present."""

    def __init__(self, estimates: dict[str, Tensor]) -> None:
        super().__init__()
        self.estimates = nn.ParameterDict({name: nn.Parameter(x) for name, x in estimates.items()})

    def encode_each(self, batch: ModelInput) -> dict[str, Tensor]:
        return dict(self.estimates)

    def fuse(self, features: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        shares = torch.stack([present[name] for name in features]).float().unsqueeze(-1)
        return (torch.stack(list(features.values())) * shares).sum(dim=0) / shares.sum(dim=0)


class RunningMean(Fixed):
    """A system of clips: each frame's estimate is the mean of its own parameters and of those before it in the clip."""

    def frame_features(self, batch: ModelInput) -> Tensor:
        return self.estimates

    def decode_clip(self, features: Tensor) -> Tensor:
        return features.cumsum(dim=1) / torch.arange(1, features.shape[1] + 1).view(1, -1, 1)


class FixedQuaternions(Fixed):
    def position_and_quaternion(self, batch: ModelInput) -> tuple[Tensor, Tensor]:
        return self.estimates[:, :3], nn.functional.normalize(self.estimates[:, 3:], dim=1)


def loss_of(system: str, model: nn.Module, target: Tensor, **settings: float) -> Tensor:
    objective = build_objective(system, tiny_objective(system, **(settings or BALANCE)), CODEC)
    return objective.terms(model, EMPTY, target)["loss"]


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def pose_loss(error: np.ndarray, beta: float = -1.0, gamma: float = 0.5) -> float:
    """Eq. 11, mean over the rows of ``(N, 6)`` errors."""
    error = np.abs(error).reshape(-1, 6)
    return float(np.mean(error[:, :3].sum(1) * np.exp(-beta) + beta + error[:, 3:].sum(1) * np.exp(-gamma) + gamma))


@pytest.mark.parametrize("system", ["atloc", "hourglass"])
def test_systems_of_single_frames_minimise_the_mean_of_equation_11(system: str) -> None:
    estimates, target = vectors(5, 0), vectors(5, 1)
    loss = loss_of(system, Fixed(estimates), target)
    assert loss.item() == pytest.approx(pose_loss((estimates - target).numpy()), rel=MEAN_OF_ERRORS)


def test_attention_vmlocs_loss_is_the_mean_of_equation_11_over_frames_and_draws_of_their_sensors() -> None:
    """The third frame has no image: whatever is drawn, it keeps its depth."""
    estimates, target = {"image": vectors(3, 0), "depth": vectors(3, 2)}, vectors(3, 1)
    present = {"image": torch.tensor([True, True, False]), "depth": torch.ones(3).bool()}
    objective = build_objective("attention_vmloc", tiny_objective("attention_vmloc", **BALANCE), CODEC, dropout=0.4)
    loss = objective.terms(FixedForEach(estimates), ModelInput({}, present), target)["loss"]
    errors = {name: (x - target).numpy() for name, x in estimates.items()}
    both = (errors["image"] + errors["depth"]) / 2
    expected = [
        0.6 * pose_loss(both[i]) + 0.2 * pose_loss(errors["image"][i]) + 0.2 * pose_loss(errors["depth"][i])
        for i in (0, 1)
    ]
    assert loss.item() == pytest.approx(np.mean([*expected, pose_loss(errors["depth"][2])]), rel=MEAN_OF_ERRORS)


def test_vidlocs_loss_is_of_every_frame_read_within_its_own_clip() -> None:
    estimates, target = vectors(6, 0), vectors(6, 1)
    read = np.concatenate(
        [np.cumsum(clip, axis=0) / np.arange(1, 4)[:, None] for clip in (estimates[:3].numpy(), estimates[3:].numpy())]
    )
    loss = loss_of("vidloc", RunningMean(estimates), target)
    assert loss.item() == pytest.approx(pose_loss(read - target.numpy()), rel=MEAN_OF_ERRORS)


# --- VMLoc and MVAE ----------------------------------------------------------------------------------------------


class Posteriors(nn.Module):
    """A variational system with given experts, whose pose vectors are a multiple of the latent."""

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.experts = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(2, 5, 8, generator=generator)) for name in ("image", "depth")}
        )
        self.share = share
        self.present = {"image": torch.tensor([True, True, False, True, False]), "depth": torch.ones(5).bool()}

    def encode(self, batch: ModelInput) -> Posterior:
        experts = {name: Gaussian(*x) for name, x in self.experts.items()}
        stacked = Gaussian(*(torch.stack([x[i] for x in self.experts.values()]) for i in range(2)))
        present = torch.stack([self.present[name] for name in self.experts])
        return Posterior(product_of_experts(stacked, present), experts, self.present)

    def decode(self, z: Tensor) -> Tensor:
        return self.share * z[..., :6]


def joint(model: Posteriors) -> torch.distributions.Normal:
    """The product with the prior (Eq. 5), by precisions in double precision."""
    precision, weighted = torch.ones(5, 8).double(), torch.zeros(5, 8).double()
    for name, expert in model.experts.items():
        mean, log_variance = expert.detach().double()
        own = model.present[name].unsqueeze(1) / log_variance.exp()
        precision, weighted = precision + own, weighted + own * mean
    return torch.distributions.Normal(weighted / precision, precision.rsqrt())


@pytest.mark.parametrize("system", ["vmloc", "poe_vmloc"])
def test_variational_systems_report_the_kl_and_each_modalitys_variance_where_it_is_present(system: str) -> None:
    model = Posteriors()
    terms = build_objective(system, tiny_objective(system, **BALANCE), CODEC).terms(model, EMPTY, vectors(5, 1))
    prior = torch.distributions.Normal(torch.zeros(8).double(), torch.ones(8).double())
    divergence = torch.distributions.kl_divergence(joint(model), prior).sum(dim=1).mean()
    assert terms["kl"].item() == pytest.approx(divergence.item(), rel=1e-5)
    for name, rows in model.present.items():
        variance = np.exp(model.experts[name][1].detach().double().numpy())[rows.numpy()]
        assert terms[f"variance_{name}"].item() == pytest.approx(variance.mean(), rel=1e-5)
    assert [name for name, x in terms.items() if x.requires_grad] == ["loss"]


def test_a_modality_that_no_sample_of_the_batch_has_makes_no_term_infinite() -> None:
    model = Posteriors()
    model.present["image"] = torch.zeros(5).bool()
    terms = build_objective("vmloc", tiny_objective("vmloc", **BALANCE), CODEC).terms(model, EMPTY, vectors(5, 1))
    assert all(bool(torch.isfinite(x)) for x in terms.values())


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 10.0, 10.0), (0.01, 9.0, 10.0), (1e4, 1.0, 1.05)])
def test_effective_sample_size_is_k_for_equal_samples_and_one_where_one_fits_best(
    share: float, low: float, high: float
) -> None:
    torch.manual_seed(0)
    objective = build_objective("vmloc", tiny_objective("vmloc", samples=10, kl_weight=0.0, beta=-3.0), CODEC)
    effective = objective.terms(Posteriors(share), EMPTY, vectors(5, 1))["effective_samples"].item()
    assert low - 1e-4 <= effective <= high + 1e-4


def test_posterior_and_densities_are_single_precision_under_autocast() -> None:
    """At the default latent size: log densities are sums over 1024 terms, and bfloat16 has 3 digits."""
    torch.manual_seed(0)
    config = model_config("vmloc", "squeezenet1_1", hidden_dim=16, dropout=0.0)
    model = build_model(config, {"image": 3, "depth": 2})
    tensors = {"image": torch.randn(2, 3, 32, 32), "depth": torch.randn(2, 2, 32, 32)}
    batch = ModelInput(tensors, {name: torch.ones(2).bool() for name in tensors})
    objective, target = build_objective("vmloc", tiny_objective("vmloc", kl_weight=1.0), CODEC), vectors(2, 1)
    terms = {}
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            torch.manual_seed(1)
            assert model.encode(batch).joint.mean.dtype == torch.float32
            terms[half] = objective.terms(model, batch, target)
    for name in ("loss", "kl", "variance_image", "variance_depth"):
        assert terms[True][name].dtype == torch.float32
        assert terms[True][name].item() == pytest.approx(terms[False][name].item(), rel=0.02)


# --- rotations without a logarithm ---------------------------------------------------------------------------------


def with_six_d(vectors_of_poses: Tensor) -> Tensor:
    """Outputs ``(N, 9)`` of the poses of vectors ``(N, 6)``; rotation vectors of scipy are twice as long."""
    matrices = Rotation.from_rotvec(2 * vectors_of_poses[:, 3:].double().numpy()).as_matrix()
    columns = torch.from_numpy(matrices[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)).float()
    return torch.cat([vectors_of_poses[:, :3], columns], dim=1)


@pytest.mark.parametrize("system", ["atloc", "hourglass"])
def test_the_rotation_loss_of_six_numbers_is_the_sine_of_half_the_angle_between(system: str) -> None:
    estimates, target = vectors(5, 0), vectors(5, 1)
    turned = [Rotation.from_rotvec(2 * x[:, 3:].double().numpy()) for x in (estimates, target)]
    sine = np.sin((turned[0].inv() * turned[1]).magnitude() / 2)
    position = (estimates - target)[:, :3].abs().sum(dim=1).numpy()
    expected = np.mean(position * np.exp(1.0) - 1.0 + sine * np.exp(-0.5) + 0.5)
    assert loss_of(system, Fixed(with_six_d(estimates)), target).item() == pytest.approx(expected, rel=1e-5)


def test_mapnets_steps_of_six_numbers_are_relative_rotations() -> None:
    """A rotation in front of a clip's rotations changes those of the frames, and none of the steps between them."""
    target = vectors(6, 1)
    turned = Rotation.from_rotvec([0.3, -0.2, 0.4]) * Rotation.from_rotvec(2 * target[:, 3:].double().numpy())
    estimates = torch.cat([target[:, :3], torch.from_numpy(turned.as_rotvec() / 2).float()], dim=1)
    objective = build_objective("mapnet", tiny_objective("mapnet", **BALANCE), CODEC)
    terms = objective.terms(Fixed(with_six_d(estimates)), EMPTY, target)
    sine = np.sin(np.linalg.norm([0.3, -0.2, 0.4]) / 2)
    assert terms["absolute"].item() == pytest.approx(-1.0 + 0.5 + sine * np.exp(-0.5), rel=1e-5)
    assert terms["relative"].item() == pytest.approx(-1.0 + 0.5, abs=1e-5)


# --- MapNet ------------------------------------------------------------------------------------------------------


def test_mapnet_adds_the_loss_of_the_steps_within_each_clip() -> None:
    estimates, target = vectors(6, 0), vectors(6, 1)
    error = (estimates - target).numpy()
    steps = np.stack([error[1] - error[0], error[2] - error[1], error[4] - error[3], error[5] - error[4]])
    loss = loss_of("mapnet", Fixed(estimates), target)
    assert loss.item() == pytest.approx(pose_loss(error) + pose_loss(steps), rel=MEAN_OF_ERRORS)


def test_an_offset_common_to_a_clip_adds_nothing_to_mapnets_loss_of_the_steps() -> None:
    target = vectors(6, 1)
    offset = torch.tensor([0.5, -0.25, 1.0, 0.0, 0.125, -0.5])
    loss = loss_of("mapnet", Fixed(target + offset), target)
    absolute, steps = pose_loss(offset.numpy()), pose_loss(np.zeros(6))
    assert loss.item() == pytest.approx(absolute + steps, rel=1e-5)


def test_mapnet_weighs_frames_and_steps_by_weights_of_their_own() -> None:
    """The derivative of e exp(-w) + w is 1 - e exp(-w), each with its own error e."""
    estimates, target = vectors(6, 0), vectors(6, 1)
    objective = build_objective("mapnet", tiny_objective("mapnet", **BALANCE), CODEC)
    objective.terms(Fixed(estimates), EMPTY, target)["loss"].backward()
    error = (estimates - target).numpy()
    steps = np.diff(error.reshape(2, 3, 6), axis=1).reshape(4, 6)
    expected = []
    for e in (error, steps):
        expected += [1 - np.abs(e[:, :3]).sum(1).mean() * np.exp(1), 1 - np.abs(e[:, 3:]).sum(1).mean() * np.exp(-0.5)]
    gradients = [parameter.grad.item() for parameter in objective.parameters()]
    np.testing.assert_allclose(sorted(gradients), sorted(expected), rtol=1e-5)


# --- PoseNet+ ----------------------------------------------------------------------------------------------------


def homoscedastic(estimates: np.ndarray, target: np.ndarray, s_x: float, s_q: float) -> float:
    """Kendall and Cipolla 2017, with scipy's quaternions."""
    position = np.abs(estimates[:, :3] - target[:, :3]).sum(1)
    quaternion = estimates[:, 3:] / np.linalg.norm(estimates[:, 3:], axis=1, keepdims=True)
    truth = Rotation.from_rotvec(2 * target[:, 3:]).as_quat()[:, [3, 0, 1, 2]]
    rotation = np.minimum(np.abs(quaternion - truth).sum(1), np.abs(quaternion + truth).sum(1))
    return float(np.mean(position * np.exp(-s_x) + s_x + rotation * np.exp(-s_q) + s_q))


def random_quaternions(count: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(4))


def test_posenet_plus_compares_unit_quaternions_in_the_hemisphere_where_they_agree() -> None:
    estimates, target = random_quaternions(40), vectors(40, 1)
    other_sign = estimates * torch.tensor([1.0, 1, 1, -1, -1, -1, -1])
    expected = homoscedastic(estimates.double().numpy(), target.double().numpy(), -1.0, 0.5)
    for given in (estimates, other_sign):
        assert loss_of("posenet_plus", FixedQuaternions(given), target).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_posenet_plus_is_continuous_at_half_turns() -> None:
    """Rotations by a little less and a little more than 180 degrees are close; their logarithms are not."""
    target = torch.zeros(1, 6)
    target[0, 3] = np.pi / 2 - 0.001
    estimate = torch.tensor([[0.0, 0, 0, np.cos(np.pi / 2 + 0.001), np.sin(np.pi / 2 + 0.001), 0, 0]])
    loss = loss_of("posenet_plus", FixedQuaternions(estimate), target, beta=0.0, gamma=0.0)
    assert loss.item() == pytest.approx(0.002, rel=0.01)


def test_posenet_plus_learns_its_two_weights_from_the_configured_start() -> None:
    estimates, target = random_quaternions(8), vectors(8, 1)
    objective = build_objective("posenet_plus", tiny_objective("posenet_plus", **BALANCE), CODEC)
    assert sorted(parameter.item() for parameter in objective.parameters()) == [-1.0, 0.5]
    objective.terms(FixedQuaternions(estimates), EMPTY, target)["loss"].backward()
    step = 1e-4
    numbers = estimates.double().numpy(), target.double().numpy()
    for name, moved in (("s_x", (step, 0)), ("s_q", (0, step))):
        up = homoscedastic(*numbers, -1.0 + moved[0], 0.5 + moved[1])
        down = homoscedastic(*numbers, -1.0 - moved[0], 0.5 - moved[1])
        assert dict(objective.named_parameters())[name].grad.item() == pytest.approx((up - down) / 2 / step, rel=1e-4)


# --- all ---------------------------------------------------------------------------------------------------------


def test_a_system_that_is_not_trained_by_gradients_has_no_objective() -> None:
    with pytest.raises(ModelError, match=r"model 'nearest' has no objective, .*; systems with one: atloc, "):
        build_objective("nearest", tiny_objective("nearest"), CODEC)
