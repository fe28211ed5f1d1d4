# SPDX-License-Identifier: Apache-2.0
"""The RobotCar source on miniature sequences: images, clouds and poses that belong together; splits; dropped frames."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import robotcar_sequence as mini
from training.config import load_config
from training.sources import open_sources
from training.sources.options import RobotCarOptions, SourceOptions
from training.sources.robotcar.source import RobotCarSource
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.projection import pinhole_projection

TIMES = np.arange(0.3, 2.8, 0.0625)
LOOP_TRAIN = ("2014-06-26-09-24-58", "2014-06-26-08-53-56")
LOOP_TEST = ("2014-06-23-15-36-04", "2014-06-23-15-41-25")


def with_robotcar(**values: object) -> SourceOptions:
    return SourceOptions(robotcar=RobotCarOptions(**values))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence that tests only read."""
    root = tmp_path_factory.mktemp("robotcar")
    mini.write_calibration(root)
    return mini.write_sequence(root / "2014-01-01-00-00-00", TIMES)


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A shorter one of one's own."""
    mini.write_calibration(tmp_path)
    return mini.write_sequence(tmp_path / "2014-01-01-00-00-00", TIMES[:8], duration_s=1.0)


@pytest.mark.parametrize("poses", ["ins", "rtk"])
def test_every_image_has_its_own_pose(shared: Path, poses: str) -> None:
    """Colours encode the image's number, and the drive the pose at its stamp; a shift by one frame is 0.3 m."""
    rows = [line.split(",") for line in (shared / "gps" / "ins.csv").read_text().splitlines()]
    mini.write_lines(shared / "gps" / "rtk.csv", [",".join(row[:1] + row[2:]) for row in rows])  # has no status
    source = RobotCarSource(shared, with_robotcar(poses=poses, drop_bad_status=True), ("image",))
    assert len(source) == len(TIMES)
    for number, (time_s, sample) in enumerate(zip(TIMES, source, strict=True)):
        assert sample.frame.stamp_ns == mini.stamp_us(time_s) * 1000
        assert sample.frame.image is not None
        assert sample.frame.image[5, 5].tolist() == [200, 10 + number, 30]
        np.testing.assert_allclose(sample.map_from_body.matrix, mini.map_from_base(time_s), atol=1e-4)
    assert source.stamps_ns() == [mini.stamp_us(time_s) * 1000 for time_s in TIMES]
    assert [pose.position_m.tolist() for pose in source.poses()] == [
        s.map_from_body.position_m.tolist() for s in source
    ]
    assert (source.name, source.map_frame, source.body_frame) == ("2014-01-01-00-00-00", "map", "base_link")


def test_reading_labels_does_not_change_what_comes_next(shared: Path) -> None:
    """The reference interpolation inserts into its caller's list of stamps, which shifts all labels by a frame."""
    source = RobotCarSource(shared, None, ("image",))
    before = source.stamps_ns().copy()
    first, second = [[sample.map_from_body.matrix for sample in source] for _ in range(2)]
    np.testing.assert_array_equal(first, second)
    assert source.stamps_ns() == before


def test_clouds_lie_on_the_walls_in_the_vehicle_s_frame(shared: Path) -> None:
    source = RobotCarSource(shared)
    assert source.modalities == ("image", "lidar")
    samples = list(source)
    for time_s, sample in zip(TIMES, samples, strict=True):
        cloud = sample.frame.cloud
        assert cloud is not None
        assert cloud.xyz_m.dtype == np.float32
        map_from_vehicle = mini.map_from_base(time_s) @ mini.BASE_FROM_VEHICLE
        points = cloud.xyz_m @ map_from_vehicle[:3, :3].T + map_from_vehicle[:3, 3]
        distances = np.stack([points @ normal - distance for normal, distance in mini.WALLS])
        assert np.abs(distances).min(axis=0).max() < 1e-3
    early, late = samples[0].frame.cloud, samples[-1].frame.cloud
    assert early is not None
    assert late is not None
    assert len(late) > 5 * len(early)
    assert late.xyz_m[:, 0].max() < 12  # past scans of an upright plane at the bumper: mostly beside and behind
    assert np.median(late.xyz_m[:, 0]) < 0


