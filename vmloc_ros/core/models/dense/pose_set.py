# SPDX-License-Identifier: Apache-2.0
"""Poses of a batch with their covariances and quality figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PoseSet:
    """Poses of B frames.

    Attributes:
        rotations: ``(B, 3, 3)`` map from body.
        translations: ``(B, 3)`` metres from the map's origin.
        covariances: ``(B, 6, 6)`` x, y, z and rotation about the map's fixed axes.
        solved: ``(B,)`` bool, whether the solver found a pose.
        evidence: ``(B,)`` support of the pose: the share of measured points that lie on the point map or, without a
            map, the share of inlier cells.
        outlier_scores: ``(B,)`` each; larger is worse.
    """

    rotations: Tensor
    translations: Tensor
    covariances: Tensor
    solved: Tensor
    evidence: Tensor
    outlier_scores: tuple[Tensor, ...]

    def where(self, mask: Tensor, other: PoseSet) -> PoseSet:
        """These poses where the mask ``(B,)`` is True, the other ones elsewhere."""

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y)

        return self._map(pick, other)

    def at(self, rows: Tensor) -> PoseSet:
        """The poses of the frames ``(n,)``."""
        return self._map(lambda x, _: x[rows], self)

    def put(self, rows: Tensor, other: PoseSet) -> PoseSet:
        """A copy in which the frames ``(n,)`` have the n other poses."""
        return self._map(lambda x, y: x.index_copy(0, rows, y), other)

    def _map(self, function: Callable[[Tensor, Tensor], Tensor], other: PoseSet) -> PoseSet:
        names = ("rotations", "translations", "covariances", "solved", "evidence")
        return PoseSet(
            **{name: function(getattr(self, name), getattr(other, name)) for name in names},
            outlier_scores=tuple(
                function(x, y) for x, y in zip(self.outlier_scores, other.outlier_scores, strict=True)
            ),
        )
