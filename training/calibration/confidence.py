# SPDX-License-Identifier: Apache-2.0
"""Fit the confidence: reference features of training frames, null distributions of held-out outlier scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.calibration.held_out import EstimatesBySensors, gross_error_mask
from training.data.dataset import PreparedDataset
from training.data.model_input import sensor_sets
from training.data.splits import FEWEST
from training.evaluation.metrics import CONFIDENCE_LIMIT
from training.prediction import modality_features
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.confidence import P_VALUES, Confidence, NullDistribution, neg_log_p_value
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.reference_features import ReferenceFeatures

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
logger = logging.getLogger(__name__)

_DESCRIBED_FRAMES = 4000  # training frames whose features the low-rank Gaussian is fitted to
_STORED_FRAMES = 1000  # of these, those whose features are stored: 64 numbers of 2 bytes each
_GROSS_SHARE = 0.02  # tolerated share of gross errors among estimates that are not withheld
_GROSS_COUNT = 2  # gross errors that are tolerated in any case
_CUT_OFF_P = 1e-4  # p-value of a score at its threshold: beyond it, the confidence vanishes
_J_TOLERANCE = 0.02  # thresholds whose Youden's J differs by less are equally good
_ZERO_CONFIDENCE = NullDistribution(np.full(len(P_VALUES), -1.0), 1e-3)  # outlier scores are not negative: p-value 0


def fit_reference_features(
    header: CheckpointHeader, model: PoseModel, data: PreparedDataset, rows: Tensor, device: torch.device
) -> dict[str, ReferenceFeatures]:
    """Fit the distribution of the model's features of training rows, by modality, and store some of the features.

    Empty for systems that offer no features. Modalities that fewer than :data:`FEWEST` rows have are absent.
    """
    preprocessor, references = Preprocessor(header.preprocess), {}
    for name in header.preprocess.modalities:
        having = sensor_sets(data, _evenly(rows, _DESCRIBED_FRAMES), (name,)).get((name,), rows[:0])
        if len(having) < FEWEST:
            continue
        tensor = modality_features(model, data, having, preprocessor, name, device)
        if tensor is None:
            return {}
        features = tensor.cpu().numpy()
        stored = _evenly(torch.arange(len(having)), _STORED_FRAMES)
        poses = [data.poses[i] for i in having[stored].tolist()]
        references[name] = ReferenceFeatures.fit(
            features,
            features[stored.numpy()],
            np.stack([pose.position_m for pose in poses]),
            np.stack([pose.quaternion_wxyz for pose in poses]),
            header.pose_codec.scale_m,
        )
    return references


def fit_confidence(
    references: Mapping[str, ReferenceFeatures], data: PreparedDataset, held_out: EstimatesBySensors
) -> Confidence | None:
    """Fit null distributions to estimates for held-out frames, for every set of sensors that has enough of them.

    None without reference features (see :func:`fit_reference_features`), or with too few frames for any set.
    """
    fitted = {}
    for names, estimates in held_out.items():
        complete = estimates.select(~estimates.outlier_scores.isnan().any(dim=1) & ~estimates.lost)
        if len(complete) < FEWEST or not complete.outlier_scores.shape[1]:
            continue
        gross = gross_error_mask(data, complete)
        if np.sum(~gross) >= FEWEST:
            fitted[names] = fit_null_distributions(complete.outlier_scores.numpy(), gross, " and ".join(names))
    return Confidence(references, fitted) if fitted else None


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows, evenly spread from the first to the last."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def fit_null_distributions(scores: Array, gross: Bools, sensors: str) -> tuple[NullDistribution, ...]:
    """Distributions of each outlier score and of their smallest p-value over frames without gross errors.

    Where two places of the map look alike, estimates are right or wrong by chance, and the outlier scores of both are
    the same: gross errors then look like in-distribution frames. While gross errors are more than 2 % of the estimates
    that would not be withheld, the frames on the wrong side of a threshold are therefore removed from the null
    distribution, gross errors or not. The threshold is on the score that separates the remaining gross errors best (the
    largest of Youden's J). Where too few frames remain, the confidence is zero for all.

    Args:
        scores: ``(N, C)`` outlier scores of estimates for held-out frames.
        gross: ``(N,)`` which of them are gross errors.
        sensors: their names, for the log.

    Returns:
        ``C + 1`` distributions, as :attr:`Confidence.null_distributions` has them.
    """
    kept, thresholds = ~gross, np.full(scores.shape[1], np.inf)
    while np.sum(kept) >= FEWEST:
        distributions = _fit_distributions(scores[kept], thresholds)
        confidence = np.exp(distributions[-1].log_p_value(neg_log_p_value(scores, distributions[:-1])))
        published = confidence >= CONFIDENCE_LIMIT
        if np.sum(gross & published) <= max(_GROSS_COUNT, _GROSS_SHARE * np.sum(published)):
            if np.any(kept != ~gross):
                share = f"{np.mean(~published):.0%} of all frames have a confidence below {CONFIDENCE_LIMIT:g}"
                _warn(sensors, gross, f"many correct estimates have the same outlier scores; {share}")
            return distributions
        column, threshold = _best_threshold(scores[published], gross[published])
        if not np.isfinite(threshold):
            break
        thresholds[column] = min(thresholds[column], threshold)
        kept = kept & (scores[:, column] < threshold)
    _warn(sensors, gross, "no outlier score separates them from correct ones, so all frames have a confidence of zero")
    return (*_fit_distributions(scores[~gross], np.full_like(thresholds, np.inf))[:-1], _ZERO_CONFIDENCE)


def _warn(sensors: str, gross: Bools, consequence: str) -> None:
    logger.warning(
        "%s: %.0f %% of the estimates for held-out frames are gross errors, and %s; train on more visits of each "
        "place, or accept that places of this map look alike to these sensors",
        sensors,
        100 * np.mean(gross),
        consequence,
    )


def _fit_distributions(scores: Array, thresholds: Array) -> tuple[NullDistribution, ...]:
    """Null distributions of scores ``(N, C)`` below thresholds ``(C,)``, and of their smallest p-value."""
    single = tuple(
        _cut_off(NullDistribution.fit(values), end) for values, end in zip(scores.T, thresholds, strict=True)
    )
    return (*single, NullDistribution.fit(neg_log_p_value(scores, single)))


def _cut_off(distribution: NullDistribution, threshold: float) -> NullDistribution:
    """The distribution with a tail so steep that the p-value at the threshold is at most :data:`_CUT_OFF_P`."""
    steepest = (threshold - distribution.quantiles[-1]) / np.log(P_VALUES[-1] / _CUT_OFF_P)
    return NullDistribution(distribution.quantiles, min(distribution.decay, float(steepest)))


def _best_threshold(scores: Array, gross: Bools) -> tuple[int, float]:
    """The column of scores ``(N, C)`` that separates gross errors best, and its threshold, which gross errors reach.

    The threshold is infinite where no outlier score separates them.
    """
    best, which, threshold = 0.0, 0, np.inf
    for number, values in enumerate(scores.T):
        candidates = np.unique(values[gross])
        kept, missed = (
            np.searchsorted(np.sort(part), candidates) / max(1, len(part)) for part in (values[~gross], values[gross])
        )
        youden_j = kept - missed
        if youden_j.max() > best:
            # The smallest of the equally good ones: most correct estimates beyond it are correct by chance.
            best, which = float(youden_j.max()), number
            threshold = float(candidates[np.argmax(youden_j >= best - _J_TOLERANCE)])
    return which, threshold
