# SPDX-License-Identifier: Apache-2.0
"""For tests and benchmarks: model input of noise, and checkpoints with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint
from vmloc_ros.core.frame import IMAGE, LIDAR, MODALITIES
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import MemoryModel, ModelInput, PoseModel, build_model, model_config, own_settings
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor


def noise_input(tensors: Mapping[str, Tensor]) -> ModelInput:
    """Model input with every modality present, and with measurements and intrinsics for systems that need geometry.

    Args:
        tensors: per modality ``(B, C, H, W)`` in [-1, 1].
    """
    count, first = len(next(iter(tensors.values()))), next(iter(tensors.values()))
    width, height = first.shape[-1], first.shape[-2]
    camera = [[width, 0.0, (width - 1) / 2], [0.0, width, (height - 1) / 2], [0.0, 0.0, 1.0]]
    return ModelInput(
        tensors,
        {name: torch.ones(count, dtype=torch.bool, device=first.device) for name in tensors},
        {name: _measured(name, x) for name, x in tensors.items()},
        torch.tensor(camera, device=first.device).repeat(count, 1, 1),
    )


def write_random_checkpoint(
    path: Path,
    modalities: tuple[str, ...] = ("image", "lidar"),
    *,
    system: str = "vmloc",
    body_frame: str = "base_link",
    map_frame: str = "map",
    backbone: str = "mobilenet_v3_small",
    seed: int = 0,
    preprocess: PreprocessConfig | None = None,
) -> CheckpointHeader:
    """Write a valid checkpoint of an untrained small model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    preprocess = preprocess or PreprocessConfig(modalities=modalities, shortest_side=64)
    sizes = dict.fromkeys(("latent_dim", "hidden_dim", "feature_dim", "recurrent_dim"), 32)
    config = model_config(**own_settings({"name": system, "backbone": backbone, **sizes}))
    header = CheckpointHeader(
        config,
        preprocess,
        PoseCodec((10.0, -5.0, 1.0), 20.0, (1.0, 0.0, 0.0, 0.0)),
        map_frame,
        body_frame,
        training={"data": "none: random weights"},
    )
    channels = Preprocessor(preprocess).channels
    model = build_model(config, channels)
    _initialise_statistics(model, channels, header.pose_codec)
    save_checkpoint(path, header, model.state_dict())
    return header


@torch.no_grad()
def _initialise_statistics(model: PoseModel, channels: Mapping[str, int], codec: PoseCodec) -> None:
    """Set batch norm statistics to those of noise: with the initial ones, deep networks hardly respond to their input.

    A model that stores training frames instead of being trained stores the noise.
    """
    model.eval()
    model.set_mounts(dict.fromkeys(MODALITIES, Pose.identity()))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    noise = noise_input({name: torch.rand(8, count, 64, 64) * 2 - 1 for name, count in channels.items()})
    if isinstance(model, MemoryModel):
        model.store_frames(model.describe(noise), np.arange(24.0).reshape(8, 3), np.tile([1.0, 0.0, 0.0, 0.0], (8, 1)))
    else:
        model.locate(noise, codec)


def _measured(name: str, tensor: Tensor) -> Tensor:
    """Possible measurements, 1 to 5 m everywhere, in the format of :meth:`Preprocessor.prepare`."""
    if name == IMAGE:
        return ((tensor + 1) * 127.5).to(torch.uint8)
    distance, valid = 3 + 2 * tensor[:, :1], torch.ones_like(tensor[:, :1])
    if name != LIDAR or tensor.shape[1] == 2:  # in the camera's view
        return torch.cat([distance, valid], dim=1)
    height, width = tensor.shape[-2:]
    elevation = torch.linspace(0.3, -0.4, height, device=tensor.device).view(1, 1, -1, 1).expand_as(distance)
    azimuth = torch.linspace(3.1, -3.1, width, device=tensor.device).expand_as(distance)
    zero = torch.zeros_like(distance)
    return torch.cat([distance, distance * torch.sin(elevation), zero, azimuth, zero, valid], dim=1)
