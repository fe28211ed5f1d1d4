# SPDX-License-Identifier: Apache-2.0
"""Smoothing by odometry over real DDS, with the node in a process of its own; see also test_odometry_filter.py."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from helpers import random_frame, yaw_pose
from ros_graph import Peer, cdr, localizer_of_the_node, node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from training.testing import write_random_checkpoint
from vmloc_ros.bags.messages import image_message, odometry_message
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.uncertainty import moved_covariance
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.smoother import filter_config
from vmloc_ros.runtime.odometry_filter import OdometryFilter

pytestmark = pytest.mark.usefixtures("ros_domain")

IMAGES, ODOMETRY, POSES = "/camera/image_raw", "/wheels/odometry", "/vmloc_node/pose_with_covariance"
PERIOD_NS, TOLERANCE_NS = 2_000_000_000, 700_000_000
COUNT = 10
STARTS_NS = count(1_700_000_000_000_000_000, 1_000_000_000_000)
SMOOTHING = {"smoothing": True, "smoothing_drift": 2.0, "tf_mode": "map_to_odom", "odometry_topic": ODOMETRY}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_random_checkpoint(path, ("image",))
    return path


@pytest.fixture(scope="module")
def fixes(checkpoint) -> list[Estimate]:
    """The network's estimates for the images: within some metres, each uncertain by about 4 m and 0.4 rad."""
    localizer = localizer_of_the_node(checkpoint)
    return [localizer.localize(random_frame(number)) for number in range(COUNT)]


@pytest.fixture(scope="module")
def us(ros_domain, checkpoint, tmp_path_factory):
    parameters = {"checkpoint": checkpoint, "device": "cpu", "queue_depth": 100, "input_timeout_s": 600.0, **SMOOTHING}
    parameters["transform_tolerance_s"] = TOLERANCE_NS * 1e-9
    log = tmp_path_factory.mktemp("log") / "node.log"
    with peer() as us, running(node_arguments(parameters), log) as node:
        us.publisher(Image, IMAGES)
        us.publisher(Odometry, ODOMETRY)
        us.collect(PoseWithCovarianceStamped, POSES)
        us.collect(TFMessage, "/tf")
        us.collect(DiagnosticArray, "/diagnostics")
        node.wait_for_output("now active")
        us.wait_for_peers([IMAGES, ODOMETRY], [POSES, "/tf", "/diagnostics"])
        yield us


@pytest.fixture
def start_ns(us) -> int:
    """A start time for one test alone, with a filter without a state."""
    call(us, "reset")
    return next(STARTS_NS)


def call(us: Peer, service: str) -> None:
    client = us.node.create_client(Trigger, f"/vmloc_node/{service}")
    wait_until(client.service_is_ready, f"~/{service}")
    future = client.call_async(Trigger.Request())
    wait_until(future.done, f"the response of ~/{service}")
    assert future.result().success, future.result().message


def send_odometry(us: Peer, stamp: int, odom_from_base: Pose) -> None:
    message = odometry_message(stamp, "odom", "base_link", odom_from_base)
    us.publisher(Odometry, ODOMETRY).publish(cdr(message))


def send_image(us: Peer, stamp: int, number: int) -> None:
    us.publisher(Image, IMAGES).publish(cdr(image_message(stamp, "camera", random_frame(number).image, "rgb8")))
    time.sleep(0.03)


def published(us: Peer, stamps: list[int]) -> list:
    def found():
        by_stamp = {stamp_ns(message.header): message for message in list(us.received[POSES])}
        return [by_stamp[stamp] for stamp in stamps if stamp in by_stamp]

    wait_until(lambda: len(found()) == len(stamps), f"{len(stamps)} poses")
    return found()


