# SPDX-License-Identifier: Apache-2.0
"""Plays a bag into the ROS graph and records topics."""

from vmloc_ros.replay.play import ReplayError, ReplayReport, replay

__all__ = ["ReplayError", "ReplayReport", "replay"]
