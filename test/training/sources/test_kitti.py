# SPDX-License-Identifier: Apache-2.0
"""The KITTI source on odometry sequences and raw drives written here with the dataset's real calibration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from training.cli import main
from training.conversion.datasets import convert_kitti
from training.sources import open_sources
from training.sources.kitti.files import poses_from_oxts, read_scan, read_timestamps
from training.sources.kitti.source import KittiSource
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Frame
from vmloc_ros.core.geometry import Pose, rotation_angle_deg

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


@pytest.fixture
def odometry(tmp_path: Path) -> Path:
    return write_odometry(tmp_path / "dataset")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "kitti")


def project(frame: Frame, xyz_lidar: np.ndarray) -> np.ndarray:
    """Pixels ``(N, 2)`` of points that the lidar sees, by the frame's camera and extrinsics."""
    assert frame.camera is not None
    assert frame.camera_from_lidar is not None
    x, y, z = frame.camera_from_lidar.transform(xyz_lidar).T
    return np.stack([frame.camera.fx * x / z + frame.camera.cx, frame.camera.fy * y / z + frame.camera.cy], -1)


def homogeneous(rotation: str, translation: str = "0 0 0") -> np.ndarray:
    return np.vstack([np.c_[numbers(rotation).reshape(3, 3), numbers(translation)], [0, 0, 0, 1]])


IN_VIEW = np.array([[10.0, 0.0, 0.0], [20.0, -4.0, 1.5], [6.0, 3.0, -1.5], [60.0, 10.0, 2.0]])


# --- frames, both layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_frames_carry_the_files_content(request: pytest.FixtureRequest, layout: str) -> None:
    source = KittiSource(request.getfixturevalue(layout), SourceOptions())
    samples = list(source)
    assert source.modalities == ("image", "lidar")
    assert (source.map_frame, source.body_frame) == ("map", "base_link")
    assert len(samples) == len(source) == source.report["frames"]
    first = FRAMES - len(samples)
    assert first == 0
    for i, sample in enumerate(samples, first):
        frame = sample.frame
        np.testing.assert_array_equal(frame.image, image_of(i))
        assert frame.cloud is not None
        assert frame.cloud.intensity is not None
        np.testing.assert_array_equal(frame.cloud.xyz_m, scan_of(i)[:, :3])
        np.testing.assert_allclose(frame.cloud.intensity, scan_of(i)[:, 3] * 255, rtol=1e-6)
        assert frame.camera is not None
        assert (frame.camera.width, frame.camera.height) == SIZE[::-1]
    assert [sample.frame.stamp_ns for sample in samples] == source.stamps_ns()


def test_a_point_of_the_scan_lies_on_the_pixel_that_the_odometry_devkit_says(odometry: Path) -> None:
    """x = P2 Tr X, as the devkit's readme has it."""
    frame = next(iter(KittiSource(odometry))).frame
    u, v, w = (
        numbers(P2).reshape(3, 4) @ np.vstack([numbers(TR).reshape(3, 4), [0, 0, 0, 1]]) @ np.c_[IN_VIEW, np.ones(4)].T
    )
    np.testing.assert_allclose(project(frame, IN_VIEW), np.stack([u / w, v / w], -1), atol=0.01)


def test_a_point_of_the_scan_lies_on_the_pixel_that_the_raw_devkit_says(drive: Path) -> None:
    """x = P_rect_02 R_rect_00 (R|T) X, as the devkit's readme has it."""
    frame = next(iter(KittiSource(drive))).frame
    matrix = numbers(P_RECT_02).reshape(3, 4) @ homogeneous(R_RECT_00) @ homogeneous(VELO_R, VELO_T)
    u, v, w = matrix @ np.c_[IN_VIEW, np.ones(4)].T
    np.testing.assert_allclose(project(frame, IN_VIEW), np.stack([u / w, v / w], -1), atol=0.01)


