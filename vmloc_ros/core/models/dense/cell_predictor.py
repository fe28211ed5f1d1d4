# SPDX-License-Identifier: Apache-2.0
"""The network of one modality that predicts map coordinates for every cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.dense.config import DenseConfig
from vmloc_ros.core.models.encoder import Pyramid

_POINT_SCALE_M = 10.0  # unit of the measured points in the network's input


class CellPredictor(nn.Module):
    """Map coordinates of one modality's cells: a trunk, then the same small network for every cell.

    Args:
        trunk: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
        in_channels: of the modality.
        config: sizes.
        stride: of the cells, in pixels.
        sees_points: whether the measured points are part of the input, as for a lidar or depth camera; an image has
            none of its own.
    """

    def __init__(self, trunk: nn.Module, in_channels: int, config: DenseConfig, stride: int, sees_points: bool) -> None:
        super().__init__()
        self.sees_points = sees_points
        self.pyramid = Pyramid(trunk, in_channels, stride)
        width = config.hidden_dim
        self.norm = nn.BatchNorm2d(self.pyramid.channels, affine=False)
        self.dropout = nn.Dropout(config.dropout)
        self.entry = nn.Conv2d(self.pyramid.channels + (3 if sees_points else 0), width, 1)
        self.context = nn.Linear(self.pyramid.context_channels, width) if config.context else None
        # Feature-wise modulation (Perez et al. 2018, FiLM) by the region: all regions share one network.
        shape = config.regions, 1 + config.cell_blocks, 2, width
        self.modulation = nn.Parameter(torch.zeros(shape)) if config.regions > 1 else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())
            for _ in range(config.cell_blocks)
        )
        self.exit = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 4, 1))

    def forward(self, features: Tensor, context: Tensor, points: Tensor, regions: Tensor | None = None) -> Tensor:
        """Normalised coordinates and raw log standard deviation ``(B, 4, h, w)``.

        Args:
            features: ``(B, F, h, w)``, and ``context`` ``(B, G)``, of :class:`Pyramid`.
            points: ``(B, 3, h, w)`` measured, in metres in the body frame; zero where there is none.
            regions: ``(B,)`` numbers of the regions to predict coordinates in, where the map has regions.
        """
        x = self.dropout(self.norm(features.float()))
        if self.sees_points:
            x = torch.cat([x, points / _POINT_SCALE_M], dim=1)
        x = self.entry(x)
        if self.context is not None:
            x = x + self.context(context.float())[:, :, None, None]
        x = torch.relu(self._modulated(x, regions, 0))
        for number, block in enumerate(self.blocks, start=1):
            x = x + block(self._modulated(x, regions, number))
        x = self.exit[:-1](x)
        with torch.autocast(x.device.type, enabled=False):  # half precision resolves only decimetres in a map of 50 m
            return self.exit[-1](x.float())

    def _modulated(self, x: Tensor, regions: Tensor | None, layer: int) -> Tensor:
        if self.modulation is None:
            return x
        scale, shift = self.modulation[regions, layer, :, :, None, None].unbind(dim=1)
        return x * (1 + scale) + shift
