# SPDX-License-Identifier: Apache-2.0
"""The node's inputs and modes over real DDS: compressed, depth, scans alone, overload, deactivation under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from helpers import random_frame
from ros_graph import Peer, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, point_cloud_message
from vmloc_ros.core.checkpoint import Residuals, Uncertainty, load_checkpoint, save_checkpoint
from vmloc_ros.core.frame import Frame
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import decode_depth, decode_pose, stamp_ns

pytestmark = pytest.mark.usefixtures("ros_domain")

POSES, IMAGES, CLOUDS, DEPTHS = "/vmloc_node/pose", "/camera/image_raw", "/lidar/points", "/camera/depth/image_raw"
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 50_000_000


def frames_from(start_ns: int, count: int, names: Sequence[str] = ("image", "lidar")) -> list[Frame]:
    return [replace(random_frame(i, names=names), stamp_ns=start_ns + i * PERIOD_NS) for i in range(count)]


def send_image(us: Peer, frame: Frame) -> None:
    us.publisher(Image, IMAGES).publish(cdr(image_message(frame.stamp_ns, "camera", frame.image, "rgb8")))


def send_cloud(us: Peer, frame: Frame) -> None:
    us.publisher(PointCloud2, CLOUDS).publish(cdr(point_cloud_message(frame.stamp_ns, "lidar", frame.cloud)))


def stamps(us: Peer) -> list[int]:
    return [stamp_ns(pose.header) for pose in list(us.received[POSES])]


def assert_localized(us: Peer, frames: Sequence[Frame], localizer: Localizer) -> None:
    """Each of these frames got one pose, equal to the localizer's, in order."""
    wanted = [frame.stamp_ns for frame in frames]
    wait_until(lambda: set(wanted) <= set(stamps(us)), f"{len(wanted)} poses")
    poses = [pose for pose in list(us.received[POSES]) if stamp_ns(pose.header) in wanted]
    assert [stamp_ns(pose.header) for pose in poses] == wanted
    for pose, frame in zip(poses, frames, strict=True):
        expected = localizer.localize(frame).map_from_body.matrix
        np.testing.assert_allclose(decode_pose(pose).matrix, expected, atol=1e-6)


def status_with(us: Peer, condition: Callable[[str, dict[str, str]], object], what: str) -> dict[str, str]:
    """Values of the first diagnostic whose message and values fulfil a condition."""

    def found():
        for array in list(us.received["/diagnostics"]):
            values = {pair.key: pair.value for pair in array.status[0].values}
            if condition(array.status[0].message, values):
                return values
        return None

    return wait_until(found, what)


def listen(us: Peer) -> None:
    us.collect(PoseStamped, POSES)
    us.collect(DiagnosticArray, "/diagnostics")


def test_poses_of_compressed_and_depth_images_equal_the_localizers(tmp_path):
    path = tmp_path / "rgbd.safetensors"
    write_random_checkpoint(path, ("image", "depth"))
    parameters = {"checkpoint": path, "device": "cpu", "image_transport": "compressed", "deadline_s": 2.0}
    frames = []
    with peer() as us, running(node_arguments({**parameters, "queue_depth": 100}), tmp_path / "log") as node:
        us.publisher(CompressedImage, f"{IMAGES}/compressed")
        us.publisher(Image, DEPTHS)
        listen(us)
        node.wait_for_output("now active")
        us.wait_for_peers([f"{IMAGES}/compressed", DEPTHS], [POSES])
        for number, frame in enumerate(frames_from(START_NS, 6, ("image", "depth"))):
            millimetres = number % 2 == 0
            pixels = np.round(frame.depth_m * 1e3).astype(np.uint16) if millimetres else frame.depth_m
            depth = image_message(frame.stamp_ns, "camera", pixels, "16UC1" if millimetres else "32FC1")
            frames.append(replace(frame, depth_m=decode_depth(depth)))
            compressed = CompressedImage(format="rgb8; png compressed bgr8")
            compressed.header.stamp = Time(nanoseconds=frame.stamp_ns).to_msg()
            compressed.data = cv2.imencode(".png", frame.image[..., ::-1])[1].tobytes()
            us.publisher(CompressedImage, f"{IMAGES}/compressed").publish(compressed)
            us.publisher(Image, DEPTHS).publish(cdr(depth))
            time.sleep(0.02)
        assert_localized(us, frames, localizer_of_the_node(path))
        status_with(us, lambda message, _: message == "localizing by image and depth", "the diagnostic")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path)
    return path


