# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.transform_tree import StaticTransformTree

BASE_FROM_MAST = Pose.from_xyz_rpy([0.1, 0.2, 1.0], [0.0, 0.1, 0.5])
MAST_FROM_CAMERA = Pose.from_xyz_rpy([0.3, 0.0, 0.2], [-1.5, 0.0, -1.5])
BASE_FROM_LIDAR = Pose.from_xyz_rpy([0.0, 0.0, 1.8], [0.0, 0.0, 3.0])


@pytest.fixture
def tree() -> StaticTransformTree:
    tree = StaticTransformTree()
    tree.add("mast", "camera", MAST_FROM_CAMERA)
    tree.add("base_link", "mast", BASE_FROM_MAST)
    tree.add("base_link", "lidar", BASE_FROM_LIDAR)
    tree.add("other_root", "other", Pose.identity())
    return tree


def assert_same(actual: Pose | None, expected: Pose) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.matrix, expected.matrix, atol=1e-12)


def test_chains_are_followed_up_and_down(tree: StaticTransformTree) -> None:
    base_from_camera = BASE_FROM_MAST @ MAST_FROM_CAMERA
    assert_same(tree.lookup("base_link", "camera"), base_from_camera)
    assert_same(tree.lookup("camera", "base_link"), base_from_camera.inverse())
    assert_same(tree.lookup("camera", "lidar"), base_from_camera.inverse() @ BASE_FROM_LIDAR)
    assert_same(tree.lookup("mast", "lidar"), BASE_FROM_MAST.inverse() @ BASE_FROM_LIDAR)


def test_a_point_keeps_its_place_on_the_way_from_one_sensor_to_another(tree: StaticTransformTree) -> None:
    in_lidar = np.array([4.0, -1.0, 0.5])
    matrices = [np.linalg.inv(MAST_FROM_CAMERA.matrix), np.linalg.inv(BASE_FROM_MAST.matrix), BASE_FROM_LIDAR.matrix]
    expected = (np.linalg.multi_dot(matrices) @ [*in_lidar, 1.0])[:3]
    np.testing.assert_allclose(tree.lookup("camera", "lidar").transform(in_lidar), expected)


def test_a_frame_is_itself_even_when_unknown(tree: StaticTransformTree) -> None:
    assert_same(tree.find("camera", "camera"), Pose.identity())
    assert_same(StaticTransformTree().find("anything", "anything"), Pose.identity())


def test_leading_slashes_do_not_matter(tree: StaticTransformTree) -> None:
    assert_same(tree.lookup("/base_link", "/lidar"), BASE_FROM_LIDAR)
    tree.add("/base_link", "/radar", BASE_FROM_LIDAR)
    assert_same(tree.lookup("base_link", "radar"), BASE_FROM_LIDAR)


def test_the_newest_transform_of_a_frame_replaces_the_older(tree: StaticTransformTree) -> None:
    tree.add("mast", "lidar", MAST_FROM_CAMERA)
    assert_same(tree.lookup("base_link", "lidar"), BASE_FROM_MAST @ MAST_FROM_CAMERA)


def test_frames_that_are_not_connected_are_none_or_an_error_that_lists_the_known(tree: StaticTransformTree) -> None:
    assert tree.find("camera", "other") is None
    with pytest.raises(
        DataError, match="no static transform from 'other' to 'camera'; frames known: base_link, camera,"
    ):
        tree.lookup("camera", "other")
    with pytest.raises(DataError, match="frames known: none"):
        StaticTransformTree().lookup("a", "b")


@pytest.mark.parametrize("frames", [("a", "b"), ("a", "nowhere"), ("nowhere", "a")])
def test_a_loop_in_a_broken_tree_ends(frames: tuple[str, str]) -> None:
    tree = StaticTransformTree()
    tree.add("a", "b", BASE_FROM_MAST)
    tree.add("b", "a", BASE_FROM_MAST)
    result = tree.find(*frames)
    assert (result is None) == ("nowhere" in frames)
