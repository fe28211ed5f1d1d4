# SPDX-License-Identifier: Apache-2.0
"""Quaternions, poses and interpolation against scipy.spatial.transform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from vmloc_ros.core.geometry import (
    Pose,
    canonical_quaternion,
    interpolate_poses,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_exp,
    quaternion_from_matrix,
    quaternion_log,
    quaternion_multiply,
    rotation_angle_deg,
    rotation_vector_from_quaternion,
)

component = st.floats(-1, 1)
vectors = st.tuples(*[st.floats(-1e3, 1e3)] * 3).map(np.array)
angles = st.tuples(*[st.floats(-np.pi, np.pi)] * 3).map(np.array)


def from_axis_angle(axis_angle: tuple[np.ndarray, float]) -> np.ndarray:
    axis, angle = axis_angle
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis / np.linalg.norm(axis))])


# Angles near zero and near half a turn are where implementations break.
special_angle = st.sampled_from([0.0, 1e-15, 1e-9, 1e-5, np.pi - 1e-5, np.pi - 1e-9, np.pi])
rotations = st.tuples(
    st.tuples(component, component, component).map(np.array).filter(lambda axis: np.linalg.norm(axis) > 0.1),
    st.one_of(st.floats(-2 * np.pi, 2 * np.pi), special_angle),
).map(from_axis_angle)
poses = st.builds(Pose, vectors, rotations)


def random_quaternions(count: int) -> np.ndarray:
    """``(count, 4)`` unit quaternions (w, x, y, z) in both hemispheres."""
    quaternions = np.random.default_rng(1).normal(size=(count, 4))
    return quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)


def scipy(quaternion_wxyz: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(quaternion_wxyz, -1, axis=-1))


def assert_same_rotation(quaternion_wxyz: np.ndarray, expected: Rotation, atol_rad: float = 1e-12) -> None:
    assert quaternion_wxyz[0] >= 0
    assert np.linalg.norm(quaternion_wxyz) == pytest.approx(1, abs=1e-12)
    assert (scipy(quaternion_wxyz) * expected.inv()).magnitude() <= atol_rad


@given(rotations, st.floats(0.01, 100), st.booleans())
def test_canonical_quaternion_is_unit_in_the_upper_hemisphere(
    rotation: np.ndarray, scale: float, negative: bool
) -> None:
    assert_same_rotation(canonical_quaternion(rotation * scale * (-1 if negative else 1)), scipy(rotation))


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1]])
def test_quaternion_without_direction_is_rejected(quaternion: list[float]) -> None:
    with pytest.raises(ValueError, match="not a rotation: quaternion"):
        canonical_quaternion(quaternion)


@given(rotations, rotations)
def test_multiplication_composes_rotations(left: np.ndarray, right: np.ndarray) -> None:
    product = canonical_quaternion(quaternion_multiply(left, right))
    assert_same_rotation(product, scipy(left) * scipy(right), atol_rad=1e-11)


@given(rotations)
def test_conjugate_is_the_inverse_rotation(rotation: np.ndarray) -> None:
    assert_same_rotation(canonical_quaternion(quaternion_conjugate(rotation)), scipy(rotation).inv())


@given(rotations)
def test_logarithm_is_half_the_rotation_vector(rotation: np.ndarray) -> None:
    log = quaternion_log(rotation)
    assert np.linalg.norm(log) <= np.pi / 2 + 1e-12
    # At half a turn both signs of the axis are right, so compare what the vectors mean.
    assert (Rotation.from_rotvec(2 * log) * scipy(rotation).inv()).magnitude() < 1e-11
    np.testing.assert_array_equal(rotation_vector_from_quaternion(rotation), 2 * log)


@given(st.floats(1e-12, 1e-6), st.integers(0, 2))
def test_logarithm_keeps_the_precision_of_small_angles(angle: float, axis: int) -> None:
    rotation = np.zeros(4)
    rotation[0], rotation[1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
    assert quaternion_log(rotation)[axis] == pytest.approx(angle / 2, rel=1e-9)


@given(rotations)
def test_exponential_inverts_the_logarithm(rotation: np.ndarray) -> None:
    assert_same_rotation(quaternion_exp(quaternion_log(rotation)), scipy(rotation), atol_rad=1e-11)


@given(angles)
def test_exponential_of_half_a_rotation_vector(vector: np.ndarray) -> None:
    assert_same_rotation(quaternion_exp(vector / 2), Rotation.from_rotvec(vector), atol_rad=1e-11)


@given(rotations)
def test_matrices_equal_scipy_s_and_convert_back(rotation: np.ndarray) -> None:
    matrix = matrix_from_quaternion(rotation)
    np.testing.assert_allclose(matrix, scipy(rotation).as_matrix(), atol=1e-12)
    assert_same_rotation(quaternion_from_matrix(matrix), scipy(rotation), atol_rad=1e-7)


def test_functions_broadcast_over_leading_dimensions() -> None:
    quaternions = random_quaternions(12).reshape(3, 4, 4)
    matrices = matrix_from_quaternion(quaternions)
    assert matrices.shape == (3, 4, 3, 3)
    np.testing.assert_allclose(quaternion_from_matrix(matrices), canonical_quaternion(quaternions), atol=1e-9)
    logs = quaternion_log(quaternions)
    product = quaternion_multiply(quaternions, quaternions[:1])
    for row, column in np.ndindex(3, 4):
        np.testing.assert_array_equal(matrices[row, column], matrix_from_quaternion(quaternions[row, column]))
        np.testing.assert_array_equal(logs[row, column], quaternion_log(quaternions[row, column]))
        alone = quaternion_multiply(quaternions[row, column], quaternions[0, column])
        np.testing.assert_allclose(product[row, column], alone, atol=1e-15)
    np.testing.assert_allclose(quaternion_exp(logs), canonical_quaternion(quaternions), atol=1e-12)


def test_slightly_skewed_matrix_gives_the_nearest_rotation() -> None:
    truth = Rotation.from_euler("xyz", [0.3, -0.4, 1.2])
    noisy = truth.as_matrix() + np.random.default_rng(0).normal(0, 1e-3, (3, 3))
    u, _, vt = np.linalg.svd(noisy)
    assert_same_rotation(quaternion_from_matrix(noisy), Rotation.from_matrix(u @ vt), atol_rad=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [np.diag([1.0, 1.0, -1.0]), 1.1 * np.eye(3), np.zeros((3, 3)), np.full((3, 3), np.nan), np.ones((3, 3))],
    ids=["mirror", "scale", "zero", "nan", "singular"],
)
def test_matrix_that_is_no_rotation_is_rejected(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not a rotation matrix"):
        quaternion_from_matrix(matrix)


@given(rotations, rotations)
def test_rotation_angle_is_the_angle_between(first: np.ndarray, second: np.ndarray) -> None:
    expected = np.degrees((scipy(first) * scipy(second).inv()).magnitude())
    assert rotation_angle_deg(first, second) == pytest.approx(expected, abs=1e-9)
    assert rotation_angle_deg(first, -second) == pytest.approx(expected, abs=1e-9)


def test_rotation_angle_keeps_the_precision_of_small_angles() -> None:
    small = quaternion_exp([0.0, np.radians(1e-7) / 2, 0.0])
    assert rotation_angle_deg(small, [1.0, 0, 0, 0]) == pytest.approx(1e-7, rel=1e-9)


@given(poses, poses, vectors)
def test_composition_applies_the_right_pose_first(first: Pose, second: Pose, point: np.ndarray) -> None:
    expected = first.transform(second.transform(point))
    np.testing.assert_allclose((first @ second).transform(point), expected, atol=1e-8)
    np.testing.assert_allclose((first @ second).matrix, first.matrix @ second.matrix, atol=1e-9)


@given(poses, vectors)
def test_transform_equals_the_homogeneous_matrix(pose: Pose, point: np.ndarray) -> None:
    np.testing.assert_allclose(pose.transform(point), (pose.matrix @ [*point, 1])[:3], atol=1e-9)
    expected = scipy(pose.quaternion_wxyz).apply(point) + pose.position_m
    np.testing.assert_allclose(pose.transform(np.stack([point, point])), [expected, expected], atol=1e-8)


@given(poses)
def test_inverse_undoes_a_pose(pose: Pose) -> None:
    np.testing.assert_allclose((pose.inverse() @ pose).matrix, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(pose.inverse().matrix, np.linalg.inv(pose.matrix), atol=1e-9)


@given(poses)
def test_pose_survives_its_matrix(pose: Pose) -> None:
    again = Pose.from_matrix(pose.matrix)
    np.testing.assert_array_equal(again.position_m, pose.position_m)
    assert rotation_angle_deg(again.quaternion_wxyz, pose.quaternion_wxyz) < 1e-5


@given(angles)
def test_roll_pitch_yaw_turn_about_fixed_axes(rpy: np.ndarray) -> None:
    pose = Pose.from_xyz_rpy([1, 2, 3], rpy)
    assert_same_rotation(pose.quaternion_wxyz, Rotation.from_euler("xyz", rpy), atol_rad=1e-11)
    np.testing.assert_array_equal(pose.position_m, [1, 2, 3])


def test_optical_frame_of_rep_103_looks_forward() -> None:
    body_from_optical = Pose.from_xyz_rpy([0, 0, 0], [-np.pi / 2, 0, -np.pi / 2])
    np.testing.assert_allclose(body_from_optical.transform([0, 0, 1]), [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(body_from_optical.transform([1, 0, 0]), [0, -1, 0], atol=1e-15)
    np.testing.assert_allclose(body_from_optical.transform([0, 1, 0]), [0, 0, -1], atol=1e-15)


def test_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(Pose.identity().transform([4, 5, 6]), [4, 5, 6])


def test_pose_keeps_utm_coordinates_exactly() -> None:
    position = np.array([619_781.123456, 5_735_701.654321, 111.25])
    pose = Pose(position, np.array([1.0, 0, 0, 0])) @ Pose.identity()
    np.testing.assert_array_equal(pose.position_m, position)
    position[0] = 0
    assert pose.position_m[0] == 619_781.123456


@pytest.mark.parametrize("position", [[1, 2], [1, 2, np.nan], [1, 2, np.inf], [[1, 2, 3]]])
def test_position_that_is_not_three_numbers_is_rejected(position: list[float]) -> None:
    with pytest.raises(ValueError, match="position must be 3 finite numbers"):
        Pose(np.array(position, float), np.array([1.0, 0, 0, 0]))


def test_matrix_of_another_shape_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"a rigid transform is a 4x4 matrix, got shape \(3, 4\)"):
        Pose.from_matrix(np.eye(4)[:3])


def trajectory(count: int = 6) -> tuple[np.ndarray, list[Pose]]:
    generator = np.random.default_rng(4)
    stamps = 1_700_000_000_000_000_000 + np.cumsum(generator.integers(1, 10**9, count))
    rotations = random_quaternions(count)
    return stamps, [Pose(p, q) for p, q in zip(generator.normal(size=(count, 3)), rotations, strict=True)]


def test_interpolation_is_linear_and_spherical() -> None:
    stamps, truth = trajectory()
    queries = np.sort(np.random.default_rng(6).integers(stamps[0], stamps[-1], 40))
    result = interpolate_poses(stamps, truth, queries)
    seconds, query_s = (stamps - stamps[0]) / 1e9, (queries - stamps[0]) / 1e9
    expected = Slerp(seconds, scipy(np.stack([pose.quaternion_wxyz for pose in truth])))(query_s)
    for axis in range(3):
        positions = np.interp(query_s, seconds, [pose.position_m[axis] for pose in truth])
        interpolated = [pose.position_m[axis] for pose in result if pose is not None]
        np.testing.assert_allclose(interpolated, positions, atol=1e-9)
    for pose, rotation in zip(result, expected, strict=True):
        assert pose is not None
        assert_same_rotation(pose.quaternion_wxyz, rotation, atol_rad=1e-7)


def test_query_at_a_stamp_gives_that_very_pose() -> None:
    stamps, truth = trajectory()
    order = [3, 0, 5, 1, 4, 2]
    assert interpolate_poses(stamps, truth, stamps[order]) == [truth[index] for index in order]


def test_interpolation_leaves_the_caller_s_stamps_alone() -> None:
    stamps, truth = trajectory()
    as_list = stamps.tolist()
    interpolate_poses(as_list, truth, [stamps[0] + 5, stamps[2] + 7])
    assert as_list == stamps.tolist()


def test_queries_outside_the_span_have_no_pose() -> None:
    stamps, truth = trajectory()
    assert interpolate_poses(stamps, truth, [stamps[0] - 1, stamps[-1] + 1]) == [None, None]
    assert interpolate_poses(stamps[:1], truth[:1], [stamps[0] - 1, stamps[0], stamps[0] + 1]) == [
        None,
        truth[0],
        None,
    ]
    assert interpolate_poses([], [], [7]) == [None]


def test_interpolation_takes_the_shorter_way_round() -> None:
    turns = [Pose.from_xyz_rpy([0, 0, 0], [0, 0, np.radians(angle)]) for angle in (170, -170)]
    (middle,) = interpolate_poses([0, 10], turns, [5])
    assert middle is not None
    assert_same_rotation(middle.quaternion_wxyz, Rotation.from_euler("z", 180, degrees=True), atol_rad=1e-9)


@pytest.mark.parametrize("stamps", [[0, 10, 10], [0, 20, 10]])
def test_stamps_that_do_not_increase_are_rejected(stamps: list[int]) -> None:
    with pytest.raises(ValueError, match="must increase strictly"):
        interpolate_poses(stamps, [Pose.identity()] * 3, [5])


def test_stamps_without_poses_are_rejected() -> None:
    with pytest.raises(ValueError, match="2 stamps for 1 poses"):
        interpolate_poses([0, 10], [Pose.identity()], [5])
