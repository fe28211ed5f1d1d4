# SPDX-License-Identifier: Apache-2.0
"""The training loop: one objective, one optimizer, best and last checkpoints, exactly resumable."""

from __future__ import annotations

import math
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from training.calibrate import calibrate, fit_confidence, poses, remember
from training.config import TrainConfig
from training.coverage import pose_record
from training.dataset import PreparedDataset, common_mounts, split_blocks, usual_twist
from training.dense import FrozenFeatures, Looks
from training.descent import Descent, arithmetic
from training.distributed import Processes
from training.extent import learn_extent
from training.interruption import Interruption
from training.loader import default_depth, prefetch
from training.logbook import Logbook
from training.memorise import memorise
from training.metrics import pose_errors
from training.objectives import Terms, TrainingStep, build_objective
from training.point_map import build_point_map
from training.predict import predict
from training.progress import Progress, postfix
from training.run_files import RunFiles, damaged_state
from training.sampler import Sampler, training_input
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import ClipModel, DenseModel, MemoryModel, ModelInput, build_model
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_LOGGED_METRICS = ("median_position_m", "mean_position_m", "median_rotation_deg", "mean_rotation_deg")
_SAVE_EVERY_S = 300.0  # within long epochs
_SHOW_EVERY_S = 0.5  # more often, a GPU would wait for the bar