def test_the_grey_camera_stands_in_for_the_colour_camera(odometry: Path) -> None:
    (odometry / "image_2").rename(odometry / "image_0")
    for path in (odometry / "image_0").iterdir():
        cv2.imwrite(str(path), image_of(int(path.stem))[..., 0])
    source = KittiSource(odometry)
    frame = next(iter(source)).frame
    np.testing.assert_array_equal(frame.image, np.repeat(image_of(0)[..., :1], 3, axis=-1))
    u, v, w = numbers(P0).reshape(3, 4)[:, :3] @ numbers(TR).reshape(3, 4) @ np.c_[IN_VIEW, np.ones(4)].T
    np.testing.assert_allclose(project(frame, IN_VIEW), np.stack([u / w, v / w], -1), atol=0.01)
    np.testing.assert_array_equal(source.mounts["image"].position_m, 0)


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_sensors_are_mounted_where_a_car_has_them(request: pytest.FixtureRequest, layout: str) -> None:
    """The camera looks along base_link's x with its right on -y; the scanner's axes are nearly base_link's."""
    mounts = KittiSource(request.getfixturevalue(layout)).mounts
    np.testing.assert_allclose(mounts["image"].rotation, [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=0.03)
    np.testing.assert_allclose(mounts["lidar"].rotation, np.eye(3), atol=0.03)
    height = mounts["lidar"].position_m[2] - mounts["image"].position_m[2]
    assert 0.05 < height < 0.1  # the scanner stands 8 cm above the cameras and 27 cm behind
    assert 0.2 < (mounts["image"].position_m - mounts["lidar"].position_m)[0] < 0.35


@pytest.mark.parametrize("layout", ["odometry", "drive"])
@pytest.mark.parametrize("modality", ["image", "lidar"])
def test_one_modality_alone(request: pytest.FixtureRequest, layout: str, modality: str) -> None:
    source = KittiSource(request.getfixturevalue(layout), modalities=(modality,))
    assert {sample.frame.modalities for sample in source} == {(modality,)}
    assert list(source.mounts) == list(source.modalities) == [modality]
    assert source.report["images without a scan"] == 0


def test_images_do_without_the_big_download_of_scans(odometry: Path) -> None:
    for path in (odometry / "velodyne").iterdir():
        path.unlink()
    (odometry / "velodyne").rmdir()
    assert KittiSource(odometry).modalities == ("image",)
    with pytest.raises(DataError, match="00 has no lidar: there is no folder velodyne"):
        KittiSource(odometry, modalities=("image", "lidar"))
    with pytest.raises(DataError, match="KITTI has image and lidar, no depth"):
        KittiSource(odometry, modalities=("image", "depth"))


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_a_lost_scan_leaves_its_image_alone(request: pytest.FixtureRequest, layout: str) -> None:
    """Drive 0009 of 2011_09_26 lacks four, and has empty lines among the stamps of the scanner."""
    folder = request.getfixturevalue(layout)
    next(folder.glob("velodyne*/**/*002.bin")).unlink()
    for path in folder.glob("velodyne_points/timestamps.txt"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], "", *lines[3:], ""]))
    source = KittiSource(folder)
    assert [sample.frame.cloud is None for sample in source] == [i == 2 for i in range(FRAMES)]
    assert source.report["images without a scan"] == 1
    scans = KittiSource(folder, modalities=("lidar",))
    assert len(scans) == len(list(scans)) == FRAMES - 1


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_stride_keeps_every_nth_frame(request: pytest.FixtureRequest, layout: str) -> None:
    folder = request.getfixturevalue(layout)
    assert KittiSource(folder, SourceOptions(stride=2)).stamps_ns() == KittiSource(folder).stamps_ns()[::2]


