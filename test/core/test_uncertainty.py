# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vmloc_ros.core.geometry import Pose, quaternion_exp, quaternion_multiply
from vmloc_ros.core.uncertainty import (
    body_errors,
    body_variances,
    fit_residual_std,
    residual_covariance,
    sample_covariance,
)

MEAN = Pose.from_xyz_rpy([620_000.0, 5_735_000.0, 60.0], [0.3, -0.5, 2.0])
STD = np.array([0.5, 0.1, 0.2, 0.02, 0.03, 0.1])


def rotation_of(pose: Pose) -> Rotation:
    return Rotation.from_quat(pose.quaternion_wxyz[[1, 2, 3, 0]])


def pose_from(position: np.ndarray, rotation: Rotation) -> Pose:
    return Pose(position, rotation.as_quat()[[3, 0, 1, 2]])


def perturbed_in_body(pose: Pose, error: np.ndarray) -> Pose:
    """``pose`` moved and turned along its own axes; by scipy."""
    rotation = rotation_of(pose)
    return pose_from(pose.position_m + rotation.apply(error[:3]), rotation * Rotation.from_rotvec(error[3:]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_body_errors_are_the_displacement_along_the_estimates_own_axes(error: list[float]) -> None:
    truth = perturbed_in_body(MEAN, np.array(error))
    np.testing.assert_allclose(body_errors(truth, MEAN), error, atol=1e-8)


def test_body_errors_are_zero_for_the_truth_itself() -> None:
    np.testing.assert_allclose(body_errors(MEAN, MEAN), 0, atol=1e-8)


def test_sample_covariance_recovers_the_covariance_that_samples_were_drawn_from() -> None:
    """Rotation about the fixed map axes: the small rotation stands on the left."""
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(6, 6))) * 0.02
    draws = rng.normal(size=(40_000, 6)) @ root.T
    positions = MEAN.position_m + draws[:, :3]
    quaternions = quaternion_multiply(quaternion_exp(draws[:, 3:] / 2), MEAN.quaternion_wxyz)
    covariance = sample_covariance(MEAN, positions, quaternions)
    np.testing.assert_allclose(covariance, root @ root.T, atol=0.03 * np.abs(root @ root.T).max())


def test_sample_covariance_is_indifferent_to_the_sign_of_quaternions() -> None:
    rng = np.random.default_rng(1)
    quaternions = quaternion_multiply(quaternion_exp(rng.normal(size=(10, 3)) * 0.1), MEAN.quaternion_wxyz)
    positions = MEAN.position_m + rng.normal(size=(10, 3))
    signs = rng.choice([-1.0, 1.0], (10, 1))
    np.testing.assert_allclose(
        sample_covariance(MEAN, positions, quaternions), sample_covariance(MEAN, positions, signs * quaternions)
    )


def test_residual_covariance_is_that_of_errors_along_the_body_axes() -> None:
    """Monte Carlo: perturb in the body, measure in the map."""
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(20_000, 6)) * STD
    rotation = rotation_of(MEAN)
    in_map = np.concatenate(
        [
            rotation.apply(draws[:, :3]),
            (rotation * Rotation.from_rotvec(draws[:, 3:]) * rotation.inv()).as_rotvec(),
        ],
        axis=1,
    )
    expected = in_map.T @ in_map / len(in_map)
    np.testing.assert_allclose(residual_covariance(MEAN, STD)[:3, :3], expected[:3, :3], atol=0.01)
    np.testing.assert_allclose(residual_covariance(MEAN, STD)[3:, 3:], expected[3:, 3:], atol=4e-4)
    np.testing.assert_allclose(residual_covariance(MEAN, STD)[:3, 3:], 0, atol=1e-12)


def test_body_variances_invert_the_turn_into_the_map() -> None:
    np.testing.assert_allclose(body_variances(MEAN, residual_covariance(MEAN, STD)), STD**2)


def test_the_fit_recovers_the_deviation_that_samples_do_not_explain() -> None:
    rng = np.random.default_rng(3)
    sampled = STD / 2
    errors = rng.normal(size=(20_000, 6)) * np.hypot(STD, sampled)
    fitted = fit_residual_std(errors, np.broadcast_to(sampled**2, errors.shape), np.full(6, 1e-6))
    np.testing.assert_allclose(fitted, STD, rtol=0.03)


def test_the_fit_never_falls_below_its_floor() -> None:
    floor = np.array([0.01] * 3 + [0.002] * 3)
    np.testing.assert_allclose(fit_residual_std(np.zeros((5, 6)), np.ones((5, 6)), floor), floor)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 10))
def test_the_sum_of_both_is_symmetric_and_positive_definite(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    pose = Pose(rng.normal(size=3) * 1e5, rng.normal(size=4))
    count = int(rng.integers(2, 5))  # fewer samples than dimensions: singular by itself
    quaternions = quaternion_multiply(quaternion_exp(rng.normal(size=(count, 3)) * scale), pose.quaternion_wxyz)
    covariance = sample_covariance(pose, pose.position_m + rng.normal(size=(count, 3)) * scale, quaternions)
    covariance = covariance + residual_covariance(pose, STD)
    np.testing.assert_allclose(covariance, covariance.T, rtol=0, atol=1e-12 * np.abs(covariance).max())
    assert np.linalg.eigvalsh(covariance).min() > 0.5 * (STD**2).min()


def test_a_deviation_of_all_zeros_is_impossible_after_a_fit_with_a_floor() -> None:
    fitted = fit_residual_std(np.zeros((1, 6)), np.zeros((1, 6)), np.full(6, 0.01))
    assert np.linalg.cond(residual_covariance(MEAN, fitted)) == pytest.approx(1.0)
