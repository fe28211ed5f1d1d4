# SPDX-License-Identifier: Apache-2.0
"""TF without tf2: static and moving transforms, found at a stamp or without one."""

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
BASE_FROM_MAST = Pose.from_xyz_rpy([0.1, 0.2, 1.0], [0.0, 0.1, 0.5])
MAST_FROM_CAMERA = Pose.from_xyz_rpy([0.3, 0.0, 0.2], [-1.5, 0.0, -1.5])
BASE_FROM_LIDAR = Pose.from_xyz_rpy([0.0, 0.0, 1.8], [0.0, 0.0, 3.0])


@pytest.fixture
def tree():
    tree = TransformTree(jump_back_s=1.0)
    tree.add("base_footprint", "base_link", MOUNT)
    tree.add("/odom", "base_footprint", FIRST, SECOND_NS)
    tree.add("/odom", "base_footprint", SECOND, SECOND_NS + STEP_NS)
    tree.add("map", "odom", Pose.identity(), SECOND_NS)
    return tree


@pytest.fixture
def static_tree():
    tree = TransformTree()
    tree.add("mast", "camera", MAST_FROM_CAMERA)
    tree.add("base_link", "mast", BASE_FROM_MAST)
    tree.add("base_link", "lidar", BASE_FROM_LIDAR)
    tree.add("other_root", "other", Pose.identity())
    return tree


def assert_same(actual, expected):
    assert actual is not None
    np.testing.assert_allclose(actual.matrix, expected.matrix, atol=1e-12)


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


def test_nothing_is_extrapolated_and_the_error_gives_the_reason(tree):
    with pytest.raises(DataError, match=r"odom -> base_footprint on /tf: the latest is 0\.200 s older than the image"):
        tree.find("odom", "base_link", SECOND_NS + STEP_NS + 200_000_000)
    with pytest.raises(DataError, match="odom -> base_footprint on /tf: does not reach back"):
        tree.find("odom", "base_link", SECOND_NS - 1)
    tree.add("odom", "base_footprint", SECOND, 5 * SECOND_NS)
    with pytest.raises(DataError, match=r"or has a gap of more than 0.5 s"):
        tree.find("odom", "base_link", 3 * SECOND_NS)


def test_frames_that_are_not_connected_raise_with_the_frames_above(tree):
    with pytest.raises(DataError, match="TF does not lead from camera to odom; above camera: nothing"):
        tree.find("odom", "camera", SECOND_NS)
    tree.add("rig", "camera", MOUNT)
    with pytest.raises(DataError, match="from camera to odom; above camera: rig"):
        tree.find("odom", "camera", SECOND_NS)


def test_without_a_stamp_only_static_transforms_count(tree):
    np.testing.assert_allclose(tree.find("base_footprint", "base_link").matrix, MOUNT.matrix, atol=1e-15)
    np.testing.assert_array_equal(tree.find("laser", "laser").matrix, np.eye(4))
    assert_same(tree.find_static("base_footprint", "base_link"), MOUNT)
    with pytest.raises(DataError, match="odom -> base_footprint moves"):
        tree.find("odom", "base_link")
    assert tree.find_static("odom", "base_link") is None


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


def test_chains_are_followed_up_and_down(static_tree):
    base_from_camera = BASE_FROM_MAST @ MAST_FROM_CAMERA
    assert_same(static_tree.find("base_link", "camera"), base_from_camera)
    assert_same(static_tree.find("camera", "base_link"), base_from_camera.inverse())
    assert_same(static_tree.find("camera", "lidar"), base_from_camera.inverse() @ BASE_FROM_LIDAR)
    assert_same(static_tree.find("mast", "lidar"), BASE_FROM_MAST.inverse() @ BASE_FROM_LIDAR)


def test_a_point_is_transformed_from_one_sensor_to_another(static_tree):
    in_lidar = np.array([4.0, -1.0, 0.5])
    matrices = [np.linalg.inv(MAST_FROM_CAMERA.matrix), np.linalg.inv(BASE_FROM_MAST.matrix), BASE_FROM_LIDAR.matrix]
    expected = (np.linalg.multi_dot(matrices) @ [*in_lidar, 1.0])[:3]
    np.testing.assert_allclose(static_tree.find("camera", "lidar").transform(in_lidar), expected)


def test_a_frame_is_itself_even_when_unknown(static_tree):
    assert_same(static_tree.find_static("camera", "camera"), Pose.identity())
    assert_same(TransformTree().find_static("anything", "anything"), Pose.identity())


def test_leading_slashes_do_not_matter(static_tree):
    assert_same(static_tree.find("/base_link", "/lidar"), BASE_FROM_LIDAR)
    static_tree.add("/base_link", "/radar", BASE_FROM_LIDAR)
    assert_same(static_tree.find("base_link", "radar"), BASE_FROM_LIDAR)


def test_the_newest_static_transform_of_a_frame_replaces_the_older(static_tree):
    static_tree.add("mast", "lidar", MAST_FROM_CAMERA)
    assert_same(static_tree.find("base_link", "lidar"), BASE_FROM_MAST @ MAST_FROM_CAMERA)


def test_frames_that_are_not_connected_are_none_or_an_error_that_lists_the_known(static_tree):
    assert static_tree.find_static("camera", "other") is None
    with pytest.raises(DataError, match="from other to camera; above other: other_root; frames known: base_link, cam"):
        static_tree.find("camera", "other")
    with pytest.raises(DataError, match="frames known: none"):
        TransformTree().find("a", "b")


@pytest.mark.parametrize("frames", [("a", "b"), ("a", "nowhere"), ("nowhere", "a")])
def test_a_loop_in_a_broken_tree_ends(frames):
    tree = TransformTree()
    tree.add("a", "b", BASE_FROM_MAST)
    tree.add("b", "a", BASE_FROM_MAST)
    result = tree.find_static(*frames)
    assert (result is None) == ("nowhere" in frames)


def test_a_path_that_was_missing_or_has_changed_is_found_anew() -> None:
    tree = TransformTree()
    tree.add("map", "base", Pose.from_xyz_rpy([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]))
    assert tree.find_static("map", "camera") is None
    tree.add("base", "camera", Pose.from_xyz_rpy([0.0, 2.0, 0.0], [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(tree.find("map", "camera").position_m, [1.0, 2.0, 0.0])
    tree.add("map", "camera", Pose.from_xyz_rpy([0.0, 0.0, 3.0], [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(tree.find("map", "camera").position_m, [0.0, 0.0, 3.0])
    np.testing.assert_allclose(tree.find("base", "camera").position_m, [-1.0, 0.0, 3.0])


def test_an_error_names_no_more_than_twenty_of_many_frames() -> None:
    tree = TransformTree()
    for number in range(200):
        tree.add("base", f"link_{number:03d}", Pose.identity())
    with pytest.raises(DataError, match=r"frames known: base, link_000, .*link_018, and 181 more$"):
        tree.find("map", "base")


def test_a_removed_transform_is_unknown(static_tree):
    assert static_tree.find_static("base_link", "camera") is not None
    static_tree.remove("base_link", "/mast")
    static_tree.remove("base_link", "mast")
    assert static_tree.find_static("base_link", "camera") is None
    static_tree.add("base_link", "mast", BASE_FROM_MAST)
    expected = BASE_FROM_MAST @ MAST_FROM_CAMERA
    np.testing.assert_allclose(static_tree.find_static("base_link", "camera").matrix, expected.matrix, atol=1e-12)
