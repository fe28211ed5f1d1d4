# SPDX-License-Identifier: Apache-2.0
"""Confidence of an estimate: is this place in the map, and is the input sane?

Two cues for each sensor, both from the features that the system computes anyway:

* strangeness: how far the features are from those of training frames, as the negative log-likelihood of a low-rank
  Gaussian (Tipping and Bishop 1999, "Probabilistic Principal Component Analysis"; for novelty, Lee et al. 2018).
* contradiction: among remembered training frames, the share whose features are more alike than those of the frames
  around the estimated pose. Near zero where the place looks as it should; one half for a random place.

Systems that solve for their pose add what the solver has to say against it, such as its share of outliers.

Each cue is turned into the share of good held-out frames that are at least as odd; the smallest share over all cues
decides, and is itself turned into such a share: the confidence. That is a p-value, fitted on good frames alone.
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

# Shares of held-out frames whose quantiles are kept; beyond the last one the tail is taken to be exponential.
SHARES = np.linspace(1.0, 0.1, 19)
_AROUND = 0.01  # of the remembered frames are "around the estimated pose"
_SEPARATOR = "+"
_IMPLAUSIBLE_LOG_P = math.log(0.01)  # log of the share of good frames: sensors that see what fewer do may be broken


@dataclass(frozen=True, eq=False)
class FeatureMemory:
    """What one sensor's features of training frames were like, D features in R principal directions.

    Attributes:
        mean: ``(D,)``.
        basis: ``(D, R)`` principal directions, float16 as the remembered frames are: a checkpoint stays small.
        variance: ``(R,)`` along them.
        rest: variance along each of the other directions.
        remembered: ``(M, R)`` coordinates of some training frames.
        positions_m: ``(M, 3)`` of these.
        quaternions_wxyz: ``(M, 4)`` of these.
        metres_per_radian: how far apart two positions are that differ as much as two headings do by one radian.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float16]
    variance: NDArray[np.float32]
    rest: NDArray[np.float32]
    remembered: NDArray[np.float16]
    positions_m: Array
    quaternions_wxyz: Array
    metres_per_radian: Array

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        remembered: ArrayLike,
        positions_m: ArrayLike,
        quaternions_wxyz: ArrayLike,
        metres_per_radian: float,
        rank: int = 64,
    ) -> FeatureMemory:
        """From features ``(N, D)`` of training frames, N >= 2, and those ``(M, D)`` to remember with their poses."""
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
        variances = np.square(singular) / len(x)
        # Fewer than half of the directions that the frames span: the rest's variance must be seen, too.
        rank = max(1, min(rank, len(variances) // 2))
        basis = directions[:rank].T.astype(np.float16)
        tiny = np.finfo(np.float32).tiny
        rest = variances[rank:].sum() / max(1, x.shape[1] - rank)
        return cls(
            mean.astype(np.float32),
            basis,
            np.maximum(variances[:rank], tiny).astype(np.float32),
            np.array([max(rest, tiny)], np.float32),
            ((np.asarray(remembered, np.float64) - mean) @ basis).astype(np.float16),
            np.asarray(positions_m, np.float64),
            np.asarray(quaternions_wxyz, np.float64),
            np.array([metres_per_radian], np.float64),
        )

    def cues(self, features: ArrayLike, positions_m: ArrayLike, quaternions_wxyz: ArrayLike) -> Array:
        """Strangeness and contradiction ``(B, 2)`` of features ``(B, D)`` and the poses estimated from them."""
        centred, coordinates = self._project(features)
        place_mismatch = self._place_mismatch(coordinates, np.asarray(positions_m), np.asarray(quaternions_wxyz))
        return np.stack([self._novelty(centred, coordinates), place_mismatch], axis=1)

    def novelty(self, features: ArrayLike) -> Array:
        """``(B,)`` of features ``(B, D)``, the first of their :meth:`cues`."""
        return self._novelty(*self._project(features))

    def _project(self, features: ArrayLike) -> tuple[Array, Array]:
        """Features about the mean ``(B, D)``, and along the principal directions ``(B, R)``."""
        centred = np.asarray(features, np.float64) - self.mean
        return centred, centred @ self._basis

    def _novelty(self, centred: Array, coordinates: Array) -> Array:
        along = np.square(coordinates) / self.variance
        # Not a difference of squared lengths: the basis is rounded to float16, and the rest may be small beside them.
        across = np.square(centred - coordinates @ self._basis.T).sum(axis=1) / self.rest
        return np.asarray(np.log(along.sum(axis=1) + across + 1))

    @cached_property
    def _basis(self) -> Array:
        return self.basis.astype(np.float64)

    @cached_property
    def _weight(self) -> Array:
        # Between the Euclidean distance, which the strongest directions rule, and Mahalanobis', which noise does.
        return np.asarray(self.variance.astype(np.float64) ** -0.25)

    @cached_property
    def _weighted(self) -> Array:
        return np.asarray(self.remembered.astype(np.float64) * self._weight)

    def _place_mismatch(self, coordinates: Array, positions_m: Array, quaternions_wxyz: Array) -> Array:
        unlike = _squared_distances(coordinates * self._weight, self._weighted)
        middle = self.positions_m.mean(axis=0)  # or squares of UTM coordinates would leave no digit for metres
        distances_m = np.sqrt(_squared_distances(positions_m - middle, self.positions_m - middle))
        apart = distances_m / self.metres_per_radian
        cosine = np.abs(quaternions_wxyz @ self.quaternions_wxyz.T).clip(0, 1)
        count = max(1, round(_AROUND * len(self.remembered)))
        around = np.argpartition(apart + 2 * np.arccos(cosine), count - 1, axis=1)[:, :count]
        best = np.take_along_axis(unlike, around, axis=1).min(axis=1, keepdims=True)
        return np.mean(unlike < best, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class EmpiricalTail:
    """How odd held-out frames are: the share of them that reaches a value.

    Attributes:
        quantiles: ``(len(SHARES),)`` values, increasing, that these shares reach.
        decay: mean excess over the last of them.
    """

    quantiles: Array
    decay: float

    @classmethod
    def fit(cls, values: ArrayLike) -> EmpiricalTail:
        """From values ``(N,)`` of held-out frames; a larger one is odder."""
        values = np.asarray(values, np.float64)
        quantiles = np.quantile(values, 1 - SHARES)
        excess = values[values > quantiles[-1]] - quantiles[-1]
        # Where no frame exceeds it, any greater value is beyond all that was seen.
        return cls(quantiles, float(excess.mean()) if len(excess) else float(np.finfo(np.float32).tiny))

    def log_p_value(self, values: ArrayLike) -> Array:
        """Logarithm of the share of frames that are at least as odd; 0 for the least odd ones."""
        x = np.asarray(values, np.float64)
        above = np.searchsorted(self.quantiles, x, side="left")  # of equal quantiles the first: the largest share
        right = above.clip(1, len(SHARES) - 1)
        low, high = self.quantiles[right - 1], self.quantiles[right]
        part = (x - low) / np.where(high > low, high - low, 1.0)
        inside = SHARES[right - 1] + (SHARES[right] - SHARES[right - 1]) * part.clip(0, 1)
        beyond = np.log(SHARES[-1]) - (x - self.quantiles[-1]) / self.decay
        return np.where(x > self.quantiles[-1], beyond, np.log(np.where(above == 0, 1.0, inside)))


@dataclass(frozen=True, slots=True, eq=False)
class Confidence:
    """Judge of estimates.

    Attributes:
        memories: by modality.
        tails: for each set of sensors, in the order of the modalities: of the cues of each of them, of the system's
            own, and last of what the cues give together.
    """

    memories: Mapping[str, FeatureMemory]
    tails: Mapping[tuple[str, ...], tuple[EmpiricalTail, ...]]

    def neg_log_p_value(
        self,
        modalities: tuple[str, ...],
        features: Mapping[str, ArrayLike],
        positions_m: ArrayLike,
        quaternions_wxyz: ArrayLike,
        outlier_scores: ArrayLike | None = None,
    ) -> Array | None:
        """How odd ``(B,)`` estimates from these sensors look; None for sensors that it was not fitted for.

        Of the cue that the fewest good frames reach, minus the logarithm of their share: 0 where all reach it.

        Args:
            features: ``(B, D)`` of each modality.
            positions_m: ``(B, 3)`` estimated.
            quaternions_wxyz: ``(B, 4)`` estimated.
            outlier_scores: ``(B, C)`` cues of the system itself, where it was fitted with such.

        Raises:
            ModelError: it was fitted with others, by another version.
        """
        tails = self.tails.get(modalities)
        if tails is None:
            return None
        cues = stack_cues(self.memories, modalities, features, positions_m, quaternions_wxyz, outlier_scores)
        if cues.shape[1] != len(tails) - 1:
            raise ModelError(
                f"the checkpoint's confidence rests on {len(tails) - 1} cues, this version of the system gives "
                f"{cues.shape[1]}: fit it again with `vmloc calibrate`"
            )
        return neg_log_p_value(cues, tails[:-1])

    def judge(self, modalities: tuple[str, ...], neg_log_p: ArrayLike) -> Array:
        """Confidence ``(B,)`` of estimates from these sensors that look so odd ``(B,)``, by :meth:`oddness`."""
        return np.exp(self.tails[modalities][-1].log_p_value(neg_log_p))

    def plausible_sensors(self, modalities: tuple[str, ...], features: Mapping[str, ArrayLike]) -> tuple[str, ...]:
        """Those of a single frame's sensors that are not strange by themselves, whatever the pose.

        All of them where none is left, or estimates that rest on what is left could not be judged.

        Args:
            features: ``(1, D)`` of each modality.
        """
        tails = self.tails.get(modalities, ())
        strange = {
            name
            for name, tail in zip(modalities, tails[::2], strict=False)  # two cues of each sensor come first
            if tail.log_p_value(self.memories[name].novelty(features[name]))[0] < _IMPLAUSIBLE_LOG_P
        }
        kept = tuple(name for name in modalities if name not in strange)
        return kept if kept in self.tails else modalities

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """Named arrays for a file."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, memory in self.memories.items():
            arrays |= {f"memory.{name}.{field.name}": getattr(memory, field.name) for field in fields(memory)}
        for names, tails in self.tails.items():
            table = np.stack([np.append(tail.quantiles, tail.decay) for tail in tails])
            arrays[f"tails.{_SEPARATOR.join(names)}"] = table
        return arrays

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Confidence:
        """Inverse of :meth:`to_tensors`. Raises CheckpointError: an array is missing or of another shape."""
        parts: dict[str, dict[str, NDArray[np.generic]]] = {}
        tails = {}
        try:
            for key, array in arrays.items():
                kind, name = key.split(".", 1)
                if kind == "tails":
                    if array.shape[1] != len(SHARES) + 1:
                        raise ValueError(f"{key} is {array.shape}")
                    tails[tuple(name.split(_SEPARATOR))] = tuple(
                        EmpiricalTail(row[:-1], float(row[-1])) for row in array.astype(np.float64)
                    )
                else:
                    name, _, field = name.partition(".")
                    parts.setdefault(name, {})[field] = array
            memories = {name: FeatureMemory(**values) for name, values in parts.items()}  # type: ignore[arg-type]
            if unknown := {name for names in tails for name in names} - set(memories):
                raise ValueError(f"nothing is remembered of {', '.join(sorted(unknown))}")
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"what the confidence rests on is damaged: {error}") from error
        return cls(memories, tails)


def stack_cues(
    memories: Mapping[str, FeatureMemory],
    modalities: tuple[str, ...],
    features: Mapping[str, ArrayLike],
    positions_m: ArrayLike,
    quaternions_wxyz: ArrayLike,
    outlier_scores: ArrayLike | None = None,
) -> Array:
    """Cues ``(B, 2 * len(modalities) + C)`` of estimates: two of each modality, and the system's own ``(B, C)``."""
    cues = [memories[name].cues(features[name], positions_m, quaternions_wxyz) for name in modalities]
    own = [] if outlier_scores is None else [np.asarray(outlier_scores, np.float64)]
    return np.concatenate([*cues, *own], axis=1)


def neg_log_p_value(cues: Array, tails: tuple[EmpiricalTail, ...]) -> Array:
    """``(B,)``: of cues ``(B, C)`` the one that the fewest held-out frames reach, as minus the log of their share."""
    shares = np.stack([tail.log_p_value(cue) for tail, cue in zip(tails, cues.T, strict=True)])
    return np.asarray(-shares.min(axis=0))


def _squared_distances(a: Array, b: Array) -> Array:
    """``(A, B)`` between rows."""
    cross = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(cross, 0.0)
