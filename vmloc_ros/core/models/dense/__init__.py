# SPDX-License-Identifier: Apache-2.0
"""Scene-coordinate regression: map coordinates of every cell, and the pose estimated from them."""

from vmloc_ros.core.models.dense.model import DenseModel

__all__ = ["DenseModel"]
