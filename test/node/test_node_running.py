# SPDX-License-Identifier: Apache-2.0
"""Withholding when lost, signals, namespaces and looping bags over real DDS, with the node in a process of its own."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ros_graph import localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from image_node import (
    IMAGES,
    MIN_CONFIDENCE,
    NODE,
    PERIOD_NS,
    STARTS_NS,
    after,
    assert_are_of,
    in_distribution_frames,
    novel_frames,
    poses_for,
    send,
    stamps_on,
    started,
    statuses,
    trigger,
    values_of,
)
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import image_message
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.messages import stamp_ns

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.fixture(scope="module")
def localizer(confidence_checkpoint) -> Localizer:
    return localizer_of_the_node(confidence_checkpoint)


def test_nothing_is_published_while_lost_until_the_first_confident_pose(confidence_checkpoint, localizer, tmp_path):
    """A stream that begins with novel images, and later turns to them again."""
    first = novel_frames(6, next(STARTS_NS))
    good = in_distribution_frames(6, after(first))
    lost = novel_frames(25, after(good))
    again = in_distribution_frames(6, after(lost))
    confidences = [localizer.localize(frame).confidence for frame in (*first, *lost, *good, *again)]
    assert max(confidences[:31]) < MIN_CONFIDENCE < min(confidences[31:])  # else this would test nothing
    with started(confidence_checkpoint, tmp_path) as (us, node):
        send(us, first)
        wait_until(lambda: values_of(us).get("poses withheld") == "6", "their count")
        assert not us.received[f"{NODE}/pose"]
        send(us, good)
        assert_are_of(poses_for(us, good), good, localizer)
        send(us, lost)
        wait_until(lambda: values_of(us)["poses withheld"] == "31", "their count")
        pattern = rf"lost: confidence (\S+) below {MIN_CONFIDENCE:g} for (\d+\.\d) s"
        lost_statuses = [
            (status.level, match) for status in statuses(us) if (match := re.match(pattern, status.message))
        ]
        assert {level for level, _ in lost_statuses} == {DiagnosticStatus.WARN}
        assert float(lost_statuses[-1][1][1]) < MIN_CONFIDENCE
        send(us, again)
        poses_for(us, again)
        published = [frame.stamp_ns for frame in (*good, *again)]
        for topic in ("pose", "pose_with_covariance"):
            wait_until(lambda topic=topic: len(us.received[f"{NODE}/{topic}"]) >= len(published), topic)
            assert stamps_on(us, f"{NODE}/{topic}") == published
        assert [stamp_ns(t.header) for message in us.received["/tf"] for t in message.transforms] == published
        node.wait_for_output(r"WARN.*lost: confidence")
        node.wait_for_output(r"INFO.*no longer lost")
        wait_until(lambda: values_of(us)["poses published"] == str(len(published)), "their count")
        assert float(values_of(us)["confidence"]) == pytest.approx(confidences[-1], rel=0.01)


SLOW_NODE = """
import sys
from vmloc_ros.runtime.served_model import ServedModel
from vmloc_ros.node import main

feed = ServedModel.feed

def feed_slowly(self, frame, batch):
    print("inference begins", flush=True)
    for _ in range(100):
        feed(self, frame, batch)
    print("inference ends", flush=True)
    return feed(self, frame, batch)

ServedModel.feed = feed_slowly
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_inference_ends_the_node_with_zero_and_leaves_no_process(
    number, confidence_checkpoint, tmp_path
):
    arguments = ["-c", SLOW_NODE, *node_arguments({"checkpoint": confidence_checkpoint, "device": "cpu"})[2:]]
    with peer() as us, running(arguments, tmp_path / "log") as node:
        us.publisher(Image, IMAGES)
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES])
        send(us, in_distribution_frames(1))
        node.wait_for_output("inference begins")
        assert "inference ends" not in node.output
        assert node.interrupt(number) == 0
        assert "Traceback" not in node.output
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.is_file()]
    assert not [command for command in commands if f"checkpoint:={confidence_checkpoint}".encode() in command]