def test_folders_are_recognised_as_sources(odometry: Path, drive: Path) -> None:
    options = SourceOptions()
    names = [open_sources(path, "train", options, ("image", "lidar"))[0].name for path in (odometry, drive)]
    assert names == ["kitti/00", "2011_09_26_drive_0001_sync"]
    with pytest.raises(DataError, match="nor a KITTI odometry sequence"):
        open_sources(odometry.parent.parent, "train", options, ("image",))
    with pytest.raises(DataError, match=r"dataset is neither a KITTI odometry sequence \(\.\.\./sequences/NN"):
        KittiSource(odometry.parent.parent)
    extract = drive.rename(drive.with_name("2011_09_26_drive_0001_extract"))
    with pytest.raises(DataError, match="_extract is neither rectified nor synchronised; give the drive's _sync"):
        KittiSource(extract)


@pytest.mark.parametrize(
    ("layout", "file"),
    [("odometry", "calib.txt"), ("odometry", "../../poses/00.txt"), ("drive", "oxts/timestamps.txt")],
)
def test_the_fingerprint_tells_what_is_read(request: pytest.FixtureRequest, layout: str, file: str) -> None:
    folder = request.getfixturevalue(layout)
    original = KittiSource(folder).fingerprint()
    assert KittiSource(folder).fingerprint() == original
    assert KittiSource(folder, modalities=("image",)).fingerprint() != original
    assert KittiSource(folder, SourceOptions(stride=2)).fingerprint() != original
    (folder / file).write_text((folder / file).read_text() + "\n")
    assert KittiSource(folder).fingerprint() != original


# --- poses --------------------------------------------------------------------------------------------------------


def test_odometry_poses_are_those_of_camera_0_with_axes_forward_left_up(odometry: Path) -> None:
    axes = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # forward, left, up of right, down, forward
    for i, pose in enumerate(KittiSource(odometry).poses()):
        np.testing.assert_allclose(pose.position_m, axes @ camera_pose_of(i)[:3, 3], atol=1e-9)
        np.testing.assert_allclose(pose.rotation, axes @ camera_pose_of(i)[:3, :3] @ axes.T, atol=1e-9)


def test_odometry_stamps_are_the_files_after_1000_s(odometry: Path) -> None:
    assert KittiSource(odometry).stamps_ns() == [10**12 + ns for ns in (0, 103735900, 207471800, 311207700, 414943600)]


def test_raw_stamps_keep_every_nanosecond(drive: Path) -> None:
    assert KittiSource(drive).stamps_ns() == [DRIVE_START_NS + ms * 1_000_000 for ms in IMAGE_MS]
    scans = KittiSource(drive, modalities=("lidar",))
    assert scans.stamps_ns() == [DRIVE_START_NS + ms * 1_000_000 for ms in SCAN_MS]


def devkit_poses() -> list[np.ndarray]:
    """``(4, 4)`` poses of the records by the formulas of the devkit's readme, relative to the first."""
    poses = []
    scale = np.cos(oxts_of(0)[0] * np.pi / 180)
    for latitude, longitude, altitude, *angles in map(oxts_of, range(FRAMES)):
        x = scale * longitude * np.pi * 6378137 / 180
        y = scale * 6378137 * np.log(np.tan((90 + latitude) * np.pi / 360))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = Rotation.from_euler("xyz", angles).as_matrix(), [x, y, altitude]
        poses.append(pose)
    return [np.linalg.inv(poses[0]) @ pose for pose in poses]


