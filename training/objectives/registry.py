# SPDX-License-Identifier: Apache-2.0
"""Registry of the training objectives, by the names that the registry of systems uses."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives.base import Objective, ObjectiveConfig, Terms
from training.objectives.dense import DenseObjective
from training.objectives.regression import (
    ClipObjective,
    FusedPoseObjective,
    HomoscedasticObjective,
    PoseObjective,
    RelativePoseObjective,
)
from training.objectives.variational import BoundObjective, ElboObjective
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.models import REGISTRY, ModelInput, PoseModel, find_system
from vmloc_ros.core.pose_codec import PoseCodec


class TrainingStep(nn.Module):
    """Model and objective as one module, so that the gradients of both are averaged over the processes."""

    def __init__(self, model: PoseModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: ModelInput, target: Tensor) -> Terms:
        return self.objective.terms(self.model, batch, target)


OBJECTIVES: dict[str, type[Objective]] = {
    "bound": BoundObjective,
    "elbo": ElboObjective,
    "pose": PoseObjective,
    "fused_pose": FusedPoseObjective,
    "relative_pose": RelativePoseObjective,
    "homoscedastic": HomoscedasticObjective,
    "clip": ClipObjective,
    "cells": DenseObjective,
}


def objective_config_type(system: str) -> type[ObjectiveConfig]:
    """Type of a system's ``objective`` section; it has no settings if the system is not trained by gradients.

    Raises:
        ModelError: the system is not in the registry.
    """
    objective = find_system(system).objective
    return ObjectiveConfig if objective is None else OBJECTIVES[objective].config_type


def build_objective(system: str, config: ObjectiveConfig, codec: PoseCodec, dropout: float = 0.0) -> Objective:
    """The objective of the named system.

    Args:
        config: settings, of :func:`objective_config_type`.
        codec: of the map, for objectives that need metric poses.
        dropout: probability of modality dropout, for objectives that take its expectation.

    Raises:
        ModelError: the system is not in the registry, or is not trained by gradients.
    """
    objective = find_system(system).objective
    if objective is None:
        trained = sorted(name for name, entry in REGISTRY.items() if entry.objective is not None)
        raise ModelError(
            f"model {system!r} has no objective, because it is not trained by gradients; systems with one: "
            f"{', '.join(trained)}"
        )
    return OBJECTIVES[objective].build(config, codec, dropout)