def test_cloud_and_camera_project_a_known_point_to_a_known_pixel(shared: Path) -> None:
    frame = next(iter(RobotCarSource(shared))).frame
    assert frame.camera is not None
    assert frame.camera_from_lidar is not None
    fx, fy, cx, cy = mini.FOCAL
    ahead, left, up = 10.0, 1.0, 0.5  # of the camera on the roof
    u, v = cx - fx * left / ahead, cy - fy * up / ahead
    k = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]])
    picture = pinhole_projection(
        torch.tensor([[[ahead, left, up]]]),
        torch.tensor(frame.camera_from_lidar.matrix)[None],
        k,
        mini.HEIGHT,
        mini.WIDTH,
    )
    assert picture[0, 1].nonzero().tolist() == [[int(v + 0.5), int(u + 0.5)]]
    assert picture[0, 0].max() == pytest.approx(ahead)


def test_mounts_are_those_of_the_optical_frame_and_of_the_frame_that_clouds_lie_in(sequence: Path) -> None:
    mounts = RobotCarSource(sequence).mounts
    np.testing.assert_allclose(mounts["lidar"].matrix, mini.BASE_FROM_VEHICLE, atol=1e-9)
    base_from_camera = mini.BASE_FROM_STEREO @ np.linalg.inv(mini.matrix_of(mini.EXTRINSICS["stereo"]))
    np.testing.assert_allclose(mounts["image"].matrix, base_from_camera @ mini.CAMERA_FROM_OPTICAL, atol=1e-9)
    assert list(RobotCarSource(sequence, None, ("image",)).mounts) == ["image"]
    assert list(RobotCarSource(sequence, with_robotcar(undistort=False)).mounts) == ["lidar"]
    shutil.rmtree(sequence.parent / "extrinsics")
    assert RobotCarSource(sequence, None, ("image",)).mounts == {}


def test_visual_odometry_and_gps_serve_as_poses(shared: Path) -> None:
    by_vo = RobotCarSource(shared, with_robotcar(poses="vo"))
    assert by_vo.map_frame == "odom"
    start = np.linalg.inv(mini.map_from_base(TIMES[0]))
    for stamp, pose in zip(by_vo.stamps_ns(), by_vo.poses(), strict=True):
        np.testing.assert_allclose(pose.matrix, start @ mini.map_from_base(mini.seconds(stamp)), atol=1e-6)
    by_gps = RobotCarSource(shared, with_robotcar(poses="gps"), ("image",))
    for stamp, pose in zip(by_gps.stamps_ns(), by_gps.poses(), strict=True):
        np.testing.assert_allclose(pose.position_m, mini.map_from_base(mini.seconds(stamp))[:3, 3], atol=6e-3)


def test_frames_without_file_pose_or_scan_are_dropped_and_counted(tmp_path: Path) -> None:
    mini.write_calibration(tmp_path)
    times = np.arange(0.0, 1.0, 0.1) + 0.05
    sequence = mini.write_sequence(tmp_path / "s", times, duration_s=1.0)
    (sequence / "stereo" / "centre" / f"{mini.stamp_us(times[2])}.png").unlink()
    mini.write_ins(sequence / "gps" / "ins.csv", np.arange(0.1, 0.81, 0.02))  # not for 0.05, 0.85 and 0.95
    for path in sorted((sequence / "lms_front").iterdir())[:20]:  # before 0.4 s
        path.unlink()
    source = RobotCarSource(sequence)
    assert source.stamps_ns() == [mini.stamp_us(time_s) * 1000 for time_s in times[4:8]]
    assert source.report == {
        "frames": 4,
        "images without a file": 1,
        "frames outside the poses' time span": 3,
        "frames in a gap between poses": 0,
        "poses of bad status": 0,
        "scans without a file": 20,
        "scans without a pose": 10,
        "frames without a scan in 0.1 s before": 2,
    }
    assert len(RobotCarSource(sequence, None, ("image",))) == 6
    assert len(RobotCarSource(sequence, None, ("lidar",))) == 4


