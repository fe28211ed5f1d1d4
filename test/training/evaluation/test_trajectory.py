# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from helpers import yaw_pose
from training.evaluation.results import write_tum
from training.evaluation.trajectory import (
    absolute_errors_m,
    align,
    pairs_by_frames,
    pairs_by_metres,
    relative_errors,
    trajectory_summary,
)
from vmloc_ros.core.geometry import Pose

UTM = np.array([620_000.0, 5_734_000.0, 110.0])


def random_walk(seed: int, count: int = 40) -> list[Pose]:
    """Steps of 1 m in a slowly turning direction, orientations at random."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, 3)).cumsum(axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    quaternions = Rotation.random(count, random_state=seed).as_quat()[:, [3, 0, 1, 2]]
    return [Pose(p, q) for p, q in zip(UTM + steps.cumsum(axis=0), quaternions, strict=True)]


def disturbed(poses: list[Pose], seed: int) -> list[Pose]:
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(rng.normal(scale=0.2, size=(len(poses), 3))).as_quat()[:, [3, 0, 1, 2]]
    return [pose @ Pose(rng.normal(scale=0.3, size=3), turn) for pose, turn in zip(poses, turns, strict=True)]


def positions(poses: list[Pose]) -> np.ndarray:
    return np.stack([pose.position_m for pose in poses])


# --- closed form -------------------------------------------------------------------------------------------------


def test_a_rigid_motion_of_all_estimates_is_seen_only_without_alignment() -> None:
    truth = random_walk(0)
    motion = Pose.from_xyz_rpy([3.0, -2.0, 1.0], [0.3, -0.2, 2.0])
    centre = Pose(UTM, [1.0, 0.0, 0.0, 0.0])
    estimates = [centre @ motion @ centre.inverse() @ pose for pose in truth]
    expected = np.linalg.norm(positions(truth) - positions(estimates), axis=1)
    assert expected.min() > 1
    np.testing.assert_allclose(absolute_errors_m(truth, estimates), expected)
    np.testing.assert_allclose(absolute_errors_m(truth, estimates, aligned=True), 0, atol=1e-8)
    errors = relative_errors(truth, estimates, pairs_by_frames(len(truth), 3))
    np.testing.assert_allclose(errors.position_m, 0, atol=1e-8)
    np.testing.assert_allclose(errors.rotation_deg, 0, atol=1e-6)


def test_a_scale_of_ten_per_cent_shows_in_proportion_to_the_distance() -> None:
    truth = [yaw_pose(float(i)) for i in range(25)]
    estimates = [yaw_pose(1.1 * i) for i in range(25)]
    summary = trajectory_summary([(truth, estimates)])
    assert summary["rpe_1frame_rmse_m"] == pytest.approx(0.1)
    assert summary["rpe_1m_rmse_m"] == pytest.approx(0.1)
    assert summary["rpe_10m_rmse_m"] == pytest.approx(1.0)
    assert summary["rpe_10m_rmse_deg"] == pytest.approx(0.0)
    assert summary["ate_rmse_m"] == pytest.approx(0.1 * np.sqrt(np.mean(np.arange(25) ** 2)))
    assert summary["ate_aligned_rmse_m"] == pytest.approx(0.1 * np.std(np.arange(25)))  # a scale is not taken out


def test_a_heading_that_drifts_shows_as_an_angle_and_as_a_sideways_step() -> None:
    truth = [yaw_pose(float(i)) for i in range(5)]
    estimates = [yaw_pose(float(i), 0.0, 2.0 * i) for i in range(5)]
    errors = relative_errors(truth, estimates, pairs_by_frames(5, 2))
    np.testing.assert_allclose(errors.rotation_deg, 4.0)
    np.testing.assert_allclose(errors.position_m, 2 * 2 * np.sin(np.radians([0, 1, 2])))  # the chord of 2 i degrees


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_alignment_is_the_best_rotation_by_an_independent_library(seed: int) -> None:
    truth = random_walk(seed)
    estimates = disturbed(truth, seed + 1)
    found = align(truth, estimates)
    left, right = positions(truth) - positions(truth).mean(axis=0), positions(estimates) - positions(estimates).mean(0)
    expected, distance = Rotation.align_vectors(left, right)
    np.testing.assert_allclose(found.rotation, expected.as_matrix(), atol=1e-6)
    assert np.linalg.norm(absolute_errors_m(truth, estimates, aligned=True)) == pytest.approx(distance, abs=1e-6)


def test_the_alignment_turns_and_never_mirrors() -> None:
    truth = random_walk(3)
    mirrored = [Pose(pose.position_m * [1, 1, -1], pose.quaternion_wxyz) for pose in truth]
    assert np.linalg.det(align(truth, mirrored).rotation) == pytest.approx(1.0)
    assert absolute_errors_m(truth, mirrored, aligned=True).max() > 0.1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_positions_on_a_line_can_be_aligned_too(count: int) -> None:
    truth = [yaw_pose(float(i)) for i in range(count)]
    estimates = [yaw_pose(7.0, float(i)) for i in range(count)]
    np.testing.assert_allclose(absolute_errors_m(truth, estimates, aligned=True), 0, atol=1e-9)


# --- pairs -------------------------------------------------------------------------------------------------------


def test_pairs_by_metres_end_at_the_first_frame_far_enough_along_the_path() -> None:
    truth = [yaw_pose(0.0), yaw_pose(0.6), yaw_pose(0.6, 0.6), yaw_pose(0.6, 0.6), yaw_pose(0.0, 0.6), yaw_pose(0.0)]
    assert pairs_by_metres(truth, 1.0).tolist() == [[0, 2], [1, 4], [2, 5], [3, 5]]
    assert pairs_by_metres(truth, 2.5).tolist() == []


def test_pairs_by_metres_do_not_miss_a_frame_by_rounding() -> None:
    truth = [yaw_pose(0.1 * i) for i in range(400)]
    np.testing.assert_array_equal(np.diff(pairs_by_metres(truth, 1.0)), 10)


def test_pairs_by_frames_are_all_of_that_distance() -> None:
    assert pairs_by_frames(5, 3).tolist() == [[0, 3], [1, 4]]
    assert pairs_by_frames(3, 3).tolist() == []


def test_several_trajectories_are_pooled_aligned_one_by_one_and_not_joined() -> None:
    near, far = ([yaw_pose(start + i) for i in range(4)] for start in (0.0, 1000.0))
    near_off = [pose @ yaw_pose(1.0) for pose in near]
    far_off = [pose @ yaw_pose(0.0, 3.0) for pose in far]
    summary = trajectory_summary([(near, near_off), (far, far_off)])
    assert summary["ate_rmse_m"] == pytest.approx(np.sqrt((4 * 1 + 4 * 9) / 8))
    assert summary["ate_aligned_rmse_m"] == pytest.approx(0.0, abs=1e-9)
    assert summary["rpe_1frame_rmse_m"] == pytest.approx(0.0)
    assert not any(key.startswith("rpe_10m") for key in summary)
    assert not any(key.startswith("rpe") for key in trajectory_summary([(near[:1], near_off[:1])]))


# --- against evo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_ate_and_rpe_are_those_of_evo(seed: int) -> None:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo (GPL, no dependency of this package) is absent")
    from evo.core.trajectory import PosePath3D

    truth = random_walk(seed)
    estimates = disturbed(truth, seed + 1)

    def path(poses: list[Pose]) -> PosePath3D:
        return PosePath3D(positions(poses), np.stack([pose.quaternion_wxyz for pose in poses]))

    def errors(metric, estimated: PosePath3D) -> np.ndarray:
        metric.process_data((path(truth), estimated))
        return metric.error

    moved = path(estimates)
    moved.align(path(truth))
    relation = metrics.PoseRelation
    distance = metrics.APE(relation.translation_part)
    np.testing.assert_allclose(absolute_errors_m(truth, estimates), errors(distance, path(estimates)))
    np.testing.assert_allclose(absolute_errors_m(truth, estimates, aligned=True), errors(distance, moved), atol=1e-6)
    for span, pairs, unit in (
        (1, pairs_by_frames(len(truth), 1), metrics.Unit.frames),
        (7, pairs_by_frames(len(truth), 7), metrics.Unit.frames),
        (5, pairs_by_metres(truth, 5.0), metrics.Unit.meters),  # all steps are of 1 m
    ):
        ours = relative_errors(truth, estimates, pairs)
        for kind, values in (
            (relation.translation_part, ours.position_m),
            (relation.rotation_angle_deg, ours.rotation_deg),
        ):
            metric = metrics.RPE(kind, span, unit, all_pairs=True, pairs_from_reference=True)
            np.testing.assert_allclose(values, errors(metric, path(estimates)), atol=1e-6)


def test_evo_reads_our_tum_files(tmp_path: Path) -> None:
    interface = pytest.importorskip("evo.tools.file_interface", reason="evo (GPL, no dependency) is absent")
    poses = random_walk(1)
    stamps_ns = [1_700_000_000_123_456_789 + i * 33_333_333 for i in range(len(poses))]
    write_tum(tmp_path / "estimate.tum", stamps_ns, poses)
    read = interface.read_tum_trajectory_file(tmp_path / "estimate.tum")
    np.testing.assert_allclose(read.positions_xyz, positions(poses), atol=1e-6)
    np.testing.assert_allclose(read.timestamps, np.array(stamps_ns) / 1e9, atol=1e-6)
    for quaternion, pose in zip(read.orientations_quat_wxyz, poses, strict=True):
        assert abs(quaternion @ pose.quaternion_wxyz) == pytest.approx(1.0)
