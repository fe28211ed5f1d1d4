# SPDX-License-Identifier: Apache-2.0
"""What a training step and an answer cost, and VMLoc's ratios to its relatives, as a Markdown table.

python benchmarks/training_cost.py [--backbone resnet34] [--size 128] [--batch 8] [--repeats 20] [--device cpu]
    [--out FILE]

A step is the trainer's own: forward, backward, clipping, Adam, on a batch that is in memory already, every modality
present. All systems take turns, in another order every time; a ratio is the median of the ratios within one turn, so
that a busy moment of the machine hits both sides. Answers are those of ``locate`` with the alternatives that the
covariance wants, for one frame.

Memory is the peak of three steps beyond what the process held with the weights and the batch loaded: activations,
gradients, Adam's moments and work space. Each system has a fresh process for it. On the CPU it is the resident set
(VmHWM, reset just before, less VmRSS; Linux with glibc), on a GPU torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads spoil timings on a busy machine

# For the processes that measure memory: what is freed leaves the resident set, and figures repeat to 1 MB.
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"

import numpy as np
import torch
from tqdm import tqdm

from training.config import ObjectiveConfig, OptimizerConfig
from training.objectives import build_objective
from training.predict import model_input
from vmloc_ros.core.checkpoint import Uncertainty
from vmloc_ros.core.models import ModelConfig, ModelInput, build_model, select_modalities
from vmloc_ros.core.pose_codec import PoseCodec

CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
CHANNELS = {"image": 3, "depth": 2}
SYSTEMS = {  # name and k
    "vmloc, k = 1": ("vmloc", 1),
    "vmloc, k = 10": ("vmloc", 10),
    "vmloc, k = 50": ("vmloc", 50),
    "poe_vmloc": ("poe_vmloc", 1),
    "attention_vmloc": ("attention_vmloc", 1),
    "atloc": ("atloc", 1),
}
PAPER = {("vmloc, k = 10", "poe_vmloc"): 1.23, ("vmloc, k = 10", "attention_vmloc"): 1.02}
WARM_UP = 2
ANSWERS = 5  # per step: they are short, and their ratios noisy


class Subject:
    """One system in training, with its batch."""

    def __init__(self, key: str, options: argparse.Namespace) -> None:
        name, samples = SYSTEMS[key]
        channels = {modality: CHANNELS[modality] for modality in select_modalities(name, tuple(CHANNELS))}
        torch.manual_seed(0)
        model = build_model(ModelConfig(name, options.backbone), channels).train()
        self._model = model.to(options.device, memory_format=torch.channels_last)
        self._objective = build_objective(name, ObjectiveConfig(samples, "dreg")).to(options.device)
        self._parameters = [*self._model.parameters(), *self._objective.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, weight_decay=OptimizerConfig().weight_decay)
        self._batch = _batch(channels, options.batch, options)
        self._target = torch.randn(options.batch, 6, device=options.device)
        self._frame = _batch(channels, 1, options)

    def step(self) -> None:
        """A training step."""
        loss = self._objective(self._model, self._batch, self._target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), OptimizerConfig().gradient_norm)
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
        self._model.locate(self._frame, CODEC, Uncertainty().samples)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="resnet34")
    parser.add_argument("--size", type=int, default=128, help="side of the square image and depth image")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file for the table, beside printing it")
    options = parser.parse_args()
    memory_mb = {key: _in_fresh_process(key, options) for key in tqdm(SYSTEMS, desc="memory")}
    subjects = {key: Subject(key, options) for key in SYSTEMS}
    steps_s = _take_turns({key: subject.step for key, subject in subjects.items()}, options.repeats, "steps")
    for subject in subjects.values():
        subject.become_a_robots()
    answers = {key: subject.answer for key, subject in subjects.items()}
    answers_s = _take_turns(answers, ANSWERS * options.repeats, "answers")
    table = _table(steps_s, memory_mb, answers_s)
    print(table)
    if options.out:
        options.out.write_text(table + "\n")


def _batch(channels: dict[str, int], count: int, options: argparse.Namespace) -> ModelInput:
    shape, device = (options.size, options.size), options.device
    tensors = {name: torch.rand(count, number, *shape, device=device) * 2 - 1 for name, number in channels.items()}
    return model_input(tensors, {name: torch.ones(count, dtype=torch.bool, device=device) for name in channels})


def _take_turns(actions: dict[str, Callable[[], None]], repeats: int, what: str) -> dict[str, np.ndarray]:
    """Seconds ``(repeats,)`` of each action."""
    seconds: dict[str, list[float]] = {key: [] for key in actions}
    order = random.Random(0)
    for turn in tqdm(range(WARM_UP + repeats), desc=what):
        for key in order.sample(list(actions), len(actions)):
            started = time.perf_counter()
            actions[key]()
            if turn >= WARM_UP:  # the first ones pay for lazy initialisation
                seconds[key].append(time.perf_counter() - started)
    return {key: np.array(values) for key, values in seconds.items()}


def _in_fresh_process(key: str, options: argparse.Namespace) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (key, options))


def _peak_mb(key: str, options: argparse.Namespace) -> float:
    """Peak memory of three steps (the first has no moments yet), MB of 1e6 bytes."""
    subject = Subject(key, options)
    gc.collect()
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(options.device)
        held = torch.cuda.memory_allocated(options.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
        held = _resident_bytes("VmRSS")
    for _ in range(3):
        subject.step()
    peak = torch.cuda.max_memory_allocated(options.device) if on_gpu else _resident_bytes("VmHWM")
    return (peak - held) / 1e6


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _table(steps_s: dict[str, np.ndarray], memory_mb: dict[str, float], answers_s: dict[str, np.ndarray]) -> str:
    rows = [
        "| system | step (ms) | / poe_vmloc | / attention_vmloc | peak memory (MB) | / poe_vmloc | answer (ms) "
        "| / poe_vmloc |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key in SYSTEMS:
        cells = [
            f"{1e3 * np.median(steps_s[key]):.0f}",
            _ratio(steps_s, key, "poe_vmloc") + _paper(key, "poe_vmloc"),
            _ratio(steps_s, key, "attention_vmloc") + _paper(key, "attention_vmloc"),
            f"{memory_mb[key]:.0f}",
            f"{memory_mb[key] / memory_mb['poe_vmloc']:.2f}",
            f"{1e3 * np.median(answers_s[key]):.1f}",
            _ratio(answers_s, key, "poe_vmloc"),
        ]
        rows.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _ratio(seconds: dict[str, np.ndarray], key: str, reference: str) -> str:
    """Median and quartiles of the ratios within a turn."""
    low, median, high = np.percentile(seconds[key] / seconds[reference], [25, 50, 75])
    return "1" if key == reference else f"{median:.2f} ({low:.2f}-{high:.2f})"


def _paper(key: str, reference: str) -> str:
    return f", paper {PAPER[key, reference]}" if (key, reference) in PAPER else ""


if __name__ == "__main__":
    main()