def test_scans_are_localized_alone_until_the_camera_starts(checkpoint, tmp_path):
    localizer = localizer_of_the_node(checkpoint)
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100, "silence_s": 0.5, "deadline_s": 0.3}
    alone, both = frames_from(START_NS, 6, ("lidar",)), frames_from(START_NS + 10 * PERIOD_NS, 4)
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        us.publisher(PointCloud2, CLOUDS)
        listen(us)
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, CLOUDS], [POSES])
        for frame in alone:
            send_cloud(us, frame)
            time.sleep(0.02)
        assert_localized(us, alone, localizer)
        status_with(us, lambda message, _: "localizing without image" in message, "the diagnostic")
        for frame in both:
            send_cloud(us, frame)
            send_image(us, frame)
            time.sleep(0.02)
        assert_localized(us, both, localizer)
        status_with(us, lambda message, _: message == "localizing by image and lidar", "the diagnostic")


def test_the_published_covariance_grows_while_a_sensor_is_missing(checkpoint, tmp_path):
    header, model = load_checkpoint(checkpoint)
    alone = Residuals((4.0, 4.0, 4.0, 0.2, 0.2, 0.2), (1.5, 1.5), ("lidar",))
    uncertainty = Uncertainty((0.5, 0.5, 0.5, 0.02, 0.02, 0.02), missing=(alone,))
    path = tmp_path / "fitted.safetensors"
    save_checkpoint(path, replace(header, uncertainty=uncertainty), model.state_dict())
    parameters = {"checkpoint": path, "device": "cpu", "queue_depth": 100, "silence_s": 0.5, "deadline_s": 0.3}
    scans, both = frames_from(START_NS, 3, ("lidar",)), frames_from(START_NS + 10 * PERIOD_NS, 3)
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        us.publisher(PointCloud2, CLOUDS)
        listen(us)
        published = us.collect(PoseWithCovarianceStamped, "/vmloc_node/pose_with_covariance")
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, CLOUDS], [POSES, "/vmloc_node/pose_with_covariance"])
        for frame in scans:
            send_cloud(us, frame)
        assert_localized(us, scans, localizer_of_the_node(path))
        for frame in both:
            send_cloud(us, frame)
            send_image(us, frame)
            time.sleep(0.02)
        wait_until(lambda: len(list(published)) == len(scans) + len(both), "a covariance for each frame")
        variances = [np.diag(np.reshape(message.pose.covariance, (6, 6))) for message in list(published)]
    assert (np.min(variances[: len(scans)], axis=0) > np.max(variances[len(scans) :], axis=0)).all()


SLOW_NODE = """
import sys, time
from vmloc_ros.runtime.served_model import ServedModel
from vmloc_ros.node import main

feed = ServedModel.feed

def feed_slowly(self, frame, batch):
    print("inference begins", flush=True)
    time.sleep(1.0)
    return feed(self, frame, batch)

ServedModel.feed = feed_slowly
sys.exit(main())
"""


@pytest.fixture
def slow_node(tmp_path):
    """An active node of images that takes 1 s per frame, and a peer that collects its messages."""
    path = tmp_path / "image.safetensors"
    write_random_checkpoint(path, ("image",))
    arguments = ["-c", SLOW_NODE, *node_arguments({"checkpoint": path, "device": "cpu", "queue_depth": 2})[2:]]
    with peer() as us, running(arguments, tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        listen(us)
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES], [POSES])
        yield us, node


def test_under_overload_the_newest_frames_are_localized_in_order_and_dropped_ones_counted(slow_node):
    us, node = slow_node
    frames = frames_from(START_NS, 10, ("image",))
    send_image(us, frames[0])
    node.wait_for_output("inference begins")
    for frame in frames[1:]:
        send_image(us, frame)
        time.sleep(0.02)
    wait_until(lambda: frames[-1].stamp_ns in stamps(us), "the newest")

    def all_known(_: object, values: dict[str, str]) -> bool:  # a status may be older than the newest pose
        return len(stamps(us)) + int(values.get("dropped for newer", 0)) == len(frames)

    dropped = int(status_with(us, all_known, "each frame localized or dropped")["dropped for newer"])
    assert dropped >= 5  # one in the model, one prepared, two in the queue; 9 can have come before inference ended
    assert stamps(us) == sorted(stamps(us))
    assert frames[-2].stamp_ns in stamps(us)


def test_deactivation_under_load_discards_waiting_frames(slow_node):
    us, node = slow_node
    client = us.node.create_client(ChangeState, "/vmloc_node/change_state")
    assert client.wait_for_service(30.0)

    def change(transition: int) -> bool:
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        wait_until(future.done, "the transition")
        return future.result().success

    frames = frames_from(START_NS, 6, ("image",))
    send_image(us, frames[0])
    node.wait_for_output("inference begins")
    for frame in frames[1:5]:
        send_image(us, frame)
    assert change(Transition.TRANSITION_DEACTIVATE)
    wait_until(lambda: not us.publisher(Image, IMAGES).get_subscription_count(), "no subscriber")
    assert change(Transition.TRANSITION_ACTIVATE)
    us.wait_for_peers([IMAGES])
    send_image(us, frames[5])
    wait_until(lambda: frames[5].stamp_ns in stamps(us), "the frame after it")
    assert stamps(us) == [frames[0].stamp_ns, frames[5].stamp_ns]