class Trainer:
    """Fits one model to one dataset.

    Its files are :class:`training.run_files.RunFiles`. A training that is killed at any moment and resumed ends with
    the weights of one that was not (on the CPU with the same number of threads; on a GPU with ``deterministic``).

    Args:
        config: what to train and how.
        data: all frames; validation blocks are taken from it unless ``validation`` is given.
        out: path of the best checkpoint.
        record: what the checkpoint shall say of its training data.
        processes: those that train together; each has all data and takes its part of every batch.
        tensorboard: whether to write event files.

    Raises:
        ConfigError: the configuration does not fit the system, the device or the number of processes.
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
        every = 0 if validation is not None else config.validation.every
        self._train_rows, held_out = split_blocks(len(data), config.validation.block, every)
        self._held_out = held_out if validation is None else torch.arange(len(validation))
        torch.manual_seed(config.seed)
        self._preprocessor = Preprocessor(config.preprocess)
        codec = PoseCodec.fit([data.poses[i] for i in self._train_rows.tolist()])
        self._header = CheckpointHeader(
            config.model,
            config.preprocess,
            codec,
            map_frame,
            body_frame,
            training=self._record(record or {}, codec.scale_m),
        )
        model = build_model(config.model, self._preprocessor.channels, config.pretrained)
        if config.augment.moves_pixels and not model.needs_geometry:
            raise ConfigError(
                "augment.rotation_deg and augment.zoom change what the camera sees but not the pose that "
                f"{config.model.name} learns: set 0 and 1; only dense systems can be trained so"
            )
        if model.needs_geometry:
            self._check_cameras()
            model.set_mounts(common_mounts(data, self._validation_data))
            model.set_usual_twist(*usual_twist(data.twists[self._train_rows]))
        self.model = model.to(device, memory_format=torch.channels_last)
        self._progress = Progress()
        if not isinstance(self.model, MemoryModel):
            self._prepare_descent()
        elif self._processes.count > 1:
            raise ConfigError(f"{config.model.name} is not trained by gradients; run it in one process")

    def run(self, progress: bool = True) -> dict[str, float]:
        """Train to the last epoch and finish the best checkpoint; return its validation metrics.

        A system that remembers passes over the data once instead; the checkpoint is then the only file.

        Raises:
            OutputError: a file cannot be written.
            DataError: the loss became NaN or infinite.
            KeyboardInterrupt: Ctrl-C, or SIGTERM as :class:`training.interruption.Terminated`, after the step under
                way has been finished and the state saved.
        """
        if isinstance(self.model, MemoryModel):
            memorise(self.model, self._data, self._train_rows, self._preprocessor, self._device, progress)
            save_checkpoint(self._files.best, self._header, self.model.state_dict())
            return self._finish()
        # Several processes would stop at different steps and wait for each other: they go on from the last saved state.
        interruption = Interruption()
        with arithmetic(self._config.deterministic), interruption if self._processes.count == 1 else nullcontext():
            self._train(interruption, progress)
            return self._finish()

    def resume(self) -> None:
        """Continue from the saved state; a system that remembers has nothing to go on from and starts anew.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: it belongs to another configuration or other data.
        """
        if isinstance(self.model, MemoryModel):
            return
        state = self._files.load_state(self._identity())
        try:
            self.model.load_state_dict(state["model"])
            self._objective.load_state_dict(state["objective"])
            self._descent.load_state_dict(state["descent"])
            self._progress = Progress(**state["progress"])
            self._progress.sums = {name: x.to(self._device) for name, x in self._progress.sums.items()}
        except Exception as error:  # whatever a damaged file leads to
            raise damaged_state(self._files.state, error) from error

    # --- preparation -------------------------------------------------------------------------------------------------

    def _prepare_descent(self) -> None:
        """What gradient steps need."""
        config, codec = self._config.optimizer, self._header.pose_codec
        if isinstance(self.model, DenseModel):
            learn_extent(self.model, self._data, self._train_rows, self._preprocessor, codec, self._device)
            if self.model.map is not None:
                build_point_map(self.model, self._data, self._train_rows, self._preprocessor, codec, self._device)
        self._material, rows = self._frozen_features() if self._config.model.frozen else (self._data, self._train_rows)
        self._targets = torch.from_numpy(codec.encode(self._material.poses)).to(self._device)
        self._sampler = Sampler(self._material, rows, self.model, config.batch_size, self._config.seed)
        self._sampler.check_processes(self._processes.count)
        self._objective = build_objective(self._config.model.name, self._config.objective, codec).to(self._device)
        self._training_step = self._processes.wrap(TrainingStep(self.model, self._objective), self._device)
        steps = config.epochs * self._steps_per_epoch
        self._descent = Descent(self.model, self._objective, config, steps, self._device)

    def _check_cameras(self) -> None:
        """Raises DataError: pictures of the camera's view cannot be used because no frame says what camera it was."""
        names = [name for name in self._preprocessor.config.modalities if self._preprocessor.is_in_camera(name)]
        if names and not bool(self._data.intrinsics(self._train_rows, torch.device("cpu")).isfinite().any()):
            raise DataError(
                f"{self._config.model.name} needs the camera matrix of {' and '.join(names)}, and no frame says it: "
                "record the camera_info"
            )

    def _frozen_features(self) -> tuple[FrozenFeatures, Tensor]:
        """What steps draw from where trunks do not change, and its rows."""
        if not isinstance(self.model, DenseModel):
            raise ConfigError(f"model.frozen: {self._config.model.name} trains its trunks; only dense systems need not")
        config = self._config
        features = FrozenFeatures(
            self.model,
            self._data,
            self._train_rows,
            self._preprocessor,
            config.augment,
            config.frozen,
            config.seed,
            self._device,
        )
        return features, torch.arange(len(features))

    def _record(self, record: dict[str, Any], scale_m: float) -> dict[str, Any]:
        train = [self._data.poses[i] for i in self._train_rows.tolist()]
        held_out = [self._validation_data.poses[i] for i in self._held_out.tolist()]
        return {
            **record,
            **pose_record(train, held_out, scale_m),
            "frames": len(self._train_rows),
            "validation_frames": len(self._held_out),
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

    @property
    def _steps_per_epoch(self) -> int:
        return self._sampler.steps

    @property
    def _done(self) -> bool:
        patience = self._config.validation.patience
        return self._progress.epoch >= self._config.optimizer.epochs or 0 < patience <= self._progress.stale

    def _train(self, interruption: Interruption, progress: bool) -> None:
        first, state = self._processes.first, self._progress
        steps = state.epoch * self._steps_per_epoch + state.step
        if first:
            self._files.remove_leftovers()
            self._files.save_config(self._config)
            if not steps:  # an earlier run's state would be resumed else; and a full disk is noticed
                self._save_state()
        logbook = Logbook(self._files.log, self._files.events if self._tensorboard else None, state.epoch, steps)
        batch = self._sampler.frames
        bar = tqdm(
            total=self._config.optimizer.epochs * self._steps_per_epoch * batch,
            initial=steps * batch,
            desc="training",
            unit="img",
            unit_scale=True,
            disable=not (progress and first),
        )
        with bar, closing(logbook):
            while not self._done:
                self._train_epoch(bar, logbook, interruption)

    def _train_epoch(self, bar: Any, logbook: Logbook, interruption: Interruption) -> None:
        """As many frames as there are to train on, in random order or random clips; then what an epoch ends with."""
        state = self._progress
        plan = [self._processes.share(clips).flatten() for clips in self._sampler.epoch(state.epoch)]
        started = saved = shown = time.monotonic()
        first_step, before = state.step, state.epoch * self._steps_per_epoch
        self._training_step.train()
        with closing(
            prefetch(self._material, plan[state.step :], self._device, default_depth(self._device))
        ) as batches:
            for rows, tensors, present in batches:
                terms = self._step(rows, tensors, present)
                state.sums = {name: x + state.sums.get(name, 0.0) for name, x in terms.items()}
                state.step += 1
                bar.update(len(rows) * self._processes.count)
                now = time.monotonic()
                if now - shown > _SHOW_EVERY_S:
                    shown, values = now, {name: float(x) for name, x in terms.items()}
                    bar.set_postfix(postfix(state.epoch + 1, values), refresh=False)
                    if self._processes.first:
                        done = before + state.step
                        logbook.step(done, {**values, "rate": self._descent.rate(done - 1)})
                if interruption.requested:
                    self._save_state()
                    raise interruption.error()
                if now - saved > _SAVE_EVERY_S:
                    saved = now
                    self._save_state()
        means = self._epoch_means()
        seconds = time.monotonic() - started
        images = (state.step - first_step) * self._sampler.frames
        rate = self._descent.rate(before + state.step - 1)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        due = state.epoch % self._config.validation.interval == 0 or state.epoch == self._config.optimizer.epochs
        metrics = self._validate() if due else None
        self._save_weights(metrics)
        if self._processes.first:
            figures = {"images_per_s": round(images / seconds, 1), "seconds": round(seconds, 3), "rate": rate}
            logbook.epoch(state.epoch, before + self._steps_per_epoch, {**means, **figures, **_logged(metrics)})
        self._save_state()
        bar.set_postfix(postfix(state.epoch, means, metrics))

    def _step(self, rows: Tensor, tensors: dict[str, Tensor], present: dict[str, Tensor]) -> Terms:
        """The terms of the loss, detached, and means over the processes."""
        state = self._progress
        seed, augment_seed = self._sampler.seeds(state.epoch, state.step, self._processes.rank)
        torch.manual_seed(seed)  # posterior samples, dropout
        generator = torch.Generator().manual_seed(augment_seed)
        if isinstance(self._material, FrozenFeatures):
            batch: ModelInput | Looks = self._material.looks(tensors, present)
        else:
            known = (None, None)
            if self.model.needs_geometry:
                known = self._data.intrinsics(rows, self._device), self._data.twists[rows].to(self._device)
            batch = training_input(tensors, present, self._config.augment, self._preprocessor, generator, *known)
        with self._descent.autocast():
            terms = self._training_step(batch, self._targets[rows.to(self._device)])
        self._descent.step(terms["loss"], state.epoch * self._steps_per_epoch + state.step)
        means = self._processes.mean(torch.stack([x.detach() for x in terms.values()]))
        return dict(zip(terms, means, strict=True))

    def _epoch_means(self) -> dict[str, float]:
        """Means over the epoch's steps. Raises DataError: the loss is not finite."""
        values = {name: float(x) / self._steps_per_epoch for name, x in self._progress.sums.items()}
        if not math.isfinite(values["loss"]):
            raise DataError(
                f"the loss became {values['loss']} in epoch {self._progress.epoch + 1}; reduce optimizer.learning_rate"
            )
        return values

    # --- validation and files ----------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float] | None:
        if not len(self._held_out):
            return None
        truth = [self._validation_data.poses[i] for i in self._held_out.tolist()]
        return pose_errors(truth, self._predict(self._held_out)).summary()

    def _predict(self, rows: Tensor) -> list[Pose]:
        """Answers to validation rows, each process to its part of them."""
        data, codec = self._validation_data, self._header.pose_codec
        # Clips look back across the borders of parts.
        shared = not isinstance(self.model, ClipModel) and len(rows) >= self._processes.count
        mine = self._processes.share(rows) if shared else rows
        self._processes.level_buffers(self._descent.best_model)
        try:
            prediction = predict(self._descent.best_model, data, mine, self._preprocessor, codec, self._device)
        except ModelError as error:
            raise DataError(f"epoch {self._progress.epoch}: {error}; reduce optimizer.learning_rate") from error
        answers = self._processes.gather(poses(prediction)) if shared else [poses(prediction)]
        return [pose for part in answers for pose in part]

    def _score(self, metrics: dict[str, float] | None) -> float:
        """Smaller is better: scale-free sum of median errors; without validation the newest weights win."""
        if metrics is None:
            return -math.inf if not len(self._held_out) else math.inf
        return metrics["median_position_m"] / self._header.pose_codec.scale_m + math.radians(
            metrics["median_rotation_deg"]
        )

    def _save_weights(self, metrics: dict[str, float] | None) -> None:
        """After an epoch: the newest weights, and the best ones if these are."""
        state, score = self._progress, self._score(metrics)
        better = score <= state.best
        if better:
            state.best, state.stale = score, 0
        elif metrics is not None:
            state.stale += 1
        if self._processes.first:
            header, weights = replace(self._header, metrics=metrics or {}), self._descent.best_model.state_dict()
            if better:
                save_checkpoint(self._files.best, header, weights)
            save_checkpoint(self._files.last, header, weights)

    def _save_state(self) -> None:
        """Last of all files: what was killed before it is done again, with the same outcome."""
        if not self._processes.first:
            return
        state = self._progress
        self._files.save_state(
            {
                "identity": self._identity(),
                "progress": {name: getattr(state, name) for name in state.__slots__},
                "model": self.model.state_dict(),
                "objective": self._objective.state_dict(),
                "descent": self._descent.state_dict(),
            }
        )

    def _finish(self) -> dict[str, float]:
        """Give the best weights' checkpoint its metrics and covariance; the first process does it for all."""
        metrics = self._calibrate() if self._processes.first else {}
        return self._processes.gather(metrics)[0]

    def _calibrate(self) -> dict[str, float]:
        torch.manual_seed(self._config.seed)
        model = load_checkpoint(self._files.best, self._device)[1].to(memory_format=torch.channels_last)
        on_held_out = len(self._held_out) > 0
        rows = self._held_out if on_held_out else self._train_rows
        data = self._validation_data if on_held_out else self._data
        confidence = None
        try:
            header = calibrate(self._header, model, data, rows, self._device)
            # Blocks of the training drives are too like them: a robot judged by them would be silent on its next drive.
            if data is not self._data:
                memories = remember(header, model, self._data, self._train_rows, self._device)
                confidence = fit_confidence(header, model, data, rows, memories, self._device)
        except ModelError as error:
            raise DataError(f"the best weights: {error}; reduce optimizer.learning_rate") from error
        metrics = {**header.metrics, "held_out": float(on_held_out)}
        save_checkpoint(self._files.best, replace(header, metrics=metrics), model.state_dict(), confidence)
        return metrics


def _logged(metrics: dict[str, float] | None) -> dict[str, float]:
    return {name: metrics[name] for name in _LOGGED_METRICS} if metrics else {}
