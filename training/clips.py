# SPDX-License-Identifier: Apache-2.0
"""Which frames form a clip: neighbours in time, never across a break or into held-out frames."""

from __future__ import annotations

import torch
from torch import Tensor


def segments(sequences: Tensor, rows: Tensor) -> list[Tensor]:
    """Runs of successive rows of one sequence.

    Args:
        sequences: ``(N,)`` which sequence each row of the data belongs to.
        rows: ``(R,)`` increasing; a row left out (a held-out block, say) ends a run.
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
