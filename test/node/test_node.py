# SPDX-License-Identifier: Apache-2.0
"""The node over real DDS, in a process of its own."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from helpers import random_frame
from ros_graph import Peer, localizer_of_the_node, node_arguments, peer, process_bundle, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.files import image_message, point_cloud_message, typestore
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.frame import Estimate, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.ros.parameters import NodeConfig

pytestmark = pytest.mark.usefixtures("ros_domain")

IMAGES, CLOUDS = "/camera/image_raw", "/lidar/points"
PERIOD_NS, CLOUD_LAG_NS = 50_000_000, 10_000_000
STARTS_NS = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 60_000_000_000))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path, ("image", "lidar"))
    return path


@pytest.fixture(scope="module")
def localizer(checkpoint):
    return localizer_of_the_node(checkpoint)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "vidloc.safetensors"
    write_random_checkpoint(path, ("image", "lidar"), system="vidloc")
    return path


@pytest.fixture(scope="module")
def graph(ros_domain, checkpoint, tmp_path_factory):
    """A running node, and a peer that publishes its inputs and collects its outputs."""
    # A deadline long enough for a busy machine: else images are localized alone.
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100, "path_length": 15, "deadline_s": 2.0}
    log = tmp_path_factory.mktemp("log") / "node.log"
    with peer() as us, running(node_arguments(parameters), log) as node:
        us.publisher(Image, IMAGES)
        us.publisher(PointCloud2, CLOUDS)
        us.collect(PoseStamped, "/vmloc_node/pose")
        us.collect(PoseWithCovarianceStamped, "/vmloc_node/pose_with_covariance")
        us.collect(PathMessage, "/vmloc_node/path")
        us.collect(TFMessage, "/tf")
        us.collect(DiagnosticArray, "/diagnostics")
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, CLOUDS], ["/vmloc_node/pose", "/vmloc_node/path", "/tf"])
        yield us, node


def cdr(message) -> bytes:
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def frames_from(start_ns: int, count: int) -> list[Frame]:
    return [replace(random_frame(i), stamp_ns=start_ns + i * PERIOD_NS) for i in range(count)]


def send_image(us: Peer, frame: Frame) -> None:
    us.publisher(Image, IMAGES).publish(cdr(image_message(frame.stamp_ns, "camera", frame.image, "rgb8")))


def send(us: Peer, frames: list[Frame], clouds: bool = True) -> None:
    for frame in frames:
        send_image(us, frame)
        if clouds:
            message = point_cloud_message(frame.stamp_ns + CLOUD_LAG_NS, "lidar", frame.cloud)
            us.publisher(PointCloud2, CLOUDS).publish(cdr(message))
        time.sleep(0.02)


def messages_for(us: Peer, topic: str, frames: list[Frame]) -> list:
    """The messages on a topic for these frames, in order of arrival, once all have arrived."""
    wanted = {frame.stamp_ns for frame in frames}

    def found():
        return [message for message in list(us.received[topic]) if stamp_ns(message.header) in wanted]

    wait_until(lambda: len(found()) >= len(frames), f"{len(frames)} messages on {topic}")
    return found()


def assert_equals_localizer(messages: list, frames: list[Frame], localizer: Localizer) -> None:
    assert_are(messages, [localizer.localize(frame) for frame in frames])


def assert_are(messages: list, estimates: list[Estimate]) -> None:
    for message, estimate in zip(messages, estimates, strict=True):
        expected, got = estimate.map_from_body, decode_pose(message)
        assert stamp_ns(message.header) == estimate.stamp_ns
        np.testing.assert_allclose(got.position_m, expected.position_m, atol=1e-6)
        np.testing.assert_allclose(got.quaternion_wxyz, expected.quaternion_wxyz, atol=1e-6)


def latest_values(us: Peer) -> dict[str, str]:
    return {pair.key: pair.value for m in us.received["/diagnostics"][-1:] for pair in m.status[0].values}


def test_each_image_gets_one_pose_equal_to_the_localizers(graph, localizer):
    us, _ = graph
    frames = frames_from(next(STARTS_NS), 20)
    send(us, frames)
    poses = messages_for(us, "/vmloc_node/pose", frames)
    assert [stamp_ns(pose.header) for pose in poses] == [frame.stamp_ns for frame in frames]
    assert {pose.header.frame_id for pose in poses} == {"map"}
    assert_equals_localizer(poses, frames, localizer)
    with_covariance = messages_for(us, "/vmloc_node/pose_with_covariance", frames)
    assert_equals_localizer(with_covariance, frames, localizer)
    for message, frame in zip(with_covariance, frames, strict=True):
        covariance = message.pose.covariance.reshape(6, 6)
        np.testing.assert_allclose(covariance, localizer.localize(frame).covariance, rtol=1e-5, atol=1e-9)


def test_tf_and_path_agree_with_the_poses(graph):
    us, _ = graph
    frames = frames_from(next(STARTS_NS), 20)
    send(us, frames)
    poses = messages_for(us, "/vmloc_node/pose", frames)
    last = {frame.stamp_ns for frame in frames[-15:]}
    wait_until(lambda: stamp_ns(us.received["/vmloc_node/path"][-1].header) in last, "the path")
    path = wait_until(
        lambda: next((m for m in us.received["/vmloc_node/path"] if m.header == poses[-1].header), None),
        "a path that ends in the last pose",
    )
    assert path.poses == poses[-15:]
    transforms = {stamp_ns(t.header): t for m in us.received["/tf"] for t in m.transforms}
    for pose in poses:
        transform = transforms[stamp_ns(pose.header)]
        assert (transform.header.frame_id, transform.child_frame_id) == ("map", "base_link")
        np.testing.assert_array_equal(decode_pose(transform).matrix, decode_pose(pose).matrix)


def test_messages_that_cannot_be_decoded_are_counted_and_the_others_localized(graph, localizer):
    us, node = graph
    frames = frames_from(next(STARTS_NS), 6)
    good = image_message(frames[0].stamp_ns, "camera", frames[0].image, "rgb8")
    unknown = typestore().types["sensor_msgs/msg/Image"](**{**vars(good), "encoding": "nonsense"})
    short = typestore().types["sensor_msgs/msg/Image"](**{**vars(good), "data": good.data[:10]})
    for bad in (unknown, short):
        bad.header = image_message(frames[0].stamp_ns, "camera", frames[0].image, "rgb8").header
        bad.header.stamp.nanosec += 1 + int(bad is short)
        us.publisher(Image, IMAGES).publish(cdr(bad))
    us.publisher(PointCloud2, CLOUDS).publish(PointCloud2())  # stamp 0: also a jump back in time
    send(us, frames[1:])
    assert_equals_localizer(messages_for(us, "/vmloc_node/pose", frames[1:]), frames[1:], localizer)
    node.wait_for_output("undecodable: image: .*nonsense")
    assert not node.is_dead


def test_images_are_localized_alone_when_the_lidar_stops(graph, localizer):
    us, _ = graph
    frames = frames_from(next(STARTS_NS), 6)
    send(us, frames, clouds=False)
    alone = [replace(frame, cloud=None) for frame in frames]
    assert_equals_localizer(messages_for(us, "/vmloc_node/pose", frames), alone, localizer)
    wait_until(
        lambda: any("localizing without lidar" in m.status[0].message for m in us.received["/diagnostics"]),
        "the diagnostic",
    )


def test_stamps_that_jump_back_do_not_stop_the_node(graph, localizer):
    us, _ = graph
    frames = frames_from(1_600_000_000_000_000_000, 6)
    send(us, frames)
    assert_equals_localizer(messages_for(us, "/vmloc_node/pose", frames), frames, localizer)


def test_diagnostics_contain_counts_latency_checkpoint_and_frames(graph, checkpoint):
    us, _ = graph

    def complete():
        values = latest_values(us)
        return values if float(values.get("latency p95 [ms]") or 0) > 0 else None

    values = wait_until(complete, "diagnostics")
    assert values["state"] == "active"
    assert values["checkpoint"] == str(checkpoint)
    assert values["frames"] == "map -> base_link"
    assert int(values["pairing: resets"]) >= 1
    assert int(values["received image"]) >= int(values["poses published"]) >= 50
    assert us.received["/diagnostics"][-1].status[0].name == "vmloc_node: localization"


@pytest.mark.parametrize("clouds", [True, False])
def test_diagnostics_show_the_latest_posterior_std(graph, localizer, clouds):
    us, _ = graph
    frames = frames_from(next(STARTS_NS), 3)
    send(us, frames, clouds)
    messages_for(us, "/vmloc_node/pose", frames)
    expected = localizer.localize(frames[-1] if clouds else replace(frames[-1], cloud=None)).posterior_std
    assert set(expected) == ({"joint", "image", "lidar"} if clouds else {"joint", "image"})

    def shown():
        prefix = "posterior std "
        return {k.removeprefix(prefix): float(v) for k, v in latest_values(us).items() if k.startswith(prefix)}

    wait_until(lambda: shown() == pytest.approx(expected, rel=1e-3), f"{expected}")


def test_sigterm_during_inference_ends_the_node_with_zero(graph):
    us, node = graph
    send(us, frames_from(next(STARTS_NS), 5))
    assert node.interrupt(signal.SIGTERM) == 0
    assert "Traceback" not in node.output


def test_a_system_of_clips_gets_a_sliding_window_that_ends_at_gaps(clip_checkpoint, tmp_path):
    """A gap and a jump back release the frames that wait; the newest two keep waiting."""
    start_ns = next(STARTS_NS)
    frames = [
        *frames_from(start_ns, 6),
        *frames_from(start_ns + 20_000_000_000, 4),
        *frames_from(start_ns - 20_000_000_000, 5),
    ]
    stream = localizer_of_the_node(clip_checkpoint).stream(2)
    expected = [estimate for frame in frames for estimate in stream.feed(frame)]
    assert [estimate.stamp_ns for estimate in expected] == [frame.stamp_ns for frame in frames[:-2]]
    parameters = {"checkpoint": clip_checkpoint, "device": "cpu", "lookahead_frames": 2, "deadline_s": 2.0}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        us.publisher(PointCloud2, CLOUDS)
        us.collect(PoseStamped, "/vmloc_node/pose")
        us.collect(DiagnosticArray, "/diagnostics")
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, CLOUDS], ["/vmloc_node/pose"])
        send(us, frames)
        assert_are(messages_for(us, "/vmloc_node/pose", frames[:-2]), expected)
        wait_until(lambda: latest_values(us).get("poses published") == str(len(expected)), "their count")
        assert not [key for key in latest_values(us) if key.startswith(("posterior", "rejected", "refused"))]
        assert len(us.received["/vmloc_node/pose"]) == len(expected)
        assert node.interrupt(signal.SIGTERM) == 0


def test_a_system_of_one_image_trained_on_tuples_is_served(tmp_path):
    checkpoint = tmp_path / "mapnet.safetensors"
    write_random_checkpoint(checkpoint, ("image",), system="mapnet")
    frames = frames_from(next(STARTS_NS), 6)
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        us.collect(PoseStamped, "/vmloc_node/pose")
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES], ["/vmloc_node/pose"])
        send(us, frames, clouds=False)
        poses = messages_for(us, "/vmloc_node/pose", frames)
        assert_equals_localizer(poses, frames, localizer_of_the_node(checkpoint))


def test_log_names_topics_of_a_wrong_type_or_without_a_publisher(checkpoint, tmp_path):
    parameters = {"checkpoint": checkpoint, "input_timeout_s": 0.5, "cloud_topic": "/nobody/there"}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(PointCloud2, IMAGES)
        node.wait_for_output(
            r"ERROR.*/camera/image_raw is published as sensor_msgs/msg/PointCloud2 by test_peer, "
            r"expected sensor_msgs/msg/Image; .*image_topic"
        )
        node.wait_for_output(r"WARN.*no lidar on /nobody/there: nobody publishes it; .*cloud_topic")
        assert not node.is_dead
        assert node.interrupt(signal.SIGINT) == 0
        assert "Traceback" not in node.output


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"checkpoint": "/nope"}, r"cannot configure: checkpoint /nope does not exist"),
        ({"queue_depth": 0}, r"parameter queue_depth .*out of range"),
        ({"lookahead_frames": -1}, r"parameter lookahead_frames .*out of range"),
        ({"cloud_topic": "a#b"}, r"parameter cloud_topic is 'a#b', which is no topic"),
        ({"image_transport": "theora"}, r"parameter image_transport is 'theora'; expected raw or compressed"),
    ],
)
def test_a_node_that_cannot_start_logs_the_reason_in_one_line(parameters, line, tmp_path):
    with running(node_arguments(parameters), tmp_path / "log") as node:
        assert node.wait() == 1
        node.wait_for_output(line)
        assert len(node.output.splitlines()) == 1


def test_a_lookahead_out_of_the_models_range_is_logged_in_one_line(checkpoint, tmp_path):
    arguments = node_arguments({"checkpoint": checkpoint, "lookahead_frames": 1})
    with running(arguments, tmp_path / "log") as node:
        assert node.wait() == 1
        node.wait_for_output(r"cannot configure: lookahead must be .* less than the 1 frame\(s\) that vmloc .*, got 1")
        assert len(node.output.splitlines()) == 1


@pytest.fixture
def idle_node(ros_domain):
    """A node in this process that nothing spins."""
    import rclpy

    from vmloc_ros.node import VmlocNode

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = VmlocNode(context=context)
    yield node
    node.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def set_parameter(node, name, value):
    return node.set_parameters([Parameter(name, value=value)])[0]


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


def test_an_invalid_qos_override_fails_and_a_valid_one_is_used(checkpoint, ros_domain):
    import rclpy

    from vmloc_ros.node import VmlocNode

    def activate(reliability):
        context = rclpy.Context()
        override = f"qos_overrides.{IMAGES}.subscription.reliability:={reliability}"
        rclpy.init(args=["--ros-args", "-p", override, "-p", f"checkpoint:={checkpoint}"], context=context)
        node = VmlocNode(context=context)
        try:
            started = node.start()
            infos = node.get_subscriptions_info_by_topic(IMAGES)
            return started, [info.qos_profile.reliability for info in infos]
        finally:
            node.close()
            node.destroy_node()
            rclpy.shutdown(context=context)

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


def process(node, frame: Frame, age_s: float) -> None:
    """Run an image that came ``age_s`` ago through the node's worker."""
    message = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
    arrival_ns = time.monotonic_ns() - round(age_s * 1e9)
    process_bundle(node, Bundle(frame.stamp_ns, arrival_ns, {"image": (frame.stamp_ns, message)}))


