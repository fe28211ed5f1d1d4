# SPDX-License-Identifier: Apache-2.0
"""Training throughput with data, relative to that with one batch kept on the device, as a Markdown table.

python benchmarks/input_pipeline.py [--backbone resnet34] [--size 128] [--batch 8] [--device cpu]

Frames are noise, made by the script. Every turn takes steps with the resident batch and with each kind of data, in
random order, so that other load on the machine affects all alike. A cold cache has been dropped from this machine's
memory; what the disk's own cache holds is not known.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads spoil timings on a busy machine

import numpy as np
import torch
from torch import Tensor

from training.config import OptimizerConfig
from training.data.augment import AugmentConfig, augment, drop_modalities
from training.data.cache import load_dataset
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.model_input import model_input
from training.data.prefetch import prefetch
from training.objectives.registry import build_objective
from training.objectives.variational import BoundConfig
from training.output import markdown_table
from vmloc_ros.core.frame import Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import build_model, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.progress import with_progress

Batch = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]

RESIDENT = "resident batch"
COLD = "cache, cold"
PLACES = ("memory", "cache, warm", COLD)
WARM_UP = 1


class Noise:
    """Source of noise: images and depth images in the size of prepared ones."""

    name, map_frame, body_frame, modalities = "noise", "map", "base_link", ("image", "depth")

    def __init__(self, count: int, size: int) -> None:
        self._count, self._shape = count, (size, round(size * 4 / 3))
        self.mounts: dict[str, Pose] = {}
        self.report: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        rng = np.random.default_rng(0)
        for stamp, pose in zip(self.stamps_ns(), self.poses(), strict=True):
            image = rng.integers(0, 256, (*self._shape, 3), np.uint8)
            depth_m = rng.uniform(0.5, 8, self._shape).astype(np.float32)
            yield Sample(Frame(stamp, image=image, depth_m=depth_m), pose)

    def poses(self) -> list[Pose]:
        return [Pose(np.array([row, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])) for row in range(self._count)]

    def stamps_ns(self) -> list[int]:
        return [row * 100_000_000 for row in range(self._count)]

    def fingerprint(self) -> str:
        return f"noise {self._count} {self._shape}"


class Training:
    """Training steps of ``vmloc`` as a run takes them, from prepared batches."""

    def __init__(self, options: argparse.Namespace, preprocessor: Preprocessor) -> None:
        torch.manual_seed(0)
        self._preprocessor, self._device = preprocessor, options.device
        model = build_model(model_config("vmloc", options.backbone), preprocessor.channels).train()
        self._model = model.to(self._device, memory_format=torch.channels_last)
        self._objective = build_objective(
            "vmloc", BoundConfig(), PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
        ).to(self._device)
        self._parameters = [*self._model.parameters(), *self._objective.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, weight_decay=OptimizerConfig().weight_decay)
        self._target = torch.randn(options.batch, 6, device=self._device)
        self._generator = torch.Generator().manual_seed(0)

    def seconds(self, batches: Iterator[Batch], steps: int) -> float:
        """Duration of the steps and of loading their batches, without the first one."""
        batch = next(batches)
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self._step(batch)
            batch = next(batches)
        self._wait()
        return time.perf_counter() - started

    def _step(self, batch: Batch) -> None:
        config, generator = AugmentConfig(), self._generator
        _, tensors, present = batch
        tensors = self._preprocessor.normalise(augment(tensors, config, generator))
        present = drop_modalities(present, config.modality_dropout, generator)
        loss = self._objective.terms(self._model, model_input(tensors, present), self._target)["loss"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, OptimizerConfig().gradient_norm)
        self._optimizer.step()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Data:
    """The same frames in memory and in a cache on disk."""

    def __init__(self, options: argparse.Namespace, preprocessor: Preprocessor, cache: Path) -> None:
        self._options, self._preprocessor, self._cache = options, preprocessor, cache
        # The first batch is loaded before the clock starts; those at the end keep the thread busy until it stops.
        self._count = (1 + options.steps + options.depth) * options.batch
        self._source = Noise(2 * self._count, options.size)
        self._in_memory = prepare_dataset([self._source], preprocessor)
        self._mapped()
        os.sync()  # dirty pages cannot be dropped from the page cache
        self._generator = torch.Generator().manual_seed(1)

    def batches(self, place: str, depth: int) -> Generator[Batch, None, None]:
        """Batches for one turn, of frames drawn without repetition."""
        rows = torch.randperm(len(self._source), generator=self._generator)[: self._count]
        plan = rows.split(self._options.batch)
        return prefetch(self._open(place), plan, self._options.device, depth)

    def resident(self) -> Generator[Batch, None, None]:
        rows = torch.arange(self._options.batch)
        batch = (rows, *self._in_memory.batch(rows, self._options.device))
        while True:
            yield batch

    def _open(self, place: str) -> PreparedDataset:
        if place == "memory":
            return self._in_memory
        for path in self._cache.rglob("*.npy"):
            with path.open("rb") as file:
                if place == COLD:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(1 << 24):
                        pass
        return self._mapped()

    def _mapped(self) -> PreparedDataset:
        return load_dataset([self._source], self._preprocessor, self._cache, progress=False)


def main() -> None:
    """Measure and print."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, where no terminal draws a bar
    preprocessor = Preprocessor(PreprocessConfig(modalities=Noise.modalities, shortest_side=options.size))
    training = Training(options, preprocessor)
    kinds = [(RESIDENT, 0), *((place, depth) for place in PLACES for depth in (0, options.depth))]
    seconds: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Data(options, preprocessor, Path(folder))
        order, from_disk = random.Random(0), 0
        turns = WARM_UP + options.turns
        for turn in with_progress(range(turns), turns, "Input pipeline", "turns"):
            for place, depth in order.sample(kinds, len(kinds)):
                batches = data.resident() if place == RESIDENT else data.batches(place, depth)
                read_before = _bytes_read()
                taken = training.seconds(batches, options.steps)
                batches.close()
                if turn >= WARM_UP:  # the first ones include lazy initialisation
                    seconds[place, depth].append(taken / options.steps)
                    from_disk += (_bytes_read() - read_before) if place == COLD else 0
    print(_hardware(options), _table(seconds), sep="\n\n")
    print(f"\nThe cold cache was read from the disk: {from_disk / 1e6:.0f} MB.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="resnet34")
    parser.add_argument("--size", type=int, default=128, help="shortest side of a 4:3 image and depth image")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of each kind of data in a turn")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--depth", type=int, default=2, help="batches to read ahead")
    parser.add_argument("--folder", type=Path, help="of the cache; not on a memory disk")
    return parser.parse_args()


