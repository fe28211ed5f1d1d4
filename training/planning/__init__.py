# SPDX-License-Identifier: Apache-2.0
"""The plan of a training: which system, sizes and lengths a survey of the recordings suggests, and why."""

from training.planning.budget import Costs, Stage
from training.planning.plan import Plan, make_plan, schedule

__all__ = ["Costs", "Plan", "Stage", "make_plan", "schedule"]
