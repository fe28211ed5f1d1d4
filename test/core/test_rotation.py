# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import helpers  # noqa: F401 (one thread for torch)
from vmloc_ros.core import geometry
from vmloc_ros.core.models.rotation import (
    chord,
    matrix_quaternion,
    pose_vectors,
    quaternion_exp,
    quaternion_log,
    rotation_matrix,
    six_d_matrix,
)

pytestmark = pytest.mark.numeric

DTYPES = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 5e-7, torch.float64: 1e-15}
HALF = math.sqrt(0.5)
AXES = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0, -0.8], [-1.0, 0, 0]]

# Rotations of every size: an axis, and a half angle of any order of magnitude or up to a full turn.
directions = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: math.hypot(*v) > 1e-3)
half_angles = st.one_of(st.floats(-math.pi, math.pi), st.floats(-40, 0).map(lambda x: 10**x))
SPECIAL = [
    [1.0, 0, 0, 0],
    [-1.0, 0, 0, 0],
    *([0.0, *axis] for axis in AXES),
    *([-0.0, *axis] for axis in AXES),
    *([1e-9, *axis] for axis in AXES),
    *([-1e-9, *axis] for axis in AXES),
    [HALF, HALF, 0, 0],
    [-HALF, 0, HALF, 0],
    [1.0, 1e-5, 0, 0],
    [1.0, 0, 1e-15, 0],
    [1.0, 0, 1e-18, 1e-19],
    [-1.0, 0, 0, 1e-22],
    [1.0, 1e-40, 0, 0],
]


def quaternion(direction: tuple[float, ...], half_angle: float) -> np.ndarray:
    axis = np.array(direction) / np.linalg.norm(direction)
    return np.array([math.cos(half_angle), *(math.sin(half_angle) * axis)])


def half_rotation_vector(quaternion_wxyz: np.ndarray) -> np.ndarray:
    return Rotation.from_quat(np.asarray(quaternion_wxyz)[[1, 2, 3, 0]]).as_rotvec() / 2


