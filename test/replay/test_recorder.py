# SPDX-License-Identifier: Apache-2.0
"""The recorder alone, over real DDS."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from ros_graph import peer, wait_until
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.replay.recorder import Recorder

pytestmark = pytest.mark.usefixtures("ros_domain")


def test_latched_topics_stay_latched_in_the_recording(tmp_path: Path) -> None:
    """As ~/training_area: RViz asks for transient local durability, which `ros2 bag play` offers if the bag says so."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("test_recorder", context=context)
    with peer() as us, BagWriter(tmp_path / "bag") as writer:
        us.publisher(String, "/latched", latched).publish(String(data="before the recorder came"))
        us.publisher(String, "/plain")
        recorder = Recorder(node, writer, ["/latched", "/plain"], lambda: 1_700_000_000_000_000_000, threading.Event())
        assert recorder.all_found.wait(30.0)
        us.wait_for_peers(["/latched", "/plain"])
        us.publisher(String, "/plain").publish(String(data="afterwards"))
        wait_until(lambda: all(recorder._counts.values()), "both messages")
        assert recorder.stop() == {"/latched": 1, "/plain": 1}
    node.destroy_node()
    rclpy.shutdown(context=context)
    information = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    durability = {
        topic["topic_metadata"]["name"]: topic["topic_metadata"]["offered_qos_profiles"][0]["durability"]
        for topic in information["topics_with_message_count"]
    }
    assert durability == {"/latched": "transient_local", "/plain": "volatile"}
