# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: trainings on parts of the data, and what they say to the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from training.calibration.confidence import fit_reference_features
from training.calibration.held_out import EstimatesBySensors, from_state, predict_held_out, to_state
from training.data.sampler import Sampler
from training.data.training_data import TrainingData
from training.trainer.distributed import Processes
from training.trainer.fit import ModelTraining, new_model
from training.trainer.lifecycle import TrainingFrames
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.pose_codec import PoseCodec


class Folds:
    """Trainings that are like a model's own on all of the data, one after the other.

    Args:
        header: of the model.
        model: for its shape alone.
        frames: all of the data, with what is common to all trainings.
        training_data: what steps draw from; it has rows for all frames.
        parts: rows of the data that each is trained on, and rows that it predicts.

    Attributes:
        number: of the one under way, from 1 on; 0 before the first.
        answers: of those that have ended, in the first process.

    Raises:
        DataError: too few frames.
    """

    def __init__(
        self,
        header: CheckpointHeader,
        model: PoseModel,
        frames: TrainingFrames,
        training_data: TrainingData,
        parts: Sequence[tuple[Tensor, Tensor]],
        processes: Processes,
    ) -> None:
        self.number = 0
        self.answers: list[EstimatesBySensors] = []
        self._header, self._frames, self._training_data = header, frames, training_data
        self._parts, self._processes = parts, processes
        config = frames.config
        for rows, _ in parts:  # too few are reported now, not after the model's own training
            rows = training_data.rows_of(rows)
            Sampler(training_data, rows, model, config.optimizer.batch_size, config.seed)

    def __len__(self) -> int:
        return len(self._parts)

    def begin(self, number: int) -> ModelTraining:
        """The training of that number, before its first step."""
        self.number, rows, frames = number, self._parts[number - 1][0], self._frames
        config, data = frames.config, frames.data
        model = new_model(config, data, rows, data, frames.device)
        codec = PoseCodec.fit([data.poses[i] for i in rows.tolist()])
        epochs = config.validation.fold_epochs or config.optimizer.epochs
        frames = replace(frames, rows=rows)
        return ModelTraining(model, codec, frames, self._training_data, epochs, self._processes)

    def end(self, fit: ModelTraining) -> None:
        """Ask the training for the rows that it has not seen. Raises DataError: an answer is not finite."""
        self._processes.level_buffers(fit.optimizer.best_model)
        if not self._processes.first:
            return
        torch.manual_seed(self._frames.config.seed)
        header, (rows, asked) = replace(self._header, pose_codec=fit.codec), self._parts[self.number - 1]
        model = fit.optimizer.best_model
        data, device = self._frames.data, self._frames.device
        references = fit_reference_features(header, model, data, rows, device)
        try:
            self.answers.append(predict_held_out(header, model, data, asked, device, references))
        except ModelError as error:
            raise DataError(f"fold {self.number}: {error}; reduce optimizer.learning_rate") from error

    def state_dict(self) -> dict[str, Any]:
        """Everything but the training under way."""
        return {"fold": self.number, "answers": [to_state(answers) for answers in self.answers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.answers = state["fold"], [from_state(answers) for answers in state["answers"]]
