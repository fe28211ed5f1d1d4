# SPDX-License-Identifier: Apache-2.0
"""Requirements on every system of the registry, and the architectures of the baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from helpers import random_frame, tiny_config, tiny_objective
from training.objectives.registry import build_objective
from training.testing import noise_input, write_random_checkpoint
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.errors import ConfigError, ModelError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import REGISTRY, DenseModel, ModelConfig, ModelInput, PoseModel, build_model, model_config
from vmloc_ros.core.models.encoder import make_trunk
from vmloc_ros.core.models.hourglass import EncoderDecoder
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig

DENSE = sorted(name for name, system in REGISTRY.items() if system.objective == "cells")
TRAINED = sorted(name for name, system in REGISTRY.items() if system.objective is not None)
REGRESSION = sorted({*TRAINED} - {*DENSE})
pytestmark = pytest.mark.numeric
CHANNELS = {"image": 3, "depth": 2, "lidar": 4}
SIZES = {"image": (48, 36), "depth": (48, 36), "lidar": (32, 64)}
CODEC = PoseCodec((10.0, -5.0, 1.0), 20.0, (1.0, 0.0, 0.0, 0.0))
BACKBONE = "shufflenet_v2_x0_5"
SIZES_OF_LAYERS = {"latent_dim": 16, "hidden_dim": 16, "feature_dim": 32, "recurrent_dim": 16, "dropout": 0.0}


def tiny(system: str) -> ModelConfig:
    return tiny_config(system, **SIZES_OF_LAYERS, clip_length=3, clip_spacing=1)


def modalities(system: str) -> tuple[str, ...]:
    """Two modalities where the system takes them: the image and one of another size."""
    return tuple(name for name in ("image", "lidar") if name in REGISTRY[system].takes)


def build(system: str, names: Sequence[str] = (), seed: int = 0, **changes: object) -> PoseModel:
    torch.manual_seed(seed)
    config = dataclasses.replace(tiny(system), **changes)
    model = build_model(config, {name: CHANNELS[name] for name in names or modalities(system)})
    model.set_mounts(dict.fromkeys(CHANNELS, Pose.identity()))
    return model


def noise(names: Sequence[str], count: int, seed: int = 0, **absent: Sequence[int]) -> ModelInput:
    """Random input; ``absent`` names the samples that lack a modality."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.rand(count, CHANNELS[name], *SIZES[name], generator=generator) * 2 - 1 for name in names}
    batch = noise_input(tensors)
    for name, samples in absent.items():
        batch.present[name][list(samples)] = False
    return batch


def network_outputs(model: PoseModel, batch: ModelInput) -> Tensor:
    """Pose vectors, or the cells' coordinates of a dense system, one row for each frame."""
    if not isinstance(model, DenseModel):
        return model(batch)
    cells = [model.predict(name, features)[0] for name, features in model.cell_features(batch).items()]
    return torch.cat(cells, dim=1).flatten(1)


def select(batch: ModelInput, samples: slice) -> ModelInput:
    return ModelInput(
        {name: x[samples] for name, x in batch.tensors.items()}, {name: x[samples] for name, x in batch.present.items()}
    )


def true_vectors(count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(9)) * 0.5


def seen_by(module: nn.Module, run: object) -> Tensor:
    """The first argument that the module gets while ``run`` runs."""
    inputs = []
    handle = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        run()
    handle.remove()
    return inputs[0]


def header(model_config: ModelConfig, names: Sequence[str]) -> CheckpointHeader:
    return CheckpointHeader(model_config, PreprocessConfig(tuple(names), 64), CODEC, "map", "base_link")


# --- every system ------------------------------------------------------------------------------------------------


def test_every_system_but_retrieval_has_an_objective() -> None:
    assert set(TRAINED) | {"nearest"} == set(REGISTRY)


