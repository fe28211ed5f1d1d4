# SPDX-License-Identifier: Apache-2.0
"""What a bag's topics are used for is said, and names match with or without a leading slash."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from bag_builders import (
    MS,
    T0,
    Message,
    assert_pose,
    calibration,
    clouds,
    images,
    odometry,
    poses,
    source,
    true_pose,
    write_bag,
)
from helpers import yaw_pose
from training.sources.factory import announce, open_all
from training.sources.options import SourceOptions
from vmloc_ros.bags.messages import odometry_message, pose_stamped_message
from vmloc_ros.core.errors import DataError


def slashed(messages: Sequence[Message]) -> list[Message]:
    """Frame names as tf of ROS 1 wrote them."""
    for _, message, _ in messages:
        for part in getattr(message, "transforms", [message]):
            part.header.frame_id = f"/{part.header.frame_id}"
            if hasattr(part, "child_frame_id"):
                part.child_frame_id = f"/{part.child_frame_id}"
    return list(messages)


def words(opened) -> str:
    return "\n".join([*opened.choices, *opened.doubts])


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_slashes_before_frames_make_no_difference(tmp_path: Path, slash: str) -> None:
    path = write_bag(tmp_path / "bag", *(slashed(part) for part in (images(), clouds(), poses(), calibration())))
    opened = source(path, body_frame=f"{slash}base_link")
    assert (opened.map_frame, opened.body_frame) == ("map", "base_link")
    assert opened.sensor_frames == {"image": "camera_optical_frame", "lidar": "lidar_link"}
    assert set(opened.mounts) == {"image", "lidar"}
    assert "/camera_optical_frame" not in words(opened)


def test_topics_are_found_without_their_slash(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration())
    names = {"image_topic": "camera/image_raw", "cloud_topic": "lidar/points", "pose_topic": "ground_truth/pose"}
    opened = source(path, camera_info_topic="camera/camera_info", **names)
    assert len(list(opened)) == 10
    with pytest.raises(DataError, match=r"no image topic camera/image; it has /camera/camera_info \(sensor_msgs/"):
        source(path, image_topic="camera/image")


# --- what is used ------------------------------------------------------------------------------------------------


def test_topics_and_frames_in_use_and_poses_not_in_use_are_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), odometry(), calibration())
    with caplog.at_level(logging.INFO):
        open_all([path], "all", SourceOptions(), ("image", "lidar"))
    first, second, third = caplog.messages
    assert first.startswith(
        "bag: image /camera/image_raw (sensor_msgs/msg/Image, 10, 4.61 per second, camera_optical_frame), "
        "lidar /lidar/points (sensor_msgs/msg/PointCloud2, 10, 4.61 per second, lidar_link), "
        "camera info /camera/camera_info (sensor_msgs/msg/CameraInfo, 1)"
    )
    assert second.startswith(
        "bag: poses of base_link in map from /ground_truth/pose (geometry_msgs/msg/PoseStamped, 32, "
    )
    assert "; others, which source.pose_topic would choose: /odom (nav_msgs/msg/Odometry, 42, " in second
    assert third == "bag: 10 frames, 10 paired"


def test_what_a_cached_index_says_is_what_it_said_at_first(tmp_path: Path) -> None:
    from training.sources.rosbag.source import RosbagSource

    path = write_bag(tmp_path / "bag", images(), odometry(), calibration())
    first, second = (RosbagSource(path, SourceOptions(), ("image",), "all", tmp_path / "index") for _ in range(2))
    assert words(first) == words(second)
    assert first.doubts


def test_several_candidates_are_listed_with_what_tells_them_apart(tmp_path: Path) -> None:
    rear = images(5, topic="/rear/image_raw")
    path = write_bag(tmp_path / "bag", images(), rear, poses(), poses(topic="/gps/pose", step=140 * MS))
    with pytest.raises(
        DataError,
        match=r"several image topics: /camera/image_raw \(sensor_msgs/msg/Image, 10, .* per second, frame "
        r"camera_optical_frame\), /rear/image_raw \(.*, 5, .* per second, frame .*\); set source\.image_topic, such "
        r"as --set source\.image_topic=/camera/image_raw",
    ):
        source(path, ("image",))
    with pytest.raises(
        DataError, match=r"several pose topics: /gps/pose \(geometry_msgs/msg/PoseStamped, 32, .* frame map"
    ):
        source(path, ("image",), image_topic="/rear/image_raw")


# --- odometry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odometry", "pose in odom"])
def test_odometry_that_is_taken_for_the_truth_is_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [T0 + i * 50 * MS for i in range(-2, 40)]
    found = {
        "odometry": odometry(child="base_link"),
        "pose in odom": [("/odom", pose_stamped_message(t, "/odom", true_pose(t)), t) for t in stamps],
    }[name]
    path = write_bag(tmp_path / "bag", images(), found, calibration())
    announce([source(path, ("image",))])
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert re.match(r"bag: the true poses are those of /odom \(.*, odom -> base_link\), the only ones", warning)
    assert warning.endswith("if these do not drift, confirm them: --set source.pose_topic=/odom")
    assert not source(path, ("image",), pose_topic="/odom").doubts


def test_one_doubt_about_many_bags_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bags = [write_bag(tmp_path / name, images(), odometry(), calibration()) for name in ("a", "b")]
    open_all(bags, "all", SourceOptions(), ("image",))
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("a, b: the true poses are those of /odom")


def test_two_publishers_of_one_odometry_are_refused_where_it_is_used(tmp_path: Path) -> None:
    moved = [
        (topic, odometry_message(t, "odom", "base_footprint", yaw_pose(100.0, 0.0, 0.0) @ true_pose(t)), t)
        for topic, _, t in odometry()
    ]
    path = write_bag(tmp_path / "bag", images(), odometry(), moved, poses())
    with pytest.raises(DataError, match=r"/odom: its poses alternate between two tracks, 100\.0 m apart"):
        source(path, ("image",), pose_topic="/odom")
    assert_pose(source(path, ("image",)).poses()[3], true_pose(T0 + 300 * MS))
