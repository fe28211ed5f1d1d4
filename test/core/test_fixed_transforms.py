# SPDX-License-Identifier: Apache-2.0
"""Mounts on /tf are those transforms that never move."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.fixed_transforms import FixedTransforms, fixed_pose
from vmloc_ros.core.geometry import Pose

MOUNT = Pose.from_xyz_rpy([0.3, -0.1, 1.2], [-1.5, 0.1, 0.4])


def test_what_came_three_times_and_never_moved_is_fixed() -> None:
    transforms = FixedTransforms()
    for number in range(3):
        assert not transforms.fixed
        transforms.add("/base_link", "/camera", MOUNT)
        transforms.add("odom", "base_link", Pose.from_xyz_rpy([0.1 * number, 0, 0], [0, 0, 0]))
    assert transforms.fixed == {("base_link", "camera"): MOUNT}
    assert transforms.moving == {("odom", "base_link")}


def test_a_joint_counts_until_it_moves_and_never_again() -> None:
    transforms = FixedTransforms()
    for _ in range(10):
        transforms.add("base_link", "head", MOUNT)
    transforms.add("base_link", "head", MOUNT @ Pose.from_xyz_rpy([0, 0, 0], [0, 0, 0.01]))
    for _ in range(10):
        transforms.add("base_link", "head", MOUNT)
    assert not transforms.fixed


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), metres=st.floats(0, 0.05), radians=st.floats(0, 0.05))
def test_millimetres_and_milliradians_tell_a_mount_from_a_motion(seed: int, metres: float, radians: float) -> None:
    rng = np.random.default_rng(seed)
    direction, axis = rng.normal(size=(2, 3))
    step = metres * direction / np.linalg.norm(direction)
    turn = Pose.from_xyz_rpy(np.zeros(3), radians * axis / np.linalg.norm(axis))
    other = Pose(MOUNT.position_m + step, (MOUNT @ turn).quaternion_wxyz)
    rows = np.array([[*pose.position_m, *pose.quaternion_wxyz] for pose in (MOUNT, other)])
    rows[1, 3:] *= rng.choice([-1, 1])  # the same rotation
    if metres < 0.9e-3 and radians < 0.9e-3:
        np.testing.assert_allclose(fixed_pose(rows).matrix, MOUNT.matrix, atol=1e-12)
    elif metres > 1.8e-3 or radians > 2.2e-3:
        assert fixed_pose(rows) is None
