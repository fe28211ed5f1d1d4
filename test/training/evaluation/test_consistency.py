# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from helpers import yaw_pose
from training.evaluation.consistency import (
    calibration_summary,
    confidence_levels,
    effective_sample_size,
    map_errors,
    nees,
    pose_nees,
)
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import residual_covariance

COUNT = 10_000
STANDARD_ERROR_OF_NEES = {"pose": np.sqrt(12 / COUNT), "position": np.sqrt(6 / COUNT), "rotation": np.sqrt(6 / COUNT)}
RESIDUAL_STD = np.array([0.5, 0.05, 0.1, 0.01, 0.02, 0.1])


def random_poses(count: int, seed: int = 0) -> list[Pose]:
    rng = np.random.default_rng(seed)
    quaternions = Rotation.random(count, random_state=seed).as_quat()[:, [3, 0, 1, 2]]
    return [Pose(p, q) for p, q in zip(rng.normal(scale=1e3, size=(count, 3)), quaternions, strict=True)]


def moved_in_map(pose: Pose, error: np.ndarray) -> Pose:
    """Shifted along and turned about the map's fixed axes, by scipy."""
    turned = Rotation.from_rotvec(error[3:]) * Rotation.from_quat(pose.quaternion_wxyz[[1, 2, 3, 0]])
    return Pose(pose.position_m + error[:3], turned.as_quat()[[3, 0, 1, 2]])


def drawn(scale: float = 1.0, count: int = COUNT) -> tuple[list[Pose], list[Estimate]]:
    """Truths drawn from the estimates' covariances: correlated, another for each; ``scale`` times too small."""
    rng = np.random.default_rng(1)
    roots = np.tril(rng.normal(size=(count, 6, 6))) * np.array([2.0] * 3 + [0.05] * 3)[:, None]
    roots += np.eye(6) * 0.02
    errors = np.einsum("nij,nj->ni", roots, rng.normal(size=(count, 6)))
    poses = random_poses(count)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    covariances = roots @ np.swapaxes(roots, 1, 2) * scale
    return truth, [Estimate(i, p, c, ("image",)) for i, (p, c) in enumerate(zip(poses, covariances, strict=True))]


def test_errors_lead_from_the_estimate_to_the_truth_about_the_maps_axes() -> None:
    rng = np.random.default_rng(2)
    errors = rng.normal(size=(50, 6)) * [10, 10, 10, 0.8, 0.8, 0.8]
    poses = random_poses(50)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    np.testing.assert_allclose(map_errors(truth, poses), errors, atol=1e-9)


def test_nees_is_the_squared_error_over_the_variance_of_a_diagonal() -> None:
    values = nees([[1.0, 0.0], [3.0, 4.0]], [np.diag([4.0, 1.0]), np.diag([9.0, 2.0])])
    np.testing.assert_allclose(values, [0.25, 9.0])


def test_nees_measures_an_error_along_the_axes_of_the_covariance() -> None:
    """An error of 2 m to the east, 2 m uncertain to the east and 0.1 m to the north; heading north."""
    covariance = np.diag([4.0, 0.01, 1.0, 0.01, 0.01, 0.01])
    estimate = Estimate(0, yaw_pose(0.0, 0.0, 90.0), covariance, ("image",))
    assert pose_nees([yaw_pose(2.0, 0.0, 90.0)], [estimate])["position"] == pytest.approx(1.0)
    assert pose_nees([yaw_pose(0.0, 2.0, 90.0)], [estimate])["position"] == pytest.approx(400.0)


def test_draws_from_the_covariance_have_the_nominal_nees_and_coverage() -> None:
    """Means within five standard errors of 6, 3 and 3; shares within five of the nominal ones."""
    truth, estimates = drawn()
    summary = calibration_summary(truth, estimates)
    for part, expected in (("pose", 6), ("position", 3), ("rotation", 3)):
        assert abs(summary[f"nees_{part}"] - expected) < 5 * STANDARD_ERROR_OF_NEES[part]
        for share in (0.5, 0.9, 0.95):
            deviation = np.sqrt(share * (1 - share) / COUNT)
            assert abs(summary[f"coverage{100 * share:.0f}_{part}"] - share) < 5 * deviation


