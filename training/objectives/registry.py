# SPDX-License-Identifier: Apache-2.0
"""What each system of the registry minimises in training."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from training.objectives.base import Objective, ObjectiveConfig, Terms
from training.objectives.dense import DenseObjective
from training.objectives.regression import ClipObjective, HomoscedasticObjective, PoseObjective, RelativePoseObjective
from training.objectives.variational import BoundObjective, ElboObjective
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import ModelInput, PoseModel
from vmloc_ros.core.pose_codec import PoseCodec


class TrainingStep(nn.Module):
    """Model and objective as one module, so that several processes' gradients of both are averaged."""

    def __init__(self, model: PoseModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: ModelInput, target: Tensor) -> Terms:
        return self.objective.terms(self.model, batch, target)


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "vmloc": BoundObjective,
    "image_vmloc": BoundObjective,
    "depth_vmloc": BoundObjective,
    "attention_vmloc": PoseObjective,
    "poe_vmloc": ElboObjective,
    "atloc": PoseObjective,
    "mapnet": RelativePoseObjective,
    "posenet_plus": HomoscedasticObjective,
    "hourglass": PoseObjective,
    "vidloc": ClipObjective,
}
DENSE = ("vmloc_dense", "dense_image", "dense_lidar")


def build_objective(name: str, config: ObjectiveConfig, codec: PoseCodec) -> Objective:
    """The objective of the system of that name. Raises ModelError: it is not trained by gradients.

    Args:
        codec: of the map: what metres a system's coordinates mean.
    """
    if name in DENSE:
        return DenseObjective(config, codec)
    if name not in OBJECTIVES:
        raise ModelError(
            f"model {name!r} has no objective; those that have: {', '.join(sorted([*OBJECTIVES, *DENSE]))}"
        )
    return OBJECTIVES[name](config)
