# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: trainings on parts of the data, and what they say to the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from training.calibration.confidence import remember
from training.calibration.held_out import BySensors, from_state, predict_held_out, to_state
from training.config import TrainConfig
from training.data.dataset import PreparedDataset
from training.data.frozen_features import FrozenFeatures
from training.data.sampler import Sampler
from training.trainer.distributed import Processes
from training.trainer.fit import ModelTraining, TrainingData, new_model
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.pose_codec import PoseCodec


class Folds:
    """Trainings that are like a model's own on all of the data, one after the other.

    Args:
        header: of the model.
        model: for its shape alone.
        data: all frames.
        material: these, or the features of all of them.
        parts: rows that each is trained on, and rows that it is asked for.

    Attributes:
        number: of the one under way, from 1 on; 0 before the first.
        answers: of those that have ended, in the first process.

    Raises:
        DataError: too few frames.
    """

    def __init__(
        self,
        config: TrainConfig,
        header: CheckpointHeader,
        model: PoseModel,
        data: PreparedDataset,
        material: TrainingData,
        parts: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.number = 0
        self.answers: list[BySensors] = []
        self._config, self._header, self._data, self._material = config, header, data, material
        self._parts, self._device, self._processes = parts, device, processes
        for rows, _ in parts:  # too few are reported now, not after the model's own training
            Sampler(material, self._places(rows), model, config.optimizer.batch_size, config.seed)

    def __len__(self) -> int:
        return len(self._parts)

    def begin(self, number: int) -> ModelTraining:
        """The training of that number, before its first step."""
        self.number, rows, config = number, self._parts[number - 1][0], self._config
        model = new_model(config, self._data, rows, self._data, self._device)
        codec = PoseCodec.fit([self._data.poses[i] for i in rows.tolist()])
        material = self._material, self._places(rows)
        epochs = config.validation.fold_epochs or config.optimizer.epochs
        return ModelTraining(config, model, codec, self._data, rows, *material, epochs, self._device, self._processes)

    def end(self, fit: ModelTraining) -> None:
        """Ask the training for the rows that it has not seen. Raises DataError: an answer is not finite."""
        self._processes.level_buffers(fit.descent.best_model)
        if not self._processes.first:
            return
        torch.manual_seed(self._config.seed)
        header, (rows, asked) = replace(self._header, pose_codec=fit.codec), self._parts[self.number - 1]
        model = fit.descent.best_model
        memories = remember(header, model, self._data, rows, self._device)
        try:
            self.answers.append(predict_held_out(header, model, self._data, asked, self._device, memories))
        except ModelError as error:
            raise DataError(f"fold {self.number}: {error}; reduce optimizer.learning_rate") from error

    def state_dict(self) -> dict[str, Any]:
        """Everything but the training under way."""
        return {"fold": self.number, "answers": [to_state(answers) for answers in self.answers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.answers = state["fold"], [from_state(answers) for answers in state["answers"]]

    def _places(self, rows: Tensor) -> Tensor:
        """Where the data's rows stand in what steps draw from."""
        return self._material.views_of(rows) if isinstance(self._material, FrozenFeatures) else rows
