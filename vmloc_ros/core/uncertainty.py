# SPDX-License-Identifier: Apache-2.0
"""Covariance of a pose from posterior samples and held-out residuals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.geometry import (
    Pose,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_multiply,
    rotation_vector_from_quaternion,
)

Array = NDArray[np.float64]

# One in 150 in-distribution frames has a larger one: too few to fit growth factors beyond it.
_LARGEST_NEG_LOG_P = 5.0


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
    """Scale a covariance ``(..., 6, 6)``.

    Args:
        inflation: ``(..., 2)`` factors on the standard deviations of position and rotation.
        coupling: factor in [0, 1] on the correlations between position and rotation.
    """
    factors = np.repeat(np.asarray(inflation, np.float64), 3, axis=-1)
    kept = np.kron(np.array([[1.0, coupling], [coupling, 1.0]]), np.ones((3, 3)))
    return np.asarray(covariance) * factors[..., :, None] * factors[..., None, :] * kept


def growth_factors(neg_log_p: ArrayLike, growth: tuple[float, float]) -> Array:
    """Factors ``(..., 2)`` on the standard deviations of position and rotation.

    Args:
        neg_log_p: ``(...)``, see :meth:`vmloc_ros.core.confidence.Confidence.neg_log_p_value`; clipped at 5.
        growth: logarithms of the two factors per unit of ``neg_log_p``.
    """
    neg_log_p = np.minimum(np.asarray(neg_log_p, np.float64), _LARGEST_NEG_LOG_P)
    return np.exp(neg_log_p[..., None] * np.asarray(growth, np.float64))


def body_errors(truth: Pose, estimate: Pose) -> Array:
    """Error ``(6,)`` of an estimate along its own body axes: metres, then the rotation vector in radians."""
    body_from_map = estimate.inverse()
    relative = quaternion_multiply(body_from_map.quaternion_wxyz, truth.quaternion_wxyz)
    return np.concatenate([body_from_map.transform(truth.position_m), rotation_vector_from_quaternion(relative)])


def fit_residual_std(errors: ArrayLike, sample_variances: ArrayLike, floor: ArrayLike) -> Array:
    """Standard deviations ``(6,)`` of the part of held-out errors that the samples' spread does not explain.

    Args:
        errors: ``(N, 6)`` held-out :func:`body_errors`.
        sample_variances: ``(N, 6)`` diagonal of the samples' covariance along the body axes.
        floor: ``(6,)`` smallest standard deviations: a covariance must never be zero.
    """
    unexplained = np.mean(np.square(errors) - np.asarray(sample_variances), axis=0)
    return np.sqrt(np.maximum(unexplained, np.square(floor)))


def body_variances(mean: Pose, covariance: ArrayLike) -> Array:
    """Diagonal ``(6,)`` along the body axes of a map-axes covariance ``(6, 6)``."""
    rotation = np.kron(np.eye(2), matrix_from_quaternion(mean.quaternion_wxyz))
    return np.asarray(np.diag(rotation.T @ np.asarray(covariance) @ rotation))


def position_std_m(covariance: Array) -> float:
    """Largest standard deviation of the position over all directions, metres; NaN if the covariance is not finite.

    Args:
        covariance: ``(6, 6)``, position first.
    """
    block = covariance[:3, :3]
    return math.sqrt(np.linalg.eigvalsh(block)[-1]) if np.isfinite(block).all() else math.nan


def moved_covariance(covariance: ArrayLike, offset_m: ArrayLike) -> NDArray[np.float64]:
    """Covariance of a pose whose origin moves by a rigid lever arm.

    A rotation error ``w`` about the map axes displaces the tip of the arm by ``w x offset``, hence the
    Jacobian ``[[I, -[offset]x], [0, I]]`` on (position, rotation about the map axes).

    Args:
        covariance: ``(6, 6)``, order (x, y, z, rot_x, rot_y, rot_z) about the map axes.
        offset_m: ``(3,)`` from the old origin to the new one, in map axes.
    """
    x, y, z = np.asarray(offset_m, np.float64)
    jacobian = np.eye(6)
    jacobian[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
    return np.asarray(jacobian @ np.asarray(covariance, np.float64) @ jacobian.T)


def check_pose(stamp_ns: int, pose: Pose, covariance: NDArray[np.float64]) -> None:
    """Check an estimate before it leaves the node.

    Raises:
        ModelError: a number is not finite or a variance not positive.
    """
    numbers = np.concatenate([pose.position_m, pose.quaternion_wxyz, covariance.ravel()])
    if not np.isfinite(numbers).all() or (covariance.diagonal() <= 0).any():
        raise ModelError(
            f"pose at {stamp_ns} ns is not published: position {pose.position_m.tolist()}, variances "
            f"{covariance.diagonal().tolist()} must be finite, and variances positive"
        )
