# SPDX-License-Identifier: Apache-2.0
"""Plays a bag through ROS and records what a node publishes."""

from vmloc_ros.replay.play import ReplayError, ReplayReport, replay

__all__ = ["ReplayError", "ReplayReport", "replay"]
