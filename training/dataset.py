# SPDX-License-Identifier: Apache-2.0
"""Prepared frames of one or more sources, in memory, with their poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from training.sources import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import Preprocessor

_MAX_GAP_NS = 1_000_000_000  # as the localizer's Stream has it


@dataclass(frozen=True, slots=True, eq=False)
class PreparedDataset:
    """Frames after :meth:`Preprocessor.prepare`.

    Decoding and projection happen once, not once per epoch; augmentation works on these tensors.

    Attributes:
        tensors: per modality ``(N, C, H, W)``; rows of absent measurements are zero.
        present: per modality ``(N,)`` bool.
        poses: N true poses.
        sequences: ``(N,)`` int64; rows of one number are one recording without a break, in the order of time.
    """

    tensors: dict[str, Tensor]
    present: dict[str, Tensor]
    poses: list[Pose]
    sequences: Tensor

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Prepared tensors and presence of the rows, on the device."""
        tensors = {name: x[rows].to(device, non_blocking=True) for name, x in self.tensors.items()}
        return tensors, {name: x[rows].to(device) for name, x in self.present.items()}


def prepare_dataset(sources: Sequence[Source], preprocessor: Preprocessor, progress: bool = True) -> PreparedDataset:
    """Read every sample of the sources into memory.

    Raises:
        DataError: there are no samples, or their sizes differ.
    """
    total = sum(len(source) for source in sources)
    builder = _Builder(total, preprocessor)
    with single_threaded(), tqdm(total=total, desc="reading", unit="frame", disable=not progress) as bar:
        for source in sources:
            for sample in source:
                builder.add(sample, source.name)
                bar.update()
    return builder.finish()


@contextmanager
def single_threaded() -> Iterator[None]:
    """One torch thread: a single frame is too small to share out, and on a busy machine waiting for threads is slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Builder:
    def __init__(self, capacity: int, preprocessor: Preprocessor) -> None:
        self._capacity, self._preprocessor = capacity, preprocessor
        self._tensors: dict[str, Tensor] = {}
        self._present = {name: torch.zeros(capacity, dtype=torch.bool) for name in preprocessor.config.modalities}
        self._poses: list[Pose] = []
        self._sequences: list[int] = []
        self._newest: tuple[str, int] = ("", 0)

    def add(self, sample: Sample, source: str) -> None:
        row = len(self._poses)
        for name, x in self._preprocessor.prepare(sample.frame).items():
            if name not in self._tensors:
                self._tensors[name] = torch.zeros((self._capacity, *x.shape), dtype=x.dtype)
            expected = self._tensors[name].shape[1:]
            if x.shape != expected:
                raise DataError(
                    f"{source}: {name} at {sample.frame.stamp_ns} ns is {tuple(x.shape)} after scaling, those before "
                    f"it {tuple(expected)}; train on data of one aspect ratio"
                )
            self._tensors[name][row] = x
            self._present[name][row] = True
        self._poses.append(sample.map_from_body)
        self._sequences.append(self._sequence(source, sample.frame.stamp_ns))

    def _sequence(self, source: str, stamp_ns: int) -> int:
        """The running number of the frame's sequence; another source, or a break in time, begins a new one."""
        before, newest_ns = self._newest
        self._newest = source, stamp_ns
        if not self._sequences:
            return 0
        goes_on = source == before and 0 < stamp_ns - newest_ns <= _MAX_GAP_NS
        return self._sequences[-1] + (not goes_on)

    def finish(self) -> PreparedDataset:
        count = len(self._poses)
        if not count:
            raise DataError("the data hold no frame with a pose; check the topics, the split and the pose's time span")
        missing = [name for name in self._present if name not in self._tensors]
        if missing:
            raise DataError(
                f"the data hold no {', '.join(missing)}; found {', '.join(self._tensors)}; set preprocess.modalities"
            )
        return PreparedDataset(
            {name: self._tensors[name][:count] for name in self._present},
            {name: x[:count] for name, x in self._present.items()},
            self._poses,
            torch.tensor(self._sequences),
        )


def split_blocks(count: int, block: int, every: int) -> tuple[Tensor, Tensor]:
    """Rows for training and validation: every ``every``-th block of ``block`` rows, from the second on, is held out."""
    rows = torch.arange(count)
    if every == 0:
        return rows, rows[:0]
    held_out = (rows // block) % every == 1
    return rows[~held_out], rows[held_out]