def wait_for_values(us: Peer, key: str, is_expected: Callable[[str], object]) -> tuple[str, dict[str, str]]:
    """Message and values of the first diagnostic from now on whose value of ``key`` is as expected."""
    before = len(us.received["/diagnostics"])

    def found():
        for message in us.received["/diagnostics"][before:]:
            values = {pair.key: pair.value for pair in message.status[0].values}
            if is_expected(values[key]):
                return message.status[0].message, values
        return None

    return wait_until(found, f"a diagnostic with {key}")


def crawl(number: int) -> Pose:
    """Odometry of a robot that moves far less than its fixes jump."""
    return yaw_pose(30.0 + 0.1 * number, -2.0, 70.0 + number)


def step(poses: list[Pose]) -> np.ndarray:
    """Positions of each pose in the frame of the one before ``(N - 1, 3)``."""
    return np.array([(a.inverse() @ b).position_m for a, b in pairwise(poses)])


def assert_is(message, map_from_base: Pose, covariance: np.ndarray) -> None:
    np.testing.assert_allclose(decode_pose(message).matrix, map_from_base.matrix, atol=1e-4)
    np.testing.assert_allclose(message.pose.covariance.reshape(6, 6), covariance, atol=1e-3, rtol=1e-3)


def test_published_poses_and_tf_follow_the_odometry_between_noisy_fixes(us, fixes, start_ns):
    stamps = [start_ns + i * PERIOD_NS for i in range(COUNT)]
    for number, stamp in enumerate(stamps):
        send_odometry(us, stamp, crawl(number))
        send_image(us, stamp, number)
    smoother = OdometryFilter(filter_config(NodeConfig(**SMOOTHING)))
    messages = published(us, stamps)
    for number, (stamp, fix, message) in enumerate(zip(stamps, fixes, messages, strict=True)):
        expected = smoother.correct(stamp, crawl(number), fix.map_from_body, fix.covariance).filtered
        assert_is(message, expected.map_from_base, expected.covariance)
    odometry = step([crawl(number) for number in range(COUNT)])
    jumps = np.abs(step([fix.map_from_body for fix in fixes]) - odometry).max(axis=0)
    filtered = np.abs(step([decode_pose(message) for message in messages]) - odometry).max(axis=0)
    assert (filtered < 0.2 * jumps).all()

    def transforms():
        known = {stamp_ns(t.header): t for m in list(us.received["/tf"]) for t in m.transforms}
        return [known[stamp + TOLERANCE_NS] for stamp in stamps if stamp + TOLERANCE_NS in known]

    wait_until(lambda: len(transforms()) == COUNT, "map -> odom of each image")
    for number, (transform, message) in enumerate(zip(transforms(), messages, strict=True)):
        composed = decode_pose(transform) @ crawl(number)
        np.testing.assert_allclose(composed.matrix, decode_pose(message).matrix, atol=1e-9)


def test_a_fix_waits_for_odometry_that_is_a_little_late(us, fixes, start_ns):
    send_image(us, start_ns, 0)
    time.sleep(0.1)
    send_odometry(us, start_ns, crawl(0))
    (message,) = published(us, [start_ns])
    assert_is(message, fixes[0].map_from_body, fixes[0].covariance)


