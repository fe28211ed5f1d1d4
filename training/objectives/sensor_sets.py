# SPDX-License-Identifier: Apache-2.0
"""Modality dropout (VMLoc Eq. 18) in expectation: the loss for every set of sensors, weighted by its probability.

Encoders run once on complete frames; only what follows them runs for each set. The weighted sum is the mean over all
draws of :func:`training.data.augment.drop_modalities`, in value and in gradient, so it is the same objective without
the noise of drawing, and every encoder learns from every frame. (Batch norm sees complete batches instead of those with
gaps.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.objectives.base import BalanceConfig


@dataclass(frozen=True, slots=True)
class FusionConfig(BalanceConfig):
    """Settings of objectives for several sensors.

    Attributes:
        modality_dropout: how sensors are withheld, with the probability ``augment.modality_dropout``: ``expected`` for
            the mean over all draws, ``drawn`` for one draw for each sample, as in the paper.
    """

    modality_dropout: Literal["expected", "drawn"] = "expected"


@dataclass(frozen=True, slots=True, eq=False)
class SensorSets:
    """Sets of sensors of B frames, in N >= B rows; the first B rows are the frames with all that they have.

    Attributes:
        rows: ``(N,)`` the frame of each row.
        present: per modality ``(N,)`` bool.
        weights: ``(N,)`` probability of the set; those of a frame sum to one.
    """

    rows: Tensor
    present: Mapping[str, Tensor]
    weights: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the frames of the expectation over the sets of ``(N,)`` values."""
        return (self.weights * values).sum() / self.weights.sum()


def sensor_sets(present: Mapping[str, Tensor], probability: float) -> SensorSets:
    """The sets that modality dropout with this probability may leave, for frames with the sensors ``present``.

    Args:
        present: per modality ``(B,)`` bool.
        probability: of keeping one modality only, drawn evenly among all M; a frame that lacks the modality drawn keeps
            all that it has. So of a frame with n > 1 of them each is alone with ``probability / M``.
    """
    matrix = torch.stack(list(present.values()))  # (M, B)
    frames = torch.arange(matrix.shape[1], device=matrix.device)
    alone = torch.where(matrix & (matrix.sum(dim=0) > 1), probability / len(matrix), 0.0)
    rows, sets, weights = [frames], [matrix], [1 - alone.sum(dim=0)]
    for number, own in enumerate(alone):
        kept = frames[own > 0]
        only = torch.zeros(len(matrix), len(kept), dtype=torch.bool, device=matrix.device)
        only[number] = True
        rows, sets, weights = [*rows, kept], [*sets, only], [*weights, own[kept]]
    return SensorSets(torch.cat(rows), dict(zip(present, torch.cat(sets, dim=1), strict=True)), torch.cat(weights))
