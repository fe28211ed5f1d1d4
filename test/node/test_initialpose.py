# SPDX-License-Identifier: Apache-2.0
"""Forwarding one confident pose to the subscribers of /initialpose."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest

from ros_graph import peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")

from geometry_msgs.msg import PoseWithCovarianceStamped

from vmloc_ros.initialpose import planar_std

pytestmark = pytest.mark.usefixtures("ros_domain")

POSES, INITIAL = "/vmloc_node/pose_with_covariance", "/initialpose"


def arguments(**parameters) -> list[str]:
    settings = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    return ["-m", "vmloc_ros.initialpose", "--ros-args", *settings]


def pose(x_m: float, position_std_m: float, yaw_std_rad: float) -> PoseWithCovarianceStamped:
    message = PoseWithCovarianceStamped()
    message.header.frame_id = "map"
    message.header.stamp.sec = round(x_m)
    message.pose.pose.position.x = x_m
    message.pose.covariance = np.diag([position_std_m**2] * 3 + [1.0, 1.0, yaw_std_rad**2]).ravel()
    return message


def test_the_planar_standard_deviation_is_that_of_the_worst_direction():
    """A covariance with standard deviations of 2 m along 30 degrees and 0.5 m across."""
    angle = math.radians(30)
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    covariance = np.diag([0.0, 0.0, 99.0, 99.0, 99.0, 0.04])
    covariance[:2, :2] = axes @ np.diag([4.0, 0.25]) @ axes.T
    assert planar_std(covariance) == pytest.approx((2.0, 0.2))
    for broken in (math.nan, -1.0):
        covariance[0, 0] = covariance[5, 5] = broken
        assert math.isnan(planar_std(covariance)[1])


def test_the_first_confident_pose_is_forwarded_unchanged_and_the_node_ends(tmp_path):
    with peer() as us, running(arguments(max_position_std_m=0.5, max_yaw_std_rad=0.1), tmp_path / "log") as helper:
        poses = us.publisher(PoseWithCovarianceStamped, POSES)
        received = us.collect(PoseWithCovarianceStamped, INITIAL)
        us.wait_for_peers([POSES], [INITIAL])
        for unsure in (pose(1.0, 0.6, 0.05), pose(2.0, 0.4, 0.11), pose(3.0, 0.0, 0.05), pose(4.0, math.nan, 0.05)):
            poses.publish(unsure)
        helper.wait_for_output("waiting for a confident pose: standard deviation 0.60 m, 0.05 rad")
        sure = pose(5.0, 0.4, 0.05)

        def is_forwarded():
            poses.publish(sure)
            return helper.is_dead

        wait_until(is_forwarded, "the end")
        assert helper.wait() == 0
        wait_until(lambda: received, "the pose")
        assert received == [sure]
        helper.wait_for_output(
            r"published on /initialpose: x 5\.00 m, y 0\.00 m in map, standard deviation 0\.40 m, 0\.05 rad"
        )


def test_without_a_subscriber_no_pose_is_forwarded(tmp_path):
    with peer() as us, running(arguments(), tmp_path / "log") as helper:
        poses = us.publisher(PoseWithCovarianceStamped, POSES)
        us.wait_for_peers([POSES])
        poses.publish(pose(1.0, 0.1, 0.01))
        helper.wait_for_output("waiting for a subscriber of /initialpose")
        received = us.collect(PoseWithCovarianceStamped, INITIAL)
        us.wait_for_peers(published=[INITIAL])

        def is_forwarded():
            poses.publish(pose(2.0, 0.1, 0.01))
            return helper.is_dead

        wait_until(is_forwarded, "the end")
        wait_until(lambda: received, "the pose")
        assert received == [pose(2.0, 0.1, 0.01)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_waits(number, tmp_path):
    with peer() as us, running(arguments(), tmp_path / "log") as helper:
        us.publisher(PoseWithCovarianceStamped, POSES)
        us.wait_for_peers([POSES])
        assert helper.interrupt(number) == 0
        assert "Traceback" not in helper.output


@pytest.mark.parametrize("value", ["-1.0", "[1.0]"])
def test_an_invalid_limit_ends_the_node_with_one_line(value, tmp_path):
    with running(arguments(max_yaw_std_rad=value), tmp_path / "log") as helper:
        assert helper.wait() == 1
        helper.wait_for_output("parameter max_yaw_std_rad is wrong")
        assert len(helper.output.splitlines()) == 1
