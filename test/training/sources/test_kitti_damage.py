# SPDX-License-Identifier: Apache-2.0
"""Malformed, missing and damaged files of KITTI recordings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitti_recordings import P2, SIZE, TR, image_of, timestamp, write_odometry, write_raw
from training.sources.kitti.files import read_scan, read_timestamps
from training.sources.kitti.source import KittiSource
from vmloc_ros.core.errors import DataError


@pytest.fixture
def odometry(tmp_path: Path) -> Path:
    return write_odometry(tmp_path / "dataset")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "kitti")


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
def test_whatever_a_file_holds_it_is_read_or_rejected_in_one_line(
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
