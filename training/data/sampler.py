# SPDX-License-Identifier: Apache-2.0
"""Frames of each training step, and seeds of its random draws: functions of the seed and the step alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.training_data import TrainingData
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.models import PoseModel


class Sampler:
    """Random order of the training frames, or of the clips that end at them.

    Args:
        rows: rows of the data to train on.
        model: has the length and spacing of its clips.
        batch_size: frames of a step, over all processes.
        seed: of the order, and of :meth:`seeds`.

    Attributes:
        clips: ``(N, T)`` rows.
        steps: steps of an epoch.
        frames: frames of a step.

    Raises:
        DataError: too few frames, or none that follow each other where the model reads clips.
    """

    def __init__(self, data: TrainingData, rows: Tensor, model: PoseModel, batch_size: int, seed: int) -> None:
        if len(rows) < batch_size:
            raise DataError(
                f"{len(rows)} training frames are fewer than a batch of {batch_size}; "
                "give more data or reduce optimizer.batch_size"
            )
        length = model.clip_length
        self.clips = clip_table(segments(data.sequences, rows), length, model.clip_spacing)
        if length > 1 and bool((self.clips == self.clips[:, :1]).all()):
            raise DataError(
                f"{type(model).__name__} trains on clips of {length} frames, but no two of the training frames follow "
                "each other within 1 s; give denser data or reduce source.stride"
            )
        self._clips_per_step, self._seed = max(1, batch_size // length), seed % 2**32
        self.frames = self._clips_per_step * length
        # The incomplete last batch is dropped: batch norm on one or two frames does harm.
        self.steps = len(rows) // batch_size

    def check_processes(self, count: int) -> None:
        """Raises ConfigError: so many processes cannot share a step evenly."""
        if self._clips_per_step % count:
            raise ConfigError(
                f"a batch of {self._clips_per_step} clips or frames cannot be shared evenly by {count} processes; "
                "change optimizer.batch_size"
            )

    def epoch(self, number: int) -> list[Tensor]:
        """The clips ``(C, T)`` of each step."""
        generator = torch.Generator().manual_seed(self.seeds(number)[0])
        order = self.clips[torch.randperm(len(self.clips), generator=generator)]
        count = self._clips_per_step
        return [order[step * count : (step + 1) * count] for step in range(self.steps)]

    def seeds(self, *place: int) -> tuple[int, int]:
        """Two seeds for a place in the training, such as (epoch, step), independent of what was drawn before."""
        first, second = np.random.SeedSequence([self._seed, *place]).generate_state(2, np.uint32).tolist()
        return first, second


def segments(sequences: Tensor, rows: Tensor) -> list[Tensor]:
    """Runs of successive rows of one sequence.

    Args:
        sequences: ``(N,)`` which sequence each row of the data belongs to.
        rows: ``(R,)`` increasing; a missing row (of a held-out block, say) ends a run.
    """
    if not len(rows):
        return []
    breaks = (rows.diff() != 1) | (sequences[rows].diff() != 0)
    sizes = torch.diff(torch.nonzero(breaks).flatten() + 1, prepend=torch.tensor([0]), append=torch.tensor([len(rows)]))
    return list(rows.split(sizes.tolist()))


def clip_table(runs: list[Tensor], length: int, spacing: int) -> Tensor:
    """The clip of every row, ``(R, length)``, in the order of the runs: ``spacing`` apart, oldest first.

    A clip ends at its row; where the run does not reach back far enough, its first row is repeated, as a robot's
    first frame is (:meth:`ClipModel.decode_window`).
    """
    clips = []
    for run in runs:
        offsets = spacing * torch.arange(1 - length, 1)
        clips.append(run[(torch.arange(len(run)).unsqueeze(1) + offsets).clamp(min=0)])
    return torch.cat(clips) if clips else torch.empty(0, length, dtype=torch.long)