def _bytes_read() -> int:
    """Bytes that the operating system read from disks for this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _hardware(options: argparse.Namespace) -> str:
    cpu = next(line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    gpu = f", {torch.cuda.get_device_name(options.device)}" if options.device.type == "cuda" else ""
    return (
        f"{os.cpu_count()} cores of {cpu}{gpu}; {torch.get_num_threads()} torch threads, torch {torch.__version__}; "
        f"load {os.getloadavg()[1]:.1f}; vmloc, {options.backbone}, {options.size} pixels, batch {options.batch}, "
        f"{options.turns} turns of {options.steps} steps"
    )


def _table(seconds: dict[tuple[str, int], list[float]]) -> str:
    """Throughput relative to the resident batch: median and quartiles of the ratios within a turn."""
    rows = []
    resident = np.array(seconds[RESIDENT, 0])
    for (place, depth), values in seconds.items():
        low, median, high = np.percentile(resident / np.array(values), [25, 50, 75])
        ratio = "1" if place == RESIDENT else f"{median:.2f} ({low:.2f}-{high:.2f})"
        rows.append([place, depth or "no thread", f"{1e3 * np.median(values):.0f}", ratio])
    return markdown_table(["data from", "read ahead", "step (ms)", "throughput / resident"], rows, labels=1)


if __name__ == "__main__":
    main()
