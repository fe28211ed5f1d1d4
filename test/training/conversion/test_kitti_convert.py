# SPDX-License-Identifier: Apache-2.0
"""KITTI recordings as bags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kitti_recordings import FRAMES, TR, numbers, scan_of, write_odometry, write_raw
from training.cli import main
from training.conversion.datasets import convert_kitti
from training.sources.kitti.source import KittiSource
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.geometry import Pose


@pytest.fixture
def odometry(tmp_path: Path) -> Path:
    return write_odometry(tmp_path / "dataset")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "kitti")


@pytest.mark.parametrize("layout", ["odometry", "drive"])
def test_a_converted_bag_gives_the_frames_of_the_folder(
    request: pytest.FixtureRequest, tmp_path: Path, layout: str
) -> None:
    folder = request.getfixturevalue(layout)
    convert_kitti(folder, tmp_path / "bag", progress=False)
    from_bag = RosbagSource(tmp_path / "bag", SourceOptions(), ("image", "lidar"))
    from_folder = KittiSource(folder)
    with open_bag(tmp_path / "bag") as reader:
        infos = [c for c in reader.connections if c.topic == "/camera/camera_info"]
        messages = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages(infos)]
    # These pictures are smaller than those of KITTI's calibration, so that a bag's reader would not use the camera.
    for info, sample in zip(messages, from_folder, strict=True):
        camera = sample.frame.camera
        assert camera is not None
        assert (info.width, info.height) == (camera.width, camera.height)
        np.testing.assert_array_equal(info.k, [camera.fx, 0, camera.cx, 0, camera.fy, camera.cy, 0, 0, 1])
    assert from_bag.stamps_ns() == from_folder.stamps_ns()
    assert (from_bag.map_frame, from_bag.body_frame) == (from_folder.map_frame, from_folder.body_frame)
    for bag, expected in zip(from_bag, from_folder, strict=True):
        assert bag.frame.stamp_ns == expected.frame.stamp_ns
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
    """/tf_static and the poses place a scan's points: Tr projects those of the first scan into camera 0 of frame 0."""
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
