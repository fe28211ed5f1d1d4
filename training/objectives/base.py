# SPDX-License-Identifier: Apache-2.0
"""What a training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vmloc_ros.core.models import ModelInput, PoseModel
from vmloc_ros.core.pose_codec import PoseCodec

Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """Settings of an objective; each kind derives its own from it."""


@dataclass(frozen=True, slots=True)
class BalanceConfig(ObjectiveConfig):
    """Start values of the learnable balance between position and rotation (VMLoc Eq. 11).

    Attributes:
        beta: start of the position weight.
        gamma: start of the rotation weight.
    """

    beta: float = -3.0
    gamma: float = 0.0


class Objective(nn.Module, ABC):
    """A loss, with parameters of its own such as the balance of position and rotation.

    Attributes:
        config_type: its settings, the ``objective`` section of a configuration.
    """

    config_type: ClassVar[type[ObjectiveConfig]] = BalanceConfig

    @classmethod
    def build(cls, config: Any, codec: PoseCodec) -> Objective:
        """The objective with the settings ``config``, of :attr:`config_type`.

        Args:
            codec: of the map, for objectives that need metres.
        """
        return cls(config)

    @abstractmethod
    def terms(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Terms:
        """The scalar to minimise, as ``loss``, and detached ones worth watching.

        Args:
            batch: of B frames; where the system reads clips, ``B / clip_length`` of them one after the other.
            target: ``(B, 6)`` pose vectors.
        """


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
