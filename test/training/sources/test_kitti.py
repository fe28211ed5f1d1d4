# SPDX-License-Identifier: Apache-2.0
"""The KITTI source on odometry sequences and raw drives: frames and poses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from kitti_recordings import (
    DRIVE_START_NS,
    FRAMES,
    IMAGE_MS,
    OXTS_MS,
    P0,
    P2,
    P_RECT_02,
    R_RECT_00,
    SCAN_MS,
    SIZE,
    TR,
    VELO_R,
    VELO_T,
    camera_pose_of,
    image_of,
    numbers,
    oxts_of,
    scan_of,
    write_odometry,
    write_raw,
)
from training.sources import open_sources
from training.sources.kitti.files import poses_from_oxts
from training.sources.kitti.source import KittiSource
from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Frame
from vmloc_ros.core.geometry import rotation_angle_deg


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


def test_a_point_of_the_scan_projects_as_in_the_odometry_devkit(odometry: Path) -> None:
    """x = P2 Tr X, as the devkit's readme has it."""
    frame = next(iter(KittiSource(odometry))).frame
    u, v, w = (
        numbers(P2).reshape(3, 4) @ np.vstack([numbers(TR).reshape(3, 4), [0, 0, 0, 1]]) @ np.c_[IN_VIEW, np.ones(4)].T
    )
    np.testing.assert_allclose(project(frame, IN_VIEW), np.stack([u / w, v / w], -1), atol=0.01)


def test_a_point_of_the_scan_projects_as_in_the_raw_devkit(drive: Path) -> None:
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


def test_images_alone_need_no_scans(odometry: Path) -> None:
    for path in (odometry / "velodyne").iterdir():
        path.unlink()
    (odometry / "velodyne").rmdir()
    assert KittiSource(odometry).modalities == ("image",)
    with pytest.raises(DataError, match="00 has no lidar: there is no folder velodyne"):
        KittiSource(odometry, modalities=("image", "lidar"))
    with pytest.raises(DataError, match="KITTI has image and lidar, no depth"):
        KittiSource(odometry, modalities=("image", "depth"))


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_an_image_without_a_scan_is_a_frame_of_its_own(request: pytest.FixtureRequest, layout: str) -> None:
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
def test_the_fingerprint_changes_with_what_is_read(request: pytest.FixtureRequest, layout: str, file: str) -> None:
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
