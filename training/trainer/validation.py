# SPDX-License-Identifier: Apache-2.0
"""Validation during training: error metrics of the current weights on held-out frames, and their score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.evaluation.metrics import pose_errors
from training.prediction import poses, predict
from training.trainer.distributed import Processes
from training.trainer.model_training import ModelTraining
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.preprocessing import Preprocessor


def validate(
    training: ModelTraining,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    device: torch.device,
    processes: Processes,
) -> dict[str, float] | None:
    """Metrics of the estimates for the rows, which the processes share among them; None without rows.

    Raises:
        DataError: an estimate is not finite.
    """
    if not len(rows):
        return None
    model = training.optimizer.best_model
    # Systems that look back do so across the borders between the processes' parts.
    shared = not model.looks_back and len(rows) >= processes.count
    own_rows = processes.share(rows) if shared else rows
    processes.broadcast_buffers(model)
    try:
        own = poses(predict(model, data, own_rows, preprocessor, training.codec, device))
    except ModelError as error:
        raise DataError(f"epoch {training.progress.epoch}: {error}; reduce optimizer.learning_rate") from error
    estimates = [pose for part in (processes.gather(own) if shared else [own]) for pose in part]
    return pose_errors([data.poses[i] for i in rows.tolist()], estimates).summary()


def score(metrics: dict[str, float], scale_m: float) -> float:
    """Sum of the median position error, in units of the map's scale, and of the median rotation error in radians."""
    return metrics["median_position_m"] / scale_m + math.radians(metrics["median_rotation_deg"])
