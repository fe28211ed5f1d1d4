# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import urllib.error
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import helpers  # noqa: F401 (one thread for torch)
from vmloc_ros.core.errors import ConfigError, ModelError
from vmloc_ros.core.models import ModelInput, build_model, model_config
from vmloc_ros.core.models.attention import SelfAttention
from vmloc_ros.core.models.encoder import Encoder, make_trunk
from vmloc_ros.core.models.fusion import Gaussian, product_of_experts, standard_normal_log_prob

TINY = model_config(backbone="shufflenet_v2_x0_5", latent_dim=16, hidden_dim=8)
pytestmark = pytest.mark.numeric
CHANNELS = {"image": 3, "lidar": 4}


def tiny_model(dropout: float = 0.0, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = model_config(backbone=TINY.backbone, latent_dim=16, hidden_dim=8, dropout=dropout)
    model = build_model(config, CHANNELS)
    # The attention starts as the identity; tests want to see it act.
    torch.nn.init.normal_(model.attention.alpha.weight, std=0.5)
    return model.eval()


def model_input(present: dict[str, list[bool]], seed: int = 0) -> ModelInput:
    generator = torch.Generator().manual_seed(seed)
    count = len(next(iter(present.values())))
    tensors = {
        "image": torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1,
        "lidar": torch.rand(count, 4, 32, 64, generator=generator) * 2 - 1,
    }
    return ModelInput(tensors, {name: torch.tensor(rows) for name, rows in present.items()})


# --- Gaussians ---------------------------------------------------------------------------------------------------


def random_gaussian(shape: tuple[int, ...], seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    return Gaussian(mean, torch.randn(shape, generator=generator, dtype=torch.float64))


def as_torch(gaussian: Gaussian) -> torch.distributions.Independent:
    normal = torch.distributions.Normal(gaussian.mean, torch.exp(0.5 * gaussian.log_variance))
    return torch.distributions.Independent(normal, 1)


def test_log_prob_and_kl_are_those_of_torch_distributions() -> None:
    gaussian = random_gaussian((4, 7), 0)
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(4, 7), 1.0), 1)
    z = torch.randn(5, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(gaussian.log_prob(z), as_torch(gaussian).log_prob(z))
    torch.testing.assert_close(standard_normal_log_prob(z), prior.log_prob(z))
    kl = torch.distributions.kl_divergence(as_torch(gaussian), prior)
    torch.testing.assert_close(gaussian.kl_to_standard_normal(), kl.double())


def test_samples_have_the_mean_and_the_standard_deviation_of_the_gaussian() -> None:
    gaussian = random_gaussian((2, 3), 1)
    z = gaussian.sample(40_000, torch.Generator().manual_seed(0))
    assert z.shape == (40_000, 2, 3)
    deviation = torch.exp(0.5 * gaussian.log_variance)
    # Five standard errors of the mean; of the standard deviation about seven.
    assert bool(((z.mean(0) - gaussian.mean).abs() < 5 * deviation / 200).all())
    assert bool(((z.std(0) / deviation - 1).abs() < 0.025).all())


def test_samples_carry_gradients_to_mean_and_variance() -> None:
    mean = torch.zeros(1, 2, requires_grad=True)
    log_variance = torch.zeros(1, 2, requires_grad=True)
    noise = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(3))
    Gaussian(mean, log_variance).sample(3, torch.Generator().manual_seed(3)).sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 2), 3.0))
    torch.testing.assert_close(log_variance.grad, 0.5 * noise.sum(0))  # d sigma / d log sigma^2 = sigma / 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)),
        min_size=1,
        max_size=4,
    )
)
def test_product_of_experts_is_the_normalised_product_of_the_densities(experts: list[tuple[float, float]]) -> None:
    """Moments of the product by numerical integration, prior included."""
    means, log_variances = np.array(experts).T

    def density(x: np.ndarray) -> np.ndarray:
        exponent = -0.5 * x**2 - sum(0.5 * (x - m) ** 2 / np.exp(v) for m, v in zip(means, log_variances, strict=True))
        return np.exp(exponent - exponent.max())

    x = np.linspace(-8, 8, 20_001)
    weight = density(x)
    total = integrate.simpson(weight, x=x)
    mean = integrate.simpson(x * weight, x=x) / total
    variance = integrate.simpson((x - mean) ** 2 * weight, x=x) / total

    stacked = Gaussian(torch.tensor(means).view(-1, 1, 1), torch.tensor(log_variances).view(-1, 1, 1))
    joint = product_of_experts(stacked, torch.ones(len(experts), 1, dtype=torch.bool))
    assert joint.mean.item() == pytest.approx(mean, abs=1e-6)
    assert joint.log_variance.exp().item() == pytest.approx(variance, rel=1e-6)


