# SPDX-License-Identifier: Apache-2.0
"""The files of KITTI (Geiger et al. 2013): calibration, stamps, poses, GPS/IMU records and scans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sources.files import check_increasing, parse_numbers, parse_stamp_ns, read_lines, read_table
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Pose

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,9}))?", re.ASCII)
_OXTS_COLUMNS = 30
_EARTH_RADIUS_M = 6378137.0
# Four float32 a point: x, y, z, reflectance.
_POINT_BYTES = 16
# Reflectance is from 0 to 1 in the files; the scanner, and its ROS driver, count to 255.
_INTENSITY_SCALE = np.float32(255)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A rectified camera: ``P = K [I | t]``.

    Attributes:
        focal_px: fx, fy.
        centre_px: cx, cy.
        camera_from_camera0: ``t``, which is a shift along the image plane and, by millimetres, along the view.
    """

    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    camera_from_camera0: Pose


class Calibration:
    """A file of lines ``name: numbers``.

    Args:
        path: the file.
        counts: how many numbers each name has; other lines are ignored.

    Raises:
        DataError: the file or a name is missing, or its numbers are malformed.
    """

    def __init__(self, path: Path, counts: Mapping[str, int]) -> None:
        self._path = path
        self._values: dict[str, tuple[int, NDArray[np.float64]]] = {}
        for number, line in enumerate(read_lines(path), 1):
            name, _, text = line.partition(":")
            if name not in counts:
                continue
            words = text.split()
            if len(words) != counts[name]:
                raise DataError(f"{path}:{number}: {name} needs {counts[name]} numbers, got {len(words)}")
            self._values[name] = number, parse_numbers(path, number, words)
        if absent := [name for name in counts if name not in self._values]:
            raise DataError(f"{path} has no line '{absent[0]}: ...'")

    def size(self, name: str) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self._values[name][1]
        return round(width), round(height)

    def rigid(self, rotation: str, translation: str = "") -> Pose:
        """The transform of a 3x3 rotation and a translation (zero unless named), or of one 3x4 matrix.

        Raises:
            DataError: it is not a rotation.
        """
        line, values = self._values[rotation]
        matrix = np.eye(4)
        matrix[:3, : len(values) // 3] = values.reshape(3, -1)
        if translation:
            matrix[:3, 3] = self._values[translation][1]
        try:
            return Pose.from_matrix(matrix)
        except ValueError as error:
            raise DataError(f"{self._path}:{line}: {rotation}: {error}") from error

    def projection(self, name: str) -> Projection:
        """The camera of a 3x4 projection matrix. Raises DataError: it is not that of a rectified camera."""
        line, values = self._values[name]
        matrix = values.reshape(3, 4)
        fx, fy, cx, cy = (float(matrix[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        if min(fx, fy) <= 0 or not np.array_equal(matrix[:, :3], intrinsics):
            raise DataError(
                f"{self._path}:{line}: {name} is not the projection of a rectified camera: {values.tolist()}"
            )
        shift = np.linalg.solve(intrinsics, matrix[:, 3])
        return Projection((fx, fy), (cx, cy), Pose(shift, np.array([1.0, 0.0, 0.0, 0.0])))


def read_times(path: Path) -> list[int]:
    """Nanoseconds of ``times.txt``: seconds since the first frame, one a line."""
    stamps = {line: parse_stamp_ns(path, line, word) for line, (word,) in read_table(path, 1, "seconds").items()}
    check_increasing(path, stamps)
    return list(stamps.values())


def read_camera_poses(path: Path) -> list[Pose]:
    """Poses of ``poses/NN.txt``: rows of a 3x4 matrix, one pose a line."""
    poses = []
    for line, words in read_table(path, 12, "the rows of a 3x4 matrix").items():
        matrix = np.vstack([parse_numbers(path, line, words).reshape(3, 4), [0, 0, 0, 1]])
        try:
            poses.append(Pose.from_matrix(matrix))
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}") from error
    return poses


def read_timestamps(path: Path) -> dict[int, int]:
    """Nanoseconds of ``timestamps.txt`` by frame number; an empty line is a frame that was lost.

    The dataset does not name the time zone; it is taken to be UTC, and only differences matter.
    """
    lines = {line: text for line, text in enumerate(read_lines(path), 1) if text}
    if not lines:
        raise DataError(f"{path} is empty; expected lines like '2011-09-26 13:02:25.964389445'")
    stamps = {line: _parse_timestamp_ns(path, line, text) for line, text in lines.items()}
    check_increasing(path, stamps)
    return {line - 1: stamp for line, stamp in stamps.items()}


def _parse_timestamp_ns(path: Path, line: int, text: str) -> int:
    try:
        match = _TIMESTAMP.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a stamp like '2011-09-26 13:02:25.964389445', got {text!r}")
        moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise DataError(f"{path}:{line}: {error}") from error
    return (moment - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def read_oxts(path: Path) -> NDArray[np.float64]:
    """Latitude and longitude in degrees, altitude in metres, roll, pitch and yaw in radians of a GPS/IMU record."""
    rows = read_table(path, _OXTS_COLUMNS, "lat lon alt roll pitch yaw ...")
    if len(rows) != 1:
        raise DataError(f"{path}: expected one record, got {len(rows)} lines")
    ((line, words),) = rows.items()
    values = parse_numbers(path, line, words[:6])
    if abs(values[0]) >= 90:
        raise DataError(f"{path}:{line}: the latitude must be between -90 and 90 degrees, got {values[0]:g}")
    return values


def poses_from_oxts(records: NDArray[np.float64]) -> list[Pose]:
    """Poses of the GPS/IMU relative to the first, as the dataset's devkit defines them.

    Positions are Mercator's, scaled by the cosine of the first latitude; roll, pitch and yaw turn about the fixed axes
    east, north, up in this order. The unit's axes are x forward, y left, z up.

    Args:
        records: ``(N, 6)`` of :func:`read_oxts`.
    """
    latitude, longitude = np.radians(records[:, 0]), np.radians(records[:, 1])
    scale = np.cos(latitude[0]) * _EARTH_RADIUS_M
    east, north = scale * longitude, scale * np.log(np.tan(np.pi / 4 + latitude / 2))
    positions = np.stack([east, north, records[:, 2]], axis=-1)
    poses = [Pose.from_xyz_rpy(xyz, rpy) for xyz, rpy in zip(positions, records[:, 3:], strict=True)]
    first = poses[0].inverse()
    return [first @ pose for pose in poses]


def read_scan(path: Path) -> PointCloud:
    """A scan in the scanner's frame (x forward, y left, z up), intensity from 0 to 255.

    Raises:
        DataError: the file is missing, empty or cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not data or len(data) % _POINT_BYTES:
        raise DataError(f"{path} is truncated: {len(data)} bytes, expected {_POINT_BYTES} for each point")
    points = np.frombuffer(data, "<f4").reshape(-1, 4)
    return PointCloud(np.ascontiguousarray(points[:, :3]), points[:, 3] * _INTENSITY_SCALE)