@pytest.mark.parametrize("system", REGRESSION)
def test_it_predicts_with_a_resnet34_at_its_default_sizes(system: str) -> None:
    """Position and six numbers of a rotation; posenet_plus turns its unit quaternion into a log-quaternion."""
    names = modalities(system)
    model = build_model(model_config(system), {name: CHANNELS[name] for name in names}).eval()
    with torch.no_grad():
        outputs = model(noise(names, 2))
    assert outputs.shape == (2, 6 if system == "posenet_plus" else 9)
    assert bool(torch.isfinite(outputs).all())
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("rotation", ["log_quaternion", "six_d"])
@pytest.mark.parametrize("system", [name for name in REGRESSION if name != "posenet_plus"])
def test_every_regression_learns_a_pose_in_either_representation_of_rotations(system: str, rotation: str) -> None:
    """One pose, by the bias of the last layers alone; the estimate is decoded as on the robot."""
    batch = noise(modalities(system), 6)
    target = true_vectors(1).expand(6, 6)
    model = build(system, rotation=rotation).train()
    objective = build_objective(system, tiny_objective(system, samples=2), CODEC)
    biases = [x for name, x in model.named_parameters() if name.endswith("bias") and len(x) in (3, 6, 9)]
    optimizer = torch.optim.Adam(biases, 5e-2)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        if len(layer.bias) in (3, 6, 9):
            nn.init.zeros_(layer.weight)
    for _ in range(60):
        optimizer.zero_grad()
        objective.terms(model, batch, target)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        estimate = model.eval().locate(batch, CODEC)
    positions, quaternions = CODEC.decode(target[:1].numpy())
    np.testing.assert_allclose(estimate.positions_m[0], positions[0], atol=0.1 * CODEC.scale_m)
    assert abs(estimate.quaternions_wxyz[0] @ quaternions[0]) > np.cos(np.radians(10) / 2)


@pytest.mark.parametrize("system", TRAINED)
def test_every_parameter_gets_a_finite_gradient_and_the_first_layer_a_nonzero_one(system: str) -> None:
    names = modalities(system)
    model = build(system, dropout=0.5).train()
    objective = build_objective(system, tiny_objective(system), CODEC)
    loss = objective.terms(model, noise(names, 6), true_vectors(6))["loss"]
    assert loss.shape == ()
    loss.backward()
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels < 24]:
        assert bool(module.weight.grad.any())
    assert all(bool(parameter.grad.any()) for parameter in objective.parameters())


@pytest.mark.parametrize("system", TRAINED)
def test_it_overfits_a_batch(system: str) -> None:
    """With constant balance weights."""
    batch, target = noise(modalities(system), 6), true_vectors(6)
    model = build(system).train()
    objective = build_objective(system, tiny_objective(system, samples=2, beta=0.0, gamma=0.0), CODEC)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(24):
        loss = objective.terms(model, batch, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses


@pytest.mark.parametrize("system", TRAINED)
def test_it_reloads_bit_for_bit(system: str, tmp_path: Path) -> None:
    names = modalities(system)
    model = build(system).train()
    with torch.no_grad():
        network_outputs(model, noise(names, 4))  # changes the statistics of batch norms and all other buffers
    model.eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, header(tiny(system), names), model.state_dict())
    reloaded = load_checkpoint(path)[1]
    assert type(reloaded) is type(model)
    assert (reloaded.clip_length, reloaded.clip_spacing) == (model.clip_length, model.clip_spacing)
    state = reloaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    batch = noise(names, 3, seed=1)
    with torch.no_grad():
        assert torch.equal(network_outputs(model, batch), network_outputs(reloaded, batch))


