# SPDX-License-Identifier: Apache-2.0
"""TF by tf2_ros (here a mock), by a listener of our own, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from ros_graph import peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from vmloc_ros.bags.messages import transform_message
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose
from vmloc_ros.core.transform_tree import TransformTree
from vmloc_ros.ros import tf_listener
from vmloc_ros.ros.packages import MissingPackageError
from vmloc_ros.ros.tf_broadcaster import transform_message as ros_transform_message
from vmloc_ros.ros.tf_listener import listen_to_transforms

BASE_FROM_CAMERA = Pose.from_xyz_rpy([0.3, 0.0, 1.2], [-1.5, 0.0, -1.5])


def listen(node, moving_frame=None):
    return listen_to_transforms(node, 1.0, moving_frame)


def test_tf2_ros_is_used_where_it_is_installed(monkeypatch):
    class UnknownFrameError(Exception):
        pass

    requested_ns = []

    def lookup_transform(target, source, time):
        requested_ns.append(time.nanoseconds)
        if (target, source) != ("base_link", "camera"):
            raise UnknownFrameError("no such frame")
        return transform_message(0, target, source, BASE_FROM_CAMERA)

    buffer = MagicMock(lookup_transform=lookup_transform, all_frames_as_yaml=lambda: "")
    tf2_ros = MagicMock(Buffer=lambda: buffer, TransformException=UnknownFrameError)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_ros)
    lookup = listen(MagicMock())
    found = lookup.find("base_link", "camera")
    np.testing.assert_allclose(found.matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
    found = lookup.find_at("base_link", "camera", 1_700_000_000_123_456_789)
    np.testing.assert_allclose(found.matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
    assert requested_ns == [0, 1_700_000_000_123_456_789]  # 0 is "the latest"
    assert lookup.find("base_link", "elsewhere") is None
    with pytest.raises(DataError, match="TF does not lead from elsewhere to base_link; above elsewhere: nothing"):
        lookup.find_at("base_link", "elsewhere", 5)
    lookup.forget()
    buffer.clear.assert_called_once_with()
    lookup.close()
    tf2_ros.TransformListener.return_value.unregister.assert_called_once_with()


@pytest.mark.parametrize("moving", [False, True])
def test_without_tf2_ros_our_own_listener_is_used_and_ignores_invalid_transforms(moving, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    node = MagicMock()
    lookup = listen(node, "base_link" if moving else None)
    subscribed = {call.args[1]: call.args for call in node.create_subscription.call_args_list}
    assert list(subscribed) == (["/tf_static", "/tf"] if moving else ["/tf_static"])
    assert subscribed["/tf_static"][0] is TFMessage
    zero = transform_message(0, "base_link", "broken", Pose.identity())
    zero.transform.rotation.w = 0.0
    good = transform_message(0, "base_link", "camera", BASE_FROM_CAMERA)
    subscribed["/tf_static"][2](SimpleNamespace(transforms=[zero, good]))
    np.testing.assert_allclose(lookup.find("base_link", "camera").matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
    assert lookup.find("base_link", "broken") is None
    assert "broken" in node.get_logger().error.call_args.args[0]
    if moving:
        at_5 = transform_message(5, "odom", "base_link", Pose.identity())
        joint = transform_message(5, "base_link", "wheel", Pose.identity())
        subscribed["/tf"][2](SimpleNamespace(transforms=[joint, at_5]))
        with pytest.raises(DataError, match="above wheel: nothing"):  # not decoded: not above base_link
            lookup.find_at("odom", "wheel", 5)
        np.testing.assert_allclose(lookup.find_at("odom", "camera", 5).matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
        with pytest.raises(DataError, match="older than the image"):
            lookup.find_at("odom", "camera", 6)
    lookup.close()
    assert node.destroy_subscription.call_count == len(subscribed)


def test_without_tf2_msgs_parameters_are_the_only_source(monkeypatch):
    def missing(type_name):
        raise MissingPackageError(f"message type {type_name} is not available")

    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    monkeypatch.setattr(tf_listener, "message_class", missing)
    node = MagicMock()
    lookup = listen(node)
    assert lookup.find("base_link", "camera") is None
    assert "parameters only" in node.get_logger().warning.call_args.args[0]
    with pytest.raises(DataError, match="tf2_msgs is not installed"):
        lookup.find_at("odom", "base_link", 0)


def test_missing_transforms_are_described_alike_with_tf2_and_without():
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed (no ROS distribution)")
    buffer, tree = tf2_ros.Buffer(), TransformTree(jump_back_s=1.0)
    for stamp_ns in (5_000_000_000, 5_100_000_000):
        buffer.set_transform(ros_transform_message(stamp_ns, "odom", "base_link", Pose.identity()), "test")
        tree.add("odom", "base_link", Pose.identity(), stamp_ns)
    fake = MagicMock(Buffer=lambda: buffer, TransformException=tf2_ros.TransformException)
    lookup = tf_listener._Tf2Lookup(MagicMock(), fake, TFMessage)
    for target, source, stamp_ns in [
        ("odom", "base_link", 6_000_000_000),
        ("map", "base_link", 5_000_000_000),
        ("odom", "base", 5_000_000_000),
    ]:
        with pytest.raises(DataError) as expected:
            tree.find(target, source, stamp_ns)
        with pytest.raises(DataError) as found:
            lookup.find_at(target, source, stamp_ns)
        assert str(found.value) == str(expected.value)
    with pytest.raises(DataError, match="odom -> base_link on /tf: does not reach back to the image's stamp"):
        lookup.find_at("odom", "base_link", 4_000_000_000)


def test_the_listeners_tree_agrees_with_tf2():
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed (no ROS distribution)")
    buffer, tree = tf2_ros.Buffer(), TransformTree(jump_back_s=1.0)
    start_ns, step_ns = 1_700_000_000_000_000_000, 50_000_000
    buffer.set_transform_static(ros_transform_message(start_ns, "base_link", "camera", BASE_FROM_CAMERA), "test")
    tree.add("base_link", "camera", BASE_FROM_CAMERA)
    for i in range(10):
        odom_from_base = Pose.from_xyz_rpy([0.1 * i, -0.05 * i, 0.01 * i * i], [0.01 * i, 0.02 * i, 0.05 * i])
        buffer.set_transform(ros_transform_message(start_ns + i * step_ns, "odom", "base_link", odom_from_base), "test")
        tree.add("odom", "base_link", odom_from_base, start_ns + i * step_ns)
    for stamp_ns in range(start_ns, start_ns + 9 * step_ns, 17_000_000):
        theirs = decode_pose(buffer.lookup_transform("odom", "camera", Time(nanoseconds=stamp_ns)))
        np.testing.assert_allclose(tree.find("odom", "camera", stamp_ns).matrix, theirs.matrix, atol=1e-9)


def test_names_with_a_leading_slash_are_given_to_tf2_without(monkeypatch):
    asked = []

    def lookup_transform(target, source, time):
        asked.append((target, source))
        return transform_message(0, target, source, BASE_FROM_CAMERA)

    tf2_ros = MagicMock(Buffer=lambda: MagicMock(lookup_transform=lookup_transform), TransformException=KeyError)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_ros)
    lookup = listen(MagicMock())
    assert lookup.find("/base_link", "/camera") is not None
    lookup.find_at("/odom", "/base_link", 5)
    assert asked == [("base_link", "camera"), ("odom", "base_link")]
    np.testing.assert_allclose(lookup.find("/camera", "camera").matrix, np.eye(4))  # tf2 may not know it at all


# --- publishers that usual listeners do not hear, over real DDS between processes ---------------------------------

RELAY = """
import sys
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from geometry_msgs.msg import TransformStamped
from tf2_msgs.msg import TFMessage

