# SPDX-License-Identifier: Apache-2.0
"""The README's table of diagnostic keys against those that a node publishes over DDS."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import random_frame, yaw_pose
from ros_graph import cdr, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, odometry_message
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.synchronizer import Statistics
from vmloc_ros.ros.diagnostics import values_of
from vmloc_ros.runtime.health import Health

pytestmark = pytest.mark.usefixtures("ros_domain")

IMAGES, ODOMETRY = "/camera/image_raw", "/wheels/odometry"
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000


def rows_of_the_readme() -> dict[str, re.Pattern[str]]:
    """Keys of the table with a pattern for each, where ``<sensor>`` matches any words."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = readme.partition("### Diagnostics")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    keys = [key for cell in cells for key in re.findall(r"`(.*?)`", cell)]
    return {key: re.compile(re.sub(r"<\w+>", ".+", re.escape(key))) for key in keys}


def keys_of_a_node_that_does_everything(tmp_path: Path) -> set[str]:
    """Keys with large coordinates, odometry, smoothing, a frame that cannot be decoded and a silent lidar."""
    checkpoint = tmp_path / "model.safetensors"
    header = write_random_checkpoint(checkpoint, map_frame="utm")
    codec = replace(header.pose_codec, origin_m=(620_000.0, 5_735_000.0, 0.0))
    save_checkpoint(checkpoint, replace(header, pose_codec=codec), load_checkpoint(checkpoint)[1].state_dict())
    parameters = {"checkpoint": checkpoint, "device": "cpu", "base_frame": "base_link", "deadline_s": 0.01}
    parameters |= {"smoothing": True, "tf_mode": "map_to_odom", "odometry_topic": ODOMETRY}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        statuses = us.collect(DiagnosticArray, "/diagnostics")
        us.publisher(Image, IMAGES)
        us.publisher(Odometry, ODOMETRY)
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, ODOMETRY], ["/diagnostics"])
        for i in range(-1, 8):
            odometry = odometry_message(START_NS + i * PERIOD_NS, "odom", "base_link", yaw_pose(0.1 * i))
            us.publisher(Odometry, ODOMETRY).publish(cdr(odometry))
        for i, encoding in enumerate(("rgb8", "rgb8", "nonsense")):
            image = image_message(START_NS + i * PERIOD_NS, "camera", random_frame(i).image, "rgb8")
            image.encoding = encoding
            us.publisher(Image, IMAGES).publish(cdr(image))

        def keys() -> set[str]:
            return {pair.key for message in list(statuses) for pair in message.status[0].values}

        wanted = ("posterior std joint", "rejected: undecodable", "nearest lidar to the latest unpaired frame [s]")
        wait_until(lambda: set(wanted) <= keys(), f"diagnostics of {wanted}")
        return keys()


def test_deprecated_keys_have_the_values_of_their_successors() -> None:
    health = Health()
    estimate = Estimate(0, Pose.identity(), np.eye(6), ("image",), dropped_sensors=("lidar",))
    health.published(1.0, estimate)
    health.rejected("undecodable", "too little data")
    values = values_of(health.report(), Statistics(), 0, {})
    assert values["left out as strange"] == values["dropped sensors"] == "lidar"
    assert values["refused: undecodable"] == values["rejected: undecodable"] == 1


def test_the_readme_explains_every_diagnostic_key_and_no_other(tmp_path) -> None:
    rows, keys = rows_of_the_readme(), keys_of_a_node_that_does_everything(tmp_path)
    assert not [key for key in keys if not any(row.fullmatch(key) for row in rows.values())]
    assert not [name for name, row in rows.items() if not any(row.fullmatch(key) for key in keys)]
