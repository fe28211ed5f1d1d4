# SPDX-License-Identifier: Apache-2.0
"""What training minimises: objectives by name. The registry of systems says which system has which."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives.base import Objective, ObjectiveConfig, Terms
from training.objectives.dense import DenseObjective
from training.objectives.regression import ClipObjective, HomoscedasticObjective, PoseObjective, RelativePoseObjective
from training.objectives.variational import BoundObjective, ElboObjective
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import REGISTRY, ModelInput, PoseModel, find_system
from vmloc_ros.core.pose_codec import PoseCodec


class TrainingStep(nn.Module):
    """Model and objective as one module, so that several processes' gradients of both are averaged."""

    def __init__(self, model: PoseModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: ModelInput, target: Tensor) -> Terms:
        return self.objective.terms(self.model, batch, target)


OBJECTIVES: dict[str, type[Objective]] = {
    "bound": BoundObjective,
    "elbo": ElboObjective,
    "pose": PoseObjective,
    "relative_pose": RelativePoseObjective,
    "homoscedastic": HomoscedasticObjective,
    "clip": ClipObjective,
    "cells": DenseObjective,
}


def objective_config_type(system: str) -> type[ObjectiveConfig]:
    """Type of the ``objective`` section for a system; without settings for one that is not trained by gradients.

    Raises:
        ModelError: the system is not in the registry.
    """
    objective = find_system(system).objective
    return ObjectiveConfig if objective is None else OBJECTIVES[objective].config_type


def build_objective(system: str, config: ObjectiveConfig, codec: PoseCodec) -> Objective:
    """The objective of the named system.

    Args:
        config: of :func:`objective_config_type`.
        codec: of the map, for objectives that need metres.

    Raises:
        ModelError: the system is not in the registry, or is not trained by gradients.
    """
    objective = find_system(system).objective
    if objective is None:
        trained = sorted(name for name, entry in REGISTRY.items() if entry.objective is not None)
        raise ModelError(f"model {system!r} has no objective; those that have: {', '.join(trained)}")
    return OBJECTIVES[objective].build(config, codec)
