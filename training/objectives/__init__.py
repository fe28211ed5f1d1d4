# SPDX-License-Identifier: Apache-2.0
"""What each system minimises in training."""

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
