# SPDX-License-Identifier: Apache-2.0
"""The localization node: lifecycle, what it holds while configured and active, and its work on each frame."""

from vmloc_ros.node.lifecycle import VmlocNode, main

__all__ = ["VmlocNode", "main"]
