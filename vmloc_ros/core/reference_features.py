# SPDX-License-Identifier: Apache-2.0
"""Features of training frames that the confidence compares those of a frame with: novelty and place mismatch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_NEIGHBOURHOOD = 0.01  # share of the reference frames that count as "around the estimated pose"


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """Distribution of one sensor's features over training frames: D features in R principal directions.

    Attributes:
        mean: ``(D,)``.
        basis: ``(D, R)`` principal directions; float16, as the coordinates are, to keep checkpoints small.
        variance: ``(R,)`` along the principal directions.
        residual_variance: ``(1,)`` along each of the other directions.
        coordinates: ``(M, R)`` of the reference frames' features along the principal directions.
        positions_m: ``(M, 3)`` of the reference frames, in the map.
        quaternions_wxyz: ``(M, 4)`` of the reference frames.
        metres_per_radian: ``(1,)`` distance of positions that counts as much as a rotation by one radian.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float16]
    variance: NDArray[np.float32]
    residual_variance: NDArray[np.float32]
    coordinates: NDArray[np.float16]
    positions_m: Array
    quaternions_wxyz: Array
    metres_per_radian: Array

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        references: ArrayLike,
        positions_m: ArrayLike,
        quaternions_wxyz: ArrayLike,
        metres_per_radian: float,
        rank: int = 64,
    ) -> ReferenceFeatures:
        """Fit the Gaussian to features ``(N, D)`` of training frames, N >= 2, and keep M of them as references.

        Args:
            references: ``(M, D)`` features of the reference frames; their poses are
            positions_m: ``(M, 3)`` and
            quaternions_wxyz: ``(M, 4)``.
            rank: largest number of principal directions.
        """
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
        variances = np.square(singular) / len(x)
        # At most half of the directions that the frames span: the others are needed to estimate the residual variance.
        rank = max(1, min(rank, len(variances) // 2))
        basis = directions[:rank].T.astype(np.float16)
        tiny = np.finfo(np.float32).tiny
        residual = variances[rank:].sum() / max(1, x.shape[1] - rank)
        return cls(
            mean.astype(np.float32),
            basis,
            np.maximum(variances[:rank], tiny).astype(np.float32),
            np.array([max(residual, tiny)], np.float32),
            ((np.asarray(references, np.float64) - mean) @ basis).astype(np.float16),
            np.asarray(positions_m, np.float64),
            np.asarray(quaternions_wxyz, np.float64),
            np.array([metres_per_radian], np.float64),
        )

    def outlier_scores(self, features: ArrayLike, positions_m: ArrayLike, quaternions_wxyz: ArrayLike) -> Array:
        """Novelty and place mismatch ``(B, 2)`` of features ``(B, D)`` and the poses estimated from them."""
        centred, coordinates = self._project(features)
        place_mismatch = self._place_mismatch(coordinates, np.asarray(positions_m), np.asarray(quaternions_wxyz))
        return np.stack([self._novelty(centred, coordinates), place_mismatch], axis=1)

    def novelty(self, features: ArrayLike) -> Array:
        """Novelty ``(B,)`` of features ``(B, D)``: the first of the :meth:`outlier_scores`."""
        return self._novelty(*self._project(features))

    def _project(self, features: ArrayLike) -> tuple[Array, Array]:
        """Centred features ``(B, D)``, and their coordinates ``(B, R)`` along the principal directions."""
        centred = np.asarray(features, np.float64) - self.mean
        return centred, centred @ self._basis

    def _novelty(self, centred: Array, coordinates: Array) -> Array:
        along = np.square(coordinates) / self.variance
        # Not a difference of squared lengths, which would cancel where the residual is small: the basis is float16.
        across = np.square(centred - coordinates @ self._basis.T).sum(axis=1) / self.residual_variance
        return np.asarray(np.log(along.sum(axis=1) + across + 1))

    @cached_property
    def _basis(self) -> Array:
        return self.basis.astype(np.float64)

    @cached_property
    def _weight(self) -> Array:
        # Between the Euclidean distance, which the strongest directions dominate, and Mahalanobis', which noise does.
        return np.asarray(self.variance.astype(np.float64) ** -0.25)

    @cached_property
    def _weighted_coordinates(self) -> Array:
        return np.asarray(self.coordinates.astype(np.float64) * self._weight)

    def _place_mismatch(self, coordinates: Array, positions_m: Array, quaternions_wxyz: Array) -> Array:
        feature_distances = _squared_distances(coordinates * self._weight, self._weighted_coordinates)
        middle = self.positions_m.mean(axis=0)  # squares of UTM coordinates would leave no digit for metres
        distances_m = np.sqrt(_squared_distances(positions_m - middle, self.positions_m - middle))
        apart = distances_m / self.metres_per_radian
        cosine = np.abs(quaternions_wxyz @ self.quaternions_wxyz.T).clip(0, 1)
        count = max(1, round(_NEIGHBOURHOOD * len(self.coordinates)))
        around = np.argpartition(apart + 2 * np.arccos(cosine), count - 1, axis=1)[:, :count]
        nearest = np.take_along_axis(feature_distances, around, axis=1).min(axis=1, keepdims=True)
        return np.mean(feature_distances < nearest, axis=1)


def _squared_distances(a: Array, b: Array) -> Array:
    """``(A, B)`` between rows."""
    cross = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(cross, 0.0)