def test_rows_of_bad_status_leave_a_gap_or_are_used(sequence: Path) -> None:
    times = np.arange(0, 1.0, 0.02)
    statuses = ["INS_SOLUTION_GOOD" if not 0.4 < time_s < 0.6 else "INS_BAD_GPS_AGREEMENT" for time_s in times]
    mini.write_ins(sequence / "gps" / "ins.csv", times, statuses)
    assert len(RobotCarSource(sequence, None, ("image",))) == 8
    options = replace(with_robotcar(drop_bad_status=True), pose_gap_s=0.1)
    source = RobotCarSource(sequence, options, ("image",))
    dropped = [time_s for time_s in TIMES[:8] if 0.4 <= time_s <= 0.6]
    assert source.report["poses of bad status"] == 9
    assert source.report["frames in a gap between poses"] == len(dropped) == 3
    assert len(source) == 5
    assert RobotCarSource(sequence, options).report["scans without a pose"] == 10 + 1  # and the very last one


def test_frames_in_a_pause_of_the_lidar_are_dropped(sequence: Path) -> None:
    for path in (sequence / "lms_front").iterdir():
        if 0.45 < mini.seconds(int(path.stem) * 1000) < 0.75:
            path.unlink()
    kept = [mini.stamp_us(time_s) * 1000 for time_s in TIMES[:8] if not 0.547 < time_s < 0.75]
    assert RobotCarSource(sequence).stamps_ns() == kept
    assert len(RobotCarSource(sequence, SourceOptions(slop_s=0.5))) == 8


def test_stride_takes_every_so_manieth_image(shared: Path) -> None:
    source = RobotCarSource(shared, SourceOptions(stride=7), ("image",))
    assert source.stamps_ns() == [mini.stamp_us(time_s) * 1000 for time_s in TIMES[::7]]


def test_without_undistortion_no_models_are_needed(sequence: Path) -> None:
    for path in (sequence.parent / "models").iterdir():
        path.unlink()
    (sequence.parent / "models").rmdir()
    with pytest.raises(DataError, match=r"models is not a folder"):
        RobotCarSource(sequence)
    frame = RobotCarSource(sequence, with_robotcar(undistort=False)).frame(0)
    assert frame.image is not None
    assert frame.camera is None
    assert frame.cloud is not None


def test_missing_lookup_table_is_told_before_anything_is_read(sequence: Path) -> None:
    (sequence.parent / "models" / "stereo_narrow_left_distortion_lut.bin").unlink()
    with pytest.raises(DataError, match=r"stereo_narrow_left_distortion_lut.bin is missing"):
        RobotCarSource(sequence)
    assert len(RobotCarSource(sequence, None, ("lidar",))) == 8


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("gps/ins.csv", r"gps/ins.csv is missing"),
        ("stereo.timestamps", r"stereo.timestamps is missing"),
        ("lms_front.timestamps", r"lms_front.timestamps is missing"),
        ("../extrinsics/lms_front.txt", r"lms_front.txt is missing"),
        ("../extrinsics/ins.txt", r"ins.txt is missing"),
        ("../models/stereo_narrow_left.txt", r"stereo_narrow_left.txt is missing"),
    ],
)
def test_missing_file_is_named(sequence: Path, file: str, text: str) -> None:
    (sequence / file).unlink()
    with pytest.raises(DataError, match=text):
        RobotCarSource(sequence)


def test_sequence_without_usable_frames_says_why(sequence: Path) -> None:
    for path in (sequence / "stereo" / "centre").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no frame is left \(8 images without a file\)"):
        RobotCarSource(sequence)
    with pytest.raises(DataError, match="RobotCar has image and lidar, no depth"):
        RobotCarSource(sequence, None, ("image", "depth"))


