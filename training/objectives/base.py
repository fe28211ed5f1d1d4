# SPDX-License-Identifier: Apache-2.0
"""What a training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vmloc_ros.core.models import ModelInput, PoseModel

Terms = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A loss, with parameters of its own such as the balance of position and rotation."""

    @abstractmethod
    def terms(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Terms:
        """The scalar to minimise, as ``loss``, and detached ones worth watching.

        Args:
            batch: of B frames; where the system reads clips, ``B / clip_length`` of them one after the other.
            target: ``(B, 6)`` pose vectors.
        """

    def forward(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Tensor:
        """The scalar to minimise."""
        return self.terms(model, batch, target)["loss"]


class PoseLoss(nn.Module):
    """``L_p = |p - p*|_1 exp(-beta) + beta + |log q - log q*|_1 exp(-gamma) + gamma`` (VMLoc Eq. 11).

    Args:
        beta: start of the learnable position weight.
        gamma: start of the learnable rotation weight.
    """

    def __init__(self, beta: float = -3.0, gamma: float = 0.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss ``(..., B)`` of pose vectors ``(..., B, 6)`` against ``(B, 6)``."""
        error = (predicted - target).abs()
        position, rotation = error[..., :3].sum(-1), error[..., 3:].sum(-1)
        return position * torch.exp(-self.beta) + self.beta + rotation * torch.exp(-self.gamma) + self.gamma


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """VMLoc's objective (Eq. 11, 15).

    Attributes:
        samples: k.
        estimator: of the encoders' gradient; see :mod:`training.objectives.variational`.
        kl_weight: lambda.
        beta: start of the position weight.
        gamma: start of the rotation weight.
        cells: of each picture that a step of a dense system looks at, drawn at random; 0: all.
        solver_weight: of the true pose's likelihood under what the solver makes of these cells together, added to that
            of each cell by itself; see :mod:`training.objectives.dense`.
    """

    samples: int = 10
    estimator: Literal["iwae", "stl", "dreg", "dreg_lambda"] = "iwae"
    kl_weight: float = 1e-3
    beta: float = -3.0
    gamma: float = 0.0
    cells: int = 0
    solver_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.kl_weight < 0 or self.cells < 0 or self.solver_weight < 0:
            raise ValueError(f"samples >= 1, kl_weight, cells and solver_weight >= 0, got {self}")
