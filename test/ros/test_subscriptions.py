# SPDX-License-Identifier: Apache-2.0
"""Subscriptions report why nothing arrives; the modalities in use are a parameter."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import random_frame
from ros_graph import cdr, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import camera_info_message, image_message, point_cloud_message
from vmloc_ros.core.checkpoint import CheckpointHeader, save_checkpoint
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.core.models import build_model, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.subscriptions import Input, create_inputs, modalities_in_use, node_of

pytestmark = pytest.mark.usefixtures("ros_domain")

TOPIC = "/camera/image_raw"
NEVER_S = 1000.0


def offer(reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL) -> QoSProfile:
    return QoSProfile(depth=5, reliability=reliability, durability=durability)


BEST_EFFORT = offer(ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)


@contextmanager
def graph(**overrides):
    """A listener with QoS overrides, and a function that starts a publishing node; each is a DDS participant."""
    import rclpy

    with peer() as listener, peer() as others:
        overridden = [Parameter(f"qos_overrides.{TOPIC}.subscription.{name}", value=x) for name, x in overrides.items()]
        node = rclpy.create_node("listener", context=listener.node.context, parameter_overrides=overridden)
        listener._executor.add_node(node)
        nodes = []  # an unreferenced node is destroyed

        def publish(name, qos, message_type=Image, namespace="/"):
            nodes.append(rclpy.create_node(name, namespace=namespace, context=others.node.context))
            return nodes[-1].create_publisher(message_type, TOPIC, qos)

        yield node, publish


def listen(node) -> Input:
    return Input(node, "image", Image, TOPIC, 5, lambda name, message: None)


def wait_for_problem(source: Input, *parts: str) -> str:
    def complete():
        problem = source.problem(NEVER_S)
        return problem if problem and all(part in problem for part in parts) else None

    return wait_until(complete, f"a problem with {parts}")


def test_every_mismatch_of_every_publisher_is_named_with_its_remedy():
    with graph(reliability="reliable", durability="transient_local") as (node, publish):
        source = listen(node)
        publish("driver", BEST_EFFORT)
        publish("relay", offer(durability=DurabilityPolicy.VOLATILE), namespace="/r1")
        publish("good", offer())
        prefix = f"qos_overrides.{TOPIC}.subscription"
        problem = wait_for_problem(
            source,
            f"{TOPIC}: publisher driver offers best_effort reliability, this node asks for reliable; "
            f"start it with parameter {prefix}.reliability:=best_effort",
            "publisher driver offers volatile durability, this node asks for transient_local; start it with "
            f"parameter {prefix}.durability:=volatile",
            "publisher /r1/relay offers volatile durability",
        )
        assert "relay offers reliable" not in problem
        assert "good" not in problem


def test_sensor_data_qos_matches_every_publisher():
    with graph() as (node, publish):
        source = listen(node)
        for count, qos in enumerate((BEST_EFFORT, offer()), 1):
            publisher = publish(f"driver_{count}", qos)
            wait_until(publisher.get_subscription_count, "the listener")
            before = source.count

            def is_received(publisher=publisher, before=before):
                publisher.publish(Image())
                time.sleep(0.05)
                return source.count > before

            wait_until(is_received, "a message")
        assert source.problem(NEVER_S) is None


def test_a_mismatch_known_to_the_middleware_alone_is_reported_until_a_message_comes():
    """With best_available the graph does not show which policies the middleware requests."""
    with graph(reliability="best_available") as (node, publish):
        source = listen(node)
        publish("driver", BEST_EFFORT)
        wait_for_problem(
            source,
            "the reliability QoS of a publisher does not match",
            f"qos_overrides.{TOPIC}.subscription.reliability",
        )
        good = publish("good", offer())
        wait_until(good.get_subscription_count, "the listener")

        def has_no_problem():
            good.publish(Image())
            return source.problem(NEVER_S) is None

        wait_until(has_no_problem, "no problem")


def test_a_mismatch_ends_with_its_publisher():
    with graph(reliability="reliable") as (node, publish):
        source = listen(node)
        publisher = publish("driver", BEST_EFFORT)
        wait_for_problem(source, "driver offers best_effort")
        publisher.destroy()
        wait_until(lambda: source.problem(NEVER_S) is None, "no problem")
        assert "nobody publishes it" in source.problem(0.0)


def test_publishers_of_a_wrong_type_are_all_named():
    with graph() as (node, publish):
        source = listen(node)
        publish("lidar", BEST_EFFORT, PointCloud2)
        publish("radar", BEST_EFFORT, PointCloud2, "/r1")
        wait_for_problem(
            source,
            f"{TOPIC} is published as sensor_msgs/msg/PointCloud2 by lidar, expected sensor_msgs/msg/Image",
            "sensor_msgs/msg/PointCloud2 by /r1/radar",
            "parameter image_topic",
        )


def subscriptions(modalities, needs_camera_info=False) -> dict[str, Input]:
    with graph() as (node, _):
        inputs = create_inputs(node, NodeConfig(), modalities, needs_camera_info, lambda name, message: None)
        for source in inputs:
            source.close()
        return {source.name: source for source in inputs}


def test_only_the_modalities_in_use_are_subscribed():
    assert set(subscriptions(("image",))) == {"image"}
    assert set(subscriptions(("lidar",))) == {"lidar"}
    assert set(subscriptions(("image", "depth"))) == {"image", "depth"}


def test_intrinsics_that_only_the_overlay_uses_may_be_absent():
    wanted, needed = subscriptions(("image", "lidar")), subscriptions(("image", "lidar"), True)
    assert set(wanted) == set(needed) == {"image", "lidar", "camera_info"}
    with graph() as (node, _):
        config = NodeConfig(camera_info_topic="/nobody/there")
        for needs, expected in ((False, None), (True, "nobody publishes it")):
            *_, source = create_inputs(node, config, ("image", "lidar"), needs, lambda name, message: None)
            problem = source.problem(0.0)
            assert problem is None if expected is None else expected in problem


def test_modalities_in_use_are_in_the_models_order():
    offered = ("image", "depth", "lidar")
    assert modalities_in_use((), offered) == offered
    assert modalities_in_use(("lidar", "image"), offered) == ("image", "lidar")
    with pytest.raises(ConfigError, match=r"modalities names depth, which .* takes image, lidar"):
        modalities_in_use(("image", "depth"), ("image", "lidar"))
    with pytest.raises(ConfigError, match=r"modalities has \['camera'\]; expected some of image, depth, lidar"):
        NodeConfig(modalities=("camera",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path, ("image", "lidar"))
    return path


def diagnosed(us, condition, what):
    """The first diagnostic status (message, values) that fulfils a condition."""

    def found():
        for array in list(us.received["/diagnostics"]):
            status = array.status[0]
            values = {pair.key: pair.value for pair in status.values}
            if condition(status.message, values):
                return status.message, values
        return None

    return wait_until(found, what)


def test_a_node_of_images_alone_reports_a_mismatch_in_log_and_diagnostics(checkpoint, tmp_path):
    override = f"qos_overrides.{TOPIC}.subscription.reliability"
    parameters = {"checkpoint": checkpoint, "modalities": "[image]", "device": "cpu", override: "reliable"}
    frame = random_frame()
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(PointCloud2, "/lidar/points")
        us.publisher(CameraInfo, "/camera/camera_info")
        us.collect(DiagnosticArray, "/diagnostics")
        us.collect(PoseStamped, "/vmloc_node/pose")
        best_effort = us.node.create_publisher(Image, TOPIC, BEST_EFFORT)
        node.wait_for_output("now active")
        node.wait_for_output(rf"ERROR.*{TOPIC}: publisher test_peer offers best_effort reliability, .*{override}")
        diagnosed(us, lambda message, _: "test_peer offers best_effort" in message, "a diagnostic that names it")
        us.node.destroy_publisher(best_effort)
        us.publisher(Image, TOPIC, 10)
        us.wait_for_peers([TOPIC], ["/vmloc_node/pose"])
        us.publisher(Image, TOPIC).publish(cdr(image_message(frame.stamp_ns, "camera", frame.image, "rgb8")))
        wait_until(lambda: us.received["/vmloc_node/pose"], "a pose")
        message, values = diagnosed(us, lambda message, _: "localizing by" in message, "a healthy diagnostic")
        assert message == "localizing by image"
        assert values["model inputs"] == "image"
        for topic in ("/lidar/points", "/camera/camera_info"):
            assert us.node.count_subscribers(topic) == 0


def write_dense_checkpoint(path) -> None:
    """A dense system that predicts each cell's body coordinates as map coordinates: the pose is the codec's origin."""
    config = model_config("dense_lidar", "shufflenet_v2_x0_5", hidden_dim=6, cell_blocks=0)
    header = CheckpointHeader(
        config,
        PreprocessConfig(("depth",), 48),
        PoseCodec((3.0, 2.0, 1.0), 20.0, (1.0, 0.0, 0.0, 0.0)),
        "map",
        "base_link",
    )
    model = build_model(config, {"depth": 2})
    model.set_mounts({"depth": Pose.from_xyz_rpy([0.3, 0.0, 1.0], [-1.6, 0.0, -1.6])})
    model.set_extent(torch.zeros(3), torch.tensor(10.0))  # the unit of points in the network, too
    network = model.predictors["depth"]
    both_signs = torch.cat([torch.eye(3), -torch.eye(3)])
    with torch.no_grad():
        for module in (network.entry, network.exit[0], network.exit[2]):
            module.weight.zero_()
            module.bias.zero_()
        network.entry.weight[:, -3:, 0, 0] = both_signs
        network.exit[0].weight[:, :, 0, 0] = torch.eye(6)
        network.exit[2].weight[:3, :, 0, 0] = both_signs.T
        network.exit[2].bias[3] = -5.0  # a few centimetres
    save_checkpoint(path, header, model.state_dict())


def test_a_dense_system_gets_the_cameras_intrinsics(tmp_path):
    checkpoint, topic = tmp_path / "dense.safetensors", "/camera/depth/image_raw"
    write_dense_checkpoint(checkpoint)
    frame = random_frame(0, names=("depth",))
    with peer() as us, running(node_arguments({"checkpoint": checkpoint, "device": "cpu"}), tmp_path / "log") as node:
        depths, cameras = us.publisher(Image, topic), us.publisher(CameraInfo, "/camera/camera_info")
        us.collect(PoseWithCovarianceStamped, "/vmloc_node/pose_with_covariance")
        node.wait_for_output("now active")
        us.wait_for_peers([topic, "/camera/camera_info"], ["/vmloc_node/pose_with_covariance"])
        cameras.publish(cdr(camera_info_message(frame.stamp_ns, "camera", frame.camera)))
        time.sleep(0.5)  # topics are not ordered among each other
        millimetres = (1000 * frame.depth_m).astype(np.uint16)
        depths.publish(cdr(image_message(frame.stamp_ns, "camera", millimetres, "16UC1")))
        wait_until(lambda: us.received["/vmloc_node/pose_with_covariance"], "a pose")
        pose = us.received["/vmloc_node/pose_with_covariance"][0].pose
        position = pose.pose.position
        np.testing.assert_allclose([position.x, position.y, position.z], [3.0, 2.0, 1.0], atol=1e-3)
        assert pose.pose.orientation.w > 0.9999
        assert pose.covariance[0] < 2.0  # a frame that is lost has the map's extent


def test_without_allow_degraded_frames_that_lack_an_input_are_rejected_and_counted(checkpoint, tmp_path):
    parameters = {"checkpoint": checkpoint, "allow_degraded": "false", "device": "cpu", "deadline_s": 0.5}
    frames = [replace(random_frame(i), stamp_ns=1_700_000_000_000_000_000 + i * 100_000_000) for i in range(4)]
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        images, clouds = us.publisher(Image, TOPIC), us.publisher(PointCloud2, "/lidar/points")
        us.collect(DiagnosticArray, "/diagnostics")
        us.collect(PoseStamped, "/vmloc_node/pose")
        node.wait_for_output("now active")
        us.wait_for_peers([TOPIC, "/lidar/points"], ["/vmloc_node/pose"])
        for frame in frames[:3]:
            images.publish(cdr(image_message(frame.stamp_ns, "camera", frame.image, "rgb8")))
        diagnosed(
            us,
            lambda message, values: "frame without lidar" in message and values.get("rejected: degraded") == "3",
            "three rejected frames",
        )
        # The scan first: on a busy machine it might come after the image's deadline.
        clouds.publish(cdr(point_cloud_message(frames[3].stamp_ns, "lidar", frames[3].cloud)))
        time.sleep(0.5)
        images.publish(cdr(image_message(frames[3].stamp_ns, "camera", frames[3].image, "rgb8")))
        wait_until(lambda: us.received["/vmloc_node/pose"], "a pose")
        assert [stamp_ns(pose.header) for pose in us.received["/vmloc_node/pose"]] == [frames[3].stamp_ns]


def test_a_publisher_without_a_known_name_is_called_so():
    assert node_of(SimpleNamespace(node_namespace="/robot1", node_name="camera")) == "/robot1/camera"
    unknown = SimpleNamespace(node_namespace="_NODE_NAMESPACE_UNKNOWN_", node_name="_NODE_NAME_UNKNOWN_")
    assert node_of(unknown) == "(name unknown)"
