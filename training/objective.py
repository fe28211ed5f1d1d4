# SPDX-License-Identifier: Apache-2.0
"""What a training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
