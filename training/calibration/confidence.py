# SPDX-License-Identifier: Apache-2.0
"""What estimates are judged by, fitted to held-out frames."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.calibration.held_out import BySensors, gross_error_mask
from training.data.dataset import PreparedDataset
from training.data.model_input import sensor_sets
from training.data.splits import FEWEST
from training.evaluation.metrics import LIMIT
from training.prediction import modality_features
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.confidence import P_VALUES, Confidence, NullDistribution, ReferenceFeatures, neg_log_p_value
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.preprocessing import Preprocessor

_LOOKED_AT = 4000  # training frames whose features are described
_REMEMBERED = 1000  # of these are stored: 64 numbers of 2 bytes each
Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
logger = logging.getLogger(__name__)
_WRONG = 0.02  # share of wrong answers, of those that are not withheld, that is borne
_ANY_WRONG = 2  # so many are, in any case
_BEYOND = 1e-4  # a value beyond what can be trusted counts as one that so small a share of good frames reaches
_AS_GOOD = 0.02  # difference of Youden's J
_NEVER = NullDistribution(np.full(len(P_VALUES), -1.0), 1e-3)  # no oddness is below zero: confidence zero


def remember(
    header: CheckpointHeader, model: PoseModel, data: PreparedDataset, rows: Tensor, device: torch.device
) -> dict[str, ReferenceFeatures]:
    """What training rows look like to the model, by modality, for the cues of :mod:`training.calibration.held_out`.

    Empty for systems that offer no features.
    """
    preprocessor, memories = Preprocessor(header.preprocess), {}
    for name in header.preprocess.modalities:
        having = sensor_sets(data, _evenly(rows, _LOOKED_AT), (name,)).get((name,), rows[:0])
        if len(having) < FEWEST:
            continue
        seen = modality_features(model, data, having, preprocessor, name, device)
        if seen is None:
            return {}
        features = seen.cpu().numpy()
        kept = _evenly(torch.arange(len(having)), _REMEMBERED)
        frames = [data.poses[i] for i in having[kept].tolist()]
        memories[name] = ReferenceFeatures.fit(
            features,
            features[kept.numpy()],
            np.stack([pose.position_m for pose in frames]),
            np.stack([pose.quaternion_wxyz for pose in frames]),
            header.pose_codec.scale_m,
        )
    return memories


def fit_confidence(
    memories: Mapping[str, ReferenceFeatures], data: PreparedDataset, answers: BySensors
) -> Confidence | None:
    """What estimates are judged by, fitted to answers to good frames of the data that training has not seen.

    None where nothing was remembered (see :func:`remember`) or the frames are too few.
    """
    fitted = {}
    for names, of_set in answers.items():
        complete = of_set.some(~of_set.cues.isnan().any(dim=1) & ~of_set.lost)
        if len(complete) < FEWEST or not complete.cues.shape[1]:
            continue
        wrong = gross_error_mask(data, complete)
        if np.sum(~wrong) >= FEWEST:
            fitted[names] = fit_tails(complete.cues.numpy(), wrong, " and ".join(names))
    return Confidence(memories, fitted) if fitted else None


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows, from the first to the last."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def fit_tails(cues: Array, wrong: Bools, sensors: str) -> tuple[NullDistribution, ...]:
    """Null distributions of the cues of good answers and of what these give together, as :class:`Confidence` has them.

    In a map with two places that look the same, every other answer there is right by luck, and nothing is odd about
    the wrong ones: so many good ones look like them. If more than one in 50 of the answers that would not be withheld
    are wrong, good are from then on only those on the safe side of the one value of one cue that best tells wrong from
    good (the largest of Youden's J); and so on. Where that leaves nothing, all answers have a confidence of zero.

    Args:
        cues: ``(N, C)`` of answers to held-out frames.
        wrong: ``(N,)``.
        sensors: for the log.
    """
    good, ends = ~wrong, np.full(cues.shape[1], np.inf)
    while np.sum(good) >= FEWEST:
        tails = _tails(cues[good], ends)
        out = np.exp(tails[-1].log_p_value(neg_log_p_value(cues, tails[:-1]))) >= LIMIT
        if np.sum(wrong & out) <= max(_ANY_WRONG, _WRONG * np.sum(out)):
            if np.any(good != ~wrong):
                _warn(
                    sensors,
                    wrong,
                    f"many good ones look like them; {np.mean(~out):.0%} of all have a confidence below {LIMIT:g}",
                )
            return tails
        cue, end = _divide(cues[out], wrong[out])
        if not np.isfinite(end):
            break
        ends[cue] = min(ends[cue], end)
        good = good & (cues[:, cue] < end)
    _warn(sensors, wrong, "nothing tells which, so that all have a confidence of zero")
    return (*_tails(cues[~wrong], np.full_like(ends, np.inf))[:-1], _NEVER)


def _warn(sensors: str, wrong: Bools, therefore: str) -> None:
    logger.warning(
        "%s: %.0f %% of the answers to held-out frames are grossly wrong, and %s: train on more visits, or places of "
        "the map may look the same to these sensors",
        sensors,
        100 * np.mean(wrong),
        therefore,
    )


def _tails(cues: Array, ends: Array) -> tuple[NullDistribution, ...]:
    """Fitted to good answers' ``(N, C)``, which are below the ends ``(C,)``: from there on, hardly any is."""
    single = tuple(_ended(NullDistribution.fit(values), end) for values, end in zip(cues.T, ends, strict=True))
    return (*single, NullDistribution.fit(neg_log_p_value(cues, single)))


def _ended(tail: NullDistribution, end: float) -> NullDistribution:
    """The tail, falling so fast that its share at the end is as good as none."""
    steepest = (end - tail.quantiles[-1]) / np.log(P_VALUES[-1] / _BEYOND)
    return NullDistribution(tail.quantiles, min(tail.decay, float(steepest)))


def _divide(cues: Array, wrong: Bools) -> tuple[int, float]:
    """Which cue of answers ``(N, C)`` tells wrong ones best, and the least of its values that counts as odd.

    That is infinite where none tells.
    """
    best, which, end = 0.0, 0, np.inf
    for number, values in enumerate(cues.T):
        ends = np.unique(values[wrong])
        kept, missed = (
            np.searchsorted(np.sort(part), ends) / max(1, len(part)) for part in (values[~wrong], values[wrong])
        )
        gain = kept - missed
        if gain.max() > best:
            # The least of those that are as good: few of the good answers beyond it are more than lucky.
            best, which, end = float(gain.max()), number, float(ends[np.argmax(gain >= gain.max() - _AS_GOOD)])
    return which, end
