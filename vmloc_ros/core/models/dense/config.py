# SPDX-License-Identifier: Apache-2.0
"""Settings of the dense systems."""

from __future__ import annotations

from dataclasses import dataclass

from vmloc_ros.core.models.config import ModelConfig, check_sizes


@dataclass(frozen=True, slots=True)
class DenseConfig(ModelConfig):
    """Settings of ``vmloc_dense``, ``dense_image`` and ``dense_lidar``.

    Attributes:
        hidden_dim: width of the network that is applied to every cell.
        dropout: on that network's input features, in training only.
        cell_stride: pixels per cell of an image or depth image.
        lidar_stride: pixels per cell of a range image.
        cell_blocks: residual blocks of the network that is applied to every cell.
        context: whether each cell's input includes the mean features of the whole image; for maps in which places look
            alike.
        regions: number of regions of a large map, each with coordinates of its own; 1: no regions. About one for every
            50 m of road.
        frozen: whether the trunks keep their pretrained weights; their features are then computed only once.
        hypotheses: pose hypotheses that the solver draws.
        map_voxel_m: side of the voxels of a map of measured points that scans are registered to; 0: no such map.
    """

    hidden_dim: int = 1024
    dropout: float = 0.5
    cell_stride: int = 8
    lidar_stride: int = 4
    cell_blocks: int = 2
    context: bool = False
    regions: int = 1
    frozen: bool = False
    hypotheses: int = 64
    map_voxel_m: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "hidden_dim", "cell_stride", "lidar_stride", "regions", "hypotheses")
        if self.cell_blocks < 0 or self.map_voxel_m < 0:
            raise ValueError(f"cell_blocks and map_voxel_m must not be negative, got {self}")
