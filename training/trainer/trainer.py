# SPDX-License-Identifier: Apache-2.0
"""The training loop: one model, best and last checkpoints, then the folds that judge it; exactly resumable."""

from __future__ import annotations

import math
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from training.calibration.calibrate import save_calibrated
from training.calibration.confidence import fit_reference_features
from training.calibration.held_out import join, predict_held_out
from training.config import TrainConfig
from training.data.coverage import pose_record
from training.data.dataset import PreparedDataset
from training.data.prefetch import default_depth, prefetch
from training.data.splits import Split
from training.trainer.distributed import Processes
from training.trainer.fit import ModelTraining, new_model, postfix
from training.trainer.folds import Folds
from training.trainer.interruption import Interruption
from training.trainer.lifecycle import TrainingFrames, lifecycle_of
from training.trainer.logbook import Logbook
from training.trainer.optimizer import arithmetic
from training.trainer.run_files import RunFiles, damaged_state
from training.trainer.validation import score, validate
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import ProgressBar, progress_bar

_LOGGED_METRICS = ("median_position_m", "mean_position_m", "median_rotation_deg", "mean_rotation_deg")
_SAVE_EVERY_S = 300.0  # within long epochs
_SHOW_EVERY_S = 0.5  # more often, a GPU would wait for the bar