def test_residuals_of_the_body_are_calibrated_after_their_turn_into_the_map() -> None:
    """Deviations along the body's axes, as in the localizer's covariance, but turned by scipy."""
    errors = np.random.default_rng(3).normal(size=(COUNT, 6)) * RESIDUAL_STD
    poses = random_poses(COUNT, 4)
    turns = Rotation.from_rotvec(errors[:, 3:]).as_quat()[:, [3, 0, 1, 2]]
    truth = [pose @ Pose(error[:3], turn) for pose, error, turn in zip(poses, errors, turns, strict=True)]
    estimates = [Estimate(0, pose, residual_covariance(pose, RESIDUAL_STD), ("image",)) for pose in poses]
    for part, values in pose_nees(truth, estimates).items():
        assert abs(values.mean() - (6 if part == "pose" else 3)) < 5 * STANDARD_ERROR_OF_NEES[part]


def test_covariances_four_times_too_small_or_large_show_in_nees_and_coverage() -> None:
    small, large = (calibration_summary(*drawn(scale, 2000)) for scale in (0.25, 4.0))
    assert small["nees_pose"] == pytest.approx(24, rel=0.1)
    assert large["nees_pose"] == pytest.approx(1.5, rel=0.1)
    for part, dimensions in (("pose", 6), ("position", 3), ("rotation", 3)):
        for share in (0.5, 0.9, 0.95):
            radius = chi2.ppf(share, dimensions)
            for summary, factor in ((small, 0.25), (large, 4.0)):
                expected = chi2.cdf(factor * radius, dimensions)
                assert summary[f"coverage{100 * share:.0f}_{part}"] == pytest.approx(expected, abs=0.05)


def test_the_confidence_level_is_the_probability_of_the_ellipsoid_through_the_truth() -> None:
    radius = np.sqrt(chi2.ppf([0.5, 0.95], 3))
    estimates = [Estimate(0, yaw_pose(0.0), np.diag([4.0, 4.0, 4.0, 0.01, 0.01, 0.01]), ("image",))] * 2
    levels = confidence_levels([yaw_pose(0.0, 2 * radius[0]), yaw_pose(-2 * radius[1])], estimates)
    np.testing.assert_allclose(levels["position"], [0.5, 0.95])
    np.testing.assert_allclose(levels["rotation"], 0)
    np.testing.assert_allclose(levels["pose"], chi2.cdf(radius**2, 6))


def wandering(correlation: float, count: int, seed: int) -> tuple[list[Pose], list[Pose], np.ndarray]:
    """Errors of a first-order autoregressive process, in units of covariances that differ from frame to frame."""
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(count, 6))
    for step in range(1, count):
        units[step] = correlation * units[step - 1] + math.sqrt(1 - correlation**2) * units[step]
    mixing = rng.normal(size=(count, 6, 6)) * 0.1
    roots = mixing @ np.swapaxes(mixing, 1, 2) + np.eye(6) * 0.02  # symmetric
    poses = random_poses(count, seed)
    errors = np.einsum("nij,nj->ni", roots, units)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    return truth, poses, roots @ roots


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_correlated_errors_have_a_smaller_effective_sample_size(correlation: float) -> None:
    """Against the closed form for an autoregressive process."""
    truth, poses, covariances = wandering(correlation, 8000, 1)
    expected = 8000 * (1 - correlation) / (1 + correlation)
    for scale in (1.0, 1e-3):
        assert effective_sample_size(truth, poses, scale * covariances) == pytest.approx(expected, rel=0.15)


def test_an_error_that_all_frames_share_counts_once() -> None:
    covariances, poses = np.tile(np.eye(6), (300, 1, 1)), [yaw_pose(0.1 * i, 0.0, 0.0) for i in range(300)]
    truth = [yaw_pose(0.1 * i, 0.3, 0.0) for i in range(300)]
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(1.0)
    assert effective_sample_size(poses, poses, covariances) == 300  # without errors there is no correlation


def test_a_covariance_that_rounding_made_indefinite_hardly_matters() -> None:
    truth, poses, covariances = wandering(0.5, 2000, 3)
    before = effective_sample_size(truth, poses, covariances)
    covariances[7] -= 1.001 * np.linalg.eigvalsh(covariances[7])[0] * np.eye(6)  # no longer positive definite
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(before, rel=0.02)


def test_one_gross_error_does_not_hide_the_correlation_of_the_others() -> None:
    truth, poses, covariances = wandering(0.9, 4000, 2)
    before = effective_sample_size(truth, poses, covariances)
    truth[2000] = yaw_pose(1e4, 0.0, 0.0)
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(before, rel=0.05)
