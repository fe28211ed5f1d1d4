# SPDX-License-Identifier: Apache-2.0
"""RobotCar's scans come back as written, and accumulated clouds lie on the walls that the car drove past."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robotcar_sequence as mini
from training.sources.robotcar import lidar as robotcar_lidar
from training.sources.robotcar.files import StampedPoses, read_ins
from training.sources.robotcar.lidar import ScanAccumulator, read_scan
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Pose

IN_TMP_PATH = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COORDINATE = st.floats(-50, 50, width=32)
BASE_FROM_LMS = Pose.from_matrix(mini.base_from_lidar("lms_front"))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def points(width: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    # The third is not 0: a point of zeros means no return.
    return st.lists(
        st.tuples(COORDINATE, COORDINATE, st.floats(1, 200, width=32), *[COORDINATE] * (width - 3)), min_size=1
    )


@IN_TMP_PATH
@given(points(3))
def test_planar_scan_is_x_y_reflectance(tmp_path: Path, rows: list[tuple[float, ...]]) -> None:
    rows = [(x, y or 1.0, reflectance) for x, y, reflectance in rows]
    cloud = read_scan(write(tmp_path / "lms_front" / "1.bin", np.array(rows, "<f8").tobytes()))
    np.testing.assert_array_equal(cloud.xyz_m, [(x, y, 0) for x, y, _ in rows])
    np.testing.assert_array_equal(cloud.intensity, [reflectance for _, _, reflectance in rows])


@IN_TMP_PATH
@given(points(3))
def test_four_layer_scan_is_x_y_z(tmp_path: Path, rows: list[tuple[float, ...]]) -> None:
    cloud = read_scan(write(tmp_path / "ldmrs" / "1.bin", np.array(rows, "<f8").tobytes()))
    np.testing.assert_array_equal(cloud.xyz_m, rows)
    assert cloud.intensity is None


@IN_TMP_PATH
@given(points(4))
def test_velodyne_cloud_is_stored_column_by_column(tmp_path: Path, rows: list[tuple[float, ...]]) -> None:
    cloud = read_scan(write(tmp_path / "velodyne_left" / "1.bin", np.array(rows, "<f4").T.tobytes()))
    np.testing.assert_array_equal(cloud.xyz_m, [row[:3] for row in rows])
    np.testing.assert_array_equal(cloud.intensity, [row[3] for row in rows])


def velodyne_picture(ranges: np.ndarray, azimuths: np.ndarray, intensities: np.ndarray) -> np.ndarray:
    """Rows of a raw scan: intensities, ranges and azimuths as little-endian pairs of bytes, times (not read)."""
    pairs = np.vstack([ranges, azimuths]).astype("<u2")
    interleaved = np.stack([pairs & 255, pairs >> 8], axis=1).reshape(66, -1)
    return np.vstack([intensities, interleaved, np.zeros((8, ranges.shape[1]))]).astype(np.uint8)


@IN_TMP_PATH
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(501, 50000), st.integers(0, 35999)), min_size=1, max_size=9))
def test_raw_velodyne_scan_is_ranges_along_its_beams(tmp_path: Path, returns: list[tuple[int, int, int]]) -> None:
    """HDL-32E: 32 beams from 10 2/3 degrees up to 30 2/3 degrees down; azimuth 0 is to the left, 90 degrees ahead."""
    ranges = np.zeros((32, len(returns)), np.uint16)
    expected = []
    for column, (beam, ticks, azimuth) in enumerate(returns):
        ranges[beam, column] = ticks
        down, turn, distance = np.radians(-32 / 3 + beam * 4 / 3), np.radians(azimuth / 100), ticks * 0.002
        ahead, right = distance * np.cos(down) * np.sin(turn), -distance * np.cos(down) * np.cos(turn)
        expected.append([ahead, right, distance * np.sin(down) - 0.0908])
    ranges[:, -1] += ranges[:, -1] == 0  # 2 mm: too near to be a return
    (tmp_path / "velodyne_left").mkdir(exist_ok=True)
    path = tmp_path / "velodyne_left" / "2.png"
    azimuths = np.array([azimuth for _, _, azimuth in returns])
    intensities = np.arange(32)[:, None] + np.zeros((32, len(returns)))
    cv2.imwrite(str(path), velodyne_picture(ranges, azimuths, intensities))
    cloud = read_scan(path)
    order = sorted(range(len(returns)), key=lambda column: (returns[column][0], column))  # beam by beam
    np.testing.assert_allclose(cloud.xyz_m, [expected[column] for column in order], atol=1e-3)
    np.testing.assert_array_equal(cloud.intensity, [returns[column][0] for column in order])


def test_beams_without_return_are_left_out(tmp_path: Path) -> None:
    rows = np.array([[1, 2, 3], [0, 0, 7], [0, 5, 0]], "<f8")
    cloud = read_scan(write(tmp_path / "lms_front" / "1.bin", rows.tobytes()))
    np.testing.assert_array_equal(cloud.xyz_m, [[1, 2, 0], [0, 5, 0]])
    np.testing.assert_array_equal(cloud.intensity, [3, 0])


@pytest.mark.parametrize(("lidar", "record"), [("lms_front", 24), ("ldmrs", 24), ("velodyne_left", 16)])
def test_truncated_empty_missing_and_broken_scans_are_named(tmp_path: Path, lidar: str, record: int) -> None:
    path = tmp_path / lidar / "1.bin"
    for length in (1, record - 1, record + 1, 5 * record - 4):
        with pytest.raises(DataError, match=rf"1.bin is cut short: {length} bytes .* ends in point {length // record}"):
            read_scan(write(path, bytes(length)))
    with pytest.raises(DataError, match=r"1.bin is empty"):
        read_scan(write(path, b""))
    numbers = np.ones(12 if record == 24 else 16, "<f8" if record == 24 else "<f4")
    for bad in (np.nan, np.inf):
        numbers[2] = bad  # of the first triple, or x of the third point
        point = 0 if record == 24 else 2
        with pytest.raises(DataError, match=rf"1.bin: point {point} of 4 is not finite"):
            read_scan(write(path, numbers.tobytes()))
    path.unlink()
    with pytest.raises(DataError, match=r"1.bin: No such file"):
        read_scan(path)


@pytest.mark.parametrize("shape", [(105, 8), (107, 8), (106, 8, 3)])
def test_picture_that_is_no_velodyne_scan_is_rejected(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "velodyne_left").mkdir()
    cv2.imwrite(str(tmp_path / "velodyne_left" / "1.png"), np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"1.png: expected 106 rows of 8 bits in one channel"):
        read_scan(tmp_path / "velodyne_left" / "1.png")


def test_truncated_velodyne_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "velodyne_left" / "1.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), np.zeros((106, 8), np.uint8))
    write(path, path.read_bytes()[:-15])
    with pytest.raises(DataError, match=r"1.png: the scan is truncated"):
        read_scan(path)


@IN_TMP_PATH
@given(st.sampled_from(["lms_front", "ldmrs", "velodyne_left"]), st.sampled_from([".bin", ".png"]), st.binary())
def test_random_bytes_are_a_scan_or_our_error(tmp_path: Path, lidar: str, suffix: str, data: bytes) -> None:
    path = write(tmp_path / lidar / f"1{suffix}", data)
    try:
        cloud = read_scan(path)
    except DataError:
        return
    assert np.isfinite(cloud.xyz_m).all()


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_sequence(tmp_path_factory.mktemp("robotcar") / "drive", [1.0, 2.0])


def accumulator(drive: Path, distance_m: float, track: StampedPoses | None = None) -> ScanAccumulator:
    track = track or read_ins(drive / "gps" / "ins.csv")
    return ScanAccumulator(drive / "lms_front", track, BASE_FROM_LMS, distance_m, gap_s=1.0)


def distances_to_walls(points_map: np.ndarray) -> np.ndarray:
    return np.stack([points_map @ normal - distance for normal, distance in mini.WALLS])


@pytest.mark.parametrize("time_s", [0.5, 1.234, 2.9])
def test_cloud_of_a_turning_car_lies_on_the_walls_within_a_millimetre(drive: Path, time_s: float) -> None:
    base_from_target = Pose.from_xyz_rpy([0.3, -0.2, 1.5], [0.1, -0.2, 0.7])
    map_from_target = Pose.from_matrix(mini.map_from_base(time_s)) @ base_from_target
    cloud = accumulator(drive, 20.0).cloud(mini.stamp_us(time_s) * 1000, map_from_target)
    distances = distances_to_walls(map_from_target.transform(cloud.xyz_m))
    assert np.abs(distances).min(axis=0).max() < 1e-3
    assert (np.abs(distances) < 1e-3).mean(axis=1).min() > 0.3  # there are points on both


@pytest.fixture
def read_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of the drive of the scans that are read, as they are read."""
    times: list[float] = []

    def recording(path: Path) -> PointCloud:
        times.append(mini.seconds(int(path.stem) * 1000))
        return read_scan(path)

    monkeypatch.setattr(robotcar_lidar, "read_scan", recording)
    return times


