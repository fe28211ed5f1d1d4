# SPDX-License-Identifier: Apache-2.0
"""Base class of training objectives, and the pose loss."""

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
    """Settings of an objective; the base class of each objective's own settings."""


@dataclass(frozen=True, slots=True)
class BalanceConfig(ObjectiveConfig):
    """Initial values of the learnable balance between position and rotation (VMLoc Eq. 11).

    Attributes:
        beta: initial position weight.
        gamma: initial rotation weight.
    """

    beta: float = -3.0
    gamma: float = 0.0


class Objective(nn.Module, ABC):
    """A loss, which may have learnable parameters such as the balance of position and rotation.

    Attributes:
        config_type: type of its settings, the ``objective`` section of a configuration.
    """

    config_type: ClassVar[type[ObjectiveConfig]] = BalanceConfig

    @classmethod
    def build(cls, config: Any, codec: PoseCodec) -> Objective:
        """Build the objective.

        Args:
            config: settings, of :attr:`config_type`.
            codec: of the map, for objectives that need metric poses.
        """
        return cls(config)

    @abstractmethod
    def terms(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Terms:
        """The scalar ``loss`` to minimise, and further detached scalars for the log.

        Args:
            batch: B frames; for systems of clips, ``B / clip_length`` clips one after the other.
            target: ``(B, 6)`` pose vectors.
        """


class PoseLoss(nn.Module):
    """``L_p = |p - p*|_1 exp(-beta) + beta + |log q - log q*|_1 exp(-gamma) + gamma`` (VMLoc Eq. 11).

    Args:
        beta: initial value of the learnable position weight.
        gamma: initial value of the learnable rotation weight.
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
