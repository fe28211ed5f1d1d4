# SPDX-License-Identifier: Apache-2.0
"""Whose poses a bag holds and where sensors are mounted, where messages do not say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bag_builders import (
    BASE_FROM_CAMERA,
    BASE_FROM_LIDAR,
    MS,
    T0,
    Message,
    assert_pose,
    calibration,
    clouds,
    depths,
    images,
    odometry,
    poses,
    source,
    true_pose,
    write_bag,
)
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.messages import tf_message, transform_message
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.geometry import Pose

CAMERA, LIDAR = "camera_optical_frame", "lidar_link"


def static(*edges: tuple[str, str, Pose]) -> list[Message]:
    return [("/tf_static", tf_message([(*edge, T0) for edge in edges]), T0 - 1)]


def repeated(pose_at=lambda _: BASE_FROM_CAMERA) -> list[Message]:
    """Mounts on /tf at 10 Hz, as static_transform_publisher of ROS 1 sent them."""
    stamps = [T0 + i * 100 * MS for i in range(10)]
    return [
        ("/tf", tf_message([("/base_link", f"/{CAMERA}", pose_at(t), t), ("/base_link", LIDAR, BASE_FROM_LIDAR, t)]), t)
        for t in stamps
    ]


def said(opened: RosbagSource) -> str:
    return "\n".join([*opened.choices, *opened.doubts])


# --- whose poses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [[], depths()], ids=["one camera", "camera and depth"])
def test_of_a_lone_camera_without_transforms_the_poses_are_its_own(tmp_path: Path, others: list[Message]) -> None:
    opened = source(write_bag(tmp_path / "bag", images(), others, poses()), ("image",))
    assert opened.body_frame == CAMERA
    assert_pose(opened.mounts["image"], Pose.identity())
    [doubt] = opened.doubts
    assert doubt.startswith(
        f"assumed: the poses of /ground_truth/pose are those of {CAMERA}, the frame of the only sensor"
    )
    assert "x right, y down, z forward (REP-103)" in doubt
    assert "--set source.body_frame=base_link --set source.mounts.image=[x,y,z,roll,pitch,yaw]" in doubt


def test_the_sensors_that_are_not_read_count_too(tmp_path: Path) -> None:
    """A robot with a lidar is no hand-held camera, whichever of its sensors a model takes."""
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    for modalities in (("image",), ("image", "lidar")):
        opened = source(path, modalities)
        assert (opened.body_frame, opened.mounts) == ("base_link", {})
        [doubt] = opened.doubts
        assert "name no frame whose they are, and the recording has no /tf_static" in doubt
        assert f"--set source.body_frame={CAMERA} for instance, of {CAMERA}, {LIDAR}" in doubt
        assert f"where image ({CAMERA})" in said(opened)
        assert "--set source.mounts.image=[x,y,z,roll,pitch,yaw]" in said(opened)


def test_without_base_link_they_are_those_of_the_root_above_all_sensors(tmp_path: Path) -> None:
    mounts = static(("rig", CAMERA, BASE_FROM_CAMERA), ("rig", LIDAR, BASE_FROM_LIDAR))
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), poses(), mounts))
    assert opened.body_frame == "rig"
    assert_pose(opened.mounts["lidar"], BASE_FROM_LIDAR)
    [doubt] = opened.doubts
    assert doubt.startswith("assumed: the poses of /ground_truth/pose are those of rig, the root of /tf_static")
    assert f"of another one of {CAMERA}, {LIDAR}, rig, type it: --set source.body_frame={CAMERA}" in doubt


def test_two_trees_leave_it_open(tmp_path: Path) -> None:
    mounts = static(("rig", CAMERA, BASE_FROM_CAMERA), ("mast", LIDAR, BASE_FROM_LIDAR))
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), poses(), mounts))
    assert (opened.body_frame, opened.mounts) == ("base_link", {})
    assert "/tf_static does not connect all sensors with one frame" in opened.doubts[0]


@pytest.mark.parametrize("body", ["", "base_link", "/base_link"])
def test_base_link_is_no_assumption_where_it_is_known_or_named(tmp_path: Path, body: str) -> None:
    known = source(write_bag(tmp_path / "known", images(), poses(), calibration()), ("image",), body_frame=body)
    assert (known.body_frame, known.doubts) == ("base_link", [])
    if body:
        named = source(write_bag(tmp_path / "bag", images(), poses()), ("image",), body_frame=body)
        assert (named.body_frame, named.mounts, named.doubts) == ("base_link", {}, [])


def test_poses_that_name_the_sensors_own_frame_need_no_mount(tmp_path: Path) -> None:
    stamps = [T0 + i * 50 * MS for i in range(-2, 40)]
    slam = [("/slam", transform_message(t, "map", f"/{CAMERA}", true_pose(t)), t) for t in stamps]
    opened = source(write_bag(tmp_path / "bag", images(), slam), ("image",))
    assert opened.body_frame == CAMERA
    assert_pose(opened.mounts["image"], Pose.identity())
    assert not opened.doubts


def test_odometry_without_a_child_frame_is_treated_like_a_pose(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", images(), odometry(child="")), ("image",), pose_topic="/odom")
    assert opened.body_frame == CAMERA
    assert opened.doubts[0].startswith("assumed: the poses of /odom")


# --- mounts by option --------------------------------------------------------------------------------------------


def test_mounts_by_option_stand_in_for_transforms(tmp_path: Path) -> None:
    camera, lidar = [0.2, 0.0, 1.0, -np.pi / 2, 0.0, -np.pi / 2], [0.0, 0.1, 1.5, 0.0, 0.0, 0.3]
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    opened = source(path, **options(body_frame="base_link", mounts={"image": camera, "lidar": lidar}))
    assert_pose(opened.mounts["image"], BASE_FROM_CAMERA)
    assert_pose(opened.mounts["lidar"], BASE_FROM_LIDAR)
    for sample in opened:
        assert_pose(sample.frame.camera_from_lidar, BASE_FROM_CAMERA.inverse() @ BASE_FROM_LIDAR)
    assert "is not recorded" not in said(opened)


def test_a_mount_by_option_comes_before_the_bags(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration())
    moved = source(path, **options(mounts={"lidar": [1, 2, 3, 0, 0, 0]}))
    assert_pose(moved.mounts["lidar"], Pose.from_xyz_rpy([1, 2, 3], [0, 0, 0]))
    assert_pose(next(iter(moved)).frame.camera_from_lidar, BASE_FROM_CAMERA.inverse() @ moved.mounts["lidar"])
    assert moved.fingerprint() != source(path).fingerprint()


def test_mounts_are_six_numbers() -> None:
    for wrong in ([1, 2, 3], [0, 0, 0, 0, 0, float("inf")], "front"):
        with pytest.raises(ConfigError, match="mounts"):
            options(mounts={"image": wrong})


def options(**values) -> dict:
    """Keyword arguments for ``source``, through the parser of the command line."""
    from training.config import parse_source_options

    parsed = parse_source_options(values, None)
    return {name: getattr(parsed, name) for name in values}


# --- fixed mounts on /tf -----------------------------------------------------------------------------------------


def test_mounts_on_tf_that_never_move_are_static(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), poses(), repeated()))
    assert opened.body_frame == "base_link"
    assert_pose(opened.mounts["image"], BASE_FROM_CAMERA)
    assert_pose(next(iter(opened)).frame.camera_from_lidar, BASE_FROM_CAMERA.inverse() @ BASE_FROM_LIDAR)
    assert f"on /tf they never move: taken as fixed: base_link -> {CAMERA}, base_link -> {LIDAR}" in said(opened)


def test_where_tf_gives_the_poses_its_fixed_transforms_are_mounts_too(tmp_path: Path) -> None:
    stamps = [T0 + i * 50 * MS for i in range(-2, 40)]
    motion = [("/tf", tf_message([("map", "base_link", true_pose(t), t)]), t) for t in stamps]
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), motion, repeated()), pose_topic="/tf")
    assert_pose(opened.mounts["lidar"], BASE_FROM_LIDAR)
    assert_pose(opened.poses()[3], true_pose(T0 + 300 * MS))
    assert "map -> base_link," not in said(opened)


def test_a_head_that_turns_is_no_mount(tmp_path: Path) -> None:
    turning = repeated(lambda t: BASE_FROM_CAMERA @ Pose.from_xyz_rpy([0, 0, 0], [0, 0, (t - T0) * 1e-10]))
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), poses(), turning))
    assert set(opened.mounts) == {"lidar"}