def assert_is_the_log(actual: torch.Tensor, quaternion_wxyz: np.ndarray, dtype: torch.dtype) -> None:
    """Against scipy; at half a turn either axis is right, and is so within the rounding of w."""
    expected = half_rotation_vector(quaternion_wxyz)
    if abs(quaternion_wxyz[0]) < 2 * ROUNDING[dtype] and actual.double().numpy() @ expected < 0:
        expected = -expected
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=ROUNDING[dtype], atol=2 * ROUNDING[dtype])


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(directions, half_angles)
def test_log_is_half_of_scipys_rotation_vector(dtype: torch.dtype, direction, half_angle: float) -> None:
    q = quaternion(direction, half_angle)
    actual = quaternion_log(torch.tensor(q, dtype=dtype))
    assert actual.dtype == dtype
    assert_is_the_log(actual, q, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(directions, half_angles)
def test_exp_is_scipys_rotation_of_twice_the_vector(dtype: torch.dtype, direction, half_angle: float) -> None:
    vector = half_angle * np.array(direction) / np.linalg.norm(direction)
    actual = quaternion_exp(torch.tensor(vector, dtype=dtype))
    assert actual.dtype == dtype
    assert actual[0] >= 0
    assert actual.norm().item() == pytest.approx(1, abs=2 * ROUNDING[dtype])
    expected = Rotation.from_rotvec(2 * vector).as_matrix()
    matrix = Rotation.from_quat(actual.double().numpy()[[1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(matrix, expected, atol=10 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", SPECIAL, ids=str)
def test_special_rotations_agree_with_scipy_and_with_the_numpy_code(dtype: torch.dtype, special: list[float]) -> None:
    q = torch.tensor(special, dtype=dtype)
    log = quaternion_log(q)
    assert_is_the_log(log, q.double().numpy(), dtype)
    np.testing.assert_allclose(log.numpy(), geometry.quaternion_log(q.numpy()), atol=2 * ROUNDING[dtype])
    np.testing.assert_allclose(quaternion_exp(log).numpy(), geometry.quaternion_exp(log), atol=2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_is_exact(dtype: torch.dtype) -> None:
    for sign in (1, -1):
        assert quaternion_log(sign * torch.tensor([1.0, 0, 0, 0], dtype=dtype)).tolist() == [0, 0, 0]
    assert quaternion_exp(torch.zeros(3, dtype=dtype)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_turns_keep_their_axis(dtype: torch.dtype) -> None:
    """w = 0, where a division by w or a sign of zero would lose it."""
    for axis in AXES:
        log = quaternion_log(torch.tensor([0.0, *axis], dtype=dtype))
        torch.testing.assert_close(log, torch.tensor(axis, dtype=dtype) * (math.pi / 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_angles_keep_their_relative_precision(dtype: torch.dtype) -> None:
    for size in (1e-3, 1e-6, 1e-12, 1e-18, 1e-25, 1e-30):
        vector = torch.tensor([size, -2 * size, 0.5 * size], dtype=dtype)
        exponential = quaternion_exp(vector)
        torch.testing.assert_close(exponential[1:], vector, rtol=1e-5, atol=0)
        torch.testing.assert_close(quaternion_log(exponential), vector, rtol=4 * ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_and_exp_undo_each_other_over_the_whole_sphere_in_any_shape(dtype: torch.dtype) -> None:
    q = torch.randn(20, 50, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    q /= q.norm(dim=-1, keepdim=True)
    back = quaternion_exp(quaternion_log(q))
    assert back.shape == q.shape
    torch.testing.assert_close(back, q * torch.sign(q[..., :1]), rtol=0, atol=2 * ROUNDING[dtype])
    vectors = quaternion_log(q)
    assert vectors.norm(dim=-1).max() <= math.pi / 2 * (1 + ROUNDING[dtype])
    torch.testing.assert_close(quaternion_log(back), vectors, rtol=0, atol=1e4 * ROUNDING[dtype])  # near half a turn


def test_a_quaternions_length_does_not_matter() -> None:
    q = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(quaternion_log(7 * q), quaternion_log(q))


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", SPECIAL, ids=str)
def test_gradients_are_finite_at_special_rotations(dtype: torch.dtype, special: list[float]) -> None:
    q = torch.tensor(special, dtype=dtype, requires_grad=True)
    for row in torch.autograd.functional.jacobian(quaternion_log, q):
        assert bool(torch.isfinite(row).all())
    vector = quaternion_log(q).detach()
    for row in torch.autograd.functional.jacobian(quaternion_exp, vector):
        assert bool(torch.isfinite(row).all())


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(directions, half_angles)
def test_gradients_are_finite_everywhere(dtype: torch.dtype, direction, half_angle: float) -> None:
    q = torch.tensor(quaternion(direction, half_angle), dtype=dtype)
    assert bool(torch.isfinite(torch.autograd.functional.jacobian(quaternion_log, q)).all())
    vector = torch.tensor(half_angle * np.array(direction), dtype=dtype)
    assert bool(torch.isfinite(torch.autograd.functional.jacobian(quaternion_exp, vector)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-25, 1e-19, 1e-15, 1e-8])
def test_near_the_identity_the_vector_parts_pass_gradients_on_unchanged(dtype: torch.dtype, size: float) -> None:
    vector = torch.tensor([size, -size, 0.0], dtype=dtype)
    of_exp = torch.autograd.functional.jacobian(quaternion_exp, vector)
    of_log = torch.autograd.functional.jacobian(quaternion_log, torch.cat([vector.new_ones(1), vector]))
    unchanged = torch.eye(3, dtype=dtype)
    torch.testing.assert_close(of_exp[1:], unchanged, rtol=0, atol=1e-6)
    torch.testing.assert_close(of_log[:, 1:], unchanged, rtol=0, atol=1e-6)


def test_gradients_are_the_derivatives_away_from_the_cut() -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(30, 4, dtype=torch.float64, generator=generator)
    q = q[q[:, 0].abs() > 0.05]
    assert bool((q[:, 0] < 0).any())
    identity = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    for start in (q, identity):
        assert torch.autograd.gradcheck(quaternion_log, start.clone().requires_grad_())
    vectors = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    vectors = vectors[quaternion_exp(vectors)[:, 0] > 0.05]
    for start in (vectors, torch.zeros(1, 3, dtype=torch.float64)):
        assert torch.autograd.gradcheck(quaternion_exp, start.clone().requires_grad_())


# --- outputs of networks -----------------------------------------------------------------------------------------


def random_rotations(count: int, seed: int) -> Rotation:
    return Rotation.from_quat(np.random.default_rng(seed).normal(size=(count, 4)))


def six_d_of(rotations: Rotation) -> torch.Tensor:
    """Both columns stretched and the second one skewed: the orthonormalisation has to undo it."""
    columns = torch.from_numpy(rotations.as_matrix())
    return torch.cat([3 * columns[..., 0], 0.5 * columns[..., 1] + 0.7 * columns[..., 0]], dim=-1)


def test_six_numbers_give_the_rotation_matrix_of_the_two_columns() -> None:
    rotations = random_rotations(100, 0)
    np.testing.assert_allclose(six_d_matrix(six_d_of(rotations)).numpy(), rotations.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e3])
def test_any_six_numbers_give_a_rotation_and_a_finite_gradient(magnitude: float) -> None:
    numbers = magnitude * torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    numbers.requires_grad_()
    matrices = six_d_matrix(numbers)
    identity = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(matrices.mT @ matrices, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))
    chord(matrices, identity).sum().backward()
    assert bool(torch.isfinite(numbers.grad).all())


@pytest.mark.parametrize("numbers", [[0.0] * 6, [1.0, 0, 0, 2.0, 0, 0], [0.0, 0, 0, 1.0, 0, 0]])
def test_six_numbers_without_a_rotation_are_finite_with_a_finite_gradient(numbers: list[float]) -> None:
    x = torch.tensor(numbers, requires_grad=True)
    matrix = six_d_matrix(x)
    matrix.sum().backward()
    assert bool(torch.isfinite(matrix).all())
    assert bool(torch.isfinite(x.grad).all())


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_matrices_give_their_quaternions_up_to_length_and_sign(quaternion: list[float]) -> None:
    unit = torch.tensor(quaternion, dtype=torch.float64)
    unit = unit / unit.norm()
    found = matrix_quaternion(rotation_matrix(unit))
    assert float(found.norm()) >= 1  # far from zero, so no digits are lost
    torch.testing.assert_close(((found / found.norm()) @ unit).abs(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("angle_deg", [0.001, 1.0, 90.0, 179.0, 180.0])
def test_the_chord_is_the_sine_of_half_the_angle(angle_deg: float) -> None:
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    first = random_rotations(1, 3)
    second = first * Rotation.from_rotvec(np.radians(angle_deg) * axis)
    found = chord(*(torch.from_numpy(x.as_matrix()) for x in (first, second)))
    np.testing.assert_allclose(found.numpy(), np.sin(np.radians(angle_deg) / 2), rtol=1e-7)


def test_equal_rotations_have_no_chord_and_a_finite_gradient() -> None:
    matrix = torch.from_numpy(random_rotations(4, 5).as_matrix()).requires_grad_()
    distance = chord(matrix, matrix.detach())
    distance.sum().backward()
    assert float(distance.max()) < 1e-12
    assert bool(torch.isfinite(matrix.grad).all())


def test_pose_vectors_hold_position_and_log_quaternion_of_either_representation() -> None:
    rotations, positions = random_rotations(20, 7), torch.randn(20, 3, dtype=torch.float64)
    quaternions = torch.from_numpy(rotations.as_quat()[..., [3, 0, 1, 2]])
    expected = torch.cat([positions, quaternion_log(quaternions)], dim=-1)
    assert torch.equal(pose_vectors(expected), expected)
    torch.testing.assert_close(pose_vectors(torch.cat([positions, six_d_of(rotations)], dim=-1)), expected)


def test_six_numbers_pass_through_a_turn_of_180_degrees_where_the_logarithm_jumps() -> None:
    below, above = (Rotation.from_euler("z", angle, degrees=True) for angle in (179.9, 180.1))
    logs = [quaternion_log(torch.from_numpy(x.as_quat()[[3, 0, 1, 2]])) for x in (below, above)]
    assert (six_d_of(below) - six_d_of(above)).norm() < 0.02
    assert (logs[0] - logs[1]).norm() > 3
