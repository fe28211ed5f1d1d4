# SPDX-License-Identifier: Apache-2.0
"""Odometry sequences and raw drives of KITTI, written with the dataset's real calibration."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

FRAMES = 5
SIZE = (8, 26)
P0 = "7.188560e+02 0 6.071928e+02 0 0 7.188560e+02 1.852157e+02 0 0 0 1 0"
P2 = "7.188560e+02 0 6.071928e+02 4.538225e+01 0 7.188560e+02 1.852157e+02 -1.130887e-01 0 0 1 3.779761e-03"
TR = (
    "4.276802385584e-04 -9.999672484946e-01 -8.084491683471e-03 -1.198459927713e-02 "
    "-7.210626507497e-03 8.081198471645e-03 -9.999413164504e-01 -5.403984729748e-02 "
    "9.999738645903e-01 4.859485810390e-04 -7.206933692422e-03 -2.921968648686e-01"
)
R_RECT_00 = (
    "9.999239e-01 9.837760e-03 -7.445048e-03 -9.869795e-03 9.999421e-01 -4.278459e-03 7.402527e-03 4.351614e-03 "
    "9.999631e-01"
)
P_RECT_02 = "7.215377e+02 0 6.095593e+02 4.485728e+01 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03"
VELO_R = (
    "7.533745e-03 -9.999714e-01 -6.166020e-04 1.480249e-02 7.280733e-04 -9.998902e-01 9.998621e-01 7.523790e-03 "
    "1.480755e-02"
)
VELO_T = "-4.069766e-03 -7.631618e-02 -2.717806e-01"
IMU_R = (
    "9.999976e-01 7.553071e-04 -2.035826e-03 -7.854027e-04 9.998898e-01 -1.482298e-02 2.024406e-03 1.482454e-02 "
    "9.998881e-01"
)
IMU_T = "-8.086759e-01 3.195559e-01 -7.997231e-01"
# Milliseconds after the drive's beginning: the GPS/IMU record is the one nearest to the image, not at its stamp.
IMAGE_MS, OXTS_MS, SCAN_MS = [0, 103, 207, 310, 414], [-4, 106, 203, 312, 419], [-2, 98, 201, 305, 409]
DRIVE_START_NS = 1_317_042_145_964_389_445  # 2011-09-26 13:02:25.964389445, taken for UTC


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def image_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def scan_of(index: int) -> np.ndarray:
    """Points ``(N, 4)``: x, y, z, reflectance from 0 to 1; N differs from scan to scan."""
    rng = np.random.default_rng([index, 2])
    points = rng.normal(0, 15, (50 + index, 4))
    points[:, 3] = rng.integers(0, 100, len(points)) / 100
    return points.astype("<f4")


def camera_pose_of(index: int) -> np.ndarray:
    """``(4, 4)``: camera 0 of the frame in that of frame 0, driving forwards (along z) and turning right (about y)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0, 0.02 * index, 0]).as_matrix()
    matrix[:3, 3] = [0.01 * index**2, -0.02 * index, 0.9 * index]
    return matrix


def oxts_of(index: int) -> list[float]:
    """Driving north-west and climbing; latitude, longitude, altitude, roll, pitch, yaw."""
    return [49.011 + 7e-6 * index, 8.4229 - 1e-5 * index, 112.8 + 0.02 * index, 0.02, -0.01, 2.35 + 0.01 * index]


def write_odometry(root: Path, name: str = "00") -> Path:
    folder = root / "sequences" / name
    for child in ("image_2", "velodyne"):
        (folder / child).mkdir(parents=True)
    (root / "poses").mkdir(exist_ok=True)
    for i in range(FRAMES):
        cv2.imwrite(str(folder / "image_2" / f"{i:06d}.png"), image_of(i)[..., ::-1])
        (folder / "velodyne" / f"{i:06d}.bin").write_bytes(scan_of(i).tobytes())
    (folder / "times.txt").write_text("".join(f"{0.1037359 * i:.6e}\n" for i in range(FRAMES)))
    (folder / "calib.txt").write_text(f"P0: {P0}\nP1: {P0}\nP2: {P2}\nP3: {P2}\nTr: {TR}\n")
    rows = [" ".join(f"{value:.12e}" for value in camera_pose_of(i)[:3].ravel()) for i in range(FRAMES)]
    (root / "poses" / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


def timestamp(milliseconds: int) -> str:
    nanoseconds = DRIVE_START_NS + milliseconds * 1_000_000 - 1_317_042_145_000_000_000
    return f"2011-09-26 13:02:{25 + nanoseconds // 1_000_000_000:02d}.{nanoseconds % 1_000_000_000:09d}"


def write_raw(root: Path) -> Path:
    folder = root / "2011_09_26" / "2011_09_26_drive_0001_sync"
    streams = {"image_02": IMAGE_MS, "velodyne_points": SCAN_MS, "oxts": OXTS_MS}
    for child, times in streams.items():
        (folder / child / "data").mkdir(parents=True)
        (folder / child / "timestamps.txt").write_text("".join(timestamp(t) + "\n" for t in times))
    for i in range(FRAMES):
        cv2.imwrite(str(folder / "image_02" / "data" / f"{i:010d}.png"), image_of(i)[..., ::-1])
        (folder / "velodyne_points" / "data" / f"{i:010d}.bin").write_bytes(scan_of(i).tobytes())
        record = " ".join([*(f"{value:.13g}" for value in oxts_of(i)), *["0.5"] * 19, *"64666"])
        (folder / "oxts" / "data" / f"{i:010d}.txt").write_text(record + "\n")
    date = folder.parent
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\nS_00: 1.392000e+03 5.120000e+02\n"
        f"R_rect_00: {R_RECT_00}\nS_rect_02: {SIZE[1]:e} {SIZE[0]:e}\nR_rect_02: {R_RECT_00}\nP_rect_02: {P_RECT_02}\n"
    )
    (date / "calib_velo_to_cam.txt").write_text(
        f"calib_time: 15-Mar-2012 11:37:16\nR: {VELO_R}\nT: {VELO_T}\ndelta_f: 0.000000e+00 0.000000e+00\n"
    )
    (date / "calib_imu_to_velo.txt").write_text(f"calib_time: 25-May-2012 16:47:16\nR: {IMU_R}\nT: {IMU_T}\n")
    return folder
