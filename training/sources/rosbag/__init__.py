# SPDX-License-Identifier: Apache-2.0
"""Rosbags: which topics, where poses come from, and frames in order of time."""
