# SPDX-License-Identifier: Apache-2.0
"""The training loop: the model with its validation and checkpoints, then the folds; exactly resumable."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from training.calibration.calibrate import save_calibrated
from training.calibration.confidence import fit_reference_features
from training.calibration.held_out import join, predict_held_out
from training.config import TrainConfig
from training.data.dataset import PreparedDataset
from training.data.prefetch import default_depth, prefetch
from training.data.splits import Split
from training.trainer.checkpoints import Checkpoints
from training.trainer.distributed import Processes
from training.trainer.folds import Folds
from training.trainer.interruption import Interruption
from training.trainer.lifecycle import TrainingFrames, lifecycle_of
from training.trainer.logbook import Logbook
from training.trainer.model_training import ModelTraining, new_model, postfix
from training.trainer.optimizer import arithmetic
from training.trainer.record import training_record
from training.trainer.run_files import RunFiles, damaged_state
from training.trainer.validation import validate
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import ProgressBar, progress_bar

_LOGGED_METRICS = ("median_position_m", "mean_position_m", "median_rotation_deg", "mean_rotation_deg")
_SAVE_EVERY_S = 300.0  # of the state, within an epoch
_SHOW_EVERY_S = 0.5  # of the terms; reading them synchronises with the GPU


class Trainer:
    """Trains a model on all data, and with ``validation.folds`` further models on parts of the data.

    It writes :class:`training.trainer.run_files.RunFiles`. A training that is killed at any moment and resumed ends
    with the same weights as an uninterrupted one (on CPUs with the same number of threads; on GPUs with
    ``deterministic``).

    Args:
        config: configuration of the training.
        data: all frames; validation blocks are taken from it unless ``validation`` is given.
        out: path of the best checkpoint.
        record: record of the training data, for the checkpoint's header.
        processes: processes that train together; each has all data and takes its part of every batch.
        tensorboard: whether to write event files.

    Raises:
        ConfigError: the configuration does not fit the system, the device, the data or the number of processes.
        DataError: too few frames, or the model needs cameras and mounts that are unknown or differ between sources.
        ModelError: the model cannot be built, or pretrained weights are missing.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: PreparedDataset,
        out: Path,
        *,
        map_frame: str,
        body_frame: str,
        device: torch.device,
        validation: PreparedDataset | None = None,
        record: dict[str, Any] | None = None,
        processes: Processes | None = None,
        tensorboard: bool = False,
    ) -> None:
        self._config, self._device, self._files = config, device, RunFiles(out)
        self._processes, self._tensorboard = processes or Processes(), tensorboard
        self._data, self._validation_data = data, (others := validation or data)
        self._split = Split.of(config.validation, data.poses, None if validation is None else len(validation))
        self._preprocessor = Preprocessor(config.preprocess)
        codec = PoseCodec.fit([data.poses[i] for i in self._split.train.tolist()])
        about = training_record(config, self._split, data.poses, others.poses, codec.scale_m)
        self._header = CheckpointHeader(
            config.model, config.preprocess, codec, map_frame, body_frame, training={**(record or {}), **about}
        )
        self.model = new_model(config, data, self._split.train, others, device)
        self._checkpoints = Checkpoints(self._files, self._header, len(self._split.held_out) > 0, self._processes)
        self._lifecycle = lifecycle_of(config.model.name)
        self._frames = TrainingFrames(config, data, self._split.train, device)
        if not self._lifecycle.by_gradients:
            self._check_without_gradients()
            return
        common = self._frames, self._lifecycle.training_data(self.model, self._frames)
        self._training = ModelTraining(self.model, codec, *common, config.optimizer.epochs, self._processes)
        self._folds = Folds(self._header, self.model, *common, self._split.folds, self._processes)

    def _check_without_gradients(self) -> None:
        """Raise ConfigError for settings that need gradient steps."""
        name = self._config.model.name
        if self._processes.count > 1:
            raise ConfigError(f"{name} is not trained by gradients; run it in one process")
        if self._split.folds:
            raise ConfigError(f"{name} is not trained by gradients: set validation.folds=0")

    def run(self, progress: bool = True) -> dict[str, float]:
        """Train to the last epoch and calibrate the best checkpoint; return its validation metrics.

        A system that is not trained by gradients stores the frames in one pass; its checkpoint is the only file.

        Raises:
            OutputError: a file cannot be written.
            DataError: the loss became NaN or infinite.
            KeyboardInterrupt: Ctrl-C, or SIGTERM as :class:`training.trainer.interruption.Terminated`, after the
                current step is finished and the state is saved.
        """
        if not self._lifecycle.by_gradients:
            self._lifecycle.store(self.model, self._frames, progress)
            save_checkpoint(self._files.best, self._header, self.model.state_dict())
            return self._finish(progress)
        # Several processes would stop at different steps and block each other: they resume from the last saved state.
        interruption = Interruption()
        with arithmetic(self._config.deterministic), interruption if self._processes.count == 1 else nullcontext():
            self._train(interruption, progress)
            return self._finish(progress)

    def resume(self) -> None:
        """Load the saved state; a system that is not trained by gradients has none and starts anew.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: it belongs to another configuration or other data.
        """
        if not self._lifecycle.by_gradients:
            return
        state = self._files.load_state(self._identity())
        try:
            self._folds.load_state_dict(state)
            if self._folds.number:
                self._training = self._folds.begin(self._folds.number)
            self._training.load_state_dict(state)
        except Exception as error:  # a damaged file may raise any type
            raise damaged_state(self._files.state, error) from error

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self, interruption: Interruption, progress: bool) -> None:
        """Train the model, unless a resumed run has finished it, and then each fold."""
        self._training.prepare()
        if self._processes.first:
            self._files.remove_leftovers()
            self._files.save_config(self._config)
            if not (self._folds.number or self._training.steps):
                self._save_state()  # replaces that of an earlier run, and detects a full disk
        if not self._folds.number:
            events = self._files.events if self._tensorboard else None
            with closing(
                Logbook(self._files.log, events, self._training.progress.epoch, self._training.steps)
            ) as logbook:
                self._train_model("training", logbook, interruption, progress)
        for number in range(max(1, self._folds.number), len(self._folds) + 1):
            if number != self._folds.number:
                self._training = self._folds.begin(number)
                self._training.prepare()
            self._train_model(f"fold {number} of {len(self._folds)}", None, interruption, progress)
            self._folds.end(self._training, progress)

    def _train_model(self, name: str, logbook: Logbook | None, interruption: Interruption, progress: bool) -> None:
        """Train to the last epoch; without a logbook, neither validate nor save weights."""
        training, frames = self._training, self._training.sampler.frames
        bar = progress_bar(
            training.epochs * training.sampler.steps * frames,
            name,
            "img",
            initial=training.steps * frames,
            unit_scale=True,
            disable=not (progress and self._processes.first),
        )
        with bar as shown:
            while not training.done:
                self._train_epoch(shown, logbook, interruption)

    def _train_epoch(self, bar: ProgressBar, logbook: Logbook | None, interruption: Interruption) -> None:
        """Run the steps of an epoch, then validate if it is due, and write weights, log and state."""
        training, state = self._training, self._training.progress
        started, first_step = time.monotonic(), state.step
        self._run_steps(bar, logbook, interruption)
        means, metrics = training.epoch_means(), None
        seconds = time.monotonic() - started
        images = (state.step - first_step) * training.sampler.frames
        rate = training.optimizer.rate(training.steps - 1)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        if logbook:
            due = state.epoch % self._config.validation.interval == 0 or state.epoch == training.epochs
            metrics = self._validate() if due else None
            self._checkpoints.save(training, metrics)
            if self._processes.first:
                figures = {"images_per_s": round(images / seconds, 1), "seconds": round(seconds, 3), "rate": rate}
                logbook.epoch(state.epoch, training.steps, {**means, **figures, **_logged(metrics)})
        self._save_state()
        bar.set_postfix(postfix(state.epoch, means, metrics))

    def _run_steps(self, bar: ProgressBar, logbook: Logbook | None, interruption: Interruption) -> None:
        """Take the remaining steps of the epoch, and save the state from time to time and at an interruption."""
        training, state = self._training, self._training.progress
        plan = [self._processes.share(clips).flatten() for clips in training.sampler.epoch(state.epoch)]
        depth = default_depth(self._device)
        saved = shown = time.monotonic()
        training.training_step.train()
        with closing(prefetch(training.training_data, plan[state.step :], self._device, depth)) as batches:
            for rows, tensors, present in batches:
                terms = training.step(rows, tensors, present)
                state.sums = {name: x + state.sums.get(name, 0.0) for name, x in terms.items()}
                state.step += 1
                bar.update(len(rows) * self._processes.count)
                now = time.monotonic()
                if now - shown > _SHOW_EVERY_S:
                    shown, values = now, {name: float(x) for name, x in terms.items()}
                    bar.set_postfix(postfix(state.epoch + 1, values))
                    if logbook and self._processes.first:
                        rate = training.optimizer.rate(training.steps - 1)
                        logbook.step(training.steps, {**values, "rate": rate})
                if interruption.requested:
                    self._save_state()
                    raise interruption.error()
                if now - saved > _SAVE_EVERY_S:
                    saved = now
                    self._save_state()

    # --- validation and files ----------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float] | None:
        data, rows = self._validation_data, self._split.held_out
        return validate(self._training, data, rows, self._preprocessor, self._device, self._processes)

    def _identity(self) -> dict[str, Any]:
        """What a run and the state that it resumes must have in common."""
        codec = to_mapping(self._header.pose_codec)  # fitted to every training pose
        return {
            "config": to_mapping(self._config),
            "pose_codec": codec,
            "frames": len(self._data),
            "processes": self._processes.count,
        }

    def _save_state(self) -> None:
        """Write the state, after all other files: a run killed before this writes them again, with the same content."""
        if self._processes.first:
            identity = {"identity": self._identity()}
            self._files.save_state({**identity, **self._folds.state_dict(), **self._training.state_dict()})

    def _finish(self, progress: bool) -> dict[str, float]:
        """Calibrate the best checkpoint in the first process; every process returns the metrics."""
        metrics = self._calibrate(progress) if self._processes.first else {}
        return self._processes.gather(metrics)[0]

    def _calibrate(self, progress: bool) -> dict[str, float]:
        """Metrics of the best checkpoint, calibrated on held-out frames, or on training frames if there are none."""
        torch.manual_seed(self._config.seed)
        model = load_checkpoint(self._files.best, self._device)[1].to(memory_format=torch.channels_last)
        on_held_out = bool(len(self._split.held_out) or self._split.folds)
        rows = self._split.held_out if len(self._split.held_out) else self._split.train
        data, references = self._validation_data, {}
        # Held-out blocks of the training drives do not suffice to calibrate a confidence.
        if self._split.folds or data is not self._data:
            references = fit_reference_features(self._header, model, self._data, self._split.train, self._device)
        try:
            estimates = (
                join(self._folds.estimates)
                if self._split.folds
                else predict_held_out(
                    self._header, model, data, rows, self._device, references, "calibration" if progress else ""
                )
            )
        except ModelError as error:
            raise DataError(f"the best weights: {error}; reduce optimizer.learning_rate") from error
        path, header = self._files.best, self._header
        header = save_calibrated(path, header, model, data, estimates, references, on_held_out=on_held_out)
        return dict(header.metrics)


def _logged(metrics: dict[str, float] | None) -> dict[str, float]:
    return {name: metrics[name] for name in _LOGGED_METRICS} if metrics else {}
