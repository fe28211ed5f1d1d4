# SPDX-License-Identifier: Apache-2.0
"""The node over real DDS, in a process of its own."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from helpers import random_frame
from ros_graph import Peer, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, point_cloud_message, typestore
from vmloc_ros.core.frame import Estimate, Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_pose, stamp_ns

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
    us.publisher(PointCloud2, CLOUDS).publish(PointCloud2())  # stamp 0
    send(us, frames[1:])
    assert_equals_localizer(messages_for(us, "/vmloc_node/pose", frames[1:]), frames[1:], localizer)
    node.wait_for_output("undecodable: image: .*nonsense")
    assert not node.is_dead


def test_the_lidar_answers_at_the_images_stamp_where_the_image_cannot_be_decoded(graph, localizer):
    us, _ = graph
    frames = frames_from(next(STARTS_NS), 6)
    for frame in frames:
        broken = image_message(frame.stamp_ns, "camera", frame.image, "rgb8")
        broken.encoding = "nonsense"
        us.publisher(Image, IMAGES).publish(cdr(broken))
        us.publisher(PointCloud2, CLOUDS).publish(cdr(point_cloud_message(frame.stamp_ns, "lidar", frame.cloud)))
        time.sleep(0.02)
    blind = [replace(frame, image=None) for frame in frames]
    assert_equals_localizer(messages_for(us, "/vmloc_node/pose", frames), blind, localizer)


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
        has_reset = int(values.get("pairing: resets", 0)) >= 1  # in the test before
        return values if has_reset and float(values.get("latency p95 [ms]") or 0) > 0 else None

    values = wait_until(complete, "diagnostics")
    assert values["state"] == "active"
    assert values["checkpoint"] == str(checkpoint)
    assert values["frames"] == "map -> base_link"
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
    parameters["queue_depth"] = 100  # no frame is dropped on a busy machine
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
