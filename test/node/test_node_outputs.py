# SPDX-License-Identifier: Apache-2.0
"""TF in each of its modes, odometry and large coordinates, over real DDS with the node in a process of its own."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from helpers import random_frame, yaw_pose
from ros_graph import Peer, Process, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, odometry_message, tf_message
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns

pytestmark = pytest.mark.usefixtures("ros_domain")

IMAGES, POSES, ODOMETRY = "/camera/image_raw", "/vmloc_node/pose", "/wheels/odometry"
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
UTM_M = (619_994.3, 5_734_999.8, 109.6)
PERIOD_NS, TOLERANCE_NS = 100_000_000, 700_000_000
FOOTPRINT_FROM_BASE = Pose.from_xyz_rpy([-0.1, 0.0, 0.3], [0.0, 0.0, 0.1])


def write_checkpoint(path: Path, origin_m: tuple[float, float, float] = (10.0, -5.0, 1.0), **names: str) -> Path:
    """A random model of images whose training poses have the mean ``origin_m``."""
    header = write_random_checkpoint(path, ("image",), **names)
    codec = replace(header.pose_codec, origin_m=origin_m)
    save_checkpoint(path, replace(header, pose_codec=codec), load_checkpoint(path)[1].state_dict())
    return path


@pytest.fixture(scope="module")
def local_checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "local.safetensors")


@pytest.fixture(scope="module")
def utm_checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "utm.safetensors", UTM_M, map_frame="utm")


def stamps_from(start_ns: int, count: int = 6) -> list[int]:
    return [start_ns + i * PERIOD_NS for i in range(count)]


def send_images(us: Peer, stamps: Sequence[int]) -> None:
    for number, stamp in enumerate(stamps):
        message = image_message(stamp, "camera", random_frame(number).image, "rgb8")
        us.publisher(Image, IMAGES).publish(cdr(message))
        time.sleep(0.03)


def driven(stamp: int, start_ns: int) -> tuple[np.ndarray, float]:
    """Position and yaw of the odometry: a steady turn, which interpolation between its messages reproduces."""
    seconds = (stamp - start_ns) * 1e-9
    return np.array([3.0 + 2.0 * seconds, -1.0 - 0.5 * seconds, 0.2]), 0.4 + 0.3 * seconds


def odometry_poses(start_ns: int, end_ns: int) -> Iterator[tuple[int, Pose]]:
    """Odometry every 30 ms, never at an image's stamp, until after the last image."""
    for stamp in range(start_ns - 7_000_000, end_ns + 40_000_000, 30_000_000):
        position, yaw = driven(stamp, start_ns)
        yield stamp, yaw_pose(*position[:2], np.degrees(yaw), position[2])


