# SPDX-License-Identifier: Apache-2.0
"""Odometry by topic, and what is said when it does not fit."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from vmloc_ros.bags.files import odometry_message
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.ros.odometry import create_odometry
from vmloc_ros.ros.parameters import NodeConfig

STAMP_NS = 1_700_000_000_000_000_000
ODOM_FROM_CHILD = Pose.from_xyz_rpy([1.0, -2.0, 0.5], [0.0, 0.1, 1.0])
CHILD_FROM_BASE = Pose.from_xyz_rpy([0.0, 0.3, 0.1], [0.2, 0.0, 0.0])


@pytest.fixture
def heard():
    """A source on ``/odom``, its TF lookup, and how it is given a message."""
    lookup, node = MagicMock(), MagicMock()
    source = create_odometry(NodeConfig(odometry_topic="/odom"), "base_link", lookup)
    source.subscribe(node)
    return source, lookup, node.create_subscription.call_args.args[2]


def test_odometry_of_the_base_needs_no_tf(heard):
    source, lookup, receive = heard
    receive(odometry_message(STAMP_NS, "odom", "base_link", ODOM_FROM_CHILD))
    np.testing.assert_allclose(source.at(STAMP_NS).matrix, ODOM_FROM_CHILD.matrix, atol=1e-12)
    lookup.find.assert_not_called()


def test_odometry_of_another_frame_is_carried_to_the_base_by_tf(heard):
    source, lookup, receive = heard
    lookup.find.side_effect = lambda target, source: (
        CHILD_FROM_BASE if (target, source) == ("base_footprint", "base_link") else None
    )
    receive(odometry_message(STAMP_NS, "odom", "/base_footprint", ODOM_FROM_CHILD))
    expected = ODOM_FROM_CHILD.matrix @ CHILD_FROM_BASE.matrix
    np.testing.assert_allclose(source.at(STAMP_NS).matrix, expected, atol=1e-12)
    receive(odometry_message(STAMP_NS + 1, "odom", "wheel", ODOM_FROM_CHILD))
    with pytest.raises(DataError, match="/odom is of wheel, and TF does not lead from base_link to it"):
        source.at(STAMP_NS + 1)


def test_what_is_missing_is_told_and_forgotten_when_it_is_mended(heard):
    source, _, receive = heard
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
