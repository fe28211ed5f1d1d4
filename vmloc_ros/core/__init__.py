# SPDX-License-Identifier: Apache-2.0
"""The ROS-free heart: frames, geometry, projection, models, checkpoints and the localizer."""
