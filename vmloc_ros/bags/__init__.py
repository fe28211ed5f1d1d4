# SPDX-License-Identifier: Apache-2.0
"""Rosbag files: reading and writing, and the messages that are written."""

from vmloc_ros.bags.files import LATCHED_TOPICS, BagReader, BagWriter, open_bag, types_of

__all__ = ["LATCHED_TOPICS", "BagReader", "BagWriter", "open_bag", "types_of"]