def test_raw_poses_are_the_devkits_interpolated_at_the_images_stamps(drive: Path) -> None:
    expected = np.array(devkit_poses())
    rotations = Slerp(OXTS_MS, Rotation.from_matrix(expected[:, :3, :3]))
    for ms, pose in zip(IMAGE_MS, KittiSource(drive).poses(), strict=True):
        position = [np.interp(ms, OXTS_MS, expected[:, axis, 3]) for axis in range(3)]
        np.testing.assert_allclose(pose.position_m, position, atol=1e-6)
        assert rotation_angle_deg(pose.quaternion_wxyz, np.roll(rotations(ms).as_quat(), 1)) < 1e-6


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_a_car_that_drives_forwards_moves_along_its_x(request: pytest.FixtureRequest, layout: str) -> None:
    poses = KittiSource(request.getfixturevalue(layout)).poses()
    for before, after in pairwise(poses):
        step = (before.inverse() @ after).position_m
        assert step[0] > 0.98 * np.linalg.norm(step) > 0.5
    yaw = [np.arctan2(pose.rotation[1, 0], pose.rotation[0, 0]) for pose in poses]
    turns_left = layout == "drive"  # the odometry sequence turns right
    assert np.all(np.diff(yaw) > 0) if turns_left else np.all(np.diff(yaw) < 0)


def test_mercator_metres_are_metres() -> None:
    """Against the WGS 84 sphere of the devkit: a thousandth of a degree, at three latitudes."""
    for latitude in (0.0, 49.0, -33.0):
        step = np.radians(1e-3) * 6378137
        north, east = ([latitude + 1e-3, 8.0], [latitude, 8.0 + 1e-3])
        records = np.array([[*place, 0, 0, 0, 0] for place in ([latitude, 8.0], north, east)])
        _, to_north, to_east = poses_from_oxts(records)
        np.testing.assert_allclose(to_north.position_m, [0, step, 0], atol=step * 2e-5)
        np.testing.assert_allclose(to_east.position_m, [step * np.cos(np.radians(latitude)), 0, 0], atol=1e-6)


def test_roll_pitch_and_yaw_have_the_documented_signs() -> None:
    """Yaw 0 is east and counter-clockwise; positive roll lifts the left side, positive pitch lowers the front."""
    level, turned, rolled, pitched = poses_from_oxts(
        np.array(
            [[49.0, 8.0, 0, 0, 0, 0], [49.0, 8.0, 0, 0, 0, 0.1], [49.0, 8.0, 0, 0.1, 0, 0], [49.0, 8.0, 0, 0, 0.1, 0]]
        )
    )
    np.testing.assert_allclose(level.rotation, np.eye(3), atol=1e-12)
    assert turned.transform([1.0, 0, 0])[1] > 0.09
    assert rolled.transform([0, 1.0, 0])[2] > 0.09
    assert pitched.transform([1.0, 0, 0])[2] < -0.09


def test_raw_frames_outside_the_records_or_in_a_gap_are_dropped_and_counted(drive: Path) -> None:
    path = drive / "oxts" / "timestamps.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["", *lines[1:]]))
    source = KittiSource(drive)
    assert len(source) == 3
    assert source.report["frames outside the poses' time span"] == 2
    assert KittiSource(drive, SourceOptions(pose_gap_s=0.108)).report["frames in a gap between poses"] == 2
    path.write_text("\n".join(line.replace("2011-", "2012-") for line in lines))
    with pytest.raises(DataError, match=r"_sync: no frame has a pose \(5 frames outside the poses' time span\)"):
        KittiSource(drive)


# --- broken recordings --------------------------------------------------------------------------------------------


def replace_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines))


MIRRORED = "1 0 0 0 0 1 0 0 0 0 -1 0"
SKEWED = P2.replace("7.188560e+02 0 6.07", "7.188560e+02 1 6.07")


