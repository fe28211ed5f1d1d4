# SPDX-License-Identifier: Apache-2.0
"""The localization node: one file for each phase of its life."""

from vmloc_ros.node.lifecycle import VmlocNode, main

__all__ = ["VmlocNode", "main"]