def test_cloud_holds_the_past_way_asked_for_and_nothing_of_the_future(drive: Path, read_at: list[float]) -> None:
    now = 2.0
    accumulator(drive, 3.0).cloud(mini.stamp_us(now) * 1000, Pose.identity())
    assert now - 0.02 < max(read_at) <= now
    assert min(read_at) == pytest.approx(now - 3.0 / mini.SPEED_M_S, abs=0.03)


def test_no_distance_takes_the_latest_scan_alone(drive: Path, read_at: list[float]) -> None:
    scans = accumulator(drive, 0.0)
    scans.cloud(mini.stamp_us(2.0) * 1000, Pose.identity())
    scan_s = mini.seconds(mini.stamp_us(1.987) * 1000)
    assert read_at == [scan_s]
    assert scans.age_ns(mini.stamp_us(2.0) * 1000) == 13_000_000


def test_clouds_in_the_order_of_time_read_each_scan_once(drive: Path, read_at: list[float]) -> None:
    scans = accumulator(drive, 2.0)
    for time_s in np.arange(0.5, 2.5, 0.1):
        scans.cloud(mini.stamp_us(time_s) * 1000, Pose.identity())
    assert len(read_at) == len(set(read_at)) > 80


def test_order_of_clouds_does_not_change_them(drive: Path) -> None:
    scans = accumulator(drive, 2.0)
    stamps = [mini.stamp_us(time_s) * 1000 for time_s in (2.0, 0.5, 2.9, 2.0)]
    clouds = [scans.cloud(stamp, Pose.identity()) for stamp in stamps]
    np.testing.assert_array_equal(clouds[0].xyz_m, clouds[3].xyz_m)
    np.testing.assert_array_equal(clouds[0].intensity, clouds[3].intensity)


