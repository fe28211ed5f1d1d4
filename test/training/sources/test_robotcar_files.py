# SPDX-License-Identifier: Apache-2.0
"""RobotCar's stamps and poses: in east-north-up; malformed files are rejected with file and line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import robotcar_sequence as mini
from training.sources.robotcar.files import UTM_ORIGIN_M, integrate_vo, read_gps, read_ins, read_stamps, read_vo
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose

TIMES = np.arange(0, 3.001, 0.02)
IN_TMP_PATH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STAMPS_US = st.lists(st.integers(0, 2**31 * 10**6 - 1), min_size=1, max_size=20, unique=True).map(sorted)
NUMBERS = st.floats(-1e7, 1e7)
STEREO_FROM_BASE = Pose.from_matrix(np.linalg.inv(mini.BASE_FROM_STEREO))


def matrices(poses: list[Pose]) -> np.ndarray:
    return np.stack([pose.matrix for pose in poses])


def replace_line(path: Path, line: int, change: Callable[[list[str]], list[str]]) -> None:
    """Change the cells of a line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[line - 1] = ",".join(change(lines[line - 1].split(",")))
    path.write_text("\n".join(lines) + "\n")


def cell(place: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda cells: [*cells[:place], text, *cells[place + 1 :]]


@IN_TMP_PATH
@given(STAMPS_US)
def test_stamps_come_back_in_nanoseconds(tmp_path: Path, stamps: list[int]) -> None:
    path = mini.write_lines(tmp_path / "x.timestamps", [f"{stamp} 1" for stamp in stamps])
    assert read_stamps(path).tolist() == [stamp * 1000 for stamp in stamps]


def test_ins_poses_are_east_north_up_of_a_body_that_looks_forward(tmp_path: Path) -> None:
    track = read_ins(mini.write_ins(tmp_path / "ins.csv", TIMES))
    np.testing.assert_allclose(matrices(track.poses), [mini.map_from_base(t) for t in TIMES], atol=2e-8)
    assert track.stamps_ns.tolist() == [mini.stamp_us(t) * 1000 for t in TIMES]
    np.testing.assert_array_equal(UTM_ORIGIN_M, mini.ORIGIN)


@IN_TMP_PATH
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, *[st.floats(-7, 7)] * 3), min_size=1, max_size=5))
def test_any_attitude_is_converted_as_the_matrices_say(tmp_path: Path, rows: list[tuple[float, ...]]) -> None:
    header = "timestamp,northing,easting,down,roll,pitch,yaw"  # rtk.csv: no status
    lines = [f"{number},{','.join(map(repr, row))}" for number, row in enumerate(rows)]
    track = read_ins(mini.write_lines(tmp_path / "rtk.csv", [header, *lines]))
    for (north, east, down, *rpy), pose in zip(rows, track.poses, strict=True):
        np.testing.assert_allclose(pose.position_m + mini.ORIGIN, [east, north, -down], atol=1e-8)
        rotation = mini.ENU_FROM_NED @ Rotation.from_euler("xyz", rpy).as_matrix() @ mini.FLIP[:3, :3]
        np.testing.assert_allclose(pose.rotation, rotation, atol=1e-12)


def test_rows_of_bad_status_are_dropped_on_request(tmp_path: Path) -> None:
    statuses = ["INS_SOLUTION_GOOD", "INS_BAD_GPS_AGREEMENT", "INS_SOLUTION_GOOD", "INS_ALIGNMENT_COMPLETE"]
    path = mini.write_ins(tmp_path / "ins.csv", TIMES[:4], statuses)
    replace_line(path, 3, cell(5, "nan"))  # what such a row holds does not matter
    track = read_ins(path, drop_bad_status=True)
    assert (len(track.poses), track.dropped) == (2, 2)
    np.testing.assert_allclose(track.poses[1].matrix, mini.map_from_base(TIMES[2]), atol=2e-8)
    with pytest.raises(DataError, match=r"ins.csv:3: expected finite numbers"):
        read_ins(path)
    with pytest.raises(DataError, match=r"none of 1 rows has status INS_SOLUTION_GOOD"):
        read_ins(mini.write_ins(tmp_path / "bad.csv", TIMES[:1], ["INS_INACTIVE"]), drop_bad_status=True)


