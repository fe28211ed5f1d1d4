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

    A clip ends at its row; near the beginning of a run it is moved forwards, and in a run that is too short the
    last row is repeated.
    """
    clips = []
    for run in runs:
        span = (length - 1) * spacing
        start = (torch.arange(len(run)) - span).clamp(min=0)
        offsets = spacing * torch.arange(length)
        clips.append(run[(start.unsqueeze(1) + offsets).clamp(max=len(run) - 1)])
    return torch.cat(clips) if clips else torch.empty(0, length, dtype=torch.long)