def test_an_absent_expert_leaves_the_product_of_the_others() -> None:
    experts = random_gaussian((3, 2, 5), 2)
    present = torch.tensor([[True, True], [False, True], [True, False]])
    joint = product_of_experts(experts, present)
    for sample, members in enumerate(([0, 2], [0, 1])):
        alone = Gaussian(experts.mean[members, sample, None], experts.log_variance[members, sample, None])
        expected = product_of_experts(alone, torch.ones(2, 1, dtype=torch.bool))
        torch.testing.assert_close(joint.mean[sample], expected.mean[0])
        torch.testing.assert_close(joint.log_variance[sample], expected.log_variance[0])


def test_nan_of_an_absent_expert_reaches_neither_result_nor_gradient() -> None:
    mean = torch.randn(2, 1, 4, requires_grad=True)
    log_variance = torch.randn(2, 1, 4, requires_grad=True)
    poison = torch.tensor([0.0, torch.nan]).view(2, 1, 1)
    present = torch.tensor([[True], [False]])
    joint = product_of_experts(Gaussian(mean + poison, log_variance + poison), present)
    (joint.mean.sum() + joint.log_variance.sum()).backward()
    for tensor in (joint.mean, joint.log_variance, mean.grad[0], log_variance.grad[0]):
        assert bool(torch.isfinite(tensor).all())
    assert bool((mean.grad[1] == 0).all())
    assert bool((log_variance.grad[1] == 0).all())


def test_a_sample_without_any_modality_is_an_error_that_names_it() -> None:
    experts = random_gaussian((2, 3, 4), 3)
    present = torch.tensor([[True, False, True], [True, False, False]])
    with pytest.raises(ModelError, match=r"no modality is present in sample \[1\]"):
        product_of_experts(experts, present)


# --- attention ---------------------------------------------------------------------------------------------------


def test_attention_is_equations_16_and_17() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(24, reduction=4).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    z = torch.randn(3, 5, 24, dtype=torch.float64)

    def linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("od,...d->...o", layer.weight, x) + layer.bias

    scores = torch.einsum("...i,...j->...ij", linear(attention.theta, z), linear(attention.phi, z))
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    attended = torch.einsum("...ij,...j->...i", weights, linear(attention.g, z))
    torch.testing.assert_close(attention(z), z + linear(attention.alpha, attended))
    assert attention.theta.out_features == 6  # D / reduction


def test_attention_starts_as_the_identity() -> None:
    z = torch.randn(4, 16)
    torch.testing.assert_close(SelfAttention(16)(z), z, rtol=0, atol=0)


