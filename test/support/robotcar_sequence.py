# SPDX-License-Identifier: Apache-2.0
"""Writes miniature RobotCar sequences of a known drive past known walls, in the dataset's own frames and formats.

The conversions are done here with matrices and scipy, on purpose not with the functions under test.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

START_US = 1_400_000_000_000_000
ORIGIN = np.array([620_000.0, 5_735_000.0, 0.0])  # east, north, up
SPEED_M_S, TURN_RAD_S, ROLL, PITCH = 5.0, 0.2, 0.03, -0.05
HEIGHT, WIDTH = 24, 32
ENU_FROM_NED = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
FLIP = np.diag([1.0, -1, -1, 1])  # forward-left-up from forward-right-down
CAMERA_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
EXTRINSICS = {
    "stereo": [0, 0, 0, 0, 0, 0],
    "ins": [-1.7, 0.12, 1.2, -0.013, 0.04, 0.005],
    "lms_front": [1.8, 0.2, 1.0, -0.04, -1.45, 0.04],
    "ldmrs": [1.5, 0.01, 1.4, 0.02, 0.08, -0.03],
    "velodyne_left": [-0.6, -0.34, -0.27, -0.005, -0.04, -3.13],
    "mono_left": [-0.1, 1.6, 0.3, 0.2, -0.25, 1.2],
}
FOCAL = (20.0, 21.0, 15.5, 11.25)
# Upright walls left and right of the road: n . p = d in the map.
_NORMAL = np.array([-np.sin(0.7), np.cos(0.7), 0.0])
WALLS = ((_NORMAL, 246.0), (-_NORMAL, -222.0))


def map_from_base(time_s: float) -> np.ndarray:
    """True pose of the body (x forward, y left, z up) at a time of the drive: an arc to the left, climbing."""
    yaw = 0.4 + TURN_RAD_S * time_s
    radius = SPEED_M_S / TURN_RAD_S
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [ROLL, PITCH, yaw]).as_matrix()
    matrix[:3, 3] = [radius * np.sin(yaw) + 150, -radius * np.cos(yaw) + 460, 110 + 0.25 * time_s]
    return matrix


def matrix_of(xyzrpy: Sequence[float]) -> np.ndarray:
    """The dataset's transform of x y z roll pitch yaw."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", xyzrpy[3:]).as_matrix()
    matrix[:3, 3] = xyzrpy[:3]
    return matrix


def components_of(matrix: np.ndarray) -> list[float]:
    return [*matrix[:3, 3], *Rotation.from_matrix(matrix[:3, :3]).as_euler("xyz")]


BASE_FROM_STEREO = FLIP @ np.linalg.inv(matrix_of(EXTRINSICS["ins"]))
BASE_FROM_VEHICLE = BASE_FROM_STEREO @ FLIP


def base_from_lidar(name: str) -> np.ndarray:
    return BASE_FROM_STEREO @ matrix_of(EXTRINSICS[name])


def stamp_us(time_s: float) -> int:
    return START_US + round(time_s * 1e6)


def seconds(stamp_ns: int) -> float:
    """Time of the drive of a stamp in nanoseconds."""
    return (stamp_ns - START_US * 1000) / 1e9


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def write_calibration(root: Path, lut: np.ndarray | None = None) -> None:
    """``extrinsics`` and ``models`` as in the SDK; the lookup table moves nothing unless one is given."""
    for name, values in EXTRINSICS.items():
        write_lines(root / "extrinsics" / f"{name}.txt", [" ".join(map(str, values))])
    rows = [FOCAL, *CAMERA_FROM_OPTICAL]
    for model in ("stereo_narrow_left", "mono_left"):
        write_lines(root / "models" / f"{model}.txt", [" ".join(f"{value:f}" for value in row) for row in rows])
    table = identity_lut() if lut is None else lut
    (root / "models" / "stereo_narrow_left_distortion_lut.bin").write_bytes(table.astype("<f8").tobytes())


def identity_lut() -> np.ndarray:
    """``(2, H, W)``: column and row of every pixel."""
    return np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)))