class Trainer:
    """Fits one model to one dataset, and where ``validation.folds`` says so, others to parts of it.

    Its files are :class:`training.trainer.run_files.RunFiles`. A training that is killed at any moment and resumed
    ends with the weights of one that was not (on the CPU with the same number of threads; on a GPU with
    ``deterministic``).

    Args:
        config: what to train and how.
        data: all frames; validation blocks are taken from it unless ``validation`` is given.
        out: path of the best checkpoint.
        record: what the checkpoint shall say of its training data.
        processes: those that train together; each has all data and takes its part of every batch.
        tensorboard: whether to write event files.

    Raises:
        ConfigError: the configuration does not fit the system, the device, the data or the number of processes.
        DataError: too few frames, or the model needs to know cameras and mounts and the sources do not say or agree.
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
        self._data, self._validation_data = data, validation or data
        self._split = Split.of(config.validation, data.poses, None if validation is None else len(validation))
        self._preprocessor = Preprocessor(config.preprocess)
        codec = PoseCodec.fit([data.poses[i] for i in self._split.train.tolist()])
        self._header = CheckpointHeader(
            config.model,
            config.preprocess,
            codec,
            map_frame,
            body_frame,
            training=self._record(record or {}, codec.scale_m),
        )
        self.model = new_model(config, data, self._split.train, self._validation_data, device)
        self._lifecycle = lifecycle_of(config.model.name)
        self._frames = TrainingFrames(config, data, self._split.train, device)
        if self._lifecycle.by_gradients:
            training_data, epochs = self._lifecycle.training_data(self.model, self._frames), config.optimizer.epochs
            common = self._frames, training_data
            self._fit = ModelTraining(self.model, codec, *common, epochs, self._processes)
            self._folds = Folds(self._header, self.model, *common, self._split.folds, self._processes)
        elif self._processes.count > 1:
            raise ConfigError(f"{config.model.name} is not trained by gradients; run it in one process")
        elif self._split.folds:
            raise ConfigError(f"{config.model.name} is not trained by gradients: set validation.folds=0")

    def run(self, progress: bool = True) -> dict[str, float]:
        """Train to the last epoch and finish the best checkpoint; return its validation metrics.

        A system that is not trained by gradients passes over the data once instead; its checkpoint is the only file.

        Raises:
            OutputError: a file cannot be written.
            DataError: the loss became NaN or infinite.
            KeyboardInterrupt: Ctrl-C, or SIGTERM as :class:`training.trainer.interruption.Terminated`, after the step
                under way has been finished and the state saved.
        """
        if not self._lifecycle.by_gradients:
            self._lifecycle.store(self.model, self._frames, progress)
            save_checkpoint(self._files.best, self._header, self.model.state_dict())
            return self._finish()
        # Several processes would stop at different steps and wait for each other: they go on from the last saved state.
        interruption = Interruption()
        with arithmetic(self._config.deterministic), interruption if self._processes.count == 1 else nullcontext():
            self._train(interruption, progress)
            return self._finish()

    def resume(self) -> None:
        """Continue from the saved state; a system that is not trained by gradients starts anew.

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
                self._fit = self._folds.begin(self._folds.number)
            self._fit.load_state_dict(state)
        except Exception as error:  # whatever a damaged file leads to
            raise damaged_state(self._files.state, error) from error

    # --- preparation -------------------------------------------------------------------------------------------------

    def _record(self, record: dict[str, Any], scale_m: float) -> dict[str, Any]:
        split, own, others = self._split, self._data.poses, self._validation_data.poses
        train = [own[i] for i in split.train.tolist()]
        held_out = [(train, [others[i] for i in split.held_out.tolist()])] if len(split.held_out) else []
        held_out += [([own[i] for i in rows.tolist()], [own[i] for i in asked.tolist()]) for rows, asked in split.folds]
        return {
            **record,
            **pose_record(train, held_out, scale_m),
            "frames": len(train),
            "validation_frames": len(split.held_out),
            "config": to_mapping(self._config),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def _identity(self) -> dict[str, Any]:
        """What a run that is resumed must have in common with this one."""
        codec = to_mapping(self._header.pose_codec)  # depends on every training pose
        return {
            "config": to_mapping(self._config),
            "pose_codec": codec,
            "frames": len(self._data),
            "processes": self._processes.count,
        }

    # --- training ----------------------------------------------------------------------------------------------------

    def _train(self, interruption: Interruption, progress: bool) -> None:
        """The model, where a resumed run has not finished it, and then one fold after the other."""
        self._fit.prepare()
        if self._processes.first:
            self._files.remove_leftovers()
            self._files.save_config(self._config)
            if not (self._folds.number or self._fit.steps):
                self._save_state()  # or an earlier run's would be resumed; and a full disk is noticed
        if not self._folds.number:
            events = self._files.events if self._tensorboard else None
            with closing(Logbook(self._files.log, events, self._fit.progress.epoch, self._fit.steps)) as logbook:
                self._train_fit("training", logbook, interruption, progress)
        for number in range(max(1, self._folds.number), len(self._folds) + 1):
            if number != self._folds.number:
                self._fit = self._folds.begin(number)
                self._fit.prepare()
            self._train_fit(f"fold {number} of {len(self._folds)}", None, interruption, progress)
            self._folds.end(self._fit)

    def _train_fit(self, name: str, logbook: Logbook | None, interruption: Interruption, progress: bool) -> None:
        """Go on to the last epoch; without a logbook nothing is validated, and no weights are kept."""
        fit, batch = self._fit, self._fit.sampler.frames
        bar = progress_bar(
            fit.epochs * fit.sampler.steps * batch,
            name,
            "img",
            initial=fit.steps * batch,
            unit_scale=True,
            disable=not (progress and self._processes.first),
        )
        with bar as shown:
            while not fit.done:
                self._train_epoch(shown, logbook, interruption)

    def _train_epoch(self, bar: ProgressBar, logbook: Logbook | None, interruption: Interruption) -> None:
        """As many frames as there are to train on, in random order or random clips; then what an epoch ends with."""
        fit, state = self._fit, self._fit.progress
        plan = [self._processes.share(clips).flatten() for clips in fit.sampler.epoch(state.epoch)]
        started = saved = shown = time.monotonic()
        first_step = state.step
        fit.training_step.train()
        with closing(
            prefetch(fit.training_data, plan[state.step :], self._device, default_depth(self._device))
        ) as batches:
            for rows, tensors, present in batches:
                terms = fit.step(rows, tensors, present)
                state.sums = {name: x + state.sums.get(name, 0.0) for name, x in terms.items()}
                state.step += 1
                bar.update(len(rows) * self._processes.count)
                now = time.monotonic()
                if now - shown > _SHOW_EVERY_S:
                    shown, values = now, {name: float(x) for name, x in terms.items()}
                    bar.set_postfix(postfix(state.epoch + 1, values))
                    if logbook and self._processes.first:
                        logbook.step(fit.steps, {**values, "rate": fit.optimizer.rate(fit.steps - 1)})
                if interruption.requested:
                    self._save_state()
                    raise interruption.error()
                if now - saved > _SAVE_EVERY_S:
                    saved = now
                    self._save_state()
        means, metrics = fit.epoch_means(), None
        seconds = time.monotonic() - started
        images = (state.step - first_step) * fit.sampler.frames
        rate = fit.optimizer.rate(fit.steps - 1)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        if logbook:
            due = state.epoch % self._config.validation.interval == 0 or state.epoch == fit.epochs
            metrics = self._validate() if due else None
            self._save_weights(metrics)
            if self._processes.first:
                figures = {"images_per_s": round(images / seconds, 1), "seconds": round(seconds, 3), "rate": rate}
                logbook.epoch(state.epoch, fit.steps, {**means, **figures, **_logged(metrics)})
        self._save_state()
        bar.set_postfix(postfix(state.epoch, means, metrics))

    # --- validation and files ----------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float] | None:
        data, rows = self._validation_data, self._split.held_out
        return validate(self._fit, data, rows, self._preprocessor, self._device, self._processes)

    def _score(self, metrics: dict[str, float] | None) -> float:
        """Smaller is better; without validation the newest weights win."""
        if metrics is None:
            return -math.inf if not len(self._split.held_out) else math.inf
        return score(metrics, self._header.pose_codec.scale_m)

    def _save_weights(self, metrics: dict[str, float] | None) -> None:
        """After an epoch: the newest weights, and the best ones if these are."""
        state, reached = self._fit.progress, self._score(metrics)
        better = reached <= state.best
        if better:
            state.best, state.stale = reached, 0
        elif metrics is not None:
            state.stale += 1
        if self._processes.first:
            header, weights = replace(self._header, metrics=metrics or {}), self._fit.optimizer.best_model.state_dict()
            if better:
                save_checkpoint(self._files.best, header, weights)
            save_checkpoint(self._files.last, header, weights)

    def _save_state(self) -> None:
        """Last of all files: what was killed before it is done again, with the same outcome."""
        if self._processes.first:
            identity = {"identity": self._identity()}
            self._files.save_state({**identity, **self._folds.state_dict(), **self._fit.state_dict()})

    def _finish(self) -> dict[str, float]:
        """Give the best weights' checkpoint its metrics and covariance; the first process does it for all."""
        metrics = self._calibrate() if self._processes.first else {}
        return self._processes.gather(metrics)[0]

    def _calibrate(self) -> dict[str, float]:
        """Calibrate the best weights on held-out frames; on the training frames where there are none."""
        torch.manual_seed(self._config.seed)
        model = load_checkpoint(self._files.best, self._device)[1].to(memory_format=torch.channels_last)
        on_held_out = bool(len(self._split.held_out) or self._split.folds)
        rows = self._split.held_out if len(self._split.held_out) else self._split.train
        data, references = self._validation_data, {}
        # A few blocks of the training drives do not show how features of other places differ.
        if self._split.folds or data is not self._data:
            references = fit_reference_features(self._header, model, self._data, self._split.train, self._device)
        try:
            estimates = (
                join(self._folds.answers)
                if self._split.folds
                else predict_held_out(self._header, model, data, rows, self._device, references)
            )
        except ModelError as error:
            raise DataError(f"the best weights: {error}; reduce optimizer.learning_rate") from error
        path, header = self._files.best, self._header
        header = save_calibrated(path, header, model, data, estimates, references, on_held_out=on_held_out)
        return dict(header.metrics)


def _logged(metrics: dict[str, float] | None) -> dict[str, float]:
    return {name: metrics[name] for name in _LOGGED_METRICS} if metrics else {}