def test_two_namespaced_nodes_localize_their_own_cameras_which_start_late(
    confidence_checkpoint, other_confidence_checkpoint, tmp_path
):
    paths = {"left": confidence_checkpoint, "right": other_confidence_checkpoint}

    def arguments(name: str) -> list[str]:
        parameters = {"checkpoint": paths[name], "device": "cpu", "queue_depth": 100, "base_frame": f"{name}/base_link"}
        parameters["base_from_body"] = "[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]"
        return [*node_arguments(parameters), "-r", f"__ns:=/{name}"]

    with (
        peer() as us,
        running(arguments("left"), tmp_path / "left.log") as left,
        running(arguments("right"), tmp_path / "right.log") as right,
    ):
        us.collect(TFMessage, "/tf")
        us.collect(DiagnosticArray, "/diagnostics")
        for node in (left, right):
            node.wait_for_output("now active")
        frames = {name: in_distribution_frames(4) for name in paths}
        for name in paths:
            us.publisher(Image, f"/{name}/camera/image_raw")
            us.collect(PoseStamped, f"/{name}/vmloc_node/pose")
            us.wait_for_peers([f"/{name}/camera/image_raw"], [f"/{name}/vmloc_node/pose", "/tf"])
            send(us, frames[name], f"/{name}/camera/image_raw")
        for name, path in paths.items():
            poses = poses_for(us, frames[name], f"/{name}/vmloc_node/pose")
            assert_are_of(poses, frames[name], localizer_of_the_node(path))
            assert len(us.received[f"/{name}/vmloc_node/pose"]) == 4
            assert trigger(us, f"/{name}/vmloc_node/reset")[0]
        wait_until(lambda: sum(len(message.transforms) for message in us.received["/tf"]) >= 8, "TF of both")
        children = [t.child_frame_id for message in us.received["/tf"] for t in message.transforms]
        assert sorted(children) == ["left/base_link"] * 4 + ["right/base_link"] * 4
        expected = {f"{name}/vmloc_node: localization" for name in paths}
        wait_until(lambda: {status.name for status in statuses(us)} == expected, "both diagnostics")


def test_a_bag_that_loops_with_its_clock_is_localized_in_each_round(confidence_checkpoint, localizer, tmp_path):
    frames = [replace(f, stamp_ns=f.stamp_ns + i * 4 * PERIOD_NS) for i, f in enumerate(in_distribution_frames(8))]
    first_ns, last_ns = frames[0].stamp_ns, frames[-1].stamp_ns
    with BagWriter(tmp_path / "bag") as writer:
        for frame in frames:
            writer.write(IMAGES, image_message(frame.stamp_ns, "camera", frame.image, "rgb8"), frame.stamp_ns)
    player = ["-m", "training.cli", "replay", str(tmp_path / "bag"), "--loop", "--clock", "--rate", "10"]
    with started(confidence_checkpoint, tmp_path, use_sim_time="true") as (us, node):
        paths = us.collect(PathMessage, f"{NODE}/path")
        us.wait_for_peers([], [f"{NODE}/path"])
        with running([*player, "--wait-for", IMAGES], tmp_path / "player.log") as process:
            wait_until(lambda: len(us.received[f"{NODE}/pose"]) >= 3 * len(frames), "three rounds", 60.0)
            wait_until(lambda: len(paths) > 1, "two paths", 60.0)
            assert process.interrupt(signal.SIGINT) == 0
        poses = us.received[f"{NODE}/pose"][: 3 * len(frames)]
        assert [stamp_ns(pose.header) for pose in poses] == 3 * [frame.stamp_ns for frame in frames]
        assert_are_of(poses, 3 * frames, localizer)
        wait_until(lambda: int(values_of(us)["pairing: resets"]) >= 2, "their count")
        stamps = [stamp_ns(message.header) for message in us.received["/diagnostics"]]
        assert any(first_ns <= stamp <= last_ns + 10**9 for stamp in stamps)  # by the bag's clock, not the wall's
        for path in paths:
            stamps = [stamp_ns(pose.header) for pose in path.poses]
            assert stamps == sorted(set(stamps))  # of one round
        assert node.interrupt(signal.SIGTERM) == 0