def start_with_clips(node, checkpoint) -> None:
    set_parameter(node, "checkpoint", str(checkpoint))
    set_parameter(node, "lookahead_frames", 2)
    assert node.start()


def test_counts_and_latencies_are_right_where_a_frame_yields_no_one_or_several_poses(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    for age_s, frame in zip((500, 400, 300, 200, 100), frames_from(next(STARTS_NS), 5), strict=True):
        process(idle_node, frame, age_s)
    values = idle_node._session.diagnose()[2]
    assert values["poses published"] == 3
    assert float(values["latency p50 [ms]"]) == pytest.approx(400e3, abs=20e3)
    assert float(values["latency p95 [ms]"]) == pytest.approx(500e3, abs=20e3)
    process(idle_node, frames_from(next(STARTS_NS), 1)[0], 0)  # a gap: the two that wait are localized
    values = idle_node._session.diagnose()[2]
    assert values["poses published"] == values["pose rate [Hz]"] + 3 == 5
    assert float(values["latency p50 [ms]"]) == pytest.approx(300e3, abs=20e3)


def test_rejected_frames_in_between_change_no_other_frames_latency(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    frames = frames_from(next(STARTS_NS), 8)
    for age_s, frame in zip((800, 700), frames[:2], strict=True):
        process(idle_node, frame, age_s)
    for frame in frames[2:7]:
        process(idle_node, replace(frame, image=np.zeros((2, 0, 3), np.uint8)), 1)
    process(idle_node, frames[7], 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: undecodable"]) == (1, 5)
    assert float(values["latency p95 [ms]"]) == pytest.approx(800e3, abs=20e3)


def test_every_pose_that_cannot_be_published_is_counted(idle_node, clip_checkpoint):
    set_parameter(idle_node, "base_frame", "no_such_frame")
    start_with_clips(idle_node, clip_checkpoint)
    for frame in (*frames_from(next(STARTS_NS), 2), *frames_from(next(STARTS_NS), 1)):
        process(idle_node, frame, 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"]) == (0, 2)


@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (5, np.nan), (2, 0.0)])
def test_no_covariance_that_is_not_finite_or_not_positive_is_published(row, value, idle_node, checkpoint, monkeypatch):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    assert idle_node.start()
    (frame,) = frames_from(next(STARTS_NS), 1)
    covariance = np.diag(np.ones(6))
    covariance[row, row] = value
    estimate = Estimate(frame.stamp_ns, Pose.identity(), covariance, ("image",))
    monkeypatch.setattr(idle_node._resources.model, "feed", lambda frame, batch: [estimate])
    process(idle_node, frame, 0)
    values = idle_node._session.diagnose()[2]
    assert (values["poses published"], values["rejected: not localized"], values["transforms published"]) == (0, 1, 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_dropped_sensor_is_reported_and_its_pose_withheld_where_all_are_required(
    allowed, idle_node, checkpoint, monkeypatch
):
    set_parameter(idle_node, "checkpoint", str(checkpoint))
    set_parameter(idle_node, "allow_degraded", allowed)
    set_parameter(idle_node, "modalities", ["image"])  # or frames without a scan would be rejected
    assert idle_node.start()
    (frame,) = frames_from(next(STARTS_NS), 1)
    estimate = Estimate(
        frame.stamp_ns, Pose.identity(), np.eye(6), ("image",), confidence=0.5, dropped_sensors=("lidar",)
    )
    monkeypatch.setattr(idle_node._resources.model, "feed", lambda frame, batch: [estimate])
    process(idle_node, frame, 0)
    _, text, values = idle_node._session.diagnose()
    if allowed:
        assert (values["poses published"], values["dropped sensors"]) == (1, "lidar")
        assert "dropped lidar, unlike the training data" in text
    else:
        assert (values["poses published"], values["poses withheld"]) == (0, 1)
        assert "lidar unlike the training data, and allow_degraded is false" in text


def test_deactivation_drops_the_clip(idle_node, clip_checkpoint):
    start_with_clips(idle_node, clip_checkpoint)
    before, after = frames_from(next(STARTS_NS), 4)[:2], frames_from(next(STARTS_NS), 3)
    for frame in before:
        process(idle_node, frame, 0)
    assert idle_node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert idle_node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    for frame in after:
        process(idle_node, frame, 0)
    assert idle_node._session.diagnose()[2]["poses published"] == 1


def test_the_readme_lists_every_parameter_with_its_default():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? \|", readme.partition("### Parameters")[2], re.MULTILINE))
    quoted = {str: '"{}"', bool: "{}", int: "{}", float: "{}", type(None): ""}
    defaults = {
        row.name: quoted[type(row.default)].format(str(row.default).lower() if row.default is not None else "")
        for row in fields(NodeConfig)
    }
    assert table == defaults
