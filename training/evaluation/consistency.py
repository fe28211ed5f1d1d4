# SPDX-License-Identifier: Apache-2.0
"""Consistency of covariances with errors: NEES, and coverage of the ellipsoids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose, quaternion_conjugate, quaternion_multiply, rotation_vector_from_quaternion

_TINY = 1e-9
Array = NDArray[np.float64]
# Dimensions of pose errors; NEES and coverage are computed for each part.
PARTS = {"pose": slice(0, 6), "position": slice(0, 3), "rotation": slice(3, 6)}
COVERAGES = (0.5, 0.9, 0.95)


def calibration_summary(truth: Sequence[Pose], estimates: Sequence[Estimate]) -> dict[str, float]:
    """For each of :data:`PARTS` the mean NEES and the shares of true poses inside the ellipsoids of :data:`COVERAGES`.

    With consistent covariances the mean NEES is 6 for the pose and 3 for position and rotation, and the shares are the
    nominal ones. Covariances that are too small have a greater NEES and smaller shares.
    """
    result = {f"nees_{part}": float(values.mean()) for part, values in pose_nees(truth, estimates).items()}
    for part, levels in confidence_levels(truth, estimates).items():
        for coverage in COVERAGES:
            result[f"coverage{100 * coverage:.0f}_{part}"] = float(np.mean(levels <= coverage))
    return result


def confidence_levels(truth: Sequence[Pose], estimates: Sequence[Estimate]) -> dict[str, Array]:
    """For each of :data:`PARTS` the probability ``(N,)`` of the smallest ellipsoid that contains the true pose.

    With consistent covariances these are uniform in [0, 1].
    """
    return {
        part: np.asarray(chi2.cdf(values, dimensions_of(part))) for part, values in pose_nees(truth, estimates).items()
    }


def pose_nees(truth: Sequence[Pose], estimates: Sequence[Estimate]) -> dict[str, Array]:
    """Normalized estimation error squared ``(N,)`` of each of :data:`PARTS`."""
    errors = map_errors(truth, [estimate.map_from_body for estimate in estimates])
    covariances = np.stack([estimate.covariance for estimate in estimates])
    return {part: nees(errors[:, rows], covariances[:, rows, rows]) for part, rows in PARTS.items()}


def effective_sample_size(truth: Sequence[Pose], estimates: Sequence[Pose], covariances: ArrayLike) -> float:
    """Effective sample size of the errors of one recording, from 1 to N.

    Errors of neighbouring frames are correlated, so that a share of N frames is less certain than one of N independent
    draws. ``N / (1 + 2 sum of autocorrelations)``, as for Markov chains, up to the first lag whose autocorrelation is
    not positive; of errors whitened by their covariances, about zero, of which the largest twentieth are clipped.

    Args:
        truth, estimates: in the order of recording.
        covariances: ``(N, 6, 6)`` up to a scale.
    """
    variances, axes = np.linalg.eigh(np.asarray(covariances, np.float64))
    least = 1e-12 * variances[:, -1:]  # rounding may have made a covariance singular
    errors = np.einsum("nij,ni->nj", axes, map_errors(truth, estimates)) / np.sqrt(np.maximum(variances, least))
    errors = np.einsum("nij,nj->ni", axes, errors)  # the axes of one frame are not those of the next
    lengths = np.linalg.norm(errors, axis=1, keepdims=True)
    errors *= np.minimum(1.0, np.quantile(lengths, 0.95) / np.maximum(lengths, _TINY))
    total = float(np.sum(errors**2))
    correlation_time = 1.0
    for lag in range(1, len(errors) if total > 0 else 0):
        correlation = float(np.sum(errors[lag:] * errors[:-lag])) / total
        if correlation <= 0:
            break
        correlation_time += 2 * correlation
    return len(errors) / correlation_time


def map_errors(truth: Sequence[Pose], estimates: Sequence[Pose]) -> Array:
    """Errors ``(N, 6)`` from each estimate to its truth, in the coordinates of :attr:`Estimate.covariance`.

    Metres along the map's axes, then the rotation vector in radians about the map's fixed axes: multiplied from the
    left, it turns the estimated rotation into the true one.
    """
    true_rotation, rotation = (np.stack([pose.quaternion_wxyz for pose in poses]) for poses in (truth, estimates))
    turn = quaternion_multiply(true_rotation, quaternion_conjugate(rotation))
    step = np.stack([pose.position_m for pose in truth]) - np.stack([pose.position_m for pose in estimates])
    return np.concatenate([step, rotation_vector_from_quaternion(turn)], axis=1)


def nees(errors: ArrayLike, covariances: ArrayLike) -> Array:
    """``e^T C^-1 e``, ``(N,)``: the squared Mahalanobis distance of errors ``(N, D)`` under ``(N, D, D)``."""
    error = np.asarray(errors, np.float64)[..., None]
    return np.sum(error * np.linalg.solve(np.asarray(covariances, np.float64), error), axis=(-2, -1))


def dimensions_of(part: str) -> int:
    """Number of dimensions of one of :data:`PARTS`."""
    return PARTS[part].stop - PARTS[part].start
