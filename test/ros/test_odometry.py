# SPDX-License-Identifier: Apache-2.0
"""Odometry from a topic, and its errors."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from vmloc_ros.bags.messages import odometry_message
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.ros.odometry import create_odometry
from vmloc_ros.ros.parameters import NodeConfig

STAMP_NS = 1_700_000_000_000_000_000
ODOM_FROM_CHILD = Pose.from_xyz_rpy([1.0, -2.0, 0.5], [0.0, 0.1, 1.0])
CHILD_FROM_BASE = Pose.from_xyz_rpy([0.0, 0.3, 0.1], [0.2, 0.0, 0.0])


@pytest.fixture
def subscribed():
    """A source on ``/odom``, its TF lookup and its subscription's callback."""
    lookup, node = MagicMock(hint=""), MagicMock()
    source = create_odometry(NodeConfig(odometry_topic="/odom"), "base_link", lookup)
    source.subscribe(node)
    return source, lookup, node.create_subscription.call_args.args[2]


def test_odometry_of_the_base_needs_no_tf(subscribed):
    source, lookup, receive = subscribed
    receive(odometry_message(STAMP_NS, "odom", "base_link", ODOM_FROM_CHILD))
    np.testing.assert_allclose(source.at(STAMP_NS).matrix, ODOM_FROM_CHILD.matrix, atol=1e-12)
    lookup.find.assert_not_called()


def test_odometry_of_another_frame_is_transformed_to_the_base_by_tf(subscribed):
    source, lookup, receive = subscribed
    lookup.find.side_effect = lambda target, source: (
        CHILD_FROM_BASE if (target, source) == ("base_footprint", "base_link") else None
    )
    receive(odometry_message(STAMP_NS, "odom", "/base_footprint", ODOM_FROM_CHILD))
    expected = ODOM_FROM_CHILD.matrix @ CHILD_FROM_BASE.matrix
    np.testing.assert_allclose(source.at(STAMP_NS).matrix, expected, atol=1e-12)
    receive(odometry_message(STAMP_NS + 1, "odom", "wheel", ODOM_FROM_CHILD))
    with pytest.raises(DataError, match="/odom has child frame wheel, and TF has no transform from base_link to it"):
        source.at(STAMP_NS + 1)


def test_errors_name_what_is_missing_until_a_valid_message_comes(subscribed):
    source, _, receive = subscribed
    with pytest.raises(DataError, match="/odom: nothing received yet"):
        source.at(STAMP_NS)
    receive(odometry_message(STAMP_NS, "world", "base_link", ODOM_FROM_CHILD))
    with pytest.raises(DataError, match="/odom: its frame is 'world', expected 'odom'; correct parameter odom_frame"):
        source.at(STAMP_NS)
    broken = odometry_message(STAMP_NS, "odom", "base_link", ODOM_FROM_CHILD)
    broken.pose.pose.position.x = float("nan")
    receive(broken)
    with pytest.raises(DataError, match="/odom: invalid pose"):
        source.at(STAMP_NS)
    receive(odometry_message(STAMP_NS, "odom", "base_link", ODOM_FROM_CHILD))
    source.at(STAMP_NS)
    with pytest.raises(DataError, match=r"/odom: the latest is 2\.000 s older than the image's stamp"):
        source.at(STAMP_NS + 2_000_000_000)


@pytest.mark.parametrize(("parameter", "written"), [("/odom", "odom"), ("odom", "/odom"), ("/odom", "/odom")])
def test_frames_compare_without_leading_slashes(parameter, written):
    node = MagicMock()
    source = create_odometry(NodeConfig(odometry_topic="/odom", odom_frame=parameter), "base_link", MagicMock())
    source.subscribe(node)
    receive = node.create_subscription.call_args.args[2]
    receive(odometry_message(STAMP_NS, written, "/base_link", ODOM_FROM_CHILD))
    np.testing.assert_allclose(source.at(STAMP_NS).matrix, ODOM_FROM_CHILD.matrix, atol=1e-12)


def test_two_publishers_are_named(subscribed):
    source, _, receive = subscribed
    source._node.get_publishers_info_by_topic.return_value = [
        SimpleNamespace(node_name="ekf", node_namespace="/"),
        SimpleNamespace(node_name="base", node_namespace="/robot"),
    ]
    other = Pose.from_xyz_rpy([101.0, -2.0, 0.5], [0.0, 0.1, 1.0])
    for i in range(10):
        for pose in (ODOM_FROM_CHILD, other):
            receive(odometry_message(STAMP_NS + i * 20_000_000, "odom", "base_link", pose))
    with pytest.raises(
        DataError, match=r"/odom: the odometry jumped by 100\.0 m .*; its publishers: /robot/base, ekf$"
    ):
        source.at(STAMP_NS + 180_000_000)
