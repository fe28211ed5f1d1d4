# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: TID251  (it talks to ROS)
"""Publisher and subscriber of `node_latency.py`, each in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2, PointField

from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.ros.environment import use_fastdds_profile

HEIGHT, WIDTH, BEAMS = 480, 640, 32
MATCH_LIMIT_S = 60.0
VARIANTS = 4  # number of different messages, sent in turn


def publish(rate_hz: float, seconds: float, points: int) -> list[int]:
    """Publish images and clouds at a rate; return their stamps."""
    use_fastdds_profile()
    rclpy.init()
    node = rclpy.create_node("latency_publisher")
    images = node.create_publisher(Image, "camera/image_raw", qos_profile_sensor_data)
    clouds = node.create_publisher(PointCloud2, "lidar/points", qos_profile_sensor_data)
    wait_until(lambda: images.get_subscription_count() and clouds.get_subscription_count(), "the node's subscriptions")
    time.sleep(1.0)  # discovery on the other side may not be complete
    messages = [(random_image(seed), random_cloud(seed, points)) for seed in range(VARIANTS)]
    stamps = []
    started_s = time.perf_counter()
    for index in range(round(seconds * rate_hz)):
        time.sleep(max(0.0, started_s + index / rate_hz - time.perf_counter()))
        image, cloud = messages[index % VARIANTS]
        image.header.stamp = cloud.header.stamp = rclpy.time.Time(nanoseconds=time.time_ns()).to_msg()
        images.publish(image)
        clouds.publish(cloud)
        stamps.append(stamp_ns(image.header))
    time.sleep(1.0)  # shared memory ends with its process
    rclpy.shutdown()
    return stamps


def random_image(seed: int) -> Image:
    """Noise of the size above."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=pixels.tobytes())
    message.header.frame_id = "camera"
    return message


def random_cloud(seed: int, points: int) -> PointCloud2:
    """Beams from -25 to 15 degrees that turn once, ranges at random; 16 bytes a point."""
    rng = np.random.default_rng(seed)
    elevation = np.radians(np.linspace(-25, 15, BEAMS))[np.arange(points) % BEAMS]
    azimuth = np.linspace(-np.pi, np.pi, points, endpoint=False)
    directions = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    xyz_m = np.stack(directions, 1) * rng.uniform(1, 60, (points, 1))
    rows = np.column_stack([xyz_m, rng.uniform(0, 255, points)]).astype(np.float32)
    names = ("x", "y", "z", "intensity")
    fields = [PointField(name=name, offset=4 * n, datatype=PointField.FLOAT32, count=1) for n, name in enumerate(names)]
    message = PointCloud2(height=1, width=points, fields=fields, point_step=16, row_step=16 * points)
    message.data = rows.tobytes()
    message.header.frame_id = "lidar"
    return message


@contextmanager
def listener() -> Iterator[tuple[dict[int, int], dict[str, str]]]:
    """Arrival time of the pose of each stamp, and the latest diagnostics; both are updated in the background."""
    use_fastdds_profile()
    arrivals_ns: dict[int, int] = {}
    diagnostics: dict[str, str] = {}
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("latency_listener", context=context)
    node.create_subscription(
        PoseStamped, "vmloc_node/pose", lambda pose: arrivals_ns.setdefault(stamp_ns(pose.header), time.time_ns()), 100
    )
    node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda array: diagnostics.update({pair.key: pair.value for pair in array.status[0].values}),
        10,
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield arrivals_ns, diagnostics
    finally:
        executor.shutdown()
        thread.join()
        rclpy.shutdown(context=context)


def wait_for_rest(arrivals_ns: dict[int, int], diagnostics: dict[str, str]) -> None:
    """Wait until no more poses arrive and the diagnostics have counted them all."""
    seen = -1
    while len(arrivals_ns) > seen:
        seen = len(arrivals_ns)
        time.sleep(2.0)
    if not seen:
        raise SystemExit(f"no pose arrived; diagnostics of the node: {diagnostics}")


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds. Raises SystemExit: after :data:`MATCH_LIMIT_S`."""
    deadline_s = time.monotonic() + MATCH_LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"waited {MATCH_LIMIT_S:g} s in vain for {what}")
        time.sleep(0.02)
