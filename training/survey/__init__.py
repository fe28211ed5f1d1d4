# SPDX-License-Identifier: Apache-2.0
"""What recordings hold, measured before a training: sensors, lidar model, poses, revisits, light."""

from training.survey.facts import CameraFacts, DepthFacts, LidarModel, PathFacts, Recording, Survey
from training.survey.survey import survey
from training.survey.text import describe

__all__ = [
    "CameraFacts",
    "DepthFacts",
    "LidarModel",
    "PathFacts",
    "Recording",
    "Survey",
    "describe",
    "survey",
]
