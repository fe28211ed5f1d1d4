# SPDX-License-Identifier: Apache-2.0
"""What each system of the registry minimises in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from training.config import ObjectiveConfig
from training.losses import PoseLoss, importance_weighted_loss
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ModelInput, PoseModel


class Objective(nn.Module, ABC):
    """A loss, with parameters of its own such as the balance of position and rotation."""

    @abstractmethod
    def forward(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Tensor:
        """The scalar to minimise.

        Args:
            batch: of B frames; where the system reads clips, ``B / clip_length`` of them one after the other.
            target: ``(B, 6)`` pose vectors.
        """


class BoundObjective(Objective):
    """The importance-weighted bound (VMLoc Eq. 7)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.pose_loss = PoseLoss(config.beta, config.gamma)

    def forward(self, model: PoseModel, batch: ModelInput, target: Tensor) -> Tensor:
        posterior = model.encode(batch)
        return importance_weighted_loss(
            model, posterior, target, self.pose_loss, self.config.samples, self.config.kl_weight
        )


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "vmloc": BoundObjective,
    "image_vmloc": BoundObjective,
    "depth_vmloc": BoundObjective,
    "poe_vmloc": BoundObjective,
}


def build_objective(name: str, config: ObjectiveConfig) -> Objective:
    """The objective of the system of that name. Raises ModelError: it is not trained by gradients."""
    if name not in OBJECTIVES:
        raise ModelError(f"model {name!r} has no objective; those that have: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name](config)
