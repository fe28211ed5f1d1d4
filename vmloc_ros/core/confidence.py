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

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.errors import CheckpointError, ModelError
from vmloc_ros.core.reference_features import ReferenceFeatures

Array = NDArray[np.float64]

# P-values whose quantiles are stored; beyond the last one the tail of the distribution is taken to be exponential.
P_VALUES = np.linspace(1.0, 0.1, 19)
_SEPARATOR = "+"
_IMPLAUSIBLE_LOG_P = math.log(0.01)  # a sensor whose novelty has a smaller p-value may be broken
_STORED_NAMES = {"coordinates": "remembered", "residual_variance": "rest"}  # in checkpoints, by attribute


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
