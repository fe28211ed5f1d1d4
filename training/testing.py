# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for tests and benchmarks: checkpoints with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint
from vmloc_ros.core.models import ModelConfig, build_model
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
    save_checkpoint(path, header, model.state_dict())
    return header
