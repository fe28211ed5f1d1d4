# SPDX-License-Identifier: Apache-2.0
"""One traversal of the street as streams of stamped messages."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.simulation.camera import CameraRenderer
from training.simulation.lidar import BEAMS, SpinningLidar
from training.simulation.light import Light
from training.simulation.odometry import ODOMETRY_RATE_HZ, drifting_odometry
from training.simulation.styles import StyleTable
from training.simulation.textures import Textures
from training.simulation.traffic import Traffic
from training.simulation.trajectory import Trajectory
from training.simulation.world import World, build_world
from vmloc_ros.bags import messages as bags
from vmloc_ros.core.frame import PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose

MAP_FRAME, ODOM_FRAME, BASE_FRAME = "map", "odom", "base_link"
CAMERA_FRAME, LIDAR_FRAME = "camera_optical_frame", "lidar_link"
IMAGE_TOPIC, CAMERA_INFO_TOPIC, CLOUD_TOPIC = "/camera/image_raw", "/camera/camera_info", "/lidar/points"
ODOMETRY_TOPIC, TRUTH_TOPIC, STATIC_TOPIC = "/odom", "/ground_truth/pose", "/tf_static"

# Optical axes (x right, y down, z forward) of a camera that looks along x of base_link.
BASE_FROM_CAMERA = Pose(np.array([0.6, 0.0, 1.5]), np.array([0.5, -0.5, 0.5, -0.5]))
BASE_FROM_LIDAR = Pose(np.array([0.0, 0.0, 1.9]), np.array([1.0, 0.0, 0.0, 0.0]))
TRUTH_RATE_HZ = 50.0
HORIZONTAL_FOV_RAD = np.pi / 2

_FIRST_STAMP_NS = 1_717_228_800_000_000_000  # 2024-06-01 08:00 UTC; every seed has its own hour after it
_SEED_STEP_NS = 3_600_000_000_000
_DISTINCT_STARTS = 100_000
_LIDAR_RATE_SHARE = 0.997  # no two oscillators agree: at a nominal 10 Hz the lidar turns at 9.97 Hz
_MARGIN_S = 0.15  # truth reaches this much beyond the first and last exposure and revolution

_TOPICS = {STATIC_TOPIC, TRUTH_TOPIC, ODOMETRY_TOPIC, CAMERA_INFO_TOPIC, IMAGE_TOPIC, CLOUD_TOPIC}


def is_traversal(start_ns: int, topics: Collection[str]) -> bool:
    """Whether a bag is a simulated one: it has the simulator's topics and starts, to the nanosecond, when a seed does.

    Args:
        start_ns: of its first message.
        topics: of its messages.
    """
    return set(topics) == _TOPICS and (start_ns - _FIRST_STAMP_NS) % _SEED_STEP_NS == 0


class Record(NamedTuple):
    """A message and when it is received; ``order`` breaks ties."""

    log_ns: int
    order: int
    topic: str
    message: Any


@dataclass(frozen=True, slots=True)
class Rates:
    """Nominal sensor rates in Hz."""

    camera_hz: float = 10.0
    lidar_hz: float = 10.0


class Traversal:
    """A seeded drive through a world: its trajectory, traffic, light and sensors.

    Args:
        seed: decides everything but the world.
        world_seed: decides the world.
        laps: rounds of the street.
        image_size: width and height in pixels.
        rates: of the sensors.
        duration_s: ends the drive earlier.
        beams: of the lidar.
        centre_m: x and y in the map of the middle of the street.
        light: one of :data:`training.simulation.light.LIGHTS`.
    """

    def __init__(
        self,
        seed: int,
        world_seed: int = 0,
        laps: float = 1.0,
        image_size: tuple[int, int] = (320, 240),
        rates: Rates | None = None,
        duration_s: float | None = None,
        beams: int = BEAMS,
        centre_m: tuple[float, float] = (0.0, 0.0),
        light: str = "day",
    ) -> None:
        self._seed, self._rates = seed, rates or Rates()
        self._centre_m = np.array([*centre_m, 0.0])
        self.start_ns = _FIRST_STAMP_NS + seed % _DISTINCT_STARTS * _SEED_STEP_NS
        self.world: World = build_world(world_seed)
        self.trajectory = Trajectory(self._stream("trajectory"), laps)
        self.duration_s = min(self.trajectory.duration_s, duration_s or np.inf)
        self.traffic = Traffic(self.world, self.trajectory, self._stream("traffic"))
        textures = Textures(StyleTable(self.traffic.styles), self.world.noise, self.world.ground)
        drawn = Light.draw(self._stream("light"), light)
        lamps_m = self.world.lamps_m
        self.camera = CameraRenderer(_intrinsics(*image_size), textures, self.world.noise, drawn, lamps_m)
        period_s = 1 / (self._rates.lidar_hz * _LIDAR_RATE_SHARE)
        self.lidar = SpinningLidar(BASE_FROM_LIDAR, textures, period_s, beams)
        timing = self._stream("timing")
        self.image_times_s = self._instants(timing, 1 / self._rates.camera_hz, 0.0, jitter_s=0.001)
        self.scan_times_s = self._instants(timing, period_s, period_s / 2, jitter_s=0.0003)

    def _stream(self, name: str) -> np.random.Generator:
        """An independent generator for each purpose, so that one sensor's draws do not move another's."""
        return np.random.default_rng([self._seed, *name.encode()])

    def _instants(
        self, rng: np.random.Generator, period_s: float, half_exposure_s: float, jitter_s: float
    ) -> NDArray[np.float64]:
        first = _MARGIN_S + half_exposure_s + rng.uniform(0, period_s)
        last = self.duration_s - _MARGIN_S - half_exposure_s
        count = max(0, int(np.floor((last - first) / period_s)) + 1)
        jitter = np.clip(rng.normal(0, jitter_s, count), -0.002, 0.002)
        return np.asarray(first + period_s * np.arange(count) + jitter, np.float64)

    def stamp_ns(self, time_s: float) -> int:
        """The stamp of a time of the drive."""
        return self.start_ns + round(time_s * 1e9)

    def image(self, time_s: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The ``(H, W, 3)`` RGB image exposed at a time."""
        self.traffic.place(time_s)
        return self.camera.render(self.traffic.scene, self.trajectory.pose(time_s) @ BASE_FROM_CAMERA, rng)

    def scan(self, time_s: float, rng: np.random.Generator) -> tuple[PointCloud, NDArray[np.uint16]]:
        """The lidar revolution centred on a time, and its points' beams."""
        return self.lidar.scan(self.traffic, self.trajectory, time_s, rng)

    def records(self, on_frame: Callable[[], object] = lambda: None) -> Iterator[Record]:
        """All messages in the order of reception; ``on_frame`` is called after each image and each scan."""
        streams = [
            self._static_records(),
            self._truth_records(),
            self._odometry_records(),
            self._image_records(on_frame),
            self._scan_records(on_frame),
        ]
        return heapq.merge(*streams, key=lambda record: record[:2])

    def _static_records(self) -> Iterator[Record]:
        mounts = [
            (BASE_FRAME, CAMERA_FRAME, BASE_FROM_CAMERA, self.start_ns),
            (BASE_FRAME, LIDAR_FRAME, BASE_FROM_LIDAR, self.start_ns),
        ]
        yield Record(self.start_ns, 0, STATIC_TOPIC, bags.tf_message(mounts))

    def _truth_records(self) -> Iterator[Record]:
        for tick in range(int(np.ceil(self.duration_s * TRUTH_RATE_HZ)) + 1):
            time_s = tick / TRUTH_RATE_HZ
            stamp_ns = self.stamp_ns(time_s)
            pose = self.trajectory.pose(time_s)
            pose = Pose(pose.position_m + self._centre_m, pose.quaternion_wxyz)
            message = bags.pose_stamped_message(stamp_ns, MAP_FRAME, pose)
            yield Record(stamp_ns + 500_000, 1, TRUTH_TOPIC, message)

    def _odometry_records(self) -> Iterator[Record]:
        times_s = np.arange(0.003, self.duration_s, 1 / ODOMETRY_RATE_HZ)
        rng = self._stream("odometry")
        for step in drifting_odometry(self.trajectory, times_s, rng):
            stamp_ns = self.stamp_ns(step.time_s)
            message = bags.odometry_message(
                stamp_ns,
                ODOM_FRAME,
                BASE_FRAME,
                step.odom_from_base,
                step.linear_m_s,
                step.angular_rad_s,
                step.pose_covariance,
                step.twist_covariance,
            )
            yield Record(stamp_ns + _delay_ns(rng, 1, 3), 2, ODOMETRY_TOPIC, message)

    def _image_records(self, on_frame: Callable[[], object]) -> Iterator[Record]:
        rng = self._stream("image")
        for time_s in self.image_times_s:
            stamp_ns = self.stamp_ns(time_s)
            log_ns = stamp_ns + _delay_ns(rng, 5, 20)
            info = bags.camera_info_message(stamp_ns, CAMERA_FRAME, self.camera.intrinsics)
            yield Record(log_ns, 3, CAMERA_INFO_TOPIC, info)
            image = bags.image_message(stamp_ns, CAMERA_FRAME, self.image(time_s, rng), "rgb8")
            yield Record(log_ns, 4, IMAGE_TOPIC, image)
            on_frame()

    def _scan_records(self, on_frame: Callable[[], object]) -> Iterator[Record]:
        rng = self._stream("scan")
        for time_s in self.scan_times_s:
            stamp_ns = self.stamp_ns(time_s)
            log_ns = self.stamp_ns(time_s + self.lidar.period_s / 2) + _delay_ns(rng, 10, 30)
            cloud, ring = self.scan(time_s, rng)
            message = bags.point_cloud_message(stamp_ns, LIDAR_FRAME, cloud, ring)
            yield Record(log_ns, 5, CLOUD_TOPIC, message)
            on_frame()


def _delay_ns(rng: np.random.Generator, low_ms: float, high_ms: float) -> int:
    return int(rng.uniform(low_ms, high_ms) * 1e6)


def _intrinsics(width: int, height: int) -> PinholeCamera:
    focal = width / 2 / np.tan(HORIZONTAL_FOV_RAD / 2)
    return PinholeCamera(width, height, float(focal), float(focal), (width - 1) / 2, (height - 1) / 2)