def test_gps_heads_where_it_moves_and_keeps_its_heading_while_it_stands(tmp_path: Path) -> None:
    # 3 s standing, 4 s eastwards at 5 m/s, 3 s standing
    times = np.arange(0, 10, 0.2)
    east = np.clip(times - 3, 0, 4) * 5
    lines = [f"{mini.stamp_us(t)},{5735000},{620000 + e},-60" for t, e in zip(times, east, strict=True)]
    track = read_gps(mini.write_lines(tmp_path / "gps.csv", ["timestamp,northing,easting,down", *lines]))
    np.testing.assert_allclose([pose.position_m for pose in track.poses], np.stack([east, 0 * east, 0 * east + 60], 1))
    np.testing.assert_allclose([pose.rotation for pose in track.poses], np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)


def test_gps_follows_a_curve(tmp_path: Path) -> None:
    sequence = mini.write_sequence(tmp_path / "s", [0.0, 0.1], lidar=False)
    track = read_gps(sequence / "gps" / "gps.csv")
    for stamp, pose in list(zip(track.stamps_ns, track.poses, strict=True))[5:-5]:
        truth = mini.map_from_base(mini.seconds(int(stamp)))
        np.testing.assert_allclose(pose.position_m, truth[:3, 3], atol=1e-5)
        heading, course = np.arctan2(*truth[1::-1, 0]), np.arctan2(*pose.rotation[1::-1, 0])
        assert abs(heading - course) < 0.01


def test_gps_of_a_car_that_never_moves_is_rejected(tmp_path: Path) -> None:
    lines = [f"{number * 200000},5735000,620000,0" for number in range(20)]
    with pytest.raises(DataError, match=r"gps.csv: the car does not move"):
        read_gps(mini.write_lines(tmp_path / "gps.csv", ["timestamp,northing,easting,down", *lines]))


def test_integrated_visual_odometry_is_the_drive_seen_from_its_start(tmp_path: Path) -> None:
    times = np.arange(0.1, 2.9, 0.0625)
    track = integrate_vo(read_vo(mini.write_vo(tmp_path / "vo.csv", times)), STEREO_FROM_BASE)
    start = np.linalg.inv(mini.map_from_base(times[0]))
    np.testing.assert_allclose(matrices(track.poses), [start @ mini.map_from_base(t) for t in times], atol=1e-6)
    assert track.stamps_ns.tolist() == [mini.stamp_us(t) * 1000 for t in times]


def test_a_break_in_the_visual_odometry_is_driven_on_as_before(tmp_path: Path) -> None:
    """The drive has constant velocity in the body's frame; the bridge of two intervals cuts its corner by 4 mm."""
    times = np.arange(0.1, 2.9, 0.0625)
    path = mini.write_vo(tmp_path / "vo.csv", times)
    lines = path.read_text().splitlines()
    mini.write_lines(path, lines[:10] + lines[12:])
    track = integrate_vo(read_vo(path), STEREO_FROM_BASE)
    assert len(track.poses) == len(times) - 2
    expected = np.linalg.inv(mini.map_from_base(times[0])) @ mini.map_from_base(times[-1])
    np.testing.assert_allclose(track.poses[-1].rotation, expected[:3, :3], atol=1e-6)
    np.testing.assert_allclose(track.poses[-1].position_m, expected[:3, 3], atol=5e-3)


@IN_TMP_PATH
@given(st.lists(st.tuples(st.integers(1, 3), *[st.floats(-1, 1)] * 6), min_size=1, max_size=6))
def test_any_chain_of_motions_is_their_product(tmp_path: Path, rows: list[tuple[float, ...]]) -> None:
    now, lines, chain = 10, ["source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw"], np.eye(4)
    for length, *values in rows:
        lines.append(f"{now + length},{now},{','.join(map(repr, values))}")
        now += length
        chain = chain @ mini.matrix_of(values)
    track = integrate_vo(read_vo(mini.write_lines(tmp_path / "vo.csv", lines)), Pose.identity())
    np.testing.assert_allclose(track.poses[-1].matrix, chain, atol=1e-9)