def driven_matrix(stamp: int, start_ns: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3], yaw = driven(stamp, start_ns)
    matrix[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
    return matrix


def transforms(us: Peer, child: str, topic: str = "/tf") -> list:
    return [t for message in list(us.received[topic]) for t in message.transforms if t.child_frame_id == child]


def poses_at(us: Peer, stamps: Sequence[int]) -> list:
    def found():
        by_stamp = {stamp_ns(message.header): message for message in list(us.received[POSES])}
        return [by_stamp[stamp] for stamp in stamps if stamp in by_stamp]

    wait_until(lambda: len(found()) == len(stamps), f"{len(stamps)} poses")
    return found()


def values_of(us: Peer) -> dict[str, str]:
    return {pair.key: pair.value for m in us.received["/diagnostics"][-1:] for pair in m.status[0].values}


def wait_for_diagnostic(us: Peer, pattern: str) -> None:
    def messages():
        return [m.status[0].message for m in list(us.received["/diagnostics"]) if m.status[0].message]

    try:
        wait_until(lambda: any(re.search(pattern, text) for text in messages()), f"a diagnostic like {pattern!r}")
    finally:
        assert any(re.search(pattern, text) for text in messages()), messages()[-3:]


def listen(us: Peer, node: Process) -> None:
    us.publisher(Image, IMAGES)
    us.collect(PoseStamped, POSES)
    us.collect(TFMessage, "/tf")
    us.collect(TFMessage, "/tf_static", LATCHED)
    us.collect(DiagnosticArray, "/diagnostics")
    node.wait_for_output("now active")
    us.wait_for_peers([IMAGES], [POSES, "/diagnostics"])


# --- map -> odom, odometry from TF, a checkpoint trained in UTM -------------------------------------------------------


@pytest.fixture(scope="module")
def graph(ros_domain, utm_checkpoint, tmp_path_factory):
    """A node that takes odometry from TF, with a static frame between odometry and base."""
    parameters = {"checkpoint": utm_checkpoint, "device": "cpu", "queue_depth": 100, "input_timeout_s": 600.0}
    parameters |= {"tf_mode": "map_to_odom", "transform_tolerance_s": TOLERANCE_NS * 1e-9, "publish_odometry": "true"}
    log = tmp_path_factory.mktemp("log") / "node.log"
    with peer() as us, running(node_arguments(parameters), log) as node:
        us.collect(Odometry, "/vmloc_node/odometry")
        us.collect(PoseWithCovarianceStamped, "/vmloc_node/pose_with_covariance")
        us.publisher(TFMessage, "/tf", 100)
        us.publisher(TFMessage, "/tf_static", LATCHED)
        listen(us, node)
        us.wait_for_peers(["/tf", "/tf_static"], ["/tf", "/vmloc_node/odometry"])
        mount = tf_message([("base_footprint", "base_link", FOOTPRINT_FROM_BASE, 0)])
        us.publisher(TFMessage, "/tf_static").publish(cdr(mount))
        yield us, node


def drive_by_tf(us: Peer, start_ns: int) -> list[int]:
    """Send images and then odometry: as with a fast model, poses wait for odometry."""
    stamps = stamps_from(start_ns)
    send_images(us, stamps)
    for stamp, odom_from_footprint in odometry_poses(start_ns, stamps[-1]):
        message = tf_message([("odom", "base_footprint", odom_from_footprint, stamp)])
        us.publisher(TFMessage, "/tf").publish(cdr(message))
    return stamps


def assert_map_to_odom_composes(us: Peer, stamps: list[int]) -> None:
    wanted = {stamp + TOLERANCE_NS for stamp in stamps}

    def found():
        return {stamp_ns(t.header): t for t in transforms(us, "odom") if stamp_ns(t.header) in wanted}

    wait_until(lambda: len(found()) == len(stamps), "map -> odom of each image")
    for stamp, pose in zip(stamps, poses_at(us, stamps), strict=True):
        transform = found()[stamp + TOLERANCE_NS]
        assert transform.header.frame_id == pose.header.frame_id == "map"
        composed = decode_pose(transform).matrix @ driven_matrix(stamp, stamps[0]) @ FOOTPRINT_FROM_BASE.matrix
        np.testing.assert_allclose(composed, decode_pose(pose).matrix, atol=1e-9)


@pytest.mark.parametrize("start_ns", [1_700_000_000_000_000_000, 1_690_000_000_000_000_000], ids=["first", "loop"])
def test_map_to_odom_and_odometry_in_tf_compose_to_the_published_pose_also_after_a_jump_back(graph, start_ns):
    us, _ = graph
    assert_map_to_odom_composes(us, drive_by_tf(us, start_ns))
    assert not transforms(us, "base_link")  # its parent is odom


def test_without_odometry_poses_are_published_but_no_tf_and_diagnostics_say_why(graph):
    us, node = graph
    before = len(transforms(us, "odom"))
    withheld = int(values_of(us)["transforms withheld"])
    stamps = stamps_from(1_750_000_000_000_000_000)
    send_images(us, stamps)
    poses_at(us, stamps)
    wait_for_diagnostic(us, r"no TF map -> odom: (TF does not lead|odom -> base_footprint on /tf: the latest is \d+)")
    node.wait_for_output(r"WARN.*no TF map -> odom")
    wait_until(lambda: int(values_of(us)["transforms withheld"]) >= withheld + len(stamps), "their count")
    assert len(transforms(us, "odom")) == before


def test_a_checkpoint_in_utm_is_served_in_a_local_map_with_its_origin_in_tf(graph, utm_checkpoint):
    us, _ = graph
    stamps = stamps_from(1_760_000_000_000_000_000)
    send_images(us, stamps)
    poses = poses_at(us, stamps)
    (origin,) = wait_until(lambda: transforms(us, "map", "/tf_static"), "utm -> map")
    assert origin.header.frame_id == "utm"
    utm_from_map = decode_pose(origin)
    assert utm_from_map.position_m.tolist() == [619_994.0, 5_735_000.0, 110.0]
    localizer = localizer_of_the_node(utm_checkpoint)
    for number, pose in enumerate(poses):
        truth = localizer.localize(random_frame(number)).map_from_body
        assert np.abs(decode_pose(pose).position_m).max() < 1000
        np.testing.assert_allclose((utm_from_map @ decode_pose(pose)).position_m, truth.position_m, atol=1e-5)
        np.testing.assert_allclose(decode_pose(pose).rotation, truth.rotation, atol=1e-6)
    assert values_of(us)["frames"] == "utm -> map -> odom -> base_link"
    assert values_of(us)["map origin [m]"] == "619994 5735000 110"


def test_odometry_has_the_same_pose_and_an_unknown_twist(graph):
    us, _ = graph
    stamps = stamps_from(1_770_000_000_000_000_000)
    send_images(us, stamps)

    def found(topic):
        return [message for message in list(us.received[topic]) if stamp_ns(message.header) in stamps]

    for topic in ("/vmloc_node/odometry", "/vmloc_node/pose_with_covariance"):
        wait_until(lambda topic=topic: len(found(topic)) == len(stamps), f"messages on {topic}")
    for odometry, pose in zip(found("/vmloc_node/odometry"), found("/vmloc_node/pose_with_covariance"), strict=True):
        assert (odometry.header, odometry.child_frame_id) == (pose.header, "base_link")
        assert odometry.header.frame_id == "map"
        assert odometry.pose.pose == pose.pose.pose
        np.testing.assert_array_equal(odometry.pose.covariance, pose.pose.covariance)
        assert odometry.twist.twist == Odometry().twist.twist
        assert odometry.twist.covariance.reshape(6, 6).diagonal().min() >= 1e6


def test_sigterm_while_a_fix_waits_for_odometry_ends_the_node_with_zero(graph):
    us, node = graph
    stamps = stamps_from(1_780_000_000_000_000_000)
    send_images(us, stamps)
    poses_at(us, stamps)
    assert node.interrupt(signal.SIGTERM) == 0
    assert "Traceback" not in node.output


# --- map -> odom, odometry from a topic, repeated ---------------------------------------------------------------------


def test_with_odometry_from_a_topic_map_to_odom_is_repeated_until_the_timeout(local_checkpoint, tmp_path):
    parameters = {"checkpoint": local_checkpoint, "device": "cpu", "queue_depth": 100, "tf_mode": "map_to_odom"}
    parameters |= {"odometry_topic": ODOMETRY, "odom_frame": "wheels", "tf_rate_hz": 20.0, "tf_timeout_s": 1.5}
    parameters |= {"transform_tolerance_s": TOLERANCE_NS * 1e-9, "input_timeout_s": 0.5}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        listen(us, node)
        wait_for_diagnostic(us, f"no odometry on {ODOMETRY}: nobody publishes it; check parameter odometry_topic")
        us.publisher(Odometry, ODOMETRY)
        us.wait_for_peers([ODOMETRY])
        began_ns = time.time_ns()
        (stamp,) = stamps_from(1_700_000_000_000_000_000, 1)
        for at_ns, odom_from_base in odometry_poses(stamp - PERIOD_NS, stamp + PERIOD_NS):
            message = odometry_message(at_ns, "wheels", "base_link", odom_from_base)
            us.publisher(Odometry, ODOMETRY).publish(cdr(message))
        send_images(us, [stamp])
        (pose,) = poses_at(us, [stamp])

        def times_ns():
            return [stamp_ns(t.header) - TOLERANCE_NS for t in transforms(us, "wheels")]

        wait_until(lambda: len(times_ns()) > 5, "repeated transforms")
        for transform in transforms(us, "wheels"):
            assert transform.header.frame_id == "map"
            composed = decode_pose(transform).matrix @ driven_matrix(stamp, stamp - PERIOD_NS)
            np.testing.assert_allclose(composed, decode_pose(pose).matrix, atol=1e-9)
        wait_until(lambda: time.time_ns() - times_ns()[-1] > 1_000_000_000, "the end of it")
        first_ns, *others_ns = times_ns()
        assert began_ns < first_ns < others_ns[-1] <= first_ns + 1_500_000_000
        assert others_ns == sorted(set(others_ns))
        assert node.interrupt(signal.SIGTERM) == 0
        assert "Traceback" not in node.output


# --- no TF ------------------------------------------------------------------------------------------------------------


def test_tf_can_be_switched_off_and_the_map_origin_set(local_checkpoint, tmp_path):
    parameters = {"checkpoint": local_checkpoint, "device": "cpu", "tf_mode": "none", "map_frame": "hall"}
    parameters |= {"map_origin": "[1.0,-2.5,0.0]"}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        listen(us, node)
        stamps = stamps_from(1_700_000_000_000_000_000, 1)
        send_images(us, stamps)
        (pose,) = poses_at(us, stamps)
        (origin,) = wait_until(lambda: transforms(us, "hall", "/tf_static"), "map -> hall")
        truth = localizer_of_the_node(local_checkpoint).localize(random_frame(0)).map_from_body.matrix
        assert (origin.header.frame_id, pose.header.frame_id) == ("map", "hall")
        np.testing.assert_allclose(decode_pose(origin).matrix @ decode_pose(pose).matrix, truth, atol=1e-6)
        assert "vmloc_node" not in [who.node_name for who in us.node.get_publishers_info_by_topic("/tf")]
