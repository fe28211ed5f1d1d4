# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from helpers import yaw_pose
from training.data.coverage import pose_statistics
from training.evaluation.metrics import PoseErrors, confidence_summary, pose_errors
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_errors_are_distance_and_angle_by_an_independent_library(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(2, 5, 3)) * 1e5
    rotations = [Rotation.random(5, random_state=seed + i) for i in range(2)]
    truth, estimates = (
        [Pose(p, q[[3, 0, 1, 2]]) for p, q in zip(positions[i], rotations[i].as_quat(), strict=True)] for i in range(2)
    )
    errors = pose_errors(truth, estimates)
    np.testing.assert_allclose(errors.position_m, np.linalg.norm(positions[0] - positions[1], axis=1))
    angles = np.degrees((rotations[0].inv() * rotations[1]).magnitude())
    np.testing.assert_allclose(errors.rotation_deg, angles, atol=1e-6)


def test_small_angles_are_exact_and_the_sign_of_a_quaternion_does_not_matter() -> None:
    errors = pose_errors([yaw_pose(0, 0, 0)] * 2, [yaw_pose(0, 0, 1e-4), yaw_pose(0, 0, 360)])
    np.testing.assert_allclose(errors.rotation_deg, [1e-4, 0], atol=1e-9)


def test_the_summary_is_that_of_hand_made_errors() -> None:
    position = np.array([0.1, 0.2, 0.3, 4.0, 50.0])
    rotation = np.array([1.0, 3.0, 4.0, 9.0, 1.0])
    summary = PoseErrors(position, rotation).summary()
    assert summary["frames"] == 5
    assert summary["median_position_m"] == 0.3
    assert summary["mean_position_m"] == pytest.approx(10.92)
    assert summary["p75_position_m"] == 4.0
    assert summary["p90_position_m"] == pytest.approx(4.0 + 0.6 * 46.0)
    assert summary["p95_position_m"] == pytest.approx(4.0 + 0.8 * 46.0)
    assert summary["median_rotation_deg"] == 3.0
    assert summary["within_0.25m_2deg"] == pytest.approx(1 / 5)
    assert summary["within_0.5m_5deg"] == pytest.approx(3 / 5)
    assert summary["within_5m_10deg"] == pytest.approx(4 / 5)


def test_nothing_to_compare_is_an_error_with_both_counts() -> None:
    with pytest.raises(ValueError, match="0 estimates for 0 true poses"):
        pose_errors([], [])
    with pytest.raises(ValueError, match="1 estimates for 2 true poses"):
        pose_errors([yaw_pose(0)] * 2, [yaw_pose(0)])


def test_pose_statistics_are_plain_numbers() -> None:
    statistics = pose_statistics([yaw_pose(1.0, 2.0), yaw_pose(3.0, -2.0, z_m=1.0)])
    assert json.loads(json.dumps(statistics)) == {
        "poses": 2,
        "min_m": [1.0, -2.0, 0.0],
        "max_m": [3.0, 2.0, 1.0],
        "mean_m": [2.0, 0.0, 0.5],
    }


def test_the_confidence_is_evaluated_by_which_frames_are_far_off() -> None:
    errors = PoseErrors(np.array([0.1, 0.2, 0.6, 0.1, 9.0, 7.0]), np.array([1.0, 2.0, 1.0, 6.0, 0.0, 0.0]))
    confidences = [0.9, 0.04, 0.3, 0.01, 0.02, None]

    def estimates(values: list[float | None]) -> list[Estimate]:
        return [Estimate(0, Pose.identity(), np.eye(6), ("image",), confidence=value) for value in values]

    summary = confidence_summary(errors, estimates(confidences))
    assert summary == {
        "dropped_sensor": 0.0,
        "left_out": 0.0,
        "withheld": pytest.approx(3 / 5),
        "far_off": pytest.approx(3 / 5),
        "far_off_and_out": pytest.approx(1 / 5),
        "far_off_auc": pytest.approx(5 / 6),  # 0.9 is above all three, 0.04 above two of them
    }
    without_far_off = PoseErrors(errors.position_m[:2], errors.rotation_deg[:2])
    assert "far_off_auc" not in confidence_summary(without_far_off, estimates([0.9, 0.04]))
    assert confidence_summary(errors, estimates([None] * 6)) == {}