@pytest.mark.parametrize(
    ("layout", "file", "number", "line", "text"),
    [
        ("odometry", "times.txt", 3, "0.2 0.3", r"times.txt:3: expected 1 columns \(seconds\), got 2"),
        ("odometry", "times.txt", 3, "nan", r"times.txt:3: expected a stamp in seconds"),
        ("odometry", "times.txt", 3, "0.05", r"times.txt:3: 50000000 ns does not come after 103735900 ns of line 2"),
        ("odometry", "times.txt", 3, "", r"00.txt has 5 poses for 4 stamps in \S*times.txt"),
        ("odometry", "../../poses/00.txt", 2, "1 0 0 0", r"00.txt:2: expected 12 columns .* got 4"),
        ("odometry", "../../poses/00.txt", 2, "1 0 0 nan 0 1 0 0 0 0 1 0", r"00.txt:2: expected finite numbers"),
        ("odometry", "../../poses/00.txt", 2, MIRRORED, r"00.txt:2: not a rotation matrix"),
        ("odometry", "calib.txt", 3, "P2: 1 2 3", r"calib.txt:3: P2 needs 12 numbers, got 3"),
        ("odometry", "calib.txt", 3, f"P2: {SKEWED}", r"calib.txt:3: P2 is not the projection of a rectified camera"),
        ("odometry", "calib.txt", 3, "P7: 1", r"calib.txt has no line 'P2: ...'"),
        ("odometry", "calib.txt", 5, f"Tr: {MIRRORED}", r"calib.txt:5: Tr: not a rotation matrix"),
        ("odometry", "calib.txt", 5, "Tr: " + TR.replace("4.27", "x"), r"calib.txt:5: could not convert"),
        ("drive", "image_02/timestamps.txt", 2, "13:02:26.1", r"image_02/timestamps.txt:2: expected a stamp like"),
        ("drive", "image_02/timestamps.txt", 2, "2011-13-26 13:02:26.1", r"timestamps.txt:2: time data .* not match"),
        ("drive", "image_02/timestamps.txt", 2, timestamp(-1), r"timestamps.txt:2: \d+ ns does not come after"),
        ("drive", "oxts/timestamps.txt", 3, timestamp(0), r"oxts/timestamps.txt:3: \d+ ns does not come after"),
        ("drive", "oxts/data/0000000002.txt", 1, "49 8 110", r"0000000002.txt:1: expected 30 columns .* got 3"),
        ("drive", "oxts/data/0000000002.txt", 1, "nan " * 30, r"0000000002.txt:1: expected finite numbers"),
        ("drive", "oxts/data/0000000002.txt", 1, "91 " * 30, r"0000000002.txt:1: the latitude must be between"),
        ("drive", "oxts/data/0000000002.txt", 1, ("49 " * 30 + "\n") * 2, r"2.txt: expected one record, got 2 lines"),
        ("drive", "../calib_velo_to_cam.txt", 3, "T: 0 0", r"calib_velo_to_cam.txt:3: T needs 3 numbers, got 2"),
        (
            "drive",
            "../calib_imu_to_velo.txt",
            2,
            "R: 2 0 0 0 2 0 0 0 2",
            r"imu_to_velo.txt:2: R: not a rotation matrix",
        ),
        ("drive", "../calib_cam_to_cam.txt", 4, "", r"calib_cam_to_cam.txt has no line 'R_rect_00: ...'"),
    ],
)
def test_a_malformed_line_is_named(
    request: pytest.FixtureRequest, layout: str, file: str, number: int, line: str, text: str
) -> None:
    folder = request.getfixturevalue(layout)
    replace_line(folder / file, number, line)
    with pytest.raises(DataError, match=text) as caught:
        KittiSource(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "file", "text"),
    [
        ("odometry", "calib.txt", "calib.txt is missing"),
        ("odometry", "../../poses/00.txt", "00.txt is missing; the dataset has poses of the sequences 00 to 10"),
        ("odometry", "image_2/000003.png", "image_2/000003.png is missing"),
        ("drive", "image_02/timestamps.txt", "image_02/timestamps.txt is missing"),
        ("drive", "image_02/data/0000000000.png", "image_02/data/0000000000.png is missing"),
        ("drive", "oxts/timestamps.txt", "oxts/timestamps.txt is missing"),
        ("drive", "oxts/data/0000000004.txt", "0000000004.txt is missing"),
        ("drive", "../calib_imu_to_velo.txt", "calib_imu_to_velo.txt is missing"),
        ("drive", "../calib_cam_to_cam.txt", "calib_cam_to_cam.txt is missing"),
    ],
)
def test_a_missing_file_is_named(request: pytest.FixtureRequest, layout: str, file: str, text: str) -> None:
    folder = request.getfixturevalue(layout)
    (folder / file).unlink()
    with pytest.raises(DataError, match=text):
        KittiSource(folder)


