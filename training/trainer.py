# SPDX-License-Identifier: Apache-2.0
"""The training loop: one objective, one optimizer, best and last checkpoints, resumable."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from training.augment import augment, drop_modalities
from training.calibrate import calibrate, poses
from training.clips import clip_table, segments
from training.config import TrainConfig
from training.coverage import pose_record
from training.dataset import PreparedDataset, split_blocks
from training.memorise import memorise
from training.metrics import pose_errors
from training.objectives import build_objective
from training.predict import model_input, predict
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import CheckpointError, ConfigError, DataError, ModelError, OutputError
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.models import MemoryModel, ModelInput, Prediction, build_model
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_LOGGED_METRICS = ("median_position_m", "mean_position_m", "median_rotation_deg", "mean_rotation_deg")


class Trainer:
    """Fits one model to one dataset.

    Files, ``OUT.safetensors`` being the path given: itself (best weights), ``OUT.last.safetensors`` (newest weights),
    ``OUT.state.pt`` (what resuming needs) and ``OUT.csv`` (one line per epoch).

    Args:
        config: what to train and how.
        data: all frames; validation blocks are taken from it unless ``validation`` is given.
        out: path of the best checkpoint.
        record: what the checkpoint shall say of its training data.

    Raises:
        DataError: too few frames.
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
    ) -> None:
        self._config, self._device, self._out = config, device, out
        self._data, self._validation_data = data, validation or data
        every = 0 if validation is not None else config.validation.every
        self._train_rows, held_out = split_blocks(len(data), config.validation.block, every)
        self._held_out = held_out if validation is None else torch.arange(len(validation))
        torch.manual_seed(config.seed)
        self._preprocessor = Preprocessor(config.preprocess)
        codec = PoseCodec.fit([data.poses[i] for i in self._train_rows.tolist()])
        self._targets = torch.from_numpy(codec.encode(data.poses)).to(device)
        self._header = CheckpointHeader(
            config.model,
            config.preprocess,
            codec,
            map_frame,
            body_frame,
            training=self._record(record or {}, codec.scale_m),
        )
        model = build_model(config.model, self._preprocessor.channels, config.pretrained)
        self.model = model.to(device, memory_format=torch.channels_last)
        self._epoch, self._best = 0, math.inf
        if not isinstance(self.model, MemoryModel):
            self._prepare_descent()

    def run(self, progress: bool = True) -> dict[str, float]:
        """Train to the last epoch and finish the best checkpoint; return its validation metrics.

        A system that remembers passes over the data once instead; the checkpoint is then the only file.

        Raises:
            OutputError: a file cannot be written.
            DataError: the loss became NaN or infinite.
        """
        if isinstance(self.model, MemoryModel):
            memorise(self.model, self._data, self._train_rows, self._preprocessor, self._device, progress)
            save_checkpoint(self._out, self._header, self.model.state_dict())
            return self._finish()
        epochs = self._config.optimizer.epochs
        bar = tqdm(
            total=epochs * self._steps_per_epoch,
            initial=self._epoch * self._steps_per_epoch,
            desc="training",
            unit="step",
            disable=not progress,
        )
        with bar:
            while self._epoch < epochs:
                started = time.monotonic()
                loss = self._train_epoch(bar)
                self._epoch += 1
                due = self._epoch % self._config.validation.interval == 0 or self._epoch == epochs
                metrics = self._validate() if due else None
                self._save(metrics)
                self._log(loss, metrics, time.monotonic() - started)
                bar.set_postfix(_postfix(self._epoch, loss, metrics))
        return self._finish()

    def resume(self) -> None:
        """Continue from ``OUT.state.pt``; a system that remembers has nothing to go on from and starts anew.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: it belongs to another configuration or other data.
        """
        if isinstance(self.model, MemoryModel):
            return
        path = self._path(".state.pt")
        if not path.is_file():
            raise CheckpointError(f"nothing to resume: {path} does not exist; train without --resume")
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            if state["identity"] != self._identity():
                raise ConfigError(
                    f"{path} was written with another configuration or other data; use those, or train to another OUT"
                )
            self.model.load_state_dict(state["model"])
            self._objective.load_state_dict(state["objective"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._epoch, self._best = int(state["epoch"]), float(state["best"])
        except ConfigError:
            raise
        except Exception as error:  # torch.load raises many types for a damaged file
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{path} is damaged ({reason}); train from the start") from error

    def _prepare_descent(self) -> None:
        """What gradient steps need."""
        config = self._config.optimizer
        if len(self._train_rows) < config.batch_size:
            raise DataError(
                f"{len(self._train_rows)} training frames are fewer than a batch of {config.batch_size}; "
                "give more data or reduce optimizer.batch_size"
            )
        self._objective = build_objective(self._config.model.name, self._config.objective).to(self._device)
        self._clips = self._make_clips()
        self._optimizer = torch.optim.Adam(
            [
                {"params": self.model.parameters(), "weight_decay": config.weight_decay},
                # Decay would pull the balance weights to an arbitrary zero.
                {"params": self._objective.parameters(), "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )

    @property
    def _steps_per_epoch(self) -> int:
        # The incomplete last batch is dropped: batch norm on one or two frames does harm.
        return len(self._train_rows) // self._config.optimizer.batch_size

    def _train_epoch(self, bar: Any) -> float:
        """As many frames as there are to train on, in random order or random clips; the mean loss."""
        config = self._config
        self.model.train()
        # Seeded in every epoch: one is the same after a resume as without a break, on the CPU and on a GPU.
        generator = torch.Generator().manual_seed(config.seed * 100_003 + self._epoch)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # posterior samples, dropout
        order = self._clips[torch.randperm(len(self._clips), generator=generator)]
        count = max(1, config.optimizer.batch_size // self._clips.shape[1])
        total = torch.zeros((), device=self._device)
        for step in range(self._steps_per_epoch):
            rows = order[step * count : (step + 1) * count].flatten()
            self._set_learning_rate(self._epoch * self._steps_per_epoch + step)
            total += self._step(rows, generator)
            bar.update()
        mean = float(total) / self._steps_per_epoch
        if not math.isfinite(mean):
            raise DataError(f"the loss became {mean} in epoch {self._epoch + 1}; reduce optimizer.learning_rate")
        return mean

    def _step(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        batch = self._training_input(rows, generator)
        loss = self._objective(self.model, batch, self._targets[rows.to(self._device)])
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.optimizer.gradient_norm)
        self._optimizer.step()
        return loss.detach()

    def _training_input(self, rows: Tensor, generator: torch.Generator) -> ModelInput:
        tensors, present = self._data.batch(rows, self._device)
        tensors = augment(tensors, self._config.augment, generator)
        offset = torch.rand(2, generator=generator).tolist()
        present = drop_modalities(present, self._config.augment.modality_dropout, generator)
        return model_input(self._preprocessor.normalise(tensors, (offset[0], offset[1])), present)

    def _make_clips(self) -> Tensor:
        """Rows ``(N, clip_length)`` that training draws from; of one frame each for most systems."""
        length, spacing = self.model.clip_length, self.model.clip_spacing
        clips = clip_table(segments(self._data.sequences, self._train_rows), length, spacing)
        if length > 1 and bool((clips == clips[:, :1]).all()):
            raise DataError(
                f"{self._config.model.name} trains on clips of {length} frames, but no two of the training frames "
                "follow each other within 1 s; give denser data or reduce source.stride"
            )
        return clips

    def _set_learning_rate(self, step: int) -> None:
        optimizer = self._config.optimizer
        rate = optimizer.learning_rate * min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
        if optimizer.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / (optimizer.epochs * self._steps_per_epoch)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _validate(self) -> dict[str, float] | None:
        if not len(self._held_out):
            return None
        prediction = self._predict(self._validation_data, self._held_out)
        truth = [self._validation_data.poses[i] for i in self._held_out.tolist()]
        return pose_errors(truth, poses(prediction)).summary()

    def _predict(self, data: PreparedDataset, rows: Tensor) -> Prediction:
        try:
            return predict(self.model, data, rows, self._preprocessor, self._header.pose_codec, self._device)
        except ModelError as error:
            raise DataError(f"epoch {self._epoch}: {error}; reduce optimizer.learning_rate") from error

    def _finish(self) -> dict[str, float]:
        """Reload the best weights and give their checkpoint the covariance's residuals and the metrics."""
        torch.manual_seed(self._config.seed)
        best = load_checkpoint(self._out)[1]
        self.model.load_state_dict(best.state_dict())
        on_held_out = len(self._held_out) > 0
        rows = self._held_out if on_held_out else self._train_rows
        data = self._validation_data if on_held_out else self._data
        try:
            header = calibrate(self._header, self.model, data, rows, self._device)
        except ModelError as error:
            raise DataError(f"the best weights: {error}; reduce optimizer.learning_rate") from error
        metrics = {**header.metrics, "held_out": float(on_held_out)}
        save_checkpoint(self._out, replace(header, metrics=metrics), self.model.state_dict())
        return metrics

    def _save(self, metrics: dict[str, float] | None) -> None:
        header, weights = replace(self._header, metrics=metrics or {}), self.model.state_dict()
        score = self._score(metrics)
        if score <= self._best:
            self._best = score
            save_checkpoint(self._out, header, weights)
        save_checkpoint(self._path(f".last{self._out.suffix}"), header, weights)
        state = {
            "identity": self._identity(),
            "model": weights,
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self._epoch,
            "best": self._best,
        }
        with write_aside(self._path(".state.pt")) as path:
            torch.save(state, path)

    def _score(self, metrics: dict[str, float] | None) -> float:
        """Smaller is better: scale-free sum of median errors; without validation the newest weights win."""
        if metrics is None:
            return -math.inf if not len(self._held_out) else math.inf
        return metrics["median_position_m"] / self._header.pose_codec.scale_m + math.radians(
            metrics["median_rotation_deg"]
        )

    def _log(self, loss: float, metrics: dict[str, float] | None, seconds: float) -> None:
        row = {"epoch": self._epoch, "loss": loss, "seconds": round(seconds, 3)}
        row |= {name: (metrics or {}).get(name, "") for name in _LOGGED_METRICS}
        new = self._epoch == 1 or not self._path(".csv").exists()
        try:
            with self._path(".csv").open("w" if new else "a", newline="") as file:
                writer = csv.DictWriter(file, row.keys())
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise OutputError(f"{self._path('.csv')} could not be written: {error}") from error

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
        return {"config": to_mapping(self._config), "pose_codec": codec, "frames": len(self._data)}

    def _path(self, suffix: str) -> Path:
        return self._out.with_name(self._out.stem + suffix)


def _postfix(epoch: int, loss: float, metrics: dict[str, float] | None) -> dict[str, str]:
    shown = {"epoch": str(epoch), "loss": f"{loss:.2f}"}
    if metrics:
        shown["val"] = f"{metrics['median_position_m']:.2f} m {metrics['median_rotation_deg']:.1f} deg"
    return shown
