# SPDX-License-Identifier: Apache-2.0
"""What a trained model's answers to held-out frames say of its later errors: metrics, covariance and confidence."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.calibration.error_fits import fit_coupling, fit_floor, fit_inflation, fit_margin
from training.calibration.held_out import BySensors, HeldOut, without_gross_errors
from training.data.dataset import PreparedDataset
from training.evaluation.consistency import independent_errors
from training.evaluation.metrics import pose_errors
from vmloc_ros.core.checkpoint import CheckpointHeader, Residuals, Uncertainty
from vmloc_ros.core.confidence import Confidence, neg_log_p_value
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import (
    body_errors,
    body_variances,
    fit_residual_std,
    growth_factors,
    inflated_covariance,
    residual_covariance,
)

logger = logging.getLogger(__name__)

# A covariance never gets smaller: 1 cm and 0.1 deg where a network alone answers. A solver does better than that, and
# than the ground truth of many a recording.
_RESIDUAL_FLOOR = np.array([0.01] * 3 + [math.radians(0.1)] * 3)
_SOLVER_FLOOR = np.array([0.002] * 3 + [math.radians(0.02)] * 3)

_ENOUGH = 20  # independent errors, of which one is expected outside the 95 % ellipsoid


def calibrate(
    header: CheckpointHeader, data: PreparedDataset, answers: BySensors, confidence: Confidence | None = None
) -> CheckpointHeader:
    """The header with metrics and covariance fitted to answers to rows of the data, best such as training has not seen.

    The covariance is fitted for every set of sensors that there are answers of.

    Args:
        confidence: of :func:`fit_confidence`: a solver's covariances may grow with the oddness that it tells.
    """
    everything = header.preprocess.modalities
    fitted = {names: _fit(data, of_set, names, confidence) for names, of_set in answers.items()}
    whole = fitted.pop(everything)
    uncertainty = Uncertainty(
        whole.residual_std,
        inflation=whole.inflation,
        missing=tuple(fitted.values()),
        coupling=whole.coupling,
        growth=whole.growth,
    )
    truth = [data.poses[i] for i in answers[everything].rows.tolist()]
    metrics = pose_errors(truth, answers[everything].poses()).summary()
    metrics["independent_errors"] = independent = _independent(data, answers[everything], whole)
    if independent < _ENOUGH:
        logger.warning(
            "the covariance is fitted to %d frames, whose errors amount to about %.0f independent ones: take it "
            "for a guess, and fit it to more and other drives (vmloc calibrate CHECKPOINT --data DRIVES --out NEW)",
            len(truth),
            independent,
        )
    return replace(header, uncertainty=uncertainty, metrics=metrics)


def _independent(data: PreparedDataset, answers: HeldOut, residuals: Residuals) -> float:
    """To how many independent errors those of the good answers amount, over all recordings."""
    answers = without_gross_errors(data, answers)
    sequences, count = data.sequences[answers.rows], 0.0
    for sequence in sequences.unique():
        one = answers.some(sequences == sequence)
        truth, estimates = [data.poses[i] for i in one.rows.tolist()], one.poses()
        covariances = _with_residuals(estimates, one.covariances.numpy(), np.array(residuals.residual_std))
        count += independent_errors(truth, estimates, covariances)
    return count


def _fit(
    data: PreparedDataset, answers: HeldOut, modalities: tuple[str, ...], confidence: Confidence | None
) -> Residuals:
    """What the system's own covariances leave unexplained of the answers' errors, and their heavier tails.

    Frames that are lost or grossly wrong have no part in it: that they are is said by their confidence.
    """
    answers = without_gross_errors(data, answers)
    truth = [data.poses[i] for i in answers.rows.tolist()]
    estimates, own = answers.poses(), answers.covariances.numpy()
    if answers.solved:
        return _fit_solver(truth, estimates, own, modalities, _neg_log_p_value(answers, modalities, confidence))
    std = fit_residual_std(
        [body_errors(t, e) for t, e in zip(truth, estimates, strict=True)],
        [body_variances(e, covariance) for e, covariance in zip(estimates, own, strict=True)],
        _RESIDUAL_FLOOR,
    )
    return _scaled(truth, estimates, own, std, modalities, np.zeros(len(own)), (0.0, 0.0))


def _neg_log_p_value(
    answers: HeldOut, modalities: tuple[str, ...], confidence: Confidence | None
) -> NDArray[np.float64]:
    """``(N,)``; 0 where nothing is known of it."""
    tails = None if confidence is None else confidence.tails.get(modalities)
    if tails is None:
        return np.zeros(len(answers))
    known = ~answers.cues.isnan().any(dim=1).numpy()
    return np.where(known, neg_log_p_value(answers.cues.nan_to_num().numpy(), tails[:-1]), 0.0)


def _fit_solver(
    truth: list[Pose],
    estimates: list[Pose],
    own: NDArray[np.float64],
    modalities: tuple[str, ...],
    neg_log_p: NDArray[np.float64],
) -> Residuals:
    """A solver's own covariance with a floor, both scaled up until they hold the errors.

    The solver takes the errors of neighbouring cells, which are much the same error, for independent ones: hence the
    scale. It knows nothing of what is wrong in all frames alike, such as a bent map or cameras that are not quite
    where they are said to be: hence the floor. And it errs more where a frame looks odd.
    """
    floor, growth = fit_floor(truth, estimates, own, neg_log_p)
    grown = inflated_covariance(_with_residuals(estimates, own, floor), growth_factors(neg_log_p, growth))
    inflation = fit_inflation(truth, estimates, grown)
    floor = np.maximum(floor, _SOLVER_FLOOR / np.repeat(inflation, 3))  # inflated again with the rest
    return _scaled(truth, estimates, own, floor, modalities, neg_log_p, growth)


def _scaled(
    truth: list[Pose],
    estimates: list[Pose],
    own: NDArray[np.float64],
    std: NDArray[np.float64],
    modalities: tuple[str, ...],
    neg_log_p: NDArray[np.float64],
    growth: tuple[float, float],
) -> Residuals:
    """These residuals ``(6,)`` and growth with inflation and coupling."""
    covariances = inflated_covariance(_with_residuals(estimates, own, std), growth_factors(neg_log_p, growth))
    inflation, margin = (fit(truth, estimates, covariances) for fit in (fit_inflation, fit_margin))
    coupling = fit_coupling(truth, estimates, inflated_covariance(covariances, inflation))
    factors = inflation[0] * margin[0], inflation[1] * margin[1]
    return Residuals(tuple(std.tolist()), factors, modalities, coupling, growth)


def _with_residuals(estimates: list[Pose], own: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    return own + np.stack([residual_covariance(estimate, std) for estimate in estimates])
