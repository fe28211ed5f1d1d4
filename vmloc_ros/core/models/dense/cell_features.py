# SPDX-License-Identifier: Apache-2.0
"""Trunk features and geometry of the cells of each modality, and the correspondences that predictions make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.correspondences import Correspondences


@dataclass(frozen=True, slots=True, eq=False)
class CellFeatures:
    """Cells of one modality, of the R samples of a batch that have it.

    Attributes:
        rows: ``(R,)`` the samples' indices in the batch.
        features: ``(R, F, h, w)`` feature maps of the trunk.
        context: ``(R, G)`` mean over the image of the trunk's coarsest feature map.
        cells: geometry of the N = h w cells.
    """

    rows: Tensor
    features: Tensor
    context: Tensor
    cells: Cells

    def select_samples(self, selected: Tensor) -> CellFeatures:
        """Features of the selected samples ``(B,)`` bool; ``rows`` index the batch of the selected samples."""
        kept = selected[self.rows]
        cells = Cells(*(getattr(self.cells, field.name)[kept] for field in fields(Cells)))
        return CellFeatures((selected.cumsum(0) - 1)[self.rows[kept]], self.features[kept], self.context[kept], cells)

    def select_cells(self, indices: Tensor) -> CellFeatures:
        """Features of the cells ``(n,)``, as maps of n rows and one column."""
        cells = Cells(*(getattr(self.cells, field.name)[:, indices] for field in fields(Cells)))
        return replace(self, features=self.features.flatten(2)[:, :, indices].unsqueeze(-1), cells=cells)


def correspondences(
    by_modality: Mapping[str, CellFeatures], predicted: Mapping[str, tuple[Tensor, Tensor]], count: int
) -> tuple[Correspondences, Tensor]:
    """Correspondences of all modalities' cells side by side, and their times of measurement ``(B, M)``.

    Args:
        by_modality: features of each modality.
        predicted: of each modality, what :meth:`DenseModel.predict` returned for its cells.
        count: B, samples of the batch.
    """
    parts = []
    for name, features in by_modality.items():
        points, log_std = predicted[name]
        cells = features.cells
        part = points, torch.exp(log_std), cells.points_m, cells.rays, cells.ranged, cells.valid, cells.times_s
        parts.append([scatter_rows(x, features.rows, count) for x in part])
    *joined, times_s = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
    return Correspondences(*joined), times_s


def scatter_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """``(count, ...)`` with values ``(R, ...)`` in the given rows and zeros (False) in all others."""
    if len(rows) == count:
        return values
    return values.new_zeros((count, *values.shape[1:])).index_copy(0, rows, values)