def test_images_and_stamps_must_match(odometry: Path) -> None:
    cv2.imwrite(str(odometry / "image_2" / "000005.png"), image_of(0))
    with pytest.raises(DataError, match=r"000005.png has no stamp; there are stamps of 5 frames"):
        KittiSource(odometry)
    for path in (odometry / "image_2").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"image_2 holds no files like 000000.png"):
        KittiSource(odometry)


@pytest.mark.parametrize(
    ("pattern", "damage", "text"),
    [
        (
            "*.bin",
            lambda path: path.write_bytes(path.read_bytes()[:-4]),
            r"is truncated: \d+ bytes, expected 16 for each",
        ),
        ("*.bin", lambda path: path.write_bytes(b""), "is truncated: 0 bytes"),
        ("*.bin", Path.unlink, "No such file"),
        ("*.png", lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated"),
        ("*.png", lambda path: cv2.imwrite(str(path), np.zeros(SIZE, np.uint16)), "must have 8 bits per channel"),
        ("*.png", lambda path: cv2.imwrite(str(path), np.zeros((4, 13, 3), np.uint8)), "13 x 4 pixels, .* of 26 x 8"),
    ],
)
def test_a_damaged_file_is_named_when_it_is_read(
    drive: Path, pattern: str, damage: Callable[[Path], object], text: str
) -> None:
    source = KittiSource(drive)
    (path,) = (p for p in drive.glob(f"*/data/{pattern}") if p.stem.endswith("1"))
    damage(path)
    samples = iter(source)
    next(samples)
    with pytest.raises(DataError, match=rf"{path.name}:? .*{text}|{path.name} {text}"):
        next(samples)


@given(st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=20), st.integers(0, 15))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_scan_is_read_bit_by_bit_and_none_that_was_cut(
    tmp_path: Path, points: list[tuple[float, ...]], missing: int
) -> None:
    path = tmp_path / "scan.bin"
    array = np.array(points, "<f4")
    path.write_bytes(array.tobytes()[: array.nbytes - missing])
    if missing:
        with pytest.raises(DataError, match=r"scan.bin is truncated"):
            read_scan(path)
    else:
        assert read_scan(path).xyz_m.tobytes() == array[:, :3].tobytes()


@given(st.datetimes(datetime(1970, 1, 1)), st.integers(0, 999_999_999), st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_timestamp_is_read_exactly(tmp_path: Path, moment: datetime, nanoseconds: int, digits: int) -> None:
    path = tmp_path / "timestamps.txt"
    text, fraction = f"{moment:%Y-%m-%d %H:%M:%S}", f"{nanoseconds:09d}"[:digits]
    path.write_text(f"\n{text}.{fraction}\n" if digits else f"\n{text}\n")
    kept = nanoseconds // 10 ** (9 - digits) * 10 ** (9 - digits)
    expected = int(np.datetime64(text.replace(" ", "T"), "s").astype(np.int64)) * 1_000_000_000 + kept
    assert read_timestamps(path) == {1: expected}


WORDS = st.one_of(
    st.text(max_size=6),
    st.floats().map(repr),
    st.sampled_from(["\n", "P2:", "Tr:", P2, TR, "2011-09-26 13:02:25.9", "0", "1", "nan"]),
)
FILES = {
    "odometry": ["times.txt", "calib.txt", "../../poses/00.txt"],
    "drive": [
        "oxts/timestamps.txt",
        "image_02/timestamps.txt",
        "oxts/data/0000000001.txt",
        "../calib_cam_to_cam.txt",
        "../calib_velo_to_cam.txt",
        "../calib_imu_to_velo.txt",
    ],
}


def refusal(folder: Path) -> str | None:
    """The error of reading a recording, if there is one."""
    try:
        KittiSource(folder)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("layout", list(FILES))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(
    request: pytest.FixtureRequest, layout: str, data: st.DataObject
) -> None:
    folder = request.getfixturevalue(layout)
    path = folder / data.draw(st.sampled_from(FILES[layout]))
    words = st.lists(WORDS, max_size=36).map(" ".join).map(str.encode)
    sound = path.read_bytes()
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=80), words)))
    message = refusal(folder)
    path.write_bytes(sound)
    if message is not None:
        assert str(folder.parent.parent.parent) in message
        assert len(message.splitlines()) == 1


