# SPDX-License-Identifier: Apache-2.0
"""Fit a header's metrics and covariance to a model's estimates for held-out frames."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.calibration.error_fits import fit_coupling, fit_floor, fit_inflation, fit_margin
from training.calibration.held_out import EstimatesBySensors, HeldOutEstimates, without_gross_errors
from training.data.dataset import PreparedDataset
from training.evaluation.consistency import effective_sample_size
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

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

# The smallest standard deviations along the body's axes: 1 cm and 0.1 deg for networks that predict the pose. A solver
# does better than that, and than the ground truth of many a recording.
_RESIDUAL_FLOOR = np.array([0.01] * 3 + [math.radians(0.1)] * 3)
_SOLVER_FLOOR = np.array([0.002] * 3 + [math.radians(0.02)] * 3)

_ENOUGH = 20  # effective samples, of which one is expected outside the 95 % ellipsoid


def calibrate_header(
    header: CheckpointHeader, data: PreparedDataset, held_out: EstimatesBySensors, confidence: Confidence | None = None
) -> CheckpointHeader:
    """Header with validation metrics and a covariance calibrated on held-out estimates, for every set of sensors.

    Args:
        data: what the estimates are rows of, with the true poses.
        held_out: of frames that training has not seen; on training frames the covariance comes out too small.
        confidence: of :func:`fit_confidence`: a solver's covariances may grow with its outlier score.
    """
    modalities = header.preprocess.modalities
    fitted = {names: _fit(data, estimates, names, confidence) for names, estimates in held_out.items()}
    whole = fitted.pop(modalities)
    uncertainty = Uncertainty(
        whole.residual_std,
        inflation=whole.inflation,
        missing=tuple(fitted.values()),
        coupling=whole.coupling,
        growth=whole.growth,
    )
    estimates = held_out[modalities]
    metrics = pose_errors([data.poses[i] for i in estimates.rows.tolist()], estimates.poses()).summary()
    metrics["independent_errors"] = size = _effective_sample_size(data, estimates, whole)
    if size < _ENOUGH:
        logger.warning(
            "the covariance is a guess: it is fitted to %d frames, whose errors are so correlated that their effective "
            "sample size is about %.0f; fit it to more and other drives (vmloc calibrate CHECKPOINT --data DRIVES "
            "--out NEW)",
            len(estimates),
            size,
        )
    return replace(header, uncertainty=uncertainty, metrics=metrics)


def _effective_sample_size(data: PreparedDataset, held_out: HeldOutEstimates, residuals: Residuals) -> float:
    """Effective sample size of the errors, without lost frames and gross errors, summed over recordings."""
    held_out = without_gross_errors(data, held_out)
    sequences, size = data.sequences[held_out.rows], 0.0
    for sequence in sequences.unique():
        one = held_out.select(sequences == sequence)
        truth, estimates = [data.poses[i] for i in one.rows.tolist()], one.poses()
        covariances = _with_residuals(estimates, one.covariances.numpy(), np.array(residuals.residual_std))
        size += effective_sample_size(truth, estimates, covariances)
    return size


def _fit(
    data: PreparedDataset, held_out: HeldOutEstimates, modalities: tuple[str, ...], confidence: Confidence | None
) -> Residuals:
    """Residual standard deviations and inflation: the part of the errors that the system's covariances do not explain.

    Lost frames and gross errors are left to the confidence.
    """
    held_out = without_gross_errors(data, held_out)
    truth = [data.poses[i] for i in held_out.rows.tolist()]
    estimates, own = held_out.poses(), held_out.covariances.numpy()
    if held_out.solved:
        return _fit_solver(truth, estimates, own, modalities, _outlier_scores(held_out, modalities, confidence))
    std = fit_residual_std(
        [body_errors(t, e) for t, e in zip(truth, estimates, strict=True)],
        [body_variances(e, covariance) for e, covariance in zip(estimates, own, strict=True)],
        _RESIDUAL_FLOOR,
    )
    return _inflated(truth, estimates, own, std, modalities, np.zeros(len(own)), (0.0, 0.0))


def _outlier_scores(held_out: HeldOutEstimates, modalities: tuple[str, ...], confidence: Confidence | None) -> Array:
    """Outlier scores ``(N,)``, ``-log p`` of the scores; 0 where there are none or no confidence for these sensors."""
    distributions = None if confidence is None else confidence.null_distributions.get(modalities)
    if distributions is None:
        return np.zeros(len(held_out))
    known = ~held_out.outlier_scores.isnan().any(dim=1).numpy()
    return np.where(known, neg_log_p_value(held_out.outlier_scores.nan_to_num().numpy(), distributions[:-1]), 0.0)


def _fit_solver(
    truth: list[Pose], estimates: list[Pose], own: Array, modalities: tuple[str, ...], neg_log_p: Array
) -> Residuals:
    """A solver's own covariance plus a floor, both scaled up until they hold the errors.

    The scale: the solver treats the errors of neighbouring cells as independent, though they are nearly equal. The
    floor: it does not know errors that all frames share, such as those of a bent map or of wrong camera mounts. The
    growth: its errors are larger where a frame's outlier score ``(N,)`` is.
    """
    floor, growth = fit_floor(truth, estimates, own, neg_log_p)
    grown = inflated_covariance(_with_residuals(estimates, own, floor), growth_factors(neg_log_p, growth))
    inflation = fit_inflation(truth, estimates, grown)
    floor = np.maximum(floor, _SOLVER_FLOOR / np.repeat(inflation, 3))  # inflated again with the rest
    return _inflated(truth, estimates, own, floor, modalities, neg_log_p, growth)


def _inflated(
    truth: list[Pose],
    estimates: list[Pose],
    own: Array,
    std: Array,
    modalities: tuple[str, ...],
    neg_log_p: Array,
    growth: tuple[float, float],
) -> Residuals:
    """Residuals ``(6,)`` and growth, completed by inflation and coupling."""
    covariances = inflated_covariance(_with_residuals(estimates, own, std), growth_factors(neg_log_p, growth))
    inflation, margin = (fit(truth, estimates, covariances) for fit in (fit_inflation, fit_margin))
    coupling = fit_coupling(truth, estimates, inflated_covariance(covariances, inflation))
    factors = inflation[0] * margin[0], inflation[1] * margin[1]
    return Residuals(tuple(std.tolist()), factors, modalities, coupling, growth)


def _with_residuals(estimates: list[Pose], own: Array, std: Array) -> Array:
    """Covariances ``(N, 6, 6)`` plus those of residuals ``(6,)`` along the body's axes."""
    return own + np.stack([residual_covariance(estimate, std) for estimate in estimates])
