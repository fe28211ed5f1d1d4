# SPDX-License-Identifier: Apache-2.0
"""Which frames are for training, which for validation, and which are held out in turn."""

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
FEWEST = 50  # frames that a distribution is fitted to


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Held-out part of the training data: every ``every``-th block of ``block`` successive frames, or each in its turn.

    Blocks, not single frames: a neighbour 30 ms away in the training set would make the figure meaningless.

    Attributes:
        every: 0 takes no validation data (the covariance is then fitted on training errors, too small).
        interval: validate after so many epochs.
        patience: stop after so many validations in a row without a better one; 0: train all epochs.
        folds: from 2 on, cross-validation in place of ``every``: the model is trained on all frames, and then so many
            others for the covariance and the metrics alone. Each of these is asked for the blocks that it was not
            trained on, every ``folds``-th one, as far as the other blocks show these views, too.
        fold_epochs: of these trainings; 0: as many as of the model's own.
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
    """Rows of the data.

    Attributes:
        train: that the model is trained on.
        held_out: that it is validated on; of the validation data, where there are any of their own.
        folds: that each further training is trained on, and that it is asked for: of the blocks that are held out
            those frames whose views it has been shown, see :func:`training.data.coverage.known_views`. What a model
            says of places that it does not know is wide of the mark however it was trained: no covariance could hold
            it.
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