def color_scene(number: int) -> np.ndarray:
    """``(H, W, 3)`` RGB: two colours side by side, distinguished from image to image by their green."""
    scene = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    scene[:, : WIDTH // 2] = [200, 10 + number, 30]
    scene[:, WIDTH // 2 :] = [20, 110 + number, 180]
    return scene


def bayer_gbrg(rgb: np.ndarray) -> np.ndarray:
    """What a sensor with green, blue / red, green filters sees."""
    mosaic = rgb[..., 1].copy()
    mosaic[0::2, 1::2] = rgb[0::2, 1::2, 2]
    mosaic[1::2, 0::2] = rgb[1::2, 0::2, 0]
    return mosaic


def lms_scan(time_s: float) -> np.ndarray:
    """``(541, 3)`` x, y, reflectance of a scan of the walls; zeros where nothing is hit within 50 m."""
    map_from_lidar = map_from_base(time_s) @ base_from_lidar("lms_front")
    angles = np.radians(np.linspace(-135, 135, 541))
    beams = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
    directions = beams @ map_from_lidar[:3, :3].T
    ranges = np.full(len(beams), np.inf)
    for normal, distance in WALLS:
        with np.errstate(divide="ignore"):
            hit = (distance - normal @ map_from_lidar[:3, 3]) / (directions @ normal)
        ranges = np.where((hit > 0) & (hit < ranges), hit, ranges)
    points = np.where((ranges < 50)[:, None], beams * np.where(ranges < 50, ranges, 0)[:, None], 0.0)
    points[:, 2] = np.where(ranges < 50, 100 + np.arange(541), 0)
    return points


def write_sequence(folder: Path, image_times_s: Sequence[float], duration_s: float = 3.0, lidar: bool = True) -> Path:
    """A sequence: INS, GPS and LMS from 0 to ``duration_s``, images and visual odometry at the times given."""
    ins_times, gps_times = np.arange(0, duration_s + 1e-9, 0.02), np.arange(0, duration_s + 1e-9, 0.2)
    write_ins(folder / "gps" / "ins.csv", ins_times)
    header = "timestamp,num_satellites,latitude,longitude,altitude,northing,easting,down,utm_zone"
    gps = []
    for time_s in gps_times:
        east, north, up = map_from_base(time_s)[:3, 3] + ORIGIN
        gps.append(f"{stamp_us(time_s)},8,51.76,-1.25,{up:.6f},{north:.6f},{east:.6f},{-up:.6f},30U")
    write_lines(folder / "gps" / "gps.csv", [header, *gps])
    write_images(folder, image_times_s)
    write_vo(folder / "vo" / "vo.csv", image_times_s)
    if lidar:
        times = np.arange(0.007, duration_s, 0.02)
        write_lines(folder / "lms_front.timestamps", [f"{stamp_us(time_s)} 1" for time_s in times])
        (folder / "lms_front").mkdir()
        for time_s in times:
            (folder / "lms_front" / f"{stamp_us(time_s)}.bin").write_bytes(lms_scan(time_s).astype("<f8").tobytes())
    return folder


def write_ins(path: Path, times_s: Sequence[float], statuses: Sequence[str] | None = None) -> Path:
    header = (
        "timestamp,ins_status,latitude,longitude,altitude,northing,easting,down,utm_zone,"
        "velocity_north,velocity_east,velocity_down,roll,pitch,yaw"
    )
    rows = []
    for number, time_s in enumerate(times_s):
        pose = map_from_base(time_s)
        east, north, up = pose[:3, 3] + ORIGIN
        ned_from_frd = ENU_FROM_NED.T @ pose[:3, :3] @ FLIP[:3, :3]
        roll, pitch, yaw = Rotation.from_matrix(ned_from_frd).as_euler("xyz")
        status = statuses[number] if statuses else "INS_SOLUTION_GOOD"
        rows.append(
            f"{stamp_us(time_s)},{status},51.76,-1.25,{up:.9f},{north:.9f},{east:.9f},{-up:.9f},30U,"
            f"0,0,0,{roll:.9f},{pitch:.9f},{yaw % (2 * np.pi):.9f}"
        )
    return write_lines(path, [header, *rows])


def write_images(folder: Path, times_s: Sequence[float]) -> None:
    write_lines(folder / "stereo.timestamps", [f"{stamp_us(time_s)} 1" for time_s in times_s])
    (folder / "stereo" / "centre").mkdir(parents=True, exist_ok=True)
    for number, time_s in enumerate(times_s):
        cv2.imwrite(str(folder / "stereo" / "centre" / f"{stamp_us(time_s)}.png"), bayer_gbrg(color_scene(number)))


def write_vo(path: Path, times_s: Sequence[float]) -> Path:
    stereo = [map_from_base(time_s) @ BASE_FROM_STEREO for time_s in times_s]
    rows = ["source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw"]
    for (start, first), (end, second) in itertools.pairwise(zip(times_s, stereo, strict=True)):
        values = components_of(np.linalg.inv(first) @ second)
        rows.append(",".join([str(stamp_us(end)), str(stamp_us(start)), *(f"{value:.9e}" for value in values)]))
    return write_lines(path, rows)
