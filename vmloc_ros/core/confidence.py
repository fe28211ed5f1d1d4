# SPDX-License-Identifier: Apache-2.0
"""Confidence of an estimate: a p-value under the null distribution of held-out frames.

The null hypothesis is that the frame is like the held-out frames: a mapped place, seen by working sensors. Two outlier
scores test it for each sensor, both on features that the system computes anyway; larger is less likely:

* novelty: the negative log-likelihood, up to a monotonic function, of the features under a low-rank Gaussian fitted to
  training frames (Tipping and Bishop 1999, "Probabilistic Principal Component Analysis"; for novelty detection, Lee et
  al. 2018).
* place mismatch: the share of reference frames whose features are nearer than those of every reference frame around
  the estimated pose. It is 0 where the features fit the place and about one half at a random place.

Systems that solve for their pose add scores of their own, such as the solver's share of outliers.

Each score has a p-value: the share of held-out frames that reach it. The smallest p-value over all scores is the test
statistic (Tippett 1931). Its own p-value, which accounts for the number of scores and their dependence, is the
confidence. All null distributions are fitted to in-distribution frames alone: no corrupted input is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.errors import CheckpointError, ModelError

Array = NDArray[np.float64]

# P-values whose quantiles are stored; beyond the last one the tail of the distribution is taken to be exponential.
P_VALUES = np.linspace(1.0, 0.1, 19)
_NEIGHBOURHOOD = 0.01  # share of the reference frames that count as "around the estimated pose"
_SEPARATOR = "+"
_IMPLAUSIBLE_LOG_P = math.log(0.01)  # a sensor whose novelty has a smaller p-value may be broken
_STORED_NAMES = {"coordinates": "remembered", "residual_variance": "rest"}  # in checkpoints, by attribute


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


@dataclass(frozen=True, slots=True, eq=False)
class NullDistribution:
    """Empirical distribution of an outlier score over held-out frames, with an exponential tail.

    Attributes:
        quantiles: ``(len(P_VALUES),)`` increasing scores that these shares of the frames reach.
        decay: mean excess over the last quantile: the scale of the exponential tail.
    """

    quantiles: Array
    decay: float

    @classmethod
    def fit(cls, scores: ArrayLike) -> NullDistribution:
        """Fit to the scores ``(N,)`` of held-out frames; larger scores are less likely."""
        scores = np.asarray(scores, np.float64)
        quantiles = np.quantile(scores, 1 - P_VALUES)
        excess = scores[scores > quantiles[-1]] - quantiles[-1]
        # Without any excess, every larger score has a p-value of zero.
        return cls(quantiles, float(excess.mean()) if len(excess) else float(np.finfo(np.float32).tiny))

    def log_p_value(self, scores: ArrayLike) -> Array:
        """Logarithm of the share of frames whose score is at least as large; 0 for the smallest scores."""
        x = np.asarray(scores, np.float64)
        above = np.searchsorted(self.quantiles, x, side="left")  # of equal quantiles the one with the largest p-value
        right = above.clip(1, len(P_VALUES) - 1)
        low, high = self.quantiles[right - 1], self.quantiles[right]
        part = (x - low) / np.where(high > low, high - low, 1.0)
        inside = P_VALUES[right - 1] + (P_VALUES[right] - P_VALUES[right - 1]) * part.clip(0, 1)
        beyond = np.log(P_VALUES[-1]) - (x - self.quantiles[-1]) / self.decay
        return np.where(x > self.quantiles[-1], beyond, np.log(np.where(above == 0, 1.0, inside)))


@dataclass(frozen=True, slots=True, eq=False)
class Confidence:
    """Computes the confidence of estimates.

    Attributes:
        references: by modality.
        null_distributions: by set of sensors, named in the order of the modalities: two for each sensor (novelty,
            place mismatch), one for each of the system's own scores, and last that of the smallest p-value's negative
            logarithm.
    """

    references: Mapping[str, ReferenceFeatures]
    null_distributions: Mapping[tuple[str, ...], tuple[NullDistribution, ...]]

    def neg_log_p_value(
        self,
        modalities: tuple[str, ...],
        features: Mapping[str, ArrayLike],
        positions_m: ArrayLike,
        quaternions_wxyz: ArrayLike,
        outlier_scores: ArrayLike | None = None,
    ) -> Array | None:
        """Negative logarithm ``(B,)`` of the smallest p-value over the scores of estimates from these sensors.

        Args:
            features: ``(B, D)`` of each modality.
            positions_m: ``(B, 3)`` estimated.
            quaternions_wxyz: ``(B, 4)`` estimated.
            outlier_scores: ``(B, C)`` of the system itself, where it has such.

        Returns:
            0 for the most likely frames; None where there are no null distributions of this set of sensors.

        Raises:
            ModelError: the null distributions are those of another number of scores.
        """
        distributions = self.null_distributions.get(modalities)
        if distributions is None:
            return None
        scores = stack_outlier_scores(
            self.references, modalities, features, positions_m, quaternions_wxyz, outlier_scores
        )
        if scores.shape[1] != len(distributions) - 1:
            raise ModelError(
                f"the checkpoint's confidence rests on {len(distributions) - 1} outlier scores, this version of the "
                f"system gives {scores.shape[1]}: fit it again with `vmloc calibrate`"
            )
        return neg_log_p_value(scores, distributions[:-1])

    def p_value(self, modalities: tuple[str, ...], neg_log_p: ArrayLike) -> Array:
        """Confidence ``(B,)``: the p-value of what :meth:`neg_log_p_value` returned ``(B,)`` for these sensors."""
        return np.exp(self.null_distributions[modalities][-1].log_p_value(neg_log_p))

    def plausible_sensors(self, modalities: tuple[str, ...], features: Mapping[str, ArrayLike]) -> tuple[str, ...]:
        """The sensors of a single frame whose novelty has a p-value of at least 0.01, whatever the pose.

        All sensors where there are no null distributions of those that would remain: estimates from these would have
        no confidence.

        Args:
            features: ``(1, D)`` of each modality.
        """
        distributions = self.null_distributions.get(modalities, ())
        outliers = {
            name
            for name, distribution in zip(modalities, distributions[::2], strict=False)  # two a sensor come first
            if distribution.log_p_value(self.references[name].novelty(features[name]))[0] < _IMPLAUSIBLE_LOG_P
        }
        kept = tuple(name for name in modalities if name not in outliers)
        return kept if kept in self.null_distributions else modalities

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """Named arrays for a checkpoint: ``memory.<modality>.<field>`` and ``tails.<modality>+<modality>``."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, reference in self.references.items():
            for field in fields(reference):
                stored = _STORED_NAMES.get(field.name, field.name)
                arrays[f"memory.{name}.{stored}"] = getattr(reference, field.name)
        for names, distributions in self.null_distributions.items():
            table = np.stack([np.append(one.quantiles, one.decay) for one in distributions])
            arrays[f"tails.{_SEPARATOR.join(names)}"] = table
        return arrays

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Confidence:
        """Inverse of :meth:`to_tensors`. Raises CheckpointError: an array is missing or of another shape."""
        attributes = {stored: name for name, stored in _STORED_NAMES.items()}
        parts: dict[str, dict[str, NDArray[np.generic]]] = {}
        distributions = {}
        try:
            for key, array in arrays.items():
                kind, name = key.split(".", 1)
                if kind == "tails":
                    if array.shape[1] != len(P_VALUES) + 1:
                        raise ValueError(f"{key} is {array.shape}")
                    distributions[tuple(name.split(_SEPARATOR))] = tuple(
                        NullDistribution(row[:-1], float(row[-1])) for row in array.astype(np.float64)
                    )
                else:
                    name, _, stored = name.partition(".")
                    parts.setdefault(name, {})[attributes.get(stored, stored)] = array
            references = {name: ReferenceFeatures(**values) for name, values in parts.items()}  # type: ignore[arg-type]
            if unknown := {name for names in distributions for name in names} - set(references):
                raise ValueError(f"no reference features of {', '.join(sorted(unknown))}")
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"the tensors of the confidence are damaged: {error}") from error
        return cls(references, distributions)


def stack_outlier_scores(
    references: Mapping[str, ReferenceFeatures],
    modalities: tuple[str, ...],
    features: Mapping[str, ArrayLike],
    positions_m: ArrayLike,
    quaternions_wxyz: ArrayLike,
    outlier_scores: ArrayLike | None = None,
) -> Array:
    """Scores ``(B, 2 * len(modalities) + C)``: novelty and place mismatch by modality, then the system's own."""
    scores = [references[name].outlier_scores(features[name], positions_m, quaternions_wxyz) for name in modalities]
    own = [] if outlier_scores is None else [np.asarray(outlier_scores, np.float64)]
    return np.concatenate([*scores, *own], axis=1)


def neg_log_p_value(scores: Array, distributions: tuple[NullDistribution, ...]) -> Array:
    """Negative logarithm ``(B,)`` of the smallest p-value over scores ``(B, C)``, by the C null distributions."""
    log_p = np.stack([one.log_p_value(score) for one, score in zip(distributions, scores.T, strict=True)])
    return np.asarray(-log_p.min(axis=0))


def _squared_distances(a: Array, b: Array) -> Array:
    """``(A, B)`` between rows."""
    cross = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(cross, 0.0)