def test_fingerprint_changes_with_files_and_options(sequence: Path) -> None:
    def fingerprint(options: SourceOptions | None = None, modalities: tuple[str, ...] = ("image", "lidar")) -> str:
        return RobotCarSource(sequence, options, modalities).fingerprint()

    before = fingerprint()
    assert before == fingerprint()
    others = [
        fingerprint(with_robotcar(accumulate_m=3.0)),
        fingerprint(SourceOptions(stride=2)),
        fingerprint(None, ("image",)),
    ]
    scan = next((sequence / "lms_front").iterdir())
    scan.write_bytes(scan.read_bytes() * 2)
    others.append(fingerprint())
    mini.write_calibration(sequence.parent, mini.identity_lut() + 1)
    others.append(fingerprint())
    assert len({before, *others}) == 6


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """A folder with LOOP's sequences but for the second test sequence, and one of another scene."""
    mini.write_calibration(tmp_path)
    for name in (*LOOP_TRAIN, LOOP_TEST[0], "2014-11-28-12-07-13"):
        mini.write_sequence(tmp_path / name, TIMES[:3], duration_s=0.6, lidar=False)
    return tmp_path


def names(root: Path, split: str, **robotcar: object) -> list[str]:
    return [source.name for source in open_sources(root, split, with_robotcar(**robotcar), ("image",))]


def test_folder_of_sequences_is_split_as_published(loop: Path) -> None:
    assert names(loop, "train") == [*LOOP_TRAIN]
    assert names(loop, "all") == sorted([*LOOP_TRAIN, LOOP_TEST[0], "2014-11-28-12-07-13"])
    assert names(loop / LOOP_TEST[0], "train") == [LOOP_TEST[0]]  # by itself, a sequence has no split
    with pytest.raises(DataError, match=rf"lacks {LOOP_TEST[1]} of the test split of 'loop'.*allow_missing"):
        names(loop, "test")
    assert names(loop, "test", allow_missing=True) == [LOOP_TEST[0]]
    with pytest.raises(DataError, match=r"lacks 2014-12-02-15-30-08 of the train split of 'full'"):
        names(loop, "train", scene="full")
    with pytest.raises(DataError, match=r"has no sequence of the test split of 'full' \(2014-12-09-13-21-02, 2014-12"):
        names(loop, "test", scene="full", allow_missing=True)


def test_a_list_of_one_s_own_splits_a_folder(loop: Path, tmp_path: Path) -> None:
    listing = mini.write_lines(
        tmp_path / "my.txt", ["# mine", f"test {LOOP_TRAIN[0]}", "train 2014-11-28-12-07-13", f"train {LOOP_TEST[0]}"]
    )
    assert names(loop, "train", scene=str(listing)) == ["2014-11-28-12-07-13", LOOP_TEST[0]]
    assert names(loop, "test", scene=str(listing)) == [LOOP_TRAIN[0]]
    for line, text in {
        "val x": "my.txt:2: expected train NAME or test NAME, got val x",
        "train": "my.txt:2: expected 2",
    }.items():
        mini.write_lines(listing, ["test a", line])
        with pytest.raises(DataError, match=text):
            names(loop, "train", scene=str(listing))
    with pytest.raises(DataError, match=r"scene: expected loop, full or a text file, got 'looop'"):
        names(loop, "train", scene="looop")
    with pytest.raises(DataError, match=r"split must be train, test or all, got 'val'"):
        names(loop, "val")


def test_options_are_set_from_a_configuration() -> None:
    overrides = ["source.robotcar.scene=full", "source.robotcar.accumulate_m=5", "source.robotcar.lidar=ldmrs"]
    assert load_config([], overrides).source.robotcar == RobotCarOptions(scene="full", accumulate_m=5.0, lidar="ldmrs")
    assert RobotCarOptions(lidar="velodyne_left").distance_m == 0
    with pytest.raises(ConfigError, match=r"expected one of lms_front, .*got 'vlp16'"):
        load_config([], ["source.robotcar.lidar=vlp16"])
    with pytest.raises(ConfigError, match="accumulate_m must be 0 or more metres, got -1"):
        load_config([], ["source.robotcar.accumulate_m=-1"])


def test_poses_stay_exact_to_the_micrometre(sequence: Path) -> None:
    """UTM northings do not fit float32 (0.5 m); the map's origin is one for all sequences, so that they share a map."""
    pose = RobotCarSource(sequence, None, ("image",)).poses()[0]
    assert isinstance(pose, Pose)
    truth = mini.map_from_base(TIMES[0])[:3, 3]
    assert np.abs(pose.position_m - truth).max() < 1e-4
    assert np.abs(pose.position_m[:2]).max() < 5000
