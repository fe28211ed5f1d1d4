# SPDX-License-Identifier: Apache-2.0
"""map -> odom while odometry is late or missing, and repeated; the node is a mock."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.ros import tf_broadcaster
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.tf_broadcaster import create_broadcaster

SECOND_NS = 1_000_000_000
MAP_FROM_BASE = Pose.from_xyz_rpy([5.0, -3.0, 1.0], [0.1, 0.0, 2.0])
ODOM_FROM_BASE = Pose.from_xyz_rpy([1.0, 2.0, 0.0], [0.0, 0.2, -1.0])
MAP_FROM_ODOM = MAP_FROM_BASE.matrix @ np.linalg.inv(ODOM_FROM_BASE.matrix)


class World:
    """A mock of a node with its clocks and publisher, and odometry that is known at stamps ``known_ns``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parameters) -> None:
        self.now_ns, self.steady_s, self.known_ns, self.sent = 100 * SECOND_NS, 0.0, set(), []
        self.node, timers = MagicMock(), []
        self.node.create_publisher.side_effect = lambda msg_type, topic, qos: SimpleNamespace(
            msg_type=msg_type, publish=lambda message: self.sent.extend(message.transforms)
        )
        self.node.get_clock().now.side_effect = lambda: SimpleNamespace(nanoseconds=self.now_ns)
        self.node.create_timer.side_effect = lambda period, callback, **_: timers.append(callback)
        monkeypatch.setattr(tf_broadcaster, "time", SimpleNamespace(monotonic=lambda: self.steady_s))
        config = NodeConfig(tf_mode="map_to_odom", transform_tolerance_s=0.5, **parameters)
        self.broadcaster = create_broadcaster(self.node, config, "map", "base_link", SimpleNamespace(at=self.at))
        self.poll, *repeat = timers
        self.repeat = repeat[0] if repeat else None

    def at(self, stamp_ns: int) -> Pose:
        if stamp_ns not in self.known_ns:
            raise DataError(f"no odometry at {stamp_ns}")
        return ODOM_FROM_BASE

    def fix(self, stamp_ns: int) -> None:
        self.broadcaster.fix(stamp_ns, MAP_FROM_BASE)

    def sent_stamps(self) -> list[int]:
        for transform in self.sent:
            assert (transform.header.frame_id, transform.child_frame_id) == ("map", "odom")
            np.testing.assert_allclose(decode_pose(transform).matrix, MAP_FROM_ODOM, atol=1e-12)
        return [stamp_ns(transform.header) for transform in self.sent]

    def counts(self) -> tuple[int, int]:
        return self.broadcaster.published, self.broadcaster.withheld


def test_a_fix_waits_until_the_odometry_reaches_its_stamp(monkeypatch):
    world = World(monkeypatch)
    world.fix(10)
    world.poll()
    assert world.sent_stamps() == []
    world.known_ns = {10}
    world.poll()
    world.poll()
    assert world.sent_stamps() == [10 + SECOND_NS // 2]
    assert (world.counts(), world.broadcaster.problem) == ((1, 0), None)


def test_stamps_of_transforms_never_go_back_when_odometry_skips_a_fix(monkeypatch):
    world = World(monkeypatch)
    world.known_ns = {20, 30}
    for stamp in (10, 20, 30):
        world.fix(stamp)
    world.known_ns = {10, 20, 30}
    world.poll()
    assert world.sent_stamps() == [20 + SECOND_NS // 2, 30 + SECOND_NS // 2]
    assert world.counts() == (2, 1)


def test_a_fix_that_waited_too_long_is_withheld_with_a_problem_until_the_next_one(monkeypatch):
    world = World(monkeypatch)
    world.fix(10)
    world.steady_s = 5.0
    world.poll()
    assert world.broadcaster.problem == "no TF map -> odom: no odometry at 10"
    assert "no odometry at 10" in world.node.get_logger().warning.call_args.args[0]
    world.known_ns = {10, 20}
    world.poll()
    assert world.sent_stamps() == []
    world.fix(20)
    assert (world.counts(), world.broadcaster.problem) == ((1, 1), None)


@pytest.mark.parametrize(("after_s", "repeated"), [(0.0, True), (2.9, True), (3.1, False), (-1.0, False)])
def test_the_latest_is_repeated_with_current_stamps_until_the_timeout(after_s, repeated, monkeypatch):
    world = World(monkeypatch, tf_rate_hz=10.0, tf_timeout_s=3.0)
    world.repeat()  # nothing before the first fix
    world.known_ns = {10}
    world.fix(10)
    assert world.sent_stamps() == [world.now_ns + SECOND_NS // 2]
    world.now_ns += round(after_s * SECOND_NS)
    world.repeat()
    assert world.sent_stamps()[1:] == [world.now_ns + SECOND_NS // 2] * repeated


def test_after_a_reset_nothing_is_published_before_the_next_fix(monkeypatch):
    world = World(monkeypatch, tf_rate_hz=10.0)
    world.known_ns = {10}
    world.fix(10)
    world.fix(20)
    world.broadcaster.reset()
    world.known_ns = {20}
    world.poll()
    world.repeat()
    assert len(world.sent_stamps()) == 1
