# SPDX-License-Identifier: Apache-2.0
"""Camera + lidar localization with VMLoc (AAAI 2021) for ROS 2."""

__version__ = "0.1.0"
