# SPDX-License-Identifier: Apache-2.0
"""The node's transitions and parameters, with the node in this process."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from ros_graph import node_in_process, set_parameter

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import ReliabilityPolicy

from image_node import IMAGES
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.frame import IMAGE

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path, ("image", "lidar"))
    return path


def test_a_failed_configure_can_be_corrected_and_the_lifecycle_run_twice(idle_node, checkpoint):
    success = TransitionCallbackReturn.SUCCESS
    set_parameter(idle_node, "checkpoint", "/nope")
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    for _ in range(2):
        assert idle_node.trigger_configure() == success
        assert [name for name, _ in idle_node.get_topic_names_and_types() if name == "/vmloc_node/pose"]
        assert idle_node.count_subscribers(IMAGES) == 0
        assert idle_node.trigger_activate() == success
        assert idle_node.count_subscribers(IMAGES) == 1
        assert idle_node.trigger_deactivate() == success
        assert idle_node.count_subscribers(IMAGES) == 0
        assert idle_node.trigger_cleanup() == success


def test_an_invalid_qos_override_fails_and_a_valid_one_is_used(checkpoint):
    def activate(reliability):
        override = f"qos_overrides.{IMAGES}.subscription.reliability"
        with node_in_process({override: reliability, "checkpoint": checkpoint}) as node:
            is_started = node.start()
            infos = node.get_subscriptions_info_by_topic(IMAGES)
            return is_started, [info.qos_profile.reliability for info in infos]

    assert activate("utmost") == (False, [])
    assert activate("reliable") == (True, [ReliabilityPolicy.RELIABLE])


def test_compressed_images_are_subscribed_on_their_own_topic(idle_node, checkpoint):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    set_parameter(idle_node, "image_transport", "compressed")
    assert idle_node.start()
    (info,) = idle_node.get_subscriptions_info_by_topic(f"{IMAGES}/compressed")
    assert info.topic_type == "sensor_msgs/msg/CompressedImage"
    assert idle_node.count_subscribers(IMAGES) == 0


def test_equal_frame_names_fail_at_configure(idle_node, checkpoint):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    set_parameter(idle_node, "base_frame", "map")
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE
    set_parameter(idle_node, "base_frame", "odom")  # no conflict unless odom is published
    assert idle_node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert idle_node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    set_parameter(idle_node, "tf_mode", "map_to_odom")
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE


def test_diagnostics_report_extrinsics_that_differ_from_training(idle_node, tmp_path):
    path = tmp_path / "extrinsics.safetensors"
    header = write_random_checkpoint(path, ("image",))
    extrinsics = {"camera_from_lidar": {"position_m": [0.0, 0.1, 0.2], "quaternion_wxyz": [1.0, 0.0, 0.0, 0.0]}}
    header = replace(header, training={"extrinsics": extrinsics})
    save_checkpoint(path, header, load_checkpoint(path)[1].state_dict())
    set_parameter(idle_node, "checkpoint", str(path))
    set_parameter(idle_node, "camera_from_lidar", [0.0, 0.1, 0.9, 0.0, 0.0, 0.0])
    assert idle_node.start()
    assert "camera_from_lidar differs by 0.70 m and 0.0 deg" in idle_node._session.diagnose()[1]


def test_only_map_to_odom_can_be_repeated(idle_node, checkpoint):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    set_parameter(idle_node, "tf_rate_hz", 20.0)
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE
    set_parameter(idle_node, "tf_mode", "map_to_odom")
    assert idle_node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_invalid_parameter_changes_fail_with_a_reason(idle_node):
    assert "6 finite numbers" in set_parameter(idle_node, "base_from_body", [1.0, 2.0]).reason
    for name in ("", "two words"):
        assert "is no topic" in set_parameter(idle_node, "image_topic", name).reason
    assert "expected map_to_base or map_to_odom or none" in set_parameter(idle_node, "tf_mode", "odom").reason
    assert "odom_frame is empty" in set_parameter(idle_node, "odom_frame", "").reason
    assert "3 finite numbers (x y z)" in set_parameter(idle_node, "map_origin", [1.0, 2.0]).reason
    assert "odometry_topic is 'a b'" in set_parameter(idle_node, "odometry_topic", "a b").reason
    assert not set_parameter(idle_node, "queue_depth", 0).successful
    assert not set_parameter(idle_node, "autostart", False).successful  # read-only
    assert set_parameter(idle_node, "base_from_body", [0.0, 0.0, 1.5, 0.0, 0.0, 0.0]).successful


def test_cleanup_frees_the_model(idle_node, checkpoint):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    assert idle_node.start()
    model = weakref.ref(idle_node._resources.localizer.model)
    assert model() is not None
    assert idle_node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert idle_node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert model() is None


def test_configure_fails_for_a_checkpoint_that_never_gives_a_finite_pose(idle_node, tmp_path):
    path = tmp_path / "nan.safetensors"
    header = write_random_checkpoint(path, (IMAGE,))
    weights = load_checkpoint(path)[1].state_dict()
    save_checkpoint(path, header, {k: x * torch.nan if x.is_floating_point() else x for k, x in weights.items()})
    set_parameter(idle_node, "checkpoint", str(path))
    assert idle_node.trigger_configure() == TransitionCallbackReturn.FAILURE