def test_an_outlier_is_rejected_counted_and_replaced_by_the_prediction(us, fixes, start_ns):
    _, before = wait_for_values(us, "state", lambda state: state == "active")
    stamps = [start_ns, start_ns + PERIOD_NS]
    odometry = [yaw_pose(0.0), yaw_pose(100.0)]  # the robot drives off, but its fixes stay
    for number in (0, 1):
        send_odometry(us, stamps[number], odometry[number])
        send_image(us, stamps[number], number)
    first, second = published(us, stamps[:2])
    assert_is(first, fixes[0].map_from_body, fixes[0].covariance)
    np.testing.assert_allclose(decode_pose(second).matrix, decode_pose(first).matrix @ odometry[1].matrix, atol=1e-6)
    moved_m = decode_pose(second).position_m - decode_pose(first).position_m
    drift = [0.1**2 * 100 + 0.06**2 * 2] * 3 + [0.004**2 * 100 + 0.004**2 * 2] * 3  # twice the default's, 100 m and 2 s
    expected = moved_covariance(fixes[0].covariance, moved_m) + np.diag(drift)
    np.testing.assert_allclose(second.pose.covariance.reshape(6, 6), expected, atol=1e-3, rtol=1e-3)
    rejected = r"rejected: too far from the prediction \(\d+\.\d standard deviations\)"
    text, values = wait_for_values(us, "smoothing: latest", lambda latest: re.fullmatch(rejected, latest))
    assert re.search(f"smoothing {rejected}", text)
    names = [f"smoothing: {verdict}" for verdict in ("started", "accepted", "rejected", "restarted")]
    assert [int(values[name]) - int(before[name]) for name in names] == [1, 0, 1, 0]


def test_without_odometry_poses_are_withheld_and_the_filter_keeps_its_state(us, fixes, start_ns):
    stamps = [start_ns + i * PERIOD_NS for i in range(3)]
    key = "smoothing: without odometry"
    before = int(wait_for_values(us, "state", lambda state: state == "active")[1][key])
    send_odometry(us, stamps[0], crawl(0))
    send_image(us, stamps[0], 0)
    published(us, stamps[:1])
    send_image(us, stamps[1], 1)

    def statuses():
        found = re.compile(f"pose withheld, smoothing lacks odometry: {ODOMETRY}: the latest is 2.000 s older than the")
        return [m for m in list(us.received["/diagnostics"]) if found.search(m.status[0].message)]

    wait_until(statuses, "a diagnostic")
    wait_for_values(us, key, lambda value: int(value) == before + 1)
    send_odometry(us, stamps[2], crawl(2))
    send_image(us, stamps[2], 2)
    (message,) = published(us, stamps[2:])
    smoother = OdometryFilter(filter_config(NodeConfig(**SMOOTHING)))
    for number in (0, 2):
        fix = fixes[number]
        expected = smoother.correct(stamps[number], crawl(number), fix.map_from_body, fix.covariance).filtered
    assert_is(message, expected.map_from_base, expected.covariance)
    assert stamps[1] not in [stamp_ns(m.header) for m in us.received[POSES]]


def restart_by_reset(us: Peer, stamp: int) -> int:
    call(us, "reset")
    return stamp + PERIOD_NS


def restart_by_checkpoint(us: Peer, stamp: int) -> int:
    call(us, "load_checkpoint")
    return stamp + PERIOD_NS


def restart_by_time(us: Peer, stamp: int) -> int:
    return stamp - 60_000_000_000


@pytest.mark.parametrize(
    ("restart", "reason"),
    [
        (restart_by_reset, "~/reset was called"),
        (restart_by_checkpoint, "another checkpoint is in use"),
        (restart_by_time, "stamps have jumped back"),
    ],
)
def test_the_filter_starts_anew_after_reset_checkpoint_change_and_jump_back(restart, reason, us, fixes, start_ns):
    send_odometry(us, start_ns, crawl(0))
    send_image(us, start_ns, 0)
    published(us, [start_ns])
    later_ns = restart(us, start_ns)
    send_odometry(us, later_ns, crawl(1))
    send_image(us, later_ns, 1)
    (message,) = published(us, [later_ns])
    assert_is(message, fixes[1].map_from_body, fixes[1].covariance)
    wait_for_values(us, "smoothing: latest start", lambda value: value == reason)


def test_odometry_from_tf_excludes_a_second_parent_of_the_base():
    with pytest.raises(ConfigError, match="smoothing takes odometry from TF, where base_link has a parent already"):
        NodeConfig(smoothing=True)
    for other in ({"tf_mode": "none"}, {"tf_mode": "map_to_odom"}, {"odometry_topic": ODOMETRY}):
        NodeConfig(smoothing=True, **other)
