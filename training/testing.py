# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for tests and benchmarks: checkpoints with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint
from vmloc_ros.core.models import MemoryModel, ModelConfig, ModelInput, PoseModel, build_model
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor


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
    model_config = ModelConfig(system, backbone, latent_dim=32, hidden_dim=32, feature_dim=32, recurrent_dim=32)
    header = CheckpointHeader(
        model_config,
        preprocess,
        PoseCodec((10.0, -5.0, 1.0), 20.0, (1.0, 0.0, 0.0, 0.0)),
        map_frame,
        body_frame,
        training={"data": "none: random weights"},
    )
    channels = Preprocessor(preprocess).channels
    model = build_model(model_config, channels)
    _settle(model, channels, header.pose_codec)
    save_checkpoint(path, header, model.state_dict())
    return header


@torch.no_grad()
def _settle(model: PoseModel, channels: Mapping[str, int], codec: PoseCodec) -> None:
    """Give batch norms the statistics of noise: with their initial ones a deep network answers every input alike.

    A model that remembers gets the noise to remember.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    noise = ModelInput(
        {name: torch.rand(8, count, 64, 64) * 2 - 1 for name, count in channels.items()},
        {name: torch.ones(8, dtype=torch.bool) for name in channels},
    )
    if isinstance(model, MemoryModel):
        model.memorise(model.describe(noise), np.arange(24.0).reshape(8, 3), np.tile([1.0, 0.0, 0.0, 0.0], (8, 1)))
    else:
        model.locate(noise, codec)
