# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for tests and benchmarks: checkpoints with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint
from vmloc_ros.core.models import ModelConfig, PoseModel, build_model
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor


def write_random_checkpoint(
    path: Path,
    modalities: tuple[str, ...] = ("image", "lidar"),
    *,
    body_frame: str = "base_link",
    map_frame: str = "map",
    backbone: str = "mobilenet_v3_small",
    seed: int = 0,
    preprocess: PreprocessConfig | None = None,
) -> CheckpointHeader:
    """Write a valid checkpoint of an untrained small model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    preprocess = preprocess or PreprocessConfig(modalities=modalities, shortest_side=64)
    model_config = ModelConfig(backbone=backbone, latent_dim=32, hidden_dim=32)
    header = CheckpointHeader(
        model_config,
        preprocess,
        PoseCodec((10.0, -5.0, 1.0), 20.0, (1.0, 0.0, 0.0, 0.0)),
        map_frame,
        body_frame,
        training={"data": "none: random weights"},
    )
    model = build_model(model_config, Preprocessor(preprocess).channels)
    _settle_batch_norm(model)
    save_checkpoint(path, header, model.state_dict())
    return header


@torch.no_grad()
def _settle_batch_norm(model: PoseModel) -> None:
    """Give batch norms the statistics of noise: with their initial ones a deep network answers every input alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    for encoder in model.encoders.values():
        channels = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).in_channels
        encoder.train()(torch.rand(8, channels, 64, 64) * 2 - 1)
