# SPDX-License-Identifier: Apache-2.0
"""The player and recorder over real DDS, alone and with the node."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import random_frame
from ros_graph import localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.files import BagWriter, open_bag
from vmloc_ros.bags.messages import image_message, pose_stamped_message, tf_message
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.uncertainty import moved_covariance
from vmloc_ros.replay import ReplayError, replay

pytestmark = pytest.mark.usefixtures("ros_domain")

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 50_000_000
BASE_FROM_CAMERA = Pose.from_xyz_rpy([0.3, -0.1, 1.2], [-1.5, 0.0, -1.6])
IMAGES, DEPTHS, TRUTH = "/camera/image_raw", "/camera/depth/image_raw", "/ground_truth/pose"


def frames(count: int = 12):
    return [
        replace(random_frame(i, names=("image", "depth")), stamp_ns=START_NS + i * PERIOD_NS, cloud=None)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """RGB-D frames at 20 Hz, each with a true pose, and a static transform."""
    path = tmp_path_factory.mktemp("bags") / "rgbd"
    with BagWriter(path) as writer:
        static = [("base_link", "camera_optical_frame", BASE_FROM_CAMERA, START_NS)]
        writer.write("/tf_static", tf_message(static), START_NS)
        for frame in frames():
            stamp = frame.stamp_ns
            writer.write(IMAGES, image_message(stamp, "camera_optical_frame", frame.image, "rgb8"), stamp)
            depth = image_message(stamp, "camera_optical_frame", frame.depth_m, "32FC1")
            writer.write(DEPTHS, depth, stamp)
            pose = Pose(np.array([stamp - START_NS, 0.0, 0.0]) * 1e-9, np.array([1.0, 0, 0, 0]))
            writer.write(TRUTH, pose_stamped_message(stamp, "map", pose), stamp)
    return path


def recorded(path: Path, topic: str) -> list:
    with open_bag(path) as reader:
        connections = [connection for connection in reader.connections if connection.topic == topic]
        return [
            (logged, reader.deserialize(data, connection.msgtype))
            for connection, logged, data in reader.messages(connections=connections)
        ]


def test_every_message_arrives_unchanged_and_in_order(bag):
    with peer() as us:
        poses = us.collect(PoseStamped, TRUTH)
        images = us.collect(Image, IMAGES)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        static = us.collect(TFMessage, "/tf_static", latched)
        report = replay(bag, rate=2.0, wait_for=[TRUTH, IMAGES], linger_s=0.3, progress=False)
    assert [stamp_ns(pose.header) for pose in poses] == [frame.stamp_ns for frame in frames()]
    for message, frame in zip(images, frames(), strict=True):
        np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8), frame.image.ravel())
    assert [t.child_frame_id for message in static for t in message.transforms] == ["camera_optical_frame"]
    assert report.published == {IMAGES: 12, DEPTHS: 12, TRUTH: 12, "/tf_static": 1}
    assert not report.interrupted


def test_clock_follows_the_log_time_and_stamps_the_recording(bag, tmp_path):
    with peer() as us:
        clock = us.collect(Clock, "/clock")
        report = replay(
            bag,
            clock=True,
            topics=[TRUTH.lstrip("/")],
            wait_for=["/clock"],
            record=tmp_path / "out",
            record_topics=[TRUTH],
            linger_s=0.2,
            progress=False,
        )
    times = [message.clock.sec * 1_000_000_000 + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert START_NS <= times[0] < times[-1] < START_NS + 60_000_000_000
    assert times[-1] >= frames()[-1].stamp_ns
    assert report.recorded == {TRUTH: 12}
    for logged, message in recorded(tmp_path / "out", TRUTH):
        assert logged >= stamp_ns(message.header)


def test_topics_whose_package_is_missing_are_skipped_by_name(tmp_path, caplog):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("float64 x\n", "nowhere_msgs/msg/Thing"))
    path = tmp_path / "bag"
    with Writer(path, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/thing", "nowhere_msgs/msg/Thing", typestore=store)
        thing = store.types["nowhere_msgs/msg/Thing"](x=1.0)
        writer.write(connection, 1, store.serialize_cdr(thing, "nowhere_msgs/msg/Thing"))
    with caplog.at_level(logging.WARNING), pytest.raises(ReplayError, match="none of the bag's topics"):
        replay(path, progress=False)
    assert "/thing is not played" in caplog.text
    assert "nowhere_msgs" in caplog.text


def write_poses(path: Path, logged_ns: list[int]) -> Path:
    """A pose logged at each of these times, by which its place is known."""
    with BagWriter(path) as writer:
        for number, logged in enumerate(logged_ns):
            pose = Pose(np.array([number, 0.0, 0.0]), np.array([1.0, 0, 0, 0]))
            writer.write(TRUTH, pose_stamped_message(START_NS + number, "map", pose), logged)
    return path


HOUR_NS = 3_600_000_000_000
REGULAR = [START_NS + i * PERIOD_NS for i in range(20)]


@pytest.mark.parametrize(
    ("logged_ns", "text"),
    [
        ([0, *REGULAR], "1 message(s) were logged at 0 or long before the others; they go out at once"),
        ([START_NS - 24 * HOUR_NS, *REGULAR], "they go out at once, at the start, 2023-11-14 22:13:20 UTC"),
        (
            [*REGULAR[:10], *(time + 2 * HOUR_NS for time in REGULAR[10:])],
            "nothing was recorded for 2 h 0 min after 2023-11-14 22:13:20 UTC; skipped",
        ),
        ([*REGULAR, START_NS + 48 * HOUR_NS], "1 gap(s) of more than 10.0 s without messages are left out"),
    ],
)
def test_a_replay_never_waits_for_hours(tmp_path, caplog, logged_ns, text):
    path = write_poses(tmp_path / "bag", logged_ns)
    caplog.set_level(logging.INFO)
    with peer() as us:
        poses, clock = us.collect(PoseStamped, TRUTH), us.collect(Clock, "/clock")
        report = replay(path, clock=True, wait_for=[TRUTH, "/clock"], linger_s=0.2)
        wait_until(lambda: len(poses) == len(logged_ns), "all poses")
    assert [pose.pose.position.x for pose in poses] == list(range(len(logged_ns)))
    assert report.published == {TRUTH: len(logged_ns)}
    times = [message.clock.sec * 1_000_000_000 + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert START_NS <= times[0] < START_NS + PERIOD_NS * 20
    assert times[-1] >= logged_ns[-1]
    assert text in caplog.text
    assert "100 % (1 of 1 s" in caplog.text.replace("0.9", "1").replace("1.0", "1")


def test_the_start_in_the_metadata_is_not_trusted(tmp_path, caplog):
    path = write_poses(tmp_path / "bag", REGULAR)
    metadata = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(metadata.replace(str(START_NS), str(START_NS - 24 * HOUR_NS)))
    assert replay(path, linger_s=0.0, progress=False).published == {TRUTH: 20}
    assert "begins 1 d 0 h before its first message; the replay starts there" in caplog.text


def test_a_gap_may_be_kept(tmp_path, caplog):
    path = write_poses(tmp_path / "bag", [START_NS, START_NS + 12_000_000_000])
    caplog.set_level(logging.INFO)
    report = replay(path, rate=24.0, max_gap_s=float("inf"), linger_s=0.0, progress=False)
    assert report.published == {TRUTH: 2}
    assert "skipped" not in caplog.text
    with pytest.raises(ConfigError, match="the longest gap must be positive, got 0"):
        replay(path, max_gap_s=0.0)


def test_of_a_topic_of_two_types_the_more_frequent_one_is_played(tmp_path):
    store, topic = get_typestore(Stores.ROS2_JAZZY), "/camera/image_raw"
    kinds = [("sensor_msgs/msg/Image", 5), ("sensor_msgs/msg/CompressedImage", 2)]
    with Writer(tmp_path / "bag", version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        image = image_message(START_NS, "cam", np.zeros((2, 2, 3), np.uint8), "rgb8")
        small = store.types[kinds[1][0]](header=image.header, format="jpeg", data=np.zeros(4, np.uint8))
        for (kind, count), message in zip(kinds, (image, small), strict=True):
            connection = writer.add_connection(topic, kind, typestore=store)
            for i in range(count):
                writer.write(connection, START_NS + i, store.serialize_cdr(message, kind))
    with peer() as us:
        received = us.collect(Image, topic)
        report = replay(tmp_path / "bag", wait_for=[topic], linger_s=0.2, progress=False)
        wait_until(lambda: len(received) == 5, "all pictures")
    assert report.published == {topic: 5}
    assert report.skipped == {
        topic: "2 messages of type sensor_msgs/msg/CompressedImage; a topic has one type, and most messages are "
        "sensor_msgs/msg/Image"
    }


def test_a_recording_that_was_cut_off_is_played_as_far_as_it_goes_on_request(bag, tmp_path, caplog):
    cut = shutil.copytree(bag, tmp_path / "cut")
    [file] = cut.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match="mcap recover"):
        replay(cut, progress=False)
    report = replay(cut, rate=4.0, allow_truncated=True, linger_s=0.0, progress=False)
    assert 0 < sum(report.published.values()) < 37
    assert f"it is cut off after {sum(report.published.values())} messages" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 0.0}, ConfigError, "rate must be positive, got 0"),
        ({"linger_s": -1.0}, ConfigError, "linger must not be negative"),
        ({"record_topics": ["/x"]}, ConfigError, "recording needs both"),
        ({"topics": ["/x"]}, ConfigError, "topic /x is not in the bag; it has /camera"),
        ({"wait_for": ["/x"]}, ConfigError, "cannot wait for subscribers of /x"),
        ({"wait_for": [TRUTH], "wait_timeout_s": 0.2}, ReplayError, "no subscriber of /ground_truth/pose"),
    ],
)
def test_invalid_arguments_are_named(bag, arguments, error, message):
    with pytest.raises(error, match=message):
        replay(bag, progress=False, **arguments)


def test_a_missing_bag_and_an_existing_recording_are_errors(bag, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        replay(tmp_path / "nothing")
    existing = tmp_path / "existing"
    shutil.copytree(bag, existing)
    with pytest.raises(DataError, match="exists already"):
        replay(bag, record=existing, record_topics=[TRUTH])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_looping_replay_with_a_complete_recording(bag, tmp_path, number):
    script = (
        "import dataclasses, json, sys; from vmloc_ros.replay import replay\n"
        "report = replay(sys.argv[1], loop=True, rate=4.0, record=sys.argv[2], record_topics=sys.argv[3:],"
        " progress=False)\nprint(json.dumps(dataclasses.asdict(report)))"
    )
    out = tmp_path / "out"
    with peer() as us, running(["-c", script, str(bag), str(out), TRUTH], tmp_path / "log") as player:
        poses = us.collect(PoseStamped, TRUTH)
        wait_until(lambda: len(poses) > 15, "the second round of the loop")
        assert player.interrupt(number) == 0, player.output
        report = json.loads(player.output.splitlines()[-1])
    assert report["interrupted"]
    messages = recorded(out, TRUTH)
    assert len(messages) == report["recorded"][TRUTH] > 12
    stamps = Counter(stamp_ns(message.header) for _, message in messages)
    assert max(stamps.values()) >= 2


def test_poses_of_a_replayed_bag_equal_the_localizers(bag, tmp_path):
    """Player, node and test in three processes; the bag's /tf_static moves the camera's pose to base_link."""
    checkpoint, out = tmp_path / "random.safetensors", tmp_path / "out"
    write_random_checkpoint(checkpoint, ("image", "depth"), body_frame="camera_optical_frame")
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100}
    topics = ["/vmloc_node/pose", "/vmloc_node/pose_with_covariance", "/tf"]
    player = ["-m", "training.cli", "replay", str(bag), "--wait-for", IMAGES, DEPTHS, "/tf_static"]
    player += ["--record", str(out), "--record-topics", *topics]
    with running(node_arguments(parameters), tmp_path / "node.log") as node:
        node.wait_for_output("now active")
        with running(player, tmp_path / "player.log") as process:
            assert process.wait() == 0, process.output
        assert node.interrupt(signal.SIGINT) == 0
    localizer = localizer_of_the_node(checkpoint)
    poses = [message for _, message in recorded(out, topics[0])]
    covariances = [message.pose.covariance.reshape(6, 6) for _, message in recorded(out, topics[1])]
    assert [stamp_ns(pose.header) for pose in poses] == [frame.stamp_ns for frame in frames()]
    for pose, covariance, frame in zip(poses, covariances, frames(), strict=True):
        estimate = localizer.localize(frame)
        expected = estimate.map_from_body @ BASE_FROM_CAMERA.inverse()
        np.testing.assert_allclose(decode_pose(pose).matrix, expected.matrix, atol=1e-6)
        arm_m = expected.position_m - estimate.map_from_body.position_m
        np.testing.assert_allclose(covariance, moved_covariance(estimate.covariance, arm_m), rtol=1e-5, atol=1e-9)
    children = {t.child_frame_id for _, message in recorded(out, "/tf") for t in message.transforms}
    assert children == {"base_link"}