@pytest.mark.parametrize("system", TRAINED)
def test_it_localizes_single_frames_and_a_stream(system: str, tmp_path: Path) -> None:
    names = modalities(system)
    path = tmp_path / "model.safetensors"
    write_random_checkpoint(path, names, system=system)
    localizer = Localizer.load(path, "cpu")
    frames = [random_frame(seed, names=names) for seed in range(3)]
    alone = [localizer.localize(frame) for frame in frames]
    assert [estimate.stamp_ns for estimate in alone] == [frame.stamp_ns for frame in frames]
    if system not in DENSE:  # untrained, their cells have no common solution but by chance
        assert not np.allclose(alone[0].map_from_body.matrix, alone[1].map_from_body.matrix, atol=1e-4)
    for estimate in alone:
        assert estimate.modalities == names
        assert np.isfinite(estimate.map_from_body.matrix).all()
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0

    stream = localizer.stream()
    streamed = [estimate for frame in frames for estimate in stream.feed(frame)] + stream.flush()
    assert [estimate.stamp_ns for estimate in streamed] == [frame.stamp_ns for frame in frames]
    if system != "vidloc":  # its estimates depend on earlier frames
        for estimate, expected in zip(streamed, alone, strict=True):
            np.testing.assert_array_equal(estimate.map_from_body.matrix, expected.map_from_body.matrix)
        with pytest.raises(ConfigError, match=rf"less than the 1 frame\(s\) that {system} looks at together, got 1"):
            localizer.stream(lookahead=1)


@pytest.mark.parametrize("system", [name for name in REGRESSION if len(modalities(name)) > 1])
def test_any_one_of_its_modalities_is_sufficient(system: str, tmp_path: Path) -> None:
    names = ("image", "depth", "lidar")
    path = tmp_path / "model.safetensors"
    write_random_checkpoint(path, names, system=system)
    localizer = Localizer.load(path, "cpu")
    estimates = [localizer.localize(random_frame(0, names=[name])) for name in names]
    assert [estimate.modalities for estimate in estimates] == [(name,) for name in names]
    positions = np.array([estimate.map_from_body.position_m for estimate in estimates])
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == 3


