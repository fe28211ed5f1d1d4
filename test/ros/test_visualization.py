# SPDX-License-Identifier: Apache-2.0
"""Debug images over real DDS: only for subscribers, at a limited rate, and after the pose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers import random_frame
from ros_graph import node_in_process, peer, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")

from sensor_msgs.msg import Image

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, point_cloud_message
from vmloc_ros.core.messages import decode_image, stamp_ns
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.ros import visualization
from vmloc_ros.ros.visualization import DebugImages
from vmloc_ros.runtime.debug_images import overlay_picture, range_picture

pytestmark = pytest.mark.usefixtures("ros_domain")

CONFIG = PreprocessConfig(shortest_side=60)
STAMP_NS, CLOUD_STAMP_NS = 1_700_000_000_000_000_000, 1_700_000_000_010_000_000
ALWAYS_HZ, ONCE_HZ = 1e9, 1e-3


def frame_and_bundle(clouds: bool = True):
    frame = replace(random_frame(), stamp_ns=STAMP_NS)
    messages = {
        "image": (STAMP_NS, image_message(STAMP_NS, "camera", frame.image, "rgb8")),
        "lidar": (CLOUD_STAMP_NS, point_cloud_message(CLOUD_STAMP_NS, "lidar", frame.cloud)),
    }
    if not clouds:
        del messages["lidar"]
        frame = replace(frame, cloud=None)
    return frame, Bundle(STAMP_NS, 0, messages)


@pytest.fixture
def viewer():
    """A node that publishes debug images, and a function that subscribes to some of their topics."""
    with peer() as drawing, peer() as us:

        def subscribe(*topics):
            for topic in topics:
                us.collect(Image, f"/test_peer/{topic}")
                wait_until(lambda topic=topic: drawing.node.count_subscribers(f"/test_peer/{topic}"), "the viewer")
            return us.received

        yield drawing.node, subscribe


def publish_until(debug, frame, bundle, seen):
    """Publish until something arrives: before discovery images are lost."""

    def tried():
        debug.publish(bundle, frame)
        return seen()

    wait_until(tried, "images")


def test_images_have_the_stamp_and_frame_of_their_source(viewer):
    node, subscribe = viewer
    debug = DebugImages(node, CONFIG, ALWAYS_HZ)
    received = subscribe("range_image", "overlay")
    frame, bundle = frame_and_bundle()
    publish_until(debug, frame, bundle, lambda: len([topic for topic, seen in received.items() if seen]) == 2)
    ranges, overlay = received["/test_peer/range_image"][0], received["/test_peer/overlay"][0]
    assert (ranges.header.frame_id, stamp_ns(ranges.header)) == ("lidar", CLOUD_STAMP_NS)
    assert (overlay.header.frame_id, stamp_ns(overlay.header)) == ("camera", STAMP_NS)
    np.testing.assert_array_equal(decode_image(ranges), range_picture(frame, Preprocessor(CONFIG)))
    expected = overlay_picture(frame, CONFIG.lidar_range_m)
    np.testing.assert_array_equal(decode_image(overlay), expected)
    assert (expected != overlay_picture(replace(frame, camera=None), CONFIG.lidar_range_m)).any()


def test_without_calibration_only_the_overlays_points_are_missing(viewer):
    node, subscribe = viewer
    debug = DebugImages(node, CONFIG, ALWAYS_HZ)
    received = subscribe("overlay")
    frame, bundle = frame_and_bundle()
    frame = replace(frame, camera=None)
    publish_until(debug, frame, bundle, lambda: received["/test_peer/overlay"])
    expected = overlay_picture(frame, CONFIG.lidar_range_m)
    np.testing.assert_array_equal(decode_image(received["/test_peer/overlay"][0]), expected)


def test_images_are_drawn_for_subscribers_alone_and_at_a_limited_rate(viewer, monkeypatch):
    node, subscribe = viewer
    drawn = []
    monkeypatch.setattr(visualization, "range_picture", lambda *_: drawn.append("range") or None)
    monkeypatch.setattr(visualization, "overlay_picture", lambda *_: drawn.append("overlay") or None)
    often, once = DebugImages(node, CONFIG, ALWAYS_HZ), DebugImages(node, CONFIG, ONCE_HZ)
    frame, bundle = frame_and_bundle()
    for _ in range(3):
        often.publish(bundle, frame)
    assert drawn == []
    subscribe("overlay")
    publish_until(often, frame, bundle, lambda: drawn)
    for _ in range(3):
        often.publish(bundle, frame)
    assert drawn == ["overlay"] * 4
    drawn.clear()
    publish_until(once, frame, bundle, lambda: drawn)
    for _ in range(3):
        once.publish(bundle, frame)
    assert drawn == ["overlay"]


def test_a_range_image_that_cannot_be_drawn_does_not_stop_the_overlay(viewer):
    node, subscribe = viewer
    debug = DebugImages(node, replace(CONFIG, lidar_projection="pinhole"), ALWAYS_HZ)
    received = subscribe("range_image", "overlay")
    frame, bundle = frame_and_bundle()
    frame = replace(frame, camera=None)
    publish_until(debug, frame, bundle, lambda: received["/test_peer/overlay"])
    assert not received["/test_peer/range_image"]


def test_the_pose_is_published_before_anything_is_drawn(ros_domain, tmp_path, monkeypatch):
    checkpoint = tmp_path / "random.safetensors"
    write_random_checkpoint(checkpoint, ("image", "lidar"))
    parameters = {"checkpoint": checkpoint, "device": "cpu", "modalities": "[image]", "queue_depth": 100}
    drawn = []
    with node_in_process(parameters) as node, peer() as us:

        def draw(frame, *_):
            drawn.append((frame.stamp_ns - STAMP_NS, node._session.diagnose()[2]["poses published"]))

        monkeypatch.setattr(visualization, "overlay_picture", draw)
        assert node.start()
        us.collect(Image, "/vmloc_node/overlay")
        wait_until(lambda: node.count_subscribers("/vmloc_node/overlay"), "the viewer")
        _, bundle = frame_and_bundle(clouds=False)
        sent = iter(range(1000))

        def seen():
            node._session._pipeline.add("image", STAMP_NS + next(sent), bundle.messages["image"][1])
            return drawn

        wait_until(seen, "an image")
    index, poses = drawn[0]
    assert poses == index + 1