topic, durability, reliability, repeats = sys.argv[1:]
rclpy.init()
node = rclpy.create_node("tf_relay", namespace="/robot")
qos = QoSProfile(depth=10, durability=DurabilityPolicy[durability], reliability=ReliabilityPolicy[reliability])
publisher = node.create_publisher(TFMessage, topic, qos)
message = TransformStamped(child_frame_id="/camera")
message.header.frame_id = "/base_link"
message.transform.translation.x, message.transform.rotation.w = 0.3, 1.0
publisher.publish(TFMessage(transforms=[message]))
if repeats == "repeats":
    node.create_timer(0.1, lambda: publisher.publish(TFMessage(transforms=[message])))
print("publishing", flush=True)
rclpy.spin(node)
"""


def listening(us):
    return listen_to_transforms(us.node, 1.0)


@pytest.mark.parametrize(
    ("durability", "reliability", "words"),
    [
        (
            "VOLATILE",
            "RELIABLE",
            "/tf_static: publisher /robot/tf_relay offers volatile durability: late subscribers miss",
        ),
        ("TRANSIENT_LOCAL", "BEST_EFFORT", "/tf_static: publisher /robot/tf_relay offers best_effort reliability"),
    ],
)
def test_a_static_publisher_of_the_wrong_qos_is_named_and_heard(
    durability: str, reliability: str, words: str, tmp_path: Path, monkeypatch, ros_domain
):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with (
        peer() as us,
        running(["-c", RELAY, "/tf_static", durability, reliability, "repeats"], tmp_path / "log") as relay,
    ):
        relay.wait_for_output("publishing")
        lookup = listening(us)
        wait_until(lambda: lookup.find("base_link", "/camera") is not None, "the relay's transform")
        wait_until(lambda: words in (lookup.problem or ""), "the publisher's name, discovered after the publisher")
        assert lookup.hint == f"; {lookup.problem}"
        lookup.close()


def test_what_a_volatile_publisher_has_sent_once_is_lost_and_the_reason_is_given(
    tmp_path: Path, monkeypatch, ros_domain
):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with peer() as us, running(["-c", RELAY, "/tf_static", "VOLATILE", "RELIABLE", "once"], tmp_path / "log") as relay:
        relay.wait_for_output("publishing")
        lookup = listening(us)
        problem = wait_until(lambda: lookup.find("base_link", "camera") or lookup.problem, "the problem")
        assert problem.endswith(
            "publish it transient local, as static_transform_publisher of tf2_ros does (this node "
            "hears what it repeats)"
        )
        assert lookup.find("base_link", "camera") is None
        lookup.close()


@pytest.mark.parametrize("reliability", ["RELIABLE", "BEST_EFFORT"])
def test_mounts_that_are_repeated_on_tf_count_as_fixed(reliability: str, tmp_path: Path, monkeypatch, ros_domain):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    monkeypatch.setattr(tf_listener, "_PATIENCE_S", 0.1)
    with peer() as us, running(["-c", RELAY, "/tf", "VOLATILE", reliability, "repeats"], tmp_path / "log") as relay:
        relay.wait_for_output("publishing")
        lookup = listening(us)
        found = wait_until(lambda: lookup.find("base_link", "camera"), "the repeated transform")
        np.testing.assert_allclose(found.position_m, [0.3, 0, 0])
        lookup.close()


def test_moving_transforms_by_best_effort_are_heard_and_their_publisher_named(tmp_path: Path, monkeypatch, ros_domain):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with peer() as us, running(["-c", RELAY, "/tf", "VOLATILE", "BEST_EFFORT", "repeats"], tmp_path / "log") as relay:
        relay.wait_for_output("publishing")
        lookup = listen_to_transforms(us.node, 1.0, "/camera")

        def found():
            try:
                return lookup.find_at("base_link", "camera", 0)
            except DataError:
                return None

        np.testing.assert_allclose(wait_until(found, "the relay's transform").position_m, [0.3, 0, 0])
        words = "/tf: publisher /robot/tf_relay offers best_effort reliability"
        wait_until(lambda: words in (lookup.problem or ""), "the publisher's name, discovered after the publisher")
        lookup.close()


def test_nobody_publishing_static_transforms_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    node = MagicMock()
    node.get_publishers_info_by_topic.return_value = []
    lookup = listen(node)
    assert lookup.find("base_link", "camera") is None
    node.create_timer.call_args.args[1]()
    assert (lookup.problem, lookup.hint) == (None, "; nobody publishes /tf_static")
