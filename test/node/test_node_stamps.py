# SPDX-License-Identifier: Apache-2.0
"""Pictures with false stamps over real DDS: the true ones alone get poses, and the diagnostics count the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ros_graph import localizer_of_the_node, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticStatus

from image_node import (
    NODE,
    assert_are_of,
    in_distribution_frames,
    poses_for,
    send,
    stamps_on,
    started,
    statuses,
    values_of,
)

pytestmark = pytest.mark.usefixtures("ros_domain")

SECOND = 1_000_000_000


def test_true_pictures_alone_get_poses_and_the_others_are_counted(confidence_checkpoint, tmp_path):
    """Of 24 pictures one is an hour ahead, one an hour back, two are stamped 0 and two in a row are 3 s ahead."""
    frames = in_distribution_frames(24)
    departures = {5: 3600 * SECOND, 9: -3600 * SECOND, 12: None, 13: None, 17: 3 * SECOND, 18: 3 * SECOND}
    sent = [
        replace(frame, stamp_ns=0 if departures.get(i, 0) is None else frame.stamp_ns + departures.get(i, 0))
        for i, frame in enumerate(frames)
    ]
    true = [frame for i, frame in enumerate(frames) if i not in departures]
    with started(confidence_checkpoint, tmp_path, min_confidence=0.0) as (us, _):
        send(us, sent)
        poses = poses_for(us, true)
        assert_are_of(poses, true, localizer_of_the_node(confidence_checkpoint))
        wait_until(lambda: values_of(us).get("false stamps image") == "6", "their count")
        wait_until(lambda: values_of(us).get("poses published") == str(len(true)), "the count of poses")
        assert stamps_on(us, f"{NODE}/pose") == [frame.stamp_ns for frame in true]
        assert values_of(us)["pairing: resets"] == values_of(us)["pairing: late"] == "0"
        found = [status.message for status in statuses(us) if "false stamp" in status.message]
        assert any("/camera/image_raw: " in message and "set header.stamp" in message for message in found)


def test_a_camera_that_never_sets_its_stamp_is_named_in_place_of_waiting_for_data(confidence_checkpoint, tmp_path):
    unset = [replace(frame, stamp_ns=0) for frame in in_distribution_frames(10)]
    with started(confidence_checkpoint, tmp_path) as (us, _):
        send(us, unset)

        def named() -> list[DiagnosticStatus]:
            return [
                status for status in statuses(us) if "stamped 0 (the driver must set header.stamp)" in status.message
            ]

        assert wait_until(named, "the diagnostic")[0].level == DiagnosticStatus.ERROR
        assert named()[0].message.startswith("no pose: /camera/image_raw: ")
        wait_until(lambda: values_of(us).get("false stamps image") == "10", "their count")
        assert not us.received[f"{NODE}/pose"]
