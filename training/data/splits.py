# SPDX-License-Identifier: Apache-2.0
"""Splits of the data into training and validation rows, and into cross-validation folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.coverage import known_views
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.geometry import Pose

logger = logging.getLogger(__name__)
FEWEST = 50  # frames; no distribution is fitted to fewer


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Held-out part of the training data: every ``every``-th block of frames, or each block in turn (folds).

    Blocks, not single frames: errors of frames whose neighbours 30 ms away are trained on would be meaningless.

    Attributes:
        every: hold out every ``every``-th block; 0 holds out none, and the covariance is fitted to training errors,
            which are too small.
        block: frames of a block.
        interval: validate after every ``interval``-th epoch.
        patience: stop after this many validations in a row without improvement; 0 trains all epochs.
        folds: from 2 on, cross-validation in place of ``every``: the model is trained on all frames, and ``folds`` more
            models are trained for the covariance and the metrics only. Each holds out every ``folds``-th block and
            predicts those of its frames whose views the other blocks also show.
        fold_epochs: epochs of each fold's training; 0 takes those of the model's own training.
    """

    every: int = 10
    block: int = 20
    interval: int = 1
    patience: int = 0
    folds: int = 0
    fold_epochs: int = 0

    def __post_init__(self) -> None:
        if self.every < 0 or self.every == 1 or self.block < 1 or self.interval < 1 or self.patience < 0:
            raise ValueError(f"every is 0 or >= 2, block and interval >= 1, patience >= 0, got {self}")
        if self.folds < 0 or self.fold_epochs < 0:
            raise ValueError(f"folds and fold_epochs must not be negative, got {self}")
        if self.folds > 1 and self.patience:
            raise ValueError(f"patience needs frames that are held out of the model's own training, got {self}")

    @property
    def crosses(self) -> bool:
        """Whether there are folds."""
        return self.folds > 1


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of the data for training and validation.

    Attributes:
        train: rows that the model is trained on.
        held_out: rows that it is validated on, of the separate validation data where they are given.
        folds: per fold the rows to train on and the held-out rows to predict. Of the latter only those are kept whose
            views the fold is trained on, see :func:`training.data.coverage.known_views`: estimates at unknown places
            are gross errors, which no covariance describes.
    """

    train: Tensor
    held_out: Tensor
    folds: list[tuple[Tensor, Tensor]]

    @staticmethod
    def of(config: ValidationConfig, poses: Sequence[Pose], validation_frames: int | None) -> Split:
        """Split the training data.

        Args:
            poses: true poses of the training data, one per row.
            validation_frames: size of the separate validation data; None where there are none.

        Raises:
            ConfigError: folds beside validation data.
            DataError: there are fewer blocks than folds.
        """
        count, rows = len(poses), torch.arange(len(poses))
        if config.crosses and validation_frames is not None:
            raise ConfigError(
                f"validation.folds is {config.folds}, and validation data are given: they replace the folds; "
                "set validation.folds=0 or give no validation data"
            )
        if config.crosses:
            return Split(rows, rows[:0], _known(split_folds(count, config.block, config.folds), poses))
        if validation_frames is not None:
            return Split(rows, torch.arange(validation_frames), [])
        return Split(*split_blocks(count, config.block, config.every), [])


def _known(folds: list[tuple[Tensor, Tensor]], poses: Sequence[Pose]) -> list[tuple[Tensor, Tensor]]:
    """The folds with held-out rows of known views only; unchanged where these are too few."""
    kept = []
    for train, held_out in folds:
        near = known_views([poses[i] for i in train.tolist()], [poses[i] for i in held_out.tolist()])
        kept.append((train, held_out[torch.from_numpy(near)]))
    count, known = len(poses), sum(len(held_out) for _, held_out in kept)
    if known >= FEWEST:
        logger.info(
            "folds: %d of %d frames show views that other blocks also show; only these are predicted", known, count
        )
        return [(train, held_out) for train, held_out in kept if len(held_out)]
    logger.warning(
        "folds: only %d of %d frames show views that other blocks also show; all are predicted, and the covariance "
        "will be that of unknown places; record every place twice, or reduce validation.block",
        known,
        count,
    )
    return folds


def split_blocks(count: int, block: int, every: int) -> tuple[Tensor, Tensor]:
    """Rows for training and validation: every ``every``-th block of ``block`` rows, from the second on, is held out."""
    rows = torch.arange(count)
    if every == 0:
        return rows, rows[:0]
    held_out = (rows // block) % every == 1
    return rows[~held_out], rows[held_out]


def split_folds(count: int, block: int, folds: int) -> list[tuple[Tensor, Tensor]]:
    """Rows for training and validation of each fold: block i of ``block`` rows is held out of fold ``i % folds``.

    Raises:
        DataError: there are fewer blocks than folds.
    """
    rows = torch.arange(count)
    number = rows // block
    if count <= (folds - 1) * block:
        raise DataError(
            f"{count} frames are only {int(number[-1]) + 1} blocks of {block}, too few for {folds} folds; "
            "reduce validation.block or validation.folds"
        )
    return [(rows[number % folds != fold], rows[number % folds == fold]) for fold in range(folds)]
