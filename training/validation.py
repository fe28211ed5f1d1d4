# SPDX-License-Identifier: Apache-2.0
"""Which frames a training is judged by, and how."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import ValidationConfig
from training.coverage import known_views
from training.dataset import PreparedDataset, split_blocks, split_folds
from training.distributed import Processes
from training.fit import Fit
from training.metrics import pose_errors
from training.predict import poses, predict
from training.tails import FEWEST
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ClipModel
from vmloc_ros.core.preprocessing import Preprocessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of the data.

    Attributes:
        train: that the model is trained on.
        held_out: that it is validated on; of the validation data, where there are any of their own.
        folds: that each further training is trained on, and that it is asked for: of the blocks that are held out
            those frames whose views it has been shown, see :func:`training.coverage.known_views`. What a model says of
            places that it does not know is wide of the mark however it was trained: no covariance could hold it.
    """

    train: Tensor
    held_out: Tensor
    folds: list[tuple[Tensor, Tensor]]

    @staticmethod
    def of(config: ValidationConfig, poses: Sequence[Pose], own: int | None) -> Split:
        """Of frames with these poses.

        Args:
            own: frames of validation data; None where there are none.

        Raises:
            ConfigError: folds beside validation data.
            DataError: there are fewer blocks than folds.
        """
        count, rows = len(poses), torch.arange(len(poses))
        if config.crosses and own is not None:
            raise ConfigError(
                f"validation.folds is {config.folds}, and validation data are given: they take the place of folds; "
                "set validation.folds=0 or give none"
            )
        if config.crosses:
            return Split(rows, rows[:0], _known(split_folds(count, config.block, config.folds), poses))
        if own is not None:
            return Split(rows, torch.arange(own), [])
        return Split(*split_blocks(count, config.block, config.every), [])


def _known(folds: list[tuple[Tensor, Tensor]], poses: Sequence[Pose]) -> list[tuple[Tensor, Tensor]]:
    """The folds, asked for known views alone; as they are where these are too few."""
    kept = []
    for train, asked in folds:
        near = known_views([poses[i] for i in train.tolist()], [poses[i] for i in asked.tolist()])
        kept.append((train, asked[torch.from_numpy(near)]))
    count, known = len(poses), sum(len(asked) for _, asked in kept)
    if known >= FEWEST:
        logger.info(
            "folds: %d of %d frames show views that the other blocks show, too; only they are judged", known, count
        )
        return [(train, asked) for train, asked in kept if len(asked)]
    logger.warning(
        "folds: only %d of %d frames show views that the other blocks show, too; all are judged, and the covariance "
        "will be that of unknown places: record every place twice, or reduce validation.block",
        known,
        count,
    )
    return folds


def validate(
    fit: Fit,
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
    model = fit.descent.best_model
    # Clips look back across the borders of parts.
    shared = not isinstance(model, ClipModel) and len(rows) >= processes.count
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
