# SPDX-License-Identifier: Apache-2.0
"""Training objectives of the systems."""

from training.objectives.base import Objective, ObjectiveConfig, Terms
from training.objectives.registry import OBJECTIVES, TrainingStep, build_objective, objective_config_type

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveConfig",
    "Terms",
    "TrainingStep",
    "build_objective",
    "objective_config_type",
]
