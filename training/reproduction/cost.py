# SPDX-License-Identifier: Apache-2.0
"""Cost of a training step and of a prediction, by system ("Computational Complexity" in VMLoc).

A step is forward, backward, clipping and Adam on a batch that is in memory already, every modality present, in single
precision. All systems take turns, in another order every time; a ratio is the median of the ratios within one turn, so
that other load on the machine affects both sides. A prediction is ``locate`` for one frame, with the samples that the
covariance needs.

Memory is the peak of three steps beyond what the process held with the weights and the batch loaded: activations,
gradients, Adam's moments and work space. Each system has a fresh process for it. On the CPU it is the resident set
(VmHWM, reset just before, less VmRSS; Linux with glibc), on a GPU torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import TrainConfig
from training.data.augment import AugmentConfig
from training.objectives.registry import build_objective, objective_config_type
from training.objectives.variational import BoundConfig
from training.testing import noise_input
from training.trainer.optimizer import clip_gradients
from vmloc_ros.core.checkpoint import Uncertainty
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.models import ModelInput, build_model, select_modalities
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.progress import with_progress

Seconds = NDArray[np.float64]

_CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
_CHANNELS = {"image": 3, "depth": 2}
SUBJECTS = {  # system and k
    "vmloc, k = 1": ("vmloc", 1),
    "vmloc, k = 10": ("vmloc", 10),
    "vmloc, k = 50": ("vmloc", 50),
    "poe_vmloc": ("poe_vmloc", 1),
    "attention_vmloc": ("attention_vmloc", 1),
    "atloc": ("atloc", 1),
}
SYSTEMS = tuple(dict.fromkeys(system for system, _ in SUBJECTS.values()))
_WARM_UP = 2
_PREDICTIONS = 5  # per step: they are short, and their ratios noisy


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one of :data:`SUBJECTS`.

    Attributes:
        steps_s: ``(repeats,)``, one for each turn.
        predictions_s: likewise, five times as many.
        memory_mb: of 1e6 bytes; None where the operating system does not report it.
    """

    steps_s: Seconds
    predictions_s: Seconds
    memory_mb: float | None


class _Subject:
    """One system in training, with its batch."""

    def __init__(self, key: str, config: TrainConfig, device: torch.device) -> None:
        name, samples = SUBJECTS[key]
        channels = {modality: _CHANNELS[modality] for modality in select_modalities(name, tuple(_CHANNELS))}
        torch.manual_seed(0)
        model = build_model(config.model, channels).train()
        self._model = model.to(device, memory_format=torch.channels_last)
        objective = objective_config_type(name)()
        if isinstance(objective, BoundConfig):
            objective = BoundConfig(samples=samples, estimator="dreg")
        self._objective = build_objective(name, objective, _CODEC, AugmentConfig().modality_dropout).to(device)
        self._config = config.optimizer
        parameters = [*self._model.parameters(), *self._objective.parameters()]
        self._optimizer = torch.optim.Adam(parameters, weight_decay=config.optimizer.weight_decay)
        size = config.preprocess.shortest_side
        self._batch = _batch(channels, config.optimizer.batch_size, size, device)
        self._target = torch.randn(config.optimizer.batch_size, 6, device=device)
        self._frame = _batch(channels, 1, size, device)

    def step(self) -> None:
        """A training step."""
        loss = self._objective.terms(self._model, self._batch, self._target)["loss"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self._model, self._config)
        self._optimizer.step()
        if self._target.is_cuda:
            torch.cuda.synchronize()

    def prepare_for_inference(self) -> None:
        """Put the model into evaluation mode and free the memory of training."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self._model.eval().to(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def predict(self) -> None:
        """Predict the pose of one frame; the result is on the CPU, so a GPU has finished too."""
        self._model.locate(self._frame, _CODEC, Uncertainty().samples)


def measure_cost(
    configs: Mapping[str, TrainConfig], device: torch.device, repeats: int = 20, progress: bool = True
) -> dict[str, Cost]:
    """Costs of all :data:`SUBJECTS` with random weights, image and depth image.

    Args:
        configs: of each of :data:`SYSTEMS`; model sizes, batch size and shortest side (of a square picture) are taken
            from it.

    Raises:
        ConfigError: ``repeats`` is not positive.
        ModelError: the backbone is unknown.
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1, got {repeats}")
    keys = with_progress(SUBJECTS, len(SUBJECTS), "memory", "systems", disable=not progress)
    memory_mb = {key: _in_fresh_process(key, configs[SUBJECTS[key][0]], device) for key in keys}
    subjects = {key: _Subject(key, configs[SUBJECTS[key][0]], device) for key in SUBJECTS}
    steps_s = _take_turns({key: subject.step for key, subject in subjects.items()}, repeats, "steps", progress)
    for subject in subjects.values():
        subject.prepare_for_inference()
    predictions = {key: subject.predict for key, subject in subjects.items()}
    predictions_s = _take_turns(predictions, _PREDICTIONS * repeats, "predictions", progress)
    return {key: Cost(steps_s[key], predictions_s[key], memory_mb[key]) for key in SUBJECTS}


def _batch(channels: Mapping[str, int], count: int, size: int, device: torch.device) -> ModelInput:
    tensors = {name: torch.rand(count, number, size, size, device=device) * 2 - 1 for name, number in channels.items()}
    return noise_input({name: x.contiguous(memory_format=torch.channels_last) for name, x in tensors.items()})


def _take_turns(
    actions: Mapping[str, Callable[[], None]], repeats: int, what: str, progress: bool
) -> dict[str, Seconds]:
    """Seconds ``(repeats,)`` of each action."""
    seconds: dict[str, list[float]] = {key: [] for key in actions}
    order = random.Random(0)
    turns = _WARM_UP + repeats
    for turn in with_progress(range(turns), turns, what, "turns", disable=not progress):
        for key in order.sample(list(actions), len(actions)):
            started = time.perf_counter()
            actions[key]()
            if turn >= _WARM_UP:  # the first ones include lazy initialisation
                seconds[key].append(time.perf_counter() - started)
    return {key: np.array(values) for key, values in seconds.items()}


def _in_fresh_process(key: str, config: TrainConfig, device: torch.device) -> float | None:
    with _prompt_allocator(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (key, config, device))


@contextmanager
def _prompt_allocator() -> Iterator[None]:
    """Processes started within return freed memory to the system at once, which makes figures repeatable to 1 MB."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = "65536"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _peak_mb(key: str, config: TrainConfig, device: torch.device) -> float | None:
    """Peak memory of three steps (the first has no moments yet), MB of 1e6 bytes."""
    subject = _Subject(key, config, device)
    gc.collect()
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
            held = _resident_bytes("VmRSS")
    except OSError:  # not Linux, or not allowed
        return None
    for _ in range(3):
        subject.step()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmHWM")
    return (peak - held) / 1e6


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
