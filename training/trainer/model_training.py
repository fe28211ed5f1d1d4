# SPDX-License-Identifier: Apache-2.0
"""Training of one model by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.data.dataset import PreparedDataset, common_mounts, usual_twist
from training.data.sampler import Sampler
from training.data.training_data import TrainingData
from training.objectives.registry import Terms, TrainingStep, build_objective
from training.trainer.distributed import Processes
from training.trainer.lifecycle import TrainingFrames, lifecycle_of
from training.trainer.optimizer import Optimizer
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.models import PoseModel, build_model
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_SHORT = {"effective_samples": "ess"}  # names in the progress bar


def new_model(
    config: TrainConfig, data: PreparedDataset, rows: Tensor, others: PreparedDataset, device: torch.device
) -> PoseModel:
    """Build the untrained model; the same seed gives the same weights.

    Args:
        rows: of the data, the training frames.
        others: further data, whose sensors must have the same mounts.

    Raises:
        ConfigError: the augmentation does not fit the system.
        DataError: the model needs cameras and mounts, but they are unknown or differ between the sources.
        ModelError: the model cannot be built, or pretrained weights are missing.
    """
    preprocessor = Preprocessor(config.preprocess)
    torch.manual_seed(config.seed)
    model = build_model(config.model, preprocessor.channels, config.pretrained)
    if config.augment.moves_pixels and not model.needs_geometry:
        raise ConfigError(
            "augment.rotation_deg and augment.zoom change the image but not the pose that "
            f"{config.model.name} regresses: set 0 and 1; only dense systems support them"
        )
    if model.needs_geometry:
        names = [name for name in preprocessor.config.modalities if preprocessor.is_in_camera(name)]
        if names and not bool(data.intrinsics(rows, torch.device("cpu")).isfinite().any()):
            raise DataError(
                f"{config.model.name} needs the camera matrix of {' and '.join(names)}, but no frame has one: "
                "record the camera_info topic"
            )
        model.set_mounts(common_mounts(data, others))
        model.set_usual_twist(*usual_twist(data.twists[rows]))
    return model.to(device, memory_format=torch.channels_last)


class ModelTraining:
    """Gradient training of one model.

    Args:
        model: see :func:`new_model`.
        codec: fitted to the training poses.
        frames: the training frames; no other frame of the data influences the result.
        training_data: batches are drawn from it; it has rows for all training frames.
        epochs: of the whole training.

    Attributes:
        progress: finished epochs and steps.

    Raises:
        ConfigError: the configuration does not fit the system, the device or the number of processes.
        DataError: too few frames.
    """

    def __init__(
        self,
        model: PoseModel,
        codec: PoseCodec,
        frames: TrainingFrames,
        training_data: TrainingData,
        epochs: int,
        processes: Processes,
    ) -> None:
        config, device = frames.config, frames.device
        self.model, self.codec, self.epochs, self.progress = model, codec, epochs, Progress()
        self.training_data = training_data
        self._config, self._frames, self._device, self._processes = config, frames, device, processes
        self._lifecycle = lifecycle_of(config.model.name)
        self._lifecycle.initialise(model, frames, codec)
        self._targets = torch.from_numpy(codec.encode(training_data.poses)).to(device)
        rows = training_data.rows_of(frames.rows)
        self.sampler = Sampler(training_data, rows, model, config.optimizer.batch_size, config.seed)
        self.sampler.check_processes(processes.count)
        dropout = config.augment.modality_dropout
        self.objective = build_objective(config.model.name, config.objective, codec, dropout).to(device)
        self.training_step = processes.wrap(TrainingStep(model, self.objective), device)
        self.optimizer = Optimizer(model, self.objective, config.optimizer, epochs * self.sampler.steps, device)

    @property
    def done(self) -> bool:
        """Whether the last epoch is finished, or early stopping applies."""
        patience = self._config.validation.patience
        return self.progress.epoch >= self.epochs or 0 < patience <= self.progress.stale

    @property
    def steps(self) -> int:
        """Number of finished steps."""
        return self.progress.epoch * self.sampler.steps + self.progress.step

    def prepare(self) -> None:
        """Complete the model before the first step. Raises DataError: the frames do not suffice for it."""
        self._lifecycle.complete(self.model, self.optimizer.best_model, self._frames, self.codec)

    def step(self, rows: Tensor, tensors: dict[str, Tensor], present: dict[str, Tensor]) -> Terms:
        """Take one gradient step; returns the detached terms of the loss, means over the processes."""
        state = self.progress
        seed, augment_seed = self.sampler.seeds(state.epoch, state.step, self._processes.rank)
        torch.manual_seed(seed)  # posterior samples, dropout
        generator = torch.Generator().manual_seed(augment_seed)
        batch = self.training_data.step_input(rows, tensors, present, generator)
        with self.optimizer.autocast():
            terms = self.training_step(batch, self._targets[rows.to(self._device)])
        self.optimizer.step(terms["loss"], self.steps)
        means = self._processes.mean(torch.stack([x.detach() for x in terms.values()]))
        return dict(zip(terms, means, strict=True))

    def epoch_means(self) -> dict[str, float]:
        """Means of the terms over the epoch's steps. Raises DataError: the loss is not finite."""
        values = {name: float(x) / self.sampler.steps for name, x in self.progress.sums.items()}
        if not math.isfinite(values["loss"]):
            raise DataError(
                f"the loss became {values['loss']} in epoch {self.progress.epoch + 1}; reduce optimizer.learning_rate"
            )
        return values

    def state_dict(self) -> dict[str, Any]:
        """The complete state, for :meth:`load_state_dict` of a training with the same arguments."""
        return {
            "progress": {name: getattr(self.progress, name) for name in self.progress.__slots__},
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        # "descent": key in state files of earlier versions
        self.optimizer.load_state_dict(state["optimizer"] if "optimizer" in state else state["descent"])
        sums = {name: x.to(self._device) for name, x in state["progress"]["sums"].items()}
        self.progress = replace(Progress(**state["progress"]), sums=sums)


@dataclass(slots=True)
class Progress:
    """Progress of a training. Together with weights and optimizer it is the complete state: every draw is seeded anew.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch.
        best: score of the best checkpoint; smaller is better.
        stale: validations since the best checkpoint.
        sums: sums of the terms over the finished steps of the current epoch.
    """

    epoch: int = 0
    step: int = 0
    best: float = math.inf
    stale: int = 0
    sums: Terms = field(default_factory=dict)


def postfix(epoch: int, terms: Mapping[str, float], metrics: Mapping[str, float] | None = None) -> dict[str, str]:
    """Epoch, terms and validation metrics for the progress bar, in few characters."""
    short = {_SHORT.get(name, name).replace("variance_", "var_"): value for name, value in terms.items()}
    shown = {"epoch": str(epoch), **{name: f"{value:.3g}" for name, value in short.items()}}
    if metrics:
        shown["val"] = f"{metrics['median_position_m']:.2f} m {metrics['median_rotation_deg']:.1f} deg"
    return shown
