# SPDX-License-Identifier: Apache-2.0
"""What a training step and an answer cost, and VMLoc's ratios to its relatives ("Computational Complexity").

A step is forward, backward, clipping and Adam on a batch that is in memory already, every modality present, in single
precision. All systems take turns, in another order every time; a ratio is the median of the ratios within one turn, so
that a busy moment of the machine hits both sides. Answers are those of ``locate`` with the alternatives that the
covariance wants, for one frame.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import TrainConfig
from training.objectives.registry import build_objective, objective_config_type
from training.objectives.variational import BoundConfig
from training.output import markdown_table
from training.testing import noise_input
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
REFERENCES = ("poe_vmloc", "attention_vmloc")
_PAPER = {("vmloc, k = 10", "poe_vmloc"): 1.23, ("vmloc, k = 10", "attention_vmloc"): 1.02}
_WARM_UP = 2
_ANSWERS = 5  # per step: they are short, and their ratios noisy


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one of :data:`SUBJECTS`.

    Attributes:
        steps_s: ``(repeats,)``, one for each turn.
        answers_s: likewise, five times as many.
        memory_mb: of 1e6 bytes; None where the system does not tell.
    """

    steps_s: Seconds
    answers_s: Seconds
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
        self._objective = build_objective(name, objective, _CODEC).to(device)
        self._gradient_norm = config.optimizer.gradient_norm
        parameters = [*self._model.parameters(), *self._objective.parameters()]
        self._optimizer = torch.optim.Adam(parameters, weight_decay=config.optimizer.weight_decay)
        size = config.preprocess.shortest_side
        self._batch = _batch(channels, config.optimizer.batch_size, size, device)
        self._target = torch.randn(config.optimizer.batch_size, 6, device=device)
        self._frame = _batch(channels, 1, size, device)

    def step(self) -> None:
        """A training step."""
        loss = self._objective(self._model, self._batch, self._target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._gradient_norm)
        self._optimizer.step()
        if self._target.is_cuda:
            torch.cuda.synchronize()

    def become_a_robots(self) -> None:
        """The model as a localizer has it; training's memory is given back."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self._model.eval().to(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def answer(self) -> None:
        """The pose of one frame; ends on the CPU, so a GPU is done too."""
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
        subject.become_a_robots()
    answers = {key: subject.answer for key, subject in subjects.items()}
    answers_s = _take_turns(answers, _ANSWERS * repeats, "answers", progress)
    return {key: Cost(steps_s[key], answers_s[key], memory_mb[key]) for key in SUBJECTS}


def cost_rows(costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Medians and ratios by system, with the paper's ratios where it has them."""
    rows = []
    for key, cost in costs.items():
        row: dict[str, Any] = {
            "system": key,
            "step_ms": 1e3 * float(np.median(cost.steps_s)),
            "answer_ms": 1e3 * float(np.median(cost.answers_s)),
            "memory_mb": cost.memory_mb,
        }
        for reference in REFERENCES:
            row |= _quartiles(f"step_per_{reference}", cost.steps_s / costs[reference].steps_s)
            row |= _quartiles(f"answer_per_{reference}", cost.answers_s / costs[reference].answers_s)
            row[f"paper_step_per_{reference}"] = _PAPER.get((key, reference))
        rows.append(row)
    return rows


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; ratios with quartiles in brackets."""
    ratios = [title for reference in REFERENCES for title in (f"/ {reference}", "paper")]
    table = []
    for row in rows:
        cells = [row["system"], f"{row['step_ms']:.0f}"]
        for reference in REFERENCES:
            cells += [_ratio(row, "step", reference), str(row[f"paper_step_per_{reference}"] or "–")]
        cells.append("–" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}")
        cells += [f"{row['answer_ms']:.1f}", _ratio(row, "answer", "poe_vmloc")]
        table.append(cells)
    titles = ["system", "step (ms)", *ratios, "peak memory (MB)", "answer (ms)", "/ poe_vmloc"]
    return markdown_table(titles, table, labels=1)


def _ratio(row: Mapping[str, Any], what: str, reference: str) -> str:
    low, median, high = (row[f"{what}_per_{reference}{rank}"] for rank in ("_q25", "", "_q75"))
    return "1" if row["system"] == reference else f"{median:.2f} ({low:.2f}-{high:.2f})"


def _quartiles(name: str, ratios: Seconds) -> dict[str, float]:
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return {name: median, f"{name}_q25": low, f"{name}_q75": high}


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
            if turn >= _WARM_UP:  # the first ones pay for lazy initialisation
                seconds[key].append(time.perf_counter() - started)
    return {key: np.array(values) for key, values in seconds.items()}


def _in_fresh_process(key: str, config: TrainConfig, device: torch.device) -> float | None:
    with _prompt_allocator(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (key, config, device))


@contextmanager
def _prompt_allocator() -> Iterator[None]:
    """Processes begun within give freed memory back at once, and their figures repeat to 1 MB."""
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
