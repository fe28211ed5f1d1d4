# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: models trained on parts of the data, and their estimates for the held-out rest."""

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
from training.trainer.lifecycle import TrainingFrames
from training.trainer.model_training import ModelTraining, new_model
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.pose_codec import PoseCodec


class Folds:
    """Trainings on parts of the data, one after the other, with the settings of the model's own training.

    Args:
        header: header of the model's checkpoint.
        model: a model of the system; its weights are not used.
        frames: all training frames, and the settings common to all trainings.
        training_data: batches are drawn from it; it has rows for all frames.
        parts: for each fold, rows of the data to train on, and held-out rows to predict.

    Attributes:
        number: number of the current fold, counted from 1; 0 before the first.
        estimates: held-out estimates of the finished folds, in the first process.

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
        self.estimates: list[EstimatesBySensors] = []
        self._header, self._frames, self._training_data = header, frames, training_data
        self._parts, self._processes = parts, processes
        config = frames.config
        for rows, _ in parts:  # too few frames are reported now, not after the model's own training
            rows = training_data.rows_of(rows)
            Sampler(training_data, rows, model, config.optimizer.batch_size, config.seed)

    def __len__(self) -> int:
        return len(self._parts)

    def begin(self, number: int) -> ModelTraining:
        """Start fold ``number``; returns its training, before the first step."""
        self.number, rows, frames = number, self._parts[number - 1][0], self._frames
        config, data = frames.config, frames.data
        model = new_model(config, data, rows, data, frames.device)
        codec = PoseCodec.fit([data.poses[i] for i in rows.tolist()])
        epochs = config.validation.fold_epochs or config.optimizer.epochs
        frames = replace(frames, rows=rows)
        return ModelTraining(model, codec, frames, self._training_data, epochs, self._processes)

    def end(self, training: ModelTraining, progress: bool = False) -> None:
        """Predict the current fold's held-out rows with its model. Raises DataError: an estimate is not finite."""
        model = training.optimizer.best_model
        self._processes.broadcast_buffers(model)
        if not self._processes.first:
            return
        torch.manual_seed(self._frames.config.seed)
        header, (rows, held_out) = replace(self._header, pose_codec=training.codec), self._parts[self.number - 1]
        data, device = self._frames.data, self._frames.device
        references = fit_reference_features(header, model, data, rows, device)
        name = f"predictions of fold {self.number} of {len(self)}" if progress else ""
        try:
            self.estimates.append(predict_held_out(header, model, data, held_out, device, references, name))
        except ModelError as error:
            raise DataError(f"fold {self.number}: {error}; reduce optimizer.learning_rate") from error

    def state_dict(self) -> dict[str, Any]:
        """The state except that of the current training."""
        return {"fold": self.number, "estimates": [to_state(estimates) for estimates in self.estimates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # "answers": key in state files of earlier versions
        estimates = state["estimates"] if "estimates" in state else state["answers"]
        self.number, self.estimates = state["fold"], [from_state(part) for part in estimates]
