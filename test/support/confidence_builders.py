# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint with a confidence, and the drive that it was fitted to."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers import ListSource, random_frame, yaw_pose
from training.calibration.confidence import fit_confidence, fit_reference_features
from training.calibration.held_out import predict_held_out
from training.data.dataset import PreparedDataset, prepare_dataset
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import CylindricalConfig

CPU = torch.device("cpu")
SMALL = PreprocessConfig(
    modalities=("image", "lidar"),
    shortest_side=32,
    cylinder=CylindricalConfig(rows=32, columns=64, elevation_min_deg=-45.0, elevation_max_deg=45.0),
)


def drive(count: int = 120) -> list[Sample]:
    return [Sample(random_frame(i, (32, 40)), yaw_pose(0.5 * i, 0.0, 3.0 * i)) for i in range(count)]


def prepared(samples: list[Sample]) -> PreparedDataset:
    return prepare_dataset([ListSource(samples)], Preprocessor(SMALL), progress=False)


def write_judged_checkpoint(path: Path) -> Path:
    """An untrained model with a confidence: every other frame is held out, the others are stored."""
    write_random_checkpoint(path, preprocess=SMALL, backbone="squeezenet1_1")
    header, model = load_checkpoint(path)
    data, rows = prepared(drive()), torch.arange(120)
    references = fit_reference_features(header, model, data, rows[::2].clone(), CPU)
    confidence = fit_confidence(
        references, data, predict_held_out(header, model, data, rows[1::2].clone(), CPU, references)
    )
    save_checkpoint(path, header, model.state_dict(), confidence)
    return path