def test_a_car_that_stands_does_not_collect_scans_without_end(drive: Path, read_at: list[float]) -> None:
    stamps = np.array([mini.stamp_us(0.0), mini.stamp_us(3.0)]) * 1000
    standing = StampedPoses(stamps, [Pose.identity(), Pose.from_xyz_rpy([0.05, 0, 0], [0, 0, 0])])
    ScanAccumulator(drive / "lms_front", standing, BASE_FROM_LMS, 20.0, gap_s=5.0).cloud(
        int(stamps[1]), Pose.identity()
    )
    assert read_at == pytest.approx([0.007, 2.987])


def test_reflectances_stay_with_their_points(drive: Path) -> None:
    """A scan's reflectance encodes its beam, and the beam's side the wall."""
    cloud = accumulator(drive, 5.0).cloud(mini.stamp_us(2.0) * 1000, Pose.identity())
    assert cloud.intensity is not None
    left, right = np.abs(distances_to_walls(cloud.xyz_m.astype(float))) < 0.01
    # The lidar's y is to the right and its angle grows towards it: the last beams hit the right wall.
    assert (cloud.intensity[left] < 100 + 270).all()
    assert (cloud.intensity[right] > 100 + 270).all()
    assert left.any()
    assert right.any()


def test_before_the_first_scan_there_is_no_cloud(drive: Path) -> None:
    scans = accumulator(drive, 5.0)
    assert scans.age_ns(mini.stamp_us(0.005) * 1000) is None
    with pytest.raises(ValueError, match="no scan at or before"):
        scans.cloud(mini.stamp_us(0.005) * 1000, Pose.identity())


def test_scans_without_file_or_pose_are_counted(tmp_path: Path) -> None:
    drive = mini.write_sequence(tmp_path / "drive", [0.5], duration_s=1.0)
    files = sorted((drive / "lms_front").iterdir())
    for path in files[10:13]:
        path.unlink()
    mini.write_ins(drive / "gps" / "ins.csv", np.arange(0.1, 0.81, 0.02))
    scans = accumulator(drive, 5.0)
    assert scans.report["scans without a file"] == 3
    assert scans.report["scans without a pose"] == 5 + 10
    assert len(scans.files()) == 50 - 18
    for path in files[10:]:
        path.unlink(missing_ok=True)
    mini.write_ins(drive / "gps" / "ins.csv", [0.5, 0.6])
    with pytest.raises(DataError, match=r"lms_front: none of 50 scans has both a file and a pose"):
        accumulator(drive, 5.0)


def test_scans_in_a_gap_between_poses_are_not_used(tmp_path: Path) -> None:
    drive = mini.write_sequence(tmp_path / "drive", [0.5])
    times = np.r_[np.arange(0, 0.5, 0.02), np.arange(2.0, 3.0, 0.02)]
    mini.write_ins(drive / "gps" / "ins.csv", times)
    scans = accumulator(drive, 20.0)
    cloud = scans.cloud(mini.stamp_us(2.9) * 1000, Pose.identity())
    assert np.abs(distances_to_walls(cloud.xyz_m.astype(float))).min(axis=0).max() < 1e-3
    assert scans.report["scans without a pose"] == pytest.approx(1.52 / 0.02, abs=2)


def test_missing_folder_and_stamps_are_named(tmp_path: Path) -> None:
    drive = mini.write_sequence(tmp_path / "drive", [0.5], duration_s=1.0, lidar=False)
    with pytest.raises(DataError, match=r"lms_front.timestamps is missing"):
        accumulator(drive, 1.0)
    mini.write_lines(drive / "lms_front.timestamps", ["1400000000007000 1"])
    with pytest.raises(DataError, match=r"lms_front: No such file.*<stamp>.bin"):
        accumulator(drive, 1.0)
