# SPDX-License-Identifier: Apache-2.0
"""Which frames a training is judged by, and how."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from training.data.dataset import PreparedDataset
from training.evaluation.metrics import pose_errors
from training.prediction import poses, predict
from training.trainer.distributed import Processes
from training.trainer.fit import ModelTraining
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.preprocessing import Preprocessor

logger = logging.getLogger(__name__)


def validate(
    fit: ModelTraining,
    data: PreparedDataset,
    rows: Tensor,
    preprocessor: Preprocessor,
    device: torch.device,
    processes: Processes,
) -> dict[str, float] | None:
    """Metrics of the rows, each process having answered its part of them; None without rows.

    Raises:
        DataError: an answer is not finite.
    """
    if not len(rows):
        return None
    model = fit.optimizer.best_model
    # Systems that look back do so across the borders of parts.
    shared = not model.looks_back and len(rows) >= processes.count
    mine = processes.share(rows) if shared else rows
    processes.level_buffers(model)
    try:
        own = poses(predict(model, data, mine, preprocessor, fit.codec, device))
    except ModelError as error:
        raise DataError(f"epoch {fit.progress.epoch}: {error}; reduce optimizer.learning_rate") from error
    answers = [pose for part in (processes.gather(own) if shared else [own]) for pose in part]
    return pose_errors([data.poses[i] for i in rows.tolist()], answers).summary()


def score(metrics: dict[str, float], scale_m: float) -> float:
    """Smaller is better: scale-free sum of median errors."""
    return metrics["median_position_m"] / scale_m + math.radians(metrics["median_rotation_deg"])
