# SPDX-License-Identifier: Apache-2.0
"""The scene-coordinate system: map coordinates of every cell, and the pose that explains them."""

from vmloc_ros.core.models.dense.model import DenseModel

__all__ = ["DenseModel"]
