# SPDX-License-Identifier: Apache-2.0
"""Measure what the stages of a training cost on this machine, with a few real frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from training.config import TrainConfig
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.frozen_features import FrozenConfig
from training.planning.budget import Costs
from training.prediction import predict
from training.trainer.distributed import Processes
from training.trainer.lifecycle import TrainingFrames, lifecycle_of
from training.trainer.map_points import build_point_map
from training.trainer.model_training import ModelTraining, new_model
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import no_progress

_BATCH = 16
_STEPS = 1  # that are timed, after a first one
_PREDICTED = 2  # frames


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The frames of a survey as a source."""

    frames: Sequence[Sample]
    mounts: Mapping[str, Pose]
    name: str = "sample"

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.frames)


def measure_costs(
    config: TrainConfig, sample: Sequence[Sample], mounts: Mapping[str, Pose], read_s: float, device: torch.device
) -> Costs:
    """Time the stages of a training on a sample of its frames.

    The model is untrained: a trained one solves for poses a little faster.

    Args:
        read_s: seconds to read and decode a frame.

    Raises:
        DataError: the frames do not suffice for a batch.
        ModelError: the model cannot be built.
    """
    with no_progress():
        started = time.perf_counter()
        data = prepare_dataset([_Sampled(sample, mounts)], Preprocessor(config.preprocess), progress=False)
        prepare_s = (time.perf_counter() - started) / max(len(data), 1)
        return _measure(_small(config, len(data)), data, read_s + prepare_s, device)


def _small(config: TrainConfig, frames: int) -> TrainConfig:
    """The configuration at the size of the sample: one region, which needs no more frames; one view."""
    model = replace(config.model, **({"regions": 1} if hasattr(config.model, "regions") else {}))
    batch = max(2, min(_BATCH, frames))
    frozen = FrozenConfig(views=1, cells=config.frozen.cells)
    return replace(config, model=model, optimizer=replace(config.optimizer, batch_size=batch), frozen=frozen)


def _measure(config: TrainConfig, data: PreparedDataset, read_s: float, device: torch.device) -> Costs:
    rows = torch.arange(len(data))
    start_s, model = _timed(lambda: new_model(config, data, rows, data, device))
    frames, lifecycle = TrainingFrames(config, data, rows, device), lifecycle_of(config.model.name)
    codec = PoseCodec.fit(data.poses)
    draw_s, training_data = _timed(lambda: lifecycle.training_data(model, frames))
    is_frozen = bool(getattr(config.model, "frozen", False))
    training = ModelTraining(model, codec, frames, training_data, 10, Processes())
    map_s = 0.0
    if getattr(model, "map", None) is not None:
        map_s = _map_s(model, frames, codec)
    step_s = _step_s(training, device)
    few = rows[torch.linspace(0, len(rows) - 1, min(_PREDICTED, len(rows))).long()]
    modalities = config.preprocess.modalities
    sets = [modalities, *([(name,) for name in modalities] if len(modalities) > 1 else [])]
    predict(model, data, few[:1], frames.preprocessor, codec, device)  # the first call is slow
    predict_s = sum(
        _timed(lambda names=names: predict(model, data, few, frames.preprocessor, codec, device, 0, names))[0]
        for names in sets
    )
    feature_s = draw_s / len(training_data.poses) if is_frozen else 0.0
    # Features of all modalities at once, as of a frozen trunk; of others about a third of a training step.
    reference_s = feature_s if is_frozen else step_s / 3
    return Costs(start_s, read_s, feature_s, map_s, step_s, predict_s / len(few), reference_s)


def _map_s(model: Any, frames: TrainingFrames, codec: PoseCodec) -> float:
    def build() -> None:
        try:
            build_point_map(model, frames.data, frames.rows, frames.preprocessor, codec, frames.device)
        except DataError:  # too few voxels with points from several frames
            return

    return _timed(build)[0] / len(frames.rows)


def _step_s(training: ModelTraining, device: torch.device) -> float:
    """Seconds of a training step for each frame of the batch."""
    training.training_step.train()
    steps = [training.sampler.epoch(number)[0].flatten() for number in range(_STEPS + 1)]

    def step(rows: torch.Tensor) -> None:
        training.step(rows, *training.training_data.batch(rows, device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step(steps[0])
    return min(_timed(lambda rows=rows: step(rows))[0] for rows in steps[1:]) / len(steps[0])


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
