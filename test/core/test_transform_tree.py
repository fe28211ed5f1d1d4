# SPDX-License-Identifier: Apache-2.0
"""TF without tf2: static and moving transforms, looked up at a stamp."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.transform_tree import TransformTree

SECOND_NS = 1_000_000_000
STEP_NS = 50_000_000
MOUNT = Pose.from_xyz_rpy([0.2, 0.0, 0.5], [0.0, 0.3, 0.0])
FIRST = Pose.from_xyz_rpy([1.0, 2.0, 0.0], [0.0, 0.1, 0.2])
SECOND = Pose.from_xyz_rpy([1.1, 1.9, 0.1], [0.1, 0.0, 0.4])


@pytest.fixture
def tree():
    tree = TransformTree(jump_back_s=1.0)
    tree.add("base_footprint", "base_link", MOUNT)
    tree.add("/odom", "base_footprint", FIRST, SECOND_NS)
    tree.add("/odom", "base_footprint", SECOND, SECOND_NS + STEP_NS)
    tree.add("map", "odom", Pose.identity(), SECOND_NS)
    return tree


def matrix(position, rotation):
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation.as_matrix(), position
    return result


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_chain_is_interpolated_at_the_stamp_in_both_directions(tree, fraction):
    """Oracle: scipy's spherical interpolation and plain matrices."""
    turns = Rotation.from_quat([pose.quaternion_wxyz[[1, 2, 3, 0]] for pose in (FIRST, SECOND)])
    position = (1 - fraction) * FIRST.position_m + fraction * SECOND.position_m
    expected = matrix(position, Slerp([0, 1], turns)(fraction)) @ MOUNT.matrix
    stamp_ns = SECOND_NS + round(fraction * STEP_NS)
    np.testing.assert_allclose(tree.find("odom", "base_link", stamp_ns).matrix, expected, atol=1e-12)
    inverse = tree.find("base_link", "/odom", stamp_ns).matrix
    np.testing.assert_allclose(inverse, np.linalg.inv(expected), atol=1e-12)


def test_nothing_is_extrapolated_and_the_reason_is_told(tree):
    with pytest.raises(DataError, match=r"odom -> base_footprint on /tf: the latest is 0\.200 s older than the image"):
        tree.find("odom", "base_link", SECOND_NS + STEP_NS + 200_000_000)
    with pytest.raises(DataError, match="odom -> base_footprint on /tf: does not reach back"):
        tree.find("odom", "base_link", SECOND_NS - 1)
    tree.add("odom", "base_footprint", SECOND, 5 * SECOND_NS)
    with pytest.raises(DataError, match=r"or has a gap of more than 0.5 s"):
        tree.find("odom", "base_link", 3 * SECOND_NS)


def test_frames_that_are_not_connected_are_named_with_what_is_known(tree):
    with pytest.raises(DataError, match="TF does not lead from camera to odom; above camera: nothing"):
        tree.find("odom", "camera", SECOND_NS)
    tree.add("rig", "camera", MOUNT)
    with pytest.raises(DataError, match="from camera to odom; above camera: rig"):
        tree.find("odom", "camera", SECOND_NS)


def test_without_a_stamp_only_static_transforms_count(tree):
    np.testing.assert_allclose(tree.find("base_footprint", "base_link").matrix, MOUNT.matrix, atol=1e-15)
    np.testing.assert_array_equal(tree.find("laser", "laser").matrix, np.eye(4))
    with pytest.raises(DataError, match="odom -> base_footprint moves"):
        tree.find("odom", "base_link")


def test_stamps_that_go_back_start_a_transform_anew(tree):
    tree.add("odom", "base_footprint", MOUNT, 0)
    np.testing.assert_allclose(tree.find("odom", "base_footprint", 0).matrix, MOUNT.matrix, atol=1e-15)
    with pytest.raises(DataError, match="older than the image"):
        tree.find("odom", "base_footprint", SECOND_NS)


def test_another_parent_replaces_the_one_before_and_a_loop_ends(tree):
    tree.add("world", "base_footprint", SECOND, SECOND_NS)
    found = tree.find("world", "base_footprint", SECOND_NS)
    np.testing.assert_allclose(found.matrix, SECOND.matrix, atol=1e-15)
    tree.add("base_link", "world", MOUNT)
    with pytest.raises(DataError, match="does not lead from base_link to odom"):
        tree.find("odom", "base_link", SECOND_NS)