# --- encoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("resnet18", 64),
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),
        ("shufflenet_v2_x0_5", 64),
        ("densenet121", 64),
        ("squeezenet1_1", 64),
        ("efficientnet_b0", 64),
        ("mnasnet0_5", 64),
        ("regnet_y_400mf", 64),
        ("googlenet", 64),
    ],
)
def test_trunk_with_the_classifiers_own_head_gives_the_classifiers_own_output(
    backbone: str, size: int, tmp_path
) -> None:
    torch.manual_seed(0)
    # GoogLeNet's published weights include its auxiliary classifiers.
    extra = {"init_weights": False} if backbone == "googlenet" else {}
    classifier = torchvision.models.get_model(backbone, weights=None, **extra)
    for module in classifier.modules():  # statistics as after training, or a wrong order of layers may not show
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    trunk, features = make_trunk(backbone, 3, str(tmp_path / "weights.pth"))
    classifier.eval()
    trunk.eval()
    x = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        expected, maps = classifier(x), trunk(x)
        assert maps.shape[1] == features
        if backbone == "squeezenet1_1":
            actual = classifier.classifier(maps).flatten(1)
        else:
            head = classifier.fc if hasattr(classifier, "fc") else classifier.classifier
            actual = head(maps.mean(dim=(2, 3)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_first_convolution_takes_any_number_of_channels_and_keeps_the_size_of_activations(tmp_path) -> None:
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    trunk, _ = make_trunk("resnet18", 4, str(tmp_path / "weights.pth"))
    first = trunk[0]
    assert first.weight.shape == (64, 4, 7, 7)
    # A grey picture gives what it gave in RGB.
    grey = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            first(grey.repeat(1, 4, 1, 1)), classifier.conv1(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121"])
def test_adapted_trunk_accepts_its_channels_and_trains(backbone: str, channels: int) -> None:
    trunk, features = make_trunk(backbone, channels)
    out = trunk(torch.rand(2, channels, 64, 64))
    assert out.shape[1] == features
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())


def test_rgb_keeps_the_first_convolution_as_it_was(tmp_path) -> None:
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    trunk, _ = make_trunk("resnet18", 3, str(tmp_path / "weights.pth"))
    torch.testing.assert_close(trunk[0].weight, classifier.conv1.weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet33", "", "fcn_resnet50", "raft_small"])
def test_an_unknown_backbone_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ModelError, match=f"'{name}' is not a torchvision classification model"):
        make_trunk(name, 3)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_a_transformer_without_a_feature_map_is_rejected(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}.* use a CNN"):
        make_trunk(name, 3)


def test_pretrained_without_network_names_the_file_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/hub")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    wanted = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    with pytest.raises(ModelError, match=rf"resnet18.*{wanted}.*/nonexistent/hub/checkpoints.*pretrained: false"):
        make_trunk("resnet18", 3, True)


def test_a_missing_weights_file_is_an_error_that_names_torchvisions_file(tmp_path) -> None:
    with pytest.raises(
        ModelError, match=r"weights file .*nothing\.pth does not exist; give .*resnet18-.* for resnet18"
    ):
        make_trunk("resnet18", 3, str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize("kind", ["other network", "not a state dict", "garbage", "empty", "pickled object"])
def test_a_weights_file_of_another_network_is_an_error_that_names_it(tmp_path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    if kind == "other network":
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    elif kind == "not a state dict":
        torch.save([1, 2, 3], path)
    elif kind == "pickled object":
        torch.save(torchvision.models.squeezenet1_1(weights=None), path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"garbage" * 100)
    with pytest.raises(ModelError, match=r"weights\.pth does not hold weights of shufflenet_v2_x0_5") as caught:
        make_trunk("shufflenet_v2_x0_5", 3, str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(-8.0, 8.0), (-14.0, -6.0), (0.5, 1.0)])
def test_log_variances_are_bounded_start_in_the_middle_and_always_have_a_gradient(low: float, high: float) -> None:
    encoder = Encoder(torch.nn.Identity(), 5, 3, (low, high))
    _, log_variance = encoder(torch.rand(2, 5, 4, 4))
    assert bool((log_variance == (low + high) / 2).all())
    for weight, bound in ((-20.0, low), (20.0, high)):
        with torch.no_grad():
            encoder.log_variance.weight.fill_(weight)
        _, log_variance = encoder(torch.full((1, 5, 4, 4), 1.0))
        torch.testing.assert_close(log_variance, torch.full((1, 3), bound))
        assert bool(((low <= log_variance) & (log_variance <= high)).all())
    with torch.no_grad():
        encoder.log_variance.weight.fill_((high - low) / 8)
    encoder(torch.full((1, 5, 4, 4), 2.0))[1].sum().backward()
    assert bool((encoder.log_variance.weight.grad > 0).all())


def test_log_variances_start_where_the_configuration_says() -> None:
    encoder = Encoder(torch.nn.Identity(), 5, 3, (-14.0, -6.0), log_variance_start=-7.0)
    _, log_variance = encoder(torch.rand(2, 5, 4, 4))
    torch.testing.assert_close(log_variance, torch.full((2, 3), -7.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_variance_range": (1.0, 1.0)}, "low < high"),
        ({"log_variance_range": (-40.0, 0.0)}, r"within \[-30, 30\]"),
        ({"log_variance_start": -6.0}, r"log_variance_start lies within log_variance_range \[-14.0, -6.0\], got -6.0"),
    ],
)
def test_bounds_of_the_log_variance_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("vmloc", **settings)


# --- the whole network -------------------------------------------------------------------------------------------


def test_latent_and_output_have_the_documented_shapes() -> None:
    model = tiny_model()
    posterior = model.encode(model_input({"image": [True] * 3, "lidar": [True] * 3}))
    assert posterior.joint.mean.shape == posterior.joint.log_variance.shape == (3, 16)
    assert model.decode(posterior.joint.mean).shape == (3, 9)
    assert model.decode(torch.randn(5, 3, 16)).shape == (5, 3, 9)


def test_the_joint_posterior_is_the_product_of_the_encoders_posteriors() -> None:
    model = tiny_model()
    batch = model_input({"image": [True, True], "lidar": [True, True]})
    with torch.no_grad():
        posterior = model.encode(batch)
        precision, weighted = torch.ones(2, 16), torch.zeros(2, 16)
        for name, encoder in model.encoders.items():
            mean, log_variance = encoder(batch.tensors[name])
            precision += 1 / log_variance.exp()
            weighted += mean / log_variance.exp()
    torch.testing.assert_close(posterior.joint.mean, weighted / precision)
    torch.testing.assert_close(posterior.joint.log_variance.exp(), 1 / precision)


def test_absence_within_a_batch_equals_each_sample_on_its_own() -> None:
    model = tiny_model()
    present = {"image": [True, True, False, True], "lidar": [True, False, True, False]}
    batch = model_input(present)
    with torch.no_grad():
        together = model(batch)
        for i in range(4):
            alone = ModelInput(
                {name: x[i : i + 1] for name, x in batch.tensors.items()},
                {name: x[i : i + 1] for name, x in batch.present.items()},
            )
            torch.testing.assert_close(model(alone)[0], together[i], rtol=1e-4, atol=1e-5)


def test_values_of_an_absent_modality_change_nothing() -> None:
    model = tiny_model()
    batch = model_input({"image": [True, True], "lidar": [True, False]})
    poisoned = {name: x.clone() for name, x in batch.tensors.items()}
    poisoned["lidar"][1] = torch.nan
    with torch.no_grad():
        torch.testing.assert_close(model(batch), model(ModelInput(poisoned, batch.present)), rtol=0, atol=0)


def test_absent_samples_do_not_change_batch_norm_statistics() -> None:
    model = tiny_model().train()
    batch = model_input({"image": [True] * 4, "lidar": [False] * 4})
    before = {name: x.clone() for name, x in model.encoders["lidar"].state_dict().items()}
    model(batch)
    for name, x in model.encoders["lidar"].state_dict().items():
        assert torch.equal(before[name], x), name


def test_no_modality_at_all_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"no modality is present in sample \[0\]"):
        tiny_model()(model_input({"image": [False, True], "lidar": [False, False]}))


def test_dropout_acts_in_training_and_is_off_in_evaluation() -> None:
    model = tiny_model(dropout=0.5)
    z = torch.randn(4, 16)
    with torch.no_grad():
        assert torch.equal(model.decode(z), model.decode(z))
        model.train()
        assert not torch.equal(model.decode(z), model.decode(z))


def test_gradients_reach_every_parameter() -> None:
    model = tiny_model().train()
    posterior = model.encode(model_input({"image": [True] * 3, "lidar": [True] * 3}))
    (model.decode(posterior.joint.sample(2)).sum() + posterior.joint.log_variance.sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_an_unknown_model_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"model 'vmlocc' is not in the registry; known: .*vmloc"):
        build_model(model_config(name="vmlocc"), CHANNELS)


@pytest.mark.parametrize(
    "change", [{"latent_dim": 0}, {"hidden_dim": -1}, {"dropout": 1.0}, {"attention_reduction": 0}]
)
def test_sizes_out_of_range_are_rejected(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive and 0 <= dropout < 1"):
        model_config(**change)
