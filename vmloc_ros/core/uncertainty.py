# SPDX-License-Identifier: Apache-2.0
"""Covariance of a pose from posterior samples and held-out residuals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.geometry import (
    Pose,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_multiply,
    rotation_vector_from_quaternion,
)

Array = NDArray[np.float64]

_MOST_ODD = 5.0  # what fewer than one in 150 good frames reach is odder than anything that factors were fitted to


def sample_covariance(mean: Pose, positions_m: ArrayLike, quaternions_wxyz: ArrayLike) -> Array:
    """Second moment ``(6, 6)`` of pose samples about ``mean``: position and rotation about the fixed map axes.

    Args:
        positions_m: ``(K, 3)``.
        quaternions_wxyz: ``(K, 4)``.
    """
    inverse = quaternion_conjugate(mean.quaternion_wxyz)
    rotation = rotation_vector_from_quaternion(quaternion_multiply(quaternions_wxyz, inverse))
    deviations = np.concatenate([np.asarray(positions_m) - mean.position_m, rotation], axis=1)
    return np.asarray(deviations.T @ deviations / len(deviations))


def residual_covariance(mean: Pose, residual_std: ArrayLike) -> Array:
    """Diagonal body-frame variances ``residual_std ** 2`` (6,) turned into the map axes, ``(6, 6)``."""
    rotation = np.kron(np.eye(2), mean.rotation)
    return np.asarray(rotation @ np.diag(np.square(np.asarray(residual_std, np.float64))) @ rotation.T)


def inflated_covariance(covariance: ArrayLike, inflation: ArrayLike, coupling: float = 1.0) -> Array:
    """A covariance ``(..., 6, 6)`` whose position's and rotation's standard deviations are larger by these factors.

    Args:
        inflation: ``(..., 2)``.
        coupling: factor in [0, 1] on the correlations between position and rotation.
    """
    factors = np.repeat(np.asarray(inflation, np.float64), 3, axis=-1)
    kept = np.kron(np.array([[1.0, coupling], [coupling, 1.0]]), np.ones((3, 3)))
    return np.asarray(covariance) * factors[..., :, None] * factors[..., None, :] * kept


def growth_factors(oddness: ArrayLike, growth: tuple[float, float]) -> Array:
    """Factors ``(..., 2)`` on standard deviations of position and rotation of frames that look so odd ``(...)``.

    Args:
        oddness: as :meth:`vmloc_ros.core.confidence.Confidence.oddness` has it.
        growth: logarithms of the factors, for each unit of it.
    """
    odd = np.minimum(np.asarray(oddness, np.float64), _MOST_ODD)
    return np.exp(odd[..., None] * np.asarray(growth, np.float64))


def body_errors(truth: Pose, estimate: Pose) -> Array:
    """Error ``(6,)`` of an estimate along its own body axes: metres, then the rotation vector in radians."""
    body_from_map = estimate.inverse()
    relative = quaternion_multiply(body_from_map.quaternion_wxyz, truth.quaternion_wxyz)
    return np.concatenate([body_from_map.transform(truth.position_m), rotation_vector_from_quaternion(relative)])


def fit_residual_std(errors: ArrayLike, sample_variances: ArrayLike, floor: ArrayLike) -> Array:
    """Residual standard deviations ``(6,)`` that the samples' own spread leaves unexplained.

    Args:
        errors: ``(N, 6)`` held-out :func:`body_errors`.
        sample_variances: ``(N, 6)`` diagonal of the samples' covariance along the body axes.
        floor: ``(6,)`` least standard deviations: a covariance must never be zero.
    """
    unexplained = np.mean(np.square(errors) - np.asarray(sample_variances), axis=0)
    return np.sqrt(np.maximum(unexplained, np.square(floor)))


def body_variances(mean: Pose, covariance: ArrayLike) -> Array:
    """Diagonal ``(6,)`` along the body axes of a map-axes covariance ``(6, 6)``."""
    rotation = np.kron(np.eye(2), matrix_from_quaternion(mean.quaternion_wxyz))
    return np.asarray(np.diag(rotation.T @ np.asarray(covariance) @ rotation))


def position_std_m(covariance: Array) -> float:
    """Standard deviation along the position's worst direction, metres, of a covariance as Estimate's.

    NaN where that is not finite.
    """
    block = covariance[:3, :3]
    return math.sqrt(np.linalg.eigvalsh(block)[-1]) if np.isfinite(block).all() else math.nan
