# SPDX-License-Identifier: Apache-2.0
"""KITTI: odometry sequences and raw drives."""
