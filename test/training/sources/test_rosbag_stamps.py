# SPDX-License-Identifier: Apache-2.0
"""Bags whose headers are stamped 0, by another clock, or ahead for a while: true frames and labels alone are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bag_builders import (
    MS,
    T0,
    Message,
    assert_pose,
    calibration,
    clouds,
    images,
    poses,
    source,
    true_pose,
    write_bag,
)
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.messages import pose_stamped_message, tf_message
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.messages import stamp_ns

SECOND = 1_000 * MS
HOUR = 3_600 * SECOND
COUNT = 60
TOPICS = {"image": "/camera/image_raw", "lidar": "/lidar/points", "pose": "/ground_truth/pose"}


def set_stamp(message: Any, stamp: int) -> None:
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)


def recorded(name: str, change: Callable[[int], int | None]) -> tuple[list[list[Message]], list[int]]:
    """A drive of 6 s in which some stamps of a topic depart by ``change(time since the start in ms)``; None is 0.

    Returns:
        The streams, and the true stamps of the messages that were given false ones.
    """
    streams = [images(COUNT), clouds(COUNT), poses(last=90), calibration()]
    false = []
    for topic, message, stamp in [row for rows in streams for row in rows]:
        if topic != TOPICS[name]:
            continue
        departure = change((stamp - T0) // MS)
        if departure != 0:
            false.append(stamp)
            set_stamp(message, 0 if departure is None else stamp + departure)
    return streams, false


FALSE: dict[str, Callable[[int], int | None]] = {
    "zero now and then": lambda ms: None if ms // 100 % 20 == 5 else 0,
    "an hour ahead": lambda ms: HOUR if 1000 <= ms < 1070 else 0,
    "an hour ahead at first": lambda ms: HOUR if ms < 70 else 0,
    "an hour ahead at last": lambda ms: HOUR if ms > 5850 else 0,
    "ahead by 3 s for 2 s": lambda ms: 3 * SECOND if 2000 <= ms < 4000 else 0,
    "back by 5 s for 1 s": lambda ms: -5 * SECOND if 3000 <= ms < 4000 else 0,
    "alternating": lambda ms: 40 * SECOND if ms // 10 % 3 == 1 else 0,
    "uptime now and then": lambda ms: 77 * SECOND - T0 if 2000 <= ms < 2300 else 0,
}
every_kind = pytest.mark.parametrize("kind", FALSE)


def pictures_and_scans(opened: RosbagSource) -> dict[int, tuple[int | None, int | None]]:
    """Numbers of the picture and of the scan in each frame, by stamp."""
    return {
        sample.frame.stamp_ns: (
            None if sample.frame.image is None else int(sample.frame.image[0, 0, 0]),
            None if sample.frame.cloud is None else round(float(sample.frame.cloud.xyz_m[0, 0])) - 1,
        )
        for sample in opened
    }


@every_kind
def test_pictures_with_a_false_stamp_make_no_frames_and_the_others_are_as_ever(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    streams, false = recorded("image", FALSE[kind])
    opened = source(write_bag(tmp_path / "bag", *streams))
    assert opened.report["image with a false stamp"] == len(false) > 0
    true = [i for i in range(COUNT) if T0 + i * 100 * MS not in false]
    frames = pictures_and_scans(opened)
    assert {t: frame for t, frame in frames.items() if frame[0] is not None} == {
        T0 + i * 100 * MS: (i, i) for i in true
    }
    # While the camera is silent, scans go on alone.
    assert all(t == T0 + frame[1] * 100 * MS + 30 * MS for t, frame in frames.items() if frame[0] is None)
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))
    assert caplog.text.count(f"/camera/image_raw: {len(false)} of {COUNT} messages ha") == 1


@every_kind
def test_scans_with_a_false_stamp_are_left_out_and_the_pictures_go_on(kind: str, tmp_path: Path) -> None:
    streams, false = recorded("lidar", FALSE[kind])
    opened = source(write_bag(tmp_path / "bag", *streams), slop_s=0.04)
    assert opened.report["lidar with a false stamp"] == len(false) > 0
    lost = {(stamp - T0) // (100 * MS) for stamp in false}
    assert pictures_and_scans(opened) == {T0 + i * 100 * MS: (i, None if i in lost else i) for i in range(COUNT)}


@every_kind
def test_poses_with_a_false_stamp_label_nothing_and_the_others_label_every_frame(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    streams, false = recorded("pose", FALSE[kind])
    for row in streams[2]:
        if row[2] in false:  # a false stamp comes with a pose that is true at another time
            row[1].pose.position.x += 100.0
    opened = source(write_bag(tmp_path / "bag", *streams), pose_gap_s=2.5)
    assert opened.report["poses with a false stamp"] == len(false) > 0
    assert opened.report["poses after the clock jumped back"] == 0
    assert len(opened) >= COUNT - (3 if "first" in kind or "last" in kind else 0)
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        # Across 2 s without a pose the interpolation is straight, the drive is not: it turns by 60 deg.
        np.testing.assert_allclose(pose.position_m, true_pose(stamp).position_m, atol=1e-6)
    assert caplog.text.count(f"/ground_truth/pose: {len(false)} of {len(streams[2])} messages ha") == 1


def test_nothing_is_labelled_across_poses_that_were_dropped(tmp_path: Path) -> None:
    streams, _ = recorded("pose", FALSE["ahead by 3 s for 2 s"])
    opened = source(write_bag(tmp_path / "bag", *streams))
    assert opened.report["frames in a gap between poses"] == 21
    assert not [stamp for stamp in opened.stamps_ns() if 2000 * MS <= stamp - T0 <= 4000 * MS]


def test_a_transform_of_a_false_stamp_costs_no_more_than_itself(tmp_path: Path) -> None:
    stamps = [T0 + i * 70 * MS for i in range(-2, 90)]
    false = {20: HOUR, 40: -T0}
    transforms = [
        ("/tf", tf_message([("map", "base_link", true_pose(t), t + false.get(i, 0))]), t) for i, t in enumerate(stamps)
    ]
    opened = source(write_bag(tmp_path / "bag", images(COUNT), transforms), ("image",), pose_topic="/tf")
    assert opened.report["poses with a false stamp"] == 2
    assert len(opened) == COUNT
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))


@pytest.mark.parametrize("name", ["image", "lidar", "pose"])
def test_a_topic_that_was_never_stamped_is_rejected_with_the_remedy(name: str, tmp_path: Path) -> None:
    streams, false = recorded(name, lambda ms: None)
    path = write_bag(tmp_path / "bag", *streams)
    with pytest.raises(
        DataError, match=rf"bag: {TOPICS[name]}: all {len(false)} messages are stamped 0.*source\.stamps=log"
    ):
        source(path)


@pytest.mark.parametrize("name", ["image", "pose"])
def test_log_times_may_take_the_place_of_stamps(name: str, tmp_path: Path) -> None:
    streams, _ = recorded(name, lambda ms: None)
    opened = source(write_bag(tmp_path / "bag", *streams), stamps="log")
    assert pictures_and_scans(opened) == {T0 + i * 100 * MS: (i, i) for i in range(COUNT)}
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))


def test_sensors_of_different_clocks_are_named_and_log_times_pair_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    streams, _ = recorded("lidar", lambda ms: 300 * SECOND - T0)
    path = write_bag(tmp_path / "bag", *streams)
    assert source(path).report["paired"] == 0
    assert f"/camera/image_raw and /lidar/points are stamped by different clocks, {T0 / 1e9 - 300:.1f} s" in caplog.text
    assert source(path, stamps="log").report["paired"] == COUNT


def test_stamps_are_judged_alike_where_log_times_are_all_equal(tmp_path: Path) -> None:
    streams, false = recorded("image", FALSE["ahead by 3 s for 2 s"])
    equal = [[(topic, message, T0) for topic, message, _ in sorted(rows, key=lambda row: row[2])] for rows in streams]
    opened = source(write_bag(tmp_path / "bag", *equal), ("image",))
    assert opened.report["image with a false stamp"] == len(false) == 20
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in range(COUNT) if not 20 <= i < 40]


def test_an_index_remembers_the_false_stamps(tmp_path: Path) -> None:
    streams, false = recorded("image", FALSE["an hour ahead"])
    path = write_bag(tmp_path / "bag", *streams)
    first, again = (RosbagSource(path, SourceOptions(), ("image",), index_folder=tmp_path / "i") for _ in range(2))
    assert first.report == again.report
    assert pictures_and_scans(first) == pictures_and_scans(again)
    assert len(again) == COUNT - len(false)


def test_a_message_stamped_0_beside_one_logged_at_the_same_time_costs_no_more_than_itself(tmp_path: Path) -> None:
    unset = [("/ground_truth/pose", pose_stamped_message(0, "map", true_pose(T0)), stamp) for _, _, stamp in poses()]
    opened = source(write_bag(tmp_path / "bag", images(), poses(), unset), ("image",))
    assert opened.report["poses with a false stamp"] == len(unset)
    assert len(opened) == 10
    assert stamp_ns(unset[0][1].header) == 0
