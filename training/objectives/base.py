# SPDX-License-Identifier: Apache-2.0
"""Base class of training objectives, and the pose loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vmloc_ros.core.models import ModelInput, PoseModel
from vmloc_ros.core.models.rotation import chord, quaternion_exp, rotation_matrix, six_d_matrix
from vmloc_ros.core.pose_codec import PoseCodec

Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """Settings of an objective; the base class of each objective's own settings."""


@dataclass(frozen=True, slots=True)
class BalanceConfig(ObjectiveConfig):
    """Initial values of the learnable balance between position and rotation (VMLoc Eq. 11).

    They are learned at ``optimizer.balance_rate`` times the learning rate of the network.

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
    def build(cls, config: Any, codec: PoseCodec, dropout: float) -> Objective:
        """Build the objective.

        Args:
            config: settings, of :attr:`config_type`.
            codec: of the map, for objectives that need metric poses.
            dropout: probability of modality dropout, for objectives that take its expectation.
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

    For rotations without a logarithm (``six_d``) the second distance is the :func:`chord` of the rotation matrices.

    Args:
        beta: initial value of the learnable position weight.
        gamma: initial value of the learnable rotation weight.
    """

    def __init__(self, beta: float = -3.0, gamma: float = 0.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss ``(..., B)`` of outputs ``(..., B, 3 + R)`` against pose vectors ``(B, 6)``."""
        position = (predicted[..., :3] - target[..., :3]).abs().sum(-1)
        rotation = _rotation_error(predicted[..., 3:], target[..., 3:])
        return position * torch.exp(-self.beta) + self.beta + rotation * torch.exp(-self.gamma) + self.gamma


def _rotation_error(predicted: Tensor, log_quaternion: Tensor) -> Tensor:
    """Distance ``(..., B)`` of rotations ``(..., B, R)`` from those of ``(B, 3)`` log-quaternions."""
    if predicted.shape[-1] == 3:
        return (predicted - log_quaternion).abs().sum(-1)
    # Half precision, which training may use, is too coarse for differences of matrices.
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    return chord(six_d_matrix(predicted), rotation_matrix(quaternion_exp(log_quaternion)))
