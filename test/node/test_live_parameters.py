# SPDX-License-Identifier: Apache-2.0
"""Parameters that change while the node runs: effect at the next frame, or refusal with the reason."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from rclpy.parameter import Parameter
from tf2_msgs.msg import TFMessage

from image_node import STARTS_NS, in_distribution_frames, novel_frames
from ros_graph import peer, process_bundle, set_parameter, wait_until
from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, odometry_message
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.ros.parameters import AT_CONFIGURE, NodeConfig, read_config

pytestmark = pytest.mark.usefixtures("ros_domain")

OTHER_VALUES = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x + 0.5, str: lambda x: f"{x}x"}
VALID_VALUES = {
    "modalities": ["image"],
    "image_transport": "compressed",
    "image_kind": "raw",
    "map_origin": [1.0, 2.0, 3.0],
    "base_from_body": [0.0, 0.0, 1.5, 0.0, 0.0, 0.0],
    "camera_from_lidar": [0.0, 0.0, 1.5, 0.0, 0.0, 0.0],
    "continuous": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path, (IMAGE,))
    return path


@pytest.fixture
def node(idle_node, checkpoint):
    """An active node that nothing spins."""
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    assert idle_node.start()
    return idle_node


def process(node, frames: list[Frame]) -> dict:
    """Run images through the node's worker; returns the diagnostics' values."""
    for frame in frames:
        message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
        process_bundle(node, Bundle(frame.stamp_ns, time.monotonic_ns(), {IMAGE: (frame.stamp_ns, message)}))
    return node._session.diagnose()[2]


def images(count: int) -> list[Frame]:
    return in_distribution_frames(count, next(STARTS_NS))


def change(node, **values) -> None:
    result = node.set_parameters_atomically([Parameter(name, value=value) for name, value in values.items()])
    assert result.successful, result.reason


def test_a_confidence_limit_holds_from_the_next_frame_on(idle_node, confidence_checkpoint):
    set_parameter(idle_node, "checkpoint", str(confidence_checkpoint))
    assert idle_node.start()
    change(idle_node, min_confidence=0.0)
    assert process(idle_node, novel_frames(1, next(STARTS_NS)))["poses published"] == 1
    change(idle_node, min_confidence=1.0)
    values = process(idle_node, novel_frames(1, next(STARTS_NS)))
    assert (values["poses published"], values["poses withheld"]) == (1, 1)


def test_a_limit_on_the_covariance_holds_from_the_next_frame_on(node):
    change(node, max_position_std_m=0.9)  # random checkpoints have a residual of 1 m
    assert process(node, images(1))["poses withheld"] == 1
    change(node, max_position_std_m=0.0)
    assert process(node, images(1))["poses published"] == 1


def test_the_transform_of_the_next_frame_follows_mode_and_tolerance(node):
    with peer() as us:
        sent = us.collect(TFMessage, "/tf")
        us.wait_for_peers(published=["/tf"])
        change(node, tf_mode="map_to_odom", odom_frame="odom", transform_tolerance_s=0.25)
        (frame,) = images(1)
        node._resources.odometry = type("Standing", (), {"at": lambda self, stamp_ns: Pose.identity()})()
        node._resources.outputs._broadcaster._odometry = node._resources.odometry
        process(node, [frame])
        wait_until(lambda: sent, "a transform")
        transform = sent[-1].transforms[0]
        assert (transform.header.frame_id, transform.child_frame_id) == ("map", "odom")
        stamp = transform.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == frame.stamp_ns + 250_000_000
        change(node, tf_mode="none")
        assert node.count_publishers("/tf") == 0
        assert "map -> base_link" in node._resources.facts["frames"]


def test_smoothing_can_be_switched_on_and_off_with_odometry_that_was_not_needed_before(idle_node, checkpoint):
    change(idle_node, checkpoint=str(checkpoint), odometry_topic="odom", tf_mode="none")
    assert idle_node.start()
    assert idle_node.count_subscribers("/odom") == 0
    change(idle_node, smoothing=True, smoothing_drift=3.0)
    assert idle_node.count_subscribers("/odom") == 1
    frames = images(2)
    (subscription,) = [source for source in idle_node._session._inputs if source.name == "odometry"]
    for frame in frames:
        subscription._on_message(odometry_message(frame.stamp_ns, "odom", "base_link", Pose.identity()))
    assert process(idle_node, frames[:1])["smoothing: started"] == 1
    change(idle_node, smoothing=False)
    values = process(idle_node, frames[1:])
    assert values["poses published"] == 2
    assert "smoothing: started" not in values


def test_optional_outputs_come_and_go(node):
    change(node, publish_odometry=True, path_length=2)
    process(node, images(3))
    assert node.count_publishers("/vmloc_node/odometry") == 1
    assert len(node._resources.outputs._path_poses) == 2
    change(node, publish_odometry=False, path_length=0)
    process(node, images(1))
    assert node.count_publishers("/vmloc_node/odometry") == node.count_publishers("/vmloc_node/path") == 0
    change(node, path_length=5)
    assert node.count_publishers("/vmloc_node/path") == 1


def test_pairing_and_debug_images_follow_their_parameters(node):
    change(node, slop_s=0.02, deadline_s=0.03, silence_s=0.5, queue_depth=9, debug_rate_hz=10.0, input_timeout_s=1.5)
    synchronizer = node._session._pipeline._synchronizer
    assert (synchronizer._slop_ns, synchronizer._deadline_ns, synchronizer._silence_ns) == (2e7, 3e7, 5e8)
    assert node._session._pipeline._queue_depth == 9
    assert node._session._worker._debug_images.rate_hz == 10.0
    assert node._session._config.input_timeout_s == 1.5


def test_a_change_holds_after_deactivation_too(node):
    node.trigger_deactivate()
    change(node, max_position_std_m=0.9)
    node.trigger_activate()
    assert process(node, images(1))["poses withheld"] == 1


@pytest.mark.parametrize("name", [row.name for row in fields(NodeConfig) if row.metadata["change"] == AT_CONFIGURE])
def test_what_cannot_change_is_refused_while_configured_and_works_before(idle_node, checkpoint, name):
    default = getattr(NodeConfig(), name)
    value = VALID_VALUES[name] if name in VALID_VALUES else OTHER_VALUES[type(default)](default)
    assert set_parameter(idle_node, name, value).successful
    assert set_parameter(idle_node, name, list(default) if isinstance(default, tuple) else default).successful
    idle_node._resources = object()  # configured
    result = set_parameter(idle_node, name, value)
    idle_node._resources = None
    assert not result.successful
    assert f"parameter {name} is read-only while the node is configured; deactivate and clean up" in result.reason


def test_setting_all_parameters_to_what_they_are_succeeds_while_active(node):
    config = read_config(node)
    for row in fields(config):
        value = getattr(config, row.name)
        if row.name != "autostart":
            assert set_parameter(node, row.name, list(value) if isinstance(value, tuple) else value).successful


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tf_rate_hz": 20.0}, "cannot be repeated while the robot moves"),
        ({"min_confidence": 0.5, "smoothing": True}, "set tf_mode to"),
        ({"min_confidence": 0.5, "image_topic": "front"}, "image_topic is read-only while"),
    ],
)
def test_a_refused_change_changes_nothing(node, values, reason):
    before, config = read_config(node), node._resources.config
    result = node.set_parameters_atomically([Parameter(name, value=value) for name, value in values.items()])
    assert not result.successful
    assert reason in result.reason
    assert read_config(node) == before
    assert node._resources.config == config


def test_a_mode_whose_frames_would_be_equal_is_refused(idle_node, checkpoint):
    change(idle_node, checkpoint=str(checkpoint), base_frame="odom")
    assert idle_node.start()
    assert "frames must differ, got map -> odom -> odom" in set_parameter(idle_node, "tf_mode", "map_to_odom").reason


def test_frames_of_the_robot_get_the_prefix(idle_node, checkpoint):
    change(idle_node, checkpoint=str(checkpoint), frame_prefix="robot1/", tf_mode="map_to_base")
    with peer() as us:
        sent = us.collect(TFMessage, "/tf")
        assert idle_node.start()
        us.wait_for_peers(published=["/tf"])
        process(idle_node, images(1))
        wait_until(lambda: sent, "a transform")
    transform = sent[0].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ("map", "robot1/base_link")
    change(idle_node, tf_mode="map_to_odom")
    assert idle_node._resources.frames == ["map", "robot1/odom", "robot1/base_link"]


def test_odometry_from_tf_is_listened_to_once_it_is_needed(node):
    change(node, tf_mode="map_to_odom")
    assert node.count_subscribers("/tf") >= 1  # tf2_ros had heard it before
    values = process(node, images(1))
    assert values["poses published"] == 1
    assert np.isfinite(values["transforms published"])
