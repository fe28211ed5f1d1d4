# SPDX-License-Identifier: Apache-2.0
"""Inputs that say nothing over real DDS: empty scans and an uncalibrated camera leave the other sensor at work."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from helpers import random_frame
from ros_graph import Peer, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import camera_info_message, image_message, point_cloud_message
from vmloc_ros.core.frame import Frame, PointCloud
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.preprocessing import PreprocessConfig

pytestmark = pytest.mark.usefixtures("ros_domain")

POSES, IMAGES, CLOUDS, INFOS = "/vmloc_node/pose", "/camera/image_raw", "/lidar/points", "/camera/camera_info"
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 50_000_000


def frames_of(count: int) -> list[Frame]:
    return [replace(random_frame(i), stamp_ns=START_NS + i * PERIOD_NS) for i in range(count)]


def listen(us: Peer, node, *more: str) -> None:
    us.publisher(Image, IMAGES)
    us.publisher(PointCloud2, CLOUDS)
    us.collect(PoseStamped, POSES)
    node.wait_for_output("now active")
    us.wait_for_peers([IMAGES, CLOUDS, *more], [POSES])


def send_image(us: Peer, frame: Frame) -> None:
    us.publisher(Image, IMAGES).publish(cdr(image_message(frame.stamp_ns, "camera", frame.image, "rgb8")))


def assert_localized_as(us: Peer, frames: list[Frame], checkpoint) -> None:
    """Each frame has one pose: what the localizer estimates from this frame."""
    wait_until(lambda: len(us.received[POSES]) >= len(frames), f"{len(frames)} poses")
    localizer = localizer_of_the_node(checkpoint)
    for message, frame in zip(us.received[POSES], frames, strict=True):
        assert stamp_ns(message.header) == frame.stamp_ns
        expected = localizer.localize(frame).map_from_body.matrix
        np.testing.assert_allclose(decode_pose(message).matrix, expected, atol=1e-6)


def empty_scan(frame: Frame, kind: str):
    count = {"no points": 0}.get(kind, 50)
    value = {"NaN": np.nan, "zeros": 0.0}.get(kind, 1.0)
    message = point_cloud_message(frame.stamp_ns, "lidar", PointCloud(np.full((count, 3), value, np.float32)))
    if kind == "no fields":
        message.fields, message.point_step, message.row_step = [], 0, 0
        message.data = np.zeros(0, np.uint8)
    return message


def test_empty_scans_of_any_form_are_missing_scans(tmp_path):
    checkpoint = tmp_path / "random.safetensors"
    write_random_checkpoint(checkpoint)
    frames = frames_of(8)
    with (
        peer() as us,
        running(node_arguments({"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100}), tmp_path / "log") as n,
    ):
        listen(us, n)
        for frame, kind in zip(frames, ("no points", "NaN", "zeros", "no fields") * 2, strict=True):
            us.publisher(PointCloud2, CLOUDS).publish(cdr(empty_scan(frame, kind)))
            send_image(us, frame)
            time.sleep(0.02)
        assert_localized_as(us, [replace(frame, cloud=None) for frame in frames], checkpoint)
        n.wait_for_output("lidar: the scan is empty")


def test_an_uncalibrated_camera_leaves_the_lidar_at_work_where_the_model_needs_the_camera(tmp_path):
    """The scan can be projected into no picture: it is prepared as in training for frames without a camera."""
    checkpoint = tmp_path / "pinhole.safetensors"
    write_random_checkpoint(checkpoint, system="vmloc_dense", preprocess=PreprocessConfig(shortest_side=64))
    frames = frames_of(6)
    blank = camera_info_message(START_NS, "camera", frames[0].camera)
    blank.k[:], blank.p[:] = 0, 0
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100, "deadline_s": 2.0}
    with peer() as us, running(node_arguments({**parameters, "min_confidence": 0.0}), tmp_path / "log") as node:
        us.publisher(CameraInfo, INFOS)
        listen(us, node, INFOS)
        us.publisher(CameraInfo, INFOS).publish(cdr(blank))
        for frame in frames:
            message = point_cloud_message(frame.stamp_ns, "lidar", frame.cloud)
            us.publisher(PointCloud2, CLOUDS).publish(cdr(message))
            send_image(us, frame)
            time.sleep(0.02)
        node.wait_for_output("camera info is uncalibrated")
        assert_localized_as(us, [replace(frame, camera=None) for frame in frames], checkpoint)