@pytest.mark.parametrize("system", [name for name in REGRESSION if len(modalities(name)) > 1])
def test_tensors_of_an_absent_modality_have_no_effect(system: str) -> None:
    model = build(system).eval()
    batch = noise(("image", "lidar"), 3, lidar=[1], image=[2])
    garbage = {name: x.clone() for name, x in batch.tensors.items()}
    garbage["lidar"][1], garbage["image"][2] = torch.nan, 1e6
    with torch.no_grad():
        expected = model(batch)
        assert torch.equal(model(ModelInput(garbage, batch.present)), expected)
        for sample in range(3):
            torch.testing.assert_close(
                model(select(batch, slice(sample, sample + 1)))[0], expected[sample], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("system", TRAINED)
def test_a_sample_without_any_modality_is_an_error_that_names_it(system: str) -> None:
    names = modalities(system)
    batch = noise(names, 3, **{name: [1] for name in names})
    with pytest.raises(ModelError, match=r"no modality is present in sample \[1\] of the batch"):
        build(system).eval().locate(batch, CODEC)


@pytest.mark.parametrize(
    ("system", "foreign"),
    [(name, other) for name in REGISTRY for other in CHANNELS if other not in REGISTRY[name].takes],
)
def test_a_modality_that_it_does_not_take_is_an_error(system: str, foreign: str) -> None:
    takes = " or ".join(REGISTRY[system].takes)
    with pytest.raises(ModelError, match=f"model '{system}' takes {takes}, not {foreign}"):
        build(system, [REGISTRY[system].takes[0], foreign])


# --- AttentionVMLoc ----------------------------------------------------------------------------------------------


def test_attention_vmloc_gives_each_modality_its_share_of_the_features() -> None:
    model = build("attention_vmloc", ("image", "depth", "lidar")).eval()
    names = ("image", "depth", "lidar")
    batch = noise(names, 3, image=[0], depth=[1], lidar=[2])
    both = seen_by(model.attention, lambda: model(noise(names, 3)))
    with_absent = seen_by(model.attention, lambda: model(batch))
    parts = [slice(0, 6), slice(6, 11), slice(11, 16)]  # of latent_dim 16
    assert bool(both.all())
    for sample, part in enumerate(parts):
        expected = both[sample].clone()
        expected[part] = 0
        torch.testing.assert_close(with_absent[sample], expected, atol=1e-5, rtol=1e-4)


# --- AtLoc, MapNet, PoseNet+ -------------------------------------------------------------------------------------


def test_atloc_is_mapnets_network_with_attention_before_the_heads() -> None:
    atloc, mapnet = build("atloc").eval(), build("mapnet").eval()
    weights = {name: x for name, x in atloc.state_dict().items() if not name.startswith("attention")}
    mapnet.load_state_dict(weights)
    batch = noise(("image",), 3)
    with torch.no_grad():
        torch.testing.assert_close(atloc(batch), mapnet(batch))  # the attention starts as the identity
        nn.init.normal_(atloc.attention.alpha.weight)
        features = mapnet.features(batch)
        attended = atloc.attention(features)
        assert not torch.allclose(attended, features)
        torch.testing.assert_close(atloc(batch), nn.functional.linear(attended, *mapnet.heads.parameters()))


def test_image_features_are_pooled_over_the_whole_picture_and_rectified() -> None:
    model = build("mapnet").eval()
    batch = noise(("image",), 2)
    with torch.no_grad():
        pooled = model.trunk(batch.tensors["image"]).flatten(2).mean(dim=2)
        expected = nn.functional.linear(pooled, *model.feature.parameters()).clamp(min=0)
        torch.testing.assert_close(model.features(batch), expected)
    assert bool((expected == 0).any())
    assert bool((expected > 0).any())


def test_mapnet_trains_on_tuples_of_three_ten_frames_apart() -> None:
    model = build_model(model_config("mapnet", BACKBONE), {"image": 3})
    assert (model.clip_length, model.clip_spacing) == (3, 10)
    model = build("mapnet", clip_length=4, clip_spacing=2)
    assert (model.clip_length, model.clip_spacing) == (4, 2)


def test_a_clip_of_one_frame_is_an_error_for_mapnet() -> None:
    with pytest.raises(
        ConfigError, match=r"mapnet trains on relative poses within a clip: clip_length is 1, set 2 or more"
    ):
        model_config("mapnet", clip_length=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_posenet_plus_outputs_the_logarithm_of_its_unit_quaternion(sign: int) -> None:
    model = build("posenet_plus").eval()
    batch = noise(("image",), 4)
    with torch.no_grad():
        model.heads.weight[3:] *= sign
        model.heads.bias[3:] = sign * torch.tensor([0.5, 0.7, -0.3, 0.1])
        position, quaternion = model.position_and_quaternion(batch)
        vectors = model(batch)
    assert bool((sign * quaternion[:, 0] > 0).all())
    torch.testing.assert_close(quaternion.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(vectors[:, :3], position, rtol=0, atol=0)
    turns = Rotation.from_quat(quaternion.numpy()[:, [1, 2, 3, 0]]).as_rotvec()
    np.testing.assert_allclose(vectors[:, 3:].numpy(), turns / 2, atol=1e-6)


# --- Hourglass ---------------------------------------------------------------------------------------------------


def test_each_up_convolution_is_added_to_the_encoders_last_map_of_its_size() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder("resnet18", 3).eval()
    x = torch.rand(2, 3, 64, 96)
    children = list(model.encoder)  # conv1, bn1, relu, maxpool, layer1 .. layer4
    with torch.no_grad():
        quarter = nn.Sequential(*children[:5])(x)
        eighth = children[5](quarter)
        sixteenth = children[6](eighth)
        up = [layer.up for layer in model.decoder]
        fine = up[2](up[1](up[0](children[7](sixteenth)) + sixteenth) + eighth) + quarter
        torch.testing.assert_close(model(x), model.convolution(fine))
    assert quarter.shape == fine.shape == (2, 64, 16, 24)


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "shufflenet_v2_x0_5",
        "mobilenet_v3_small",
        "squeezenet1_1",
        "efficientnet_b0",
        "regnet_y_400mf",
        "mnasnet0_5",
        "densenet121",
    ],
)
def test_the_decoder_fits_any_encoder_and_any_size(backbone: str) -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(backbone, 4)
    assert len(model.decoder) == 3
    for height, width in ((33, 47), (48, 32)):
        out = model(torch.rand(2, 4, height, width))
        assert out.shape[:2] == (2, model.out_channels)
        # A quarter of the size, save for SqueezeNet, which begins with less reduction.
        finest = 2 if backbone == "squeezenet1_1" else 4
        assert abs(out.shape[2] - height / finest) <= 1
        assert abs(out.shape[3] - width / finest) <= 1
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_encoder_computes_the_same_as_its_trunk() -> None:
    """Also where modules are nested (DenseNet): the skips must not change what the encoder computes."""
    torch.manual_seed(0)
    model = EncoderDecoder("densenet121", 3).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(seen_by(model.decoder[0], lambda: model(x)), model.encoder(x), rtol=0, atol=0)


def test_hourglass_keeps_pretrained_weights_of_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk, _ = make_trunk("squeezenet1_1", 3)
    state = {f"features.{name}": x for name, x in trunk.state_dict().items()}
    state |= {"classifier.1.weight": torch.zeros(1000, 512, 1, 1), "classifier.1.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "weights.pth")
    model = build_model(model_config("hourglass", "squeezenet1_1"), {"image": 3}, str(tmp_path / "weights.pth"))
    assert torch.equal(model.trunk.encoder[0].weight, trunk[0].weight)


# --- VidLoc ------------------------------------------------------------------------------------------------------


def test_vidlocs_input_is_one_image_of_all_modalities() -> None:
    model = build("vidloc").eval()
    batch = noise(("image", "lidar"), 2, lidar=[1])
    picture = seen_by(model.trunk, lambda: model.frame_features(batch))
    assert picture.shape == (2, 7, 48, 36)
    torch.testing.assert_close(picture[:, :3], batch.tensors["image"], rtol=0, atol=0)
    rows = ((np.arange(48) + 0.5) * 32 / 48).astype(int)  # 32 to 48: the pixel under each centre
    columns = ((np.arange(36) + 0.5) * 64 / 36).astype(int)  # 64 to 36
    expected = batch.tensors["lidar"][0].numpy()[:, rows[:, None], columns]
    np.testing.assert_array_equal(picture[0, 3:].numpy(), expected)
    assert not bool(picture[1, 3:].any())


def test_vidloc_scales_a_frame_without_its_first_modality_to_the_size_in_training() -> None:
    """The node has a placeholder without size, a dataset a row of zeros: both must give the same estimate."""
    model = build("vidloc").train()
    with torch.no_grad():
        model(noise(("image", "lidar"), 4))
    model.eval()
    full = noise(("image", "lidar"), 1, image=[0])
    live = ModelInput({**full.tensors, "image": torch.zeros(1)}, full.present)
    picture = seen_by(model.trunk, lambda: model.frame_features(live))
    assert picture.shape == (1, 7, 48, 36)
    with torch.no_grad():
        assert torch.equal(model(live), model(full))


def test_an_untrained_vidloc_scales_such_a_frame_to_the_size_of_a_present_modality() -> None:
    model = build("vidloc").eval()
    full = noise(("image", "lidar"), 1, image=[0])
    live = ModelInput({**full.tensors, "image": torch.zeros(1)}, full.present)
    assert seen_by(model.trunk, lambda: model.frame_features(live)).shape == (1, 7, 32, 64)


def test_vidloc_reads_clips_of_sixteen_successive_frames() -> None:
    model = build_model(model_config("vidloc", BACKBONE), {"image": 3})
    assert (model.clip_length, model.clip_spacing) == (16, 1)
    assert build("vidloc", clip_length=5).clip_length == 5
    with pytest.raises(ConfigError, match="unknown key clip_spacing"):
        model_config("vidloc", clip_spacing=2)


def test_vidlocs_outputs_are_not_bounded_as_an_lstms_are() -> None:
    model = build("vidloc").eval()
    with torch.no_grad():
        model.heads.weight *= 100
        vectors = model(noise(("image", "lidar"), 4))
    assert vectors.abs().max() > 2