READERS: dict[str, Callable[[Path], object]] = {"ins": read_ins, "gps": read_gps, "vo": read_vo}
BROKEN: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a column too few": (lambda cells: cells[:-1], r":4: expected \d+ columns, got \d+"),
    "a column too many": (lambda cells: [*cells, "1"], r":4: expected \d+ columns, got \d+"),
    "no line": (lambda cells: [], r":4: expected \d+ columns, got 1"),
    "NaN": (lambda cells: [word if len(word) > 15 else "nan" for word in cells], ":4: expected finite numbers"),
    "infinity": (lambda cells: [word if len(word) > 15 else "-inf" for word in cells], ":4: expected finite numbers"),
    "no number": (lambda cells: [word if len(word) > 15 else "x" for word in cells], ":4: could not convert"),
    "no stamp": (cell(0, "soon"), ":4: expected a stamp in microseconds .* got 'soon'"),
    "a negative stamp": (cell(0, "-5"), ":4: expected a stamp .* got '-5'"),
    "a stamp with a fraction": (cell(0, "1.5e15"), ":4: expected a stamp"),
    "a stamp too late for ROS": (cell(0, str(2**31 * 10**6)), ":4: expected a stamp"),
    "a stamp before the last": (cell(0, "7"), r":4: .*(does not come after|got \d+ and 7000)"),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    folder = mini.write_sequence(tmp_path / "s", [0.1, 0.2, 0.3, 0.4, 0.5], lidar=False)
    path = folder / ("vo" if kind == "vo" else "gps") / f"{kind}.csv"
    change, text = BROKEN[damage]
    replace_line(path, 4, change)
    with pytest.raises(DataError, match=re.escape(str(path)) + text) as caught:
        READERS[kind](path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", READERS)
def test_a_repeated_stamp_an_empty_file_and_a_missing_one_are_named(tmp_path: Path, kind: str) -> None:
    folder = mini.write_sequence(tmp_path / "s", [0.1, 0.2, 0.3, 0.4, 0.5], lidar=False)
    path = folder / ("vo" if kind == "vo" else "gps") / f"{kind}.csv"
    lines = path.read_text().splitlines()
    mini.write_lines(path, [*lines[:4], lines[3], *lines[4:]])
    with pytest.raises(DataError, match=rf"{kind}.csv:5: "):
        READERS[kind](path)
    mini.write_lines(path, lines[:1])
    with pytest.raises(DataError, match="is empty: it has a header and no rows"):
        READERS[kind](path)
    mini.write_lines(path, lines[1:])
    with pytest.raises(DataError, match=r"has no column .*; its first line is"):
        READERS[kind](path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"has no column .*; it is empty"):
        READERS[kind](path)
    path.write_bytes(b"\xff\xfe\x00\x80" * 8)
    with pytest.raises(DataError, match="cannot be read as text"):
        READERS[kind](path)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        READERS[kind](path)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "x.timestamps is empty"),
        (["5 1", "5 1"], r"x.timestamps:2: 5000 ns does not come after 5000 ns"),
        (["5 1", "4 1"], r"x.timestamps:2: 4000 ns does not come after 5000 ns"),
        (["5 1", "6"], r"x.timestamps:2: expected 2 columns"),
        (["5 1", "six 1"], r"x.timestamps:2: expected a stamp in microseconds"),
        (["5 1", "-6 1"], r"x.timestamps:2: expected a stamp in microseconds"),
        (["5 1", "9" * 5000 + " 1"], r"x.timestamps:2: expected a stamp in microseconds"),
    ],
)
def test_broken_stamps_are_named(tmp_path: Path, lines: list[str], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        read_stamps(mini.write_lines(tmp_path / "x.timestamps", lines))
    assert len(str(caught.value)) < 300


@IN_TMP_PATH
@given(st.sampled_from(sorted(READERS)), st.data())
def test_no_damage_gives_another_error_than_ours(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Bytes of a good file are cut or overwritten: the reader reads something or raises a DataError."""
    folder = tmp_path / kind
    path = folder / ("vo" if kind == "vo" else "gps") / f"{kind}.csv"
    if not folder.exists():
        mini.write_sequence(folder, [0.1, 0.2, 0.3], 0.6, lidar=False)
        path.with_suffix(".good").write_bytes(path.read_bytes())
    good = path.with_suffix(".good").read_bytes()
    start = data.draw(st.integers(0, len(good)))
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=8)) + good[start + data.draw(st.integers(0, 40)) :])
    with contextlib.suppress(DataError):
        READERS[kind](path)