# --- conversion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_a_converted_bag_gives_the_frames_of_the_folder(
    request: pytest.FixtureRequest, tmp_path: Path, layout: str
) -> None:
    folder = request.getfixturevalue(layout)
    convert_kitti(folder, tmp_path / "bag", progress=False)
    from_bag = RosbagSource(tmp_path / "bag", SourceOptions(), ("image", "lidar"))
    from_folder = KittiSource(folder)
    assert from_bag.stamps_ns() == from_folder.stamps_ns()
    assert (from_bag.map_frame, from_bag.body_frame) == (from_folder.map_frame, from_folder.body_frame)
    for bag, expected in zip(from_bag, from_folder, strict=True):
        assert bag.frame.stamp_ns == expected.frame.stamp_ns
        assert bag.frame.camera == expected.frame.camera
        assert bag.frame.cloud is not None
        assert expected.frame.cloud is not None
        np.testing.assert_array_equal(bag.frame.image, expected.frame.image)
        np.testing.assert_array_equal(bag.frame.cloud.xyz_m, expected.frame.cloud.xyz_m)
        np.testing.assert_array_equal(bag.frame.cloud.intensity, expected.frame.cloud.intensity)
        for got, wanted in (
            (bag.map_from_body, expected.map_from_body),
            (bag.frame.camera_from_lidar, expected.frame.camera_from_lidar),
        ):
            assert isinstance(got, Pose)
            assert isinstance(wanted, Pose)
            np.testing.assert_allclose(got.matrix, wanted.matrix, atol=1e-9)


def test_the_map_of_a_bag_is_that_of_the_scans(odometry: Path, tmp_path: Path) -> None:
    """/tf_static and the poses place a scan's points: camera 0 of frame 0 sees those of the first scan as Tr says."""
    convert_kitti(odometry, tmp_path / "bag", options=SourceOptions(stride=FRAMES), progress=False)
    points = RosbagSource(tmp_path / "bag", SourceOptions(), ("lidar",)).map_points(every=1)
    seen = scan_of(0)[:, :3] @ numbers(TR).reshape(3, 4)[:, :3].T + numbers(TR).reshape(3, 4)[:, 3]
    np.testing.assert_allclose(points, np.stack([seen[:, 2], -seen[:, 0], -seen[:, 1]], -1), atol=1e-4)


def test_the_command_line_converts_and_leaves_no_half_bag(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "kitti", str(drive), "--out", str(tmp_path / "bag"), "--stride", "2"]) == 0
    with open_bag(tmp_path / "bag") as reader:
        counts = {name: info.msgcount for name, info in reader.topics.items()}
    assert counts == {
        "/tf_static": 1,
        "/ground_truth/pose": 3,
        "/camera/camera_info": 3,
        "/camera/image_raw": 3,
        "/lidar/points": 3,
    }
    (drive / "velodyne_points" / "data" / "0000000003.bin").write_bytes(b"short")
    capsys.readouterr()
    assert main(["convert", "kitti", str(drive), "--out", str(tmp_path / "broken")]) == 1
    assert "0000000003.bin is truncated: 5 bytes" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "kitti"]
