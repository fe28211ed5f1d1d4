# SPDX-License-Identifier: Apache-2.0
"""Text files of Oxford RobotCar (Maddern et al. 2017): stamps and poses, in the frames of this project.

Stamps are Unix microseconds. The dataset's axes are x forward, y right, z down; positions are UTM northing, easting and
down. Here, the map is east, north, up with the fixed origin :data:`UTM_ORIGIN_M`, one for all sequences, and the
body ``base_link`` lies in the INS with x forward, y left, z up (REP-103). Heights of ``gps.csv`` are above the geoid,
47 m less than the INS's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sources.files import check_increasing, parse_numbers, read_lines, read_table
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import (
    Array,
    Pose,
    matrix_from_quaternion,
    quaternion_exp,
    quaternion_from_matrix,
    quaternion_log,
    quaternion_multiply,
)

UTM_ORIGIN_M = np.array([620_000.0, 5_735_000.0, 0.0])  # zone 30U; Oxford's centre is within 2 km
GOOD_STATUS = "INS_SOLUTION_GOOD"

_POSITION, _ANGLES = ("northing", "easting", "down"), ("roll", "pitch", "yaw")
_STAMP_LIMIT_US = 2**31 * 1_000_000  # of builtin_interfaces/Time
# The heading is that of the motion over two seconds; it is kept while the car is slower: GPS wanders while it stands.
_COURSE_HALF_WINDOW_NS, _COURSE_MIN_M = 1_000_000_000, 2.0


@dataclass(frozen=True, slots=True, eq=False)
class StampedPoses:
    """Poses of ``base_link`` over time.

    Attributes:
        stamps_ns: ``(N,)`` int64, strictly increasing.
        poses: N poses.
        dropped: number of rows dropped for their status.
    """

    stamps_ns: NDArray[np.int64]
    poses: list[Pose]
    dropped: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RelativeMotions:
    """Motions of the stereo camera between images, in time order.

    Attributes:
        start_ns: ``(N,)`` int64 stamps of the earlier images.
        end_ns: ``(N,)`` int64 stamps of the later images.
        start_from_end: ``(N, 4, 4)`` poses of the later camera in the earlier one's frame, in the dataset's axes.
    """

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    start_from_end: Array


def read_stamps(path: Path) -> NDArray[np.int64]:
    """Nanoseconds of a ``<sensor>.timestamps`` file: lines of ``stamp chunk``.

    Raises:
        DataError: the file is missing, empty or malformed, or stamps do not increase strictly.
    """
    stamps = {line: _stamp_ns(path, line, words[0]) for line, words in read_table(path, 2, "stamp chunk").items()}
    check_increasing(path, stamps)
    return np.array(list(stamps.values()), np.int64)


def read_ins(path: Path, drop_bad_status: bool = False) -> StampedPoses:
    """Poses of ``gps/ins.csv``, or of ``gps/rtk.csv``, which has no status.

    Args:
        drop_bad_status: ignore rows whose ``ins_status`` is not :data:`GOOD_STATUS`, even malformed ones.

    Raises:
        DataError: the file is missing, empty or malformed, stamps do not increase strictly, or no row is left.
    """
    columns = ("timestamp", *_POSITION, *_ANGLES, *(("ins_status",) if drop_bad_status else ()))
    rows = _read_csv(path, columns)
    kept = {line: cells for line, cells in rows.items() if not drop_bad_status or cells[-1] == GOOD_STATUS}
    if not kept:
        raise DataError(f"{path}: none of {len(rows)} rows has status {GOOD_STATUS}")
    stamps = _stamps(path, kept)
    values = _numbers(path, kept, slice(1, 7))
    # With both frames turned, from north-east-down and from forward-right-down, Rz(y) Ry(p) Rx(r) becomes
    # Rz(pi/2 - y) Ry(-p) Rx(r).
    roll, pitch, yaw = values[:, 3], -values[:, 4], np.pi / 2 - values[:, 5]
    poses = _poses(_map_position(values[:, :3]), _quaternions(roll, pitch, yaw))
    return StampedPoses(stamps, poses, len(rows) - len(kept))


def read_gps(path: Path) -> StampedPoses:
    """Positions of ``gps/gps.csv`` with the direction of motion as heading; roll and pitch are 0.

    Raises:
        DataError: the file is missing, empty or malformed, stamps do not increase strictly, or the car never moves.
    """
    rows = _read_csv(path, ("timestamp", *_POSITION))
    stamps = _stamps(path, rows)
    position = _map_position(_numbers(path, rows, slice(1, 4)))
    before, after = (
        np.stack([np.interp(stamps + shift, stamps, axis) for axis in position.T[:2]])
        for shift in (-_COURSE_HALF_WINDOW_NS, _COURSE_HALF_WINDOW_NS)
    )
    east, north = after - before
    moving = np.flatnonzero(np.hypot(east, north) >= _COURSE_MIN_M)
    if not len(moving):
        raise DataError(f"{path}: the car does not move, so its heading is unknown; use the INS's poses")
    # Where it stands, the row's heading is that of the last row of motion, or of the first.
    source = moving[(np.searchsorted(moving, np.arange(len(stamps)), side="right") - 1).clip(0)]
    level = np.zeros(len(stamps))
    return StampedPoses(stamps, _poses(position, _quaternions(level, level, np.arctan2(north, east)[source])))


def read_vo(path: Path) -> RelativeMotions:
    """Visual odometry of ``vo/vo.csv``.

    Each row is the pose of its ``source`` image, the later one, in the frame of its ``destination``.

    Raises:
        DataError: the file is missing, empty or malformed, or rows overlap or go back in time.
    """
    rows = _read_csv(path, ("source_timestamp", "destination_timestamp", "x", "y", "z", *_ANGLES))
    stamps = [[_stamp_ns(path, line, cell) for cell in cells[:2]] for line, cells in rows.items()]
    newest = 0
    for line, (end, start) in zip(rows, stamps, strict=True):
        if not newest <= start < end:
            raise DataError(
                f"{path}:{line}: expected a destination from {newest} ns (the source above) on and a source after it, "
                f"got {start} and {end}"
            )
        newest = end
    values = _numbers(path, rows, slice(2, 8))
    motions = np.tile(np.eye(4), (len(rows), 1, 1))
    motions[:, :3, :3] = matrix_from_quaternion(_quaternions(*values[:, 3:].T))
    motions[:, :3, 3] = values[:, :3]
    end_ns, start_ns = np.array(stamps, np.int64).T
    return RelativeMotions(start_ns, end_ns, motions)


def integrate_vo(vo: RelativeMotions, stereo_from_base: Pose) -> StampedPoses:
    """Poses of ``base_link`` in a frame in which it starts at the origin.

    Gaps of one or a few images in the chain are bridged by the motion before them, at constant velocity.

    Args:
        vo: at least one motion of the dataset's stereo frame.
        stereo_from_base: pose of ``base_link`` in it.
    """
    stamps, chain = [int(vo.start_ns[0])], [np.eye(4)]
    for index, (start, end, motion) in enumerate(zip(vo.start_ns, vo.end_ns, vo.start_from_end, strict=True)):
        if start > stamps[-1]:
            before = max(index - 1, 0)
            share = float(start - stamps[-1]) / float(vo.end_ns[before] - vo.start_ns[before])
            motion = _scaled(vo.start_from_end[before], share) @ motion
        stamps.append(int(end))
        chain.append(chain[-1] @ motion)
    poses = stereo_from_base.inverse().matrix @ np.stack(chain) @ stereo_from_base.matrix
    quaternions = quaternion_from_matrix(poses[:, :3, :3])
    return StampedPoses(np.array(stamps, np.int64), _poses(poses[:, :3, 3], quaternions))


def _scaled(motion: Array, share: float) -> Array:
    pose = Pose.from_matrix(motion)
    return Pose(share * pose.position_m, quaternion_exp(share * quaternion_log(pose.quaternion_wxyz))).matrix


def _map_position(north_east_down_m: Array) -> Array:
    north, east, down = north_east_down_m.T
    return np.stack([east, north, -down], axis=-1) - UTM_ORIGIN_M


def _quaternions(roll: Array, pitch: Array, yaw: Array) -> Array:
    """As in ``Pose.from_xyz_rpy``, for all rows at once: a sequence has up to a hundred thousand."""
    half = np.stack([roll, pitch, yaw])[..., None] * np.eye(3)[:, None] / 2
    about_x, about_y, about_z = quaternion_exp(half)
    return quaternion_multiply(about_z, quaternion_multiply(about_y, about_x))


def _poses(position_m: Array, quaternion_wxyz: Array) -> list[Pose]:
    return [Pose(xyz, wxyz) for xyz, wxyz in zip(position_m, quaternion_wxyz, strict=True)]


def _read_csv(path: Path, columns: Iterable[str]) -> dict[int, list[str]]:
    """Cells of the named columns in every row, by line number; the header gives their order."""
    lines = read_lines(path)
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    if absent := [name for name in columns if name not in header]:
        found = f"its first line is {lines[0][:100]!r}" if lines else "it is empty"
        raise DataError(f"{path} has no column {', '.join(absent)}; {found}")
    places = [header.index(name) for name in columns]
    rows: dict[int, list[str]] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        if len(cells) != len(header):
            raise DataError(f"{path}:{number}: expected {len(header)} columns, got {len(cells)}")
        rows[number] = [cells[place].strip() for place in places]
    if not rows:
        raise DataError(f"{path} is empty: it has a header and no rows")
    return rows


def _numbers(path: Path, rows: dict[int, list[str]], cells: slice) -> Array:
    """``(rows, cells)`` finite numbers; parsed line by line only where one is malformed, to name it."""
    try:
        values = np.array([row[cells] for row in rows.values()], np.float64)
    except ValueError:
        values = np.array([np.nan])
    if np.isfinite(values).all():
        return values
    return np.stack([parse_numbers(path, line, row[cells]) for line, row in rows.items()])


def _stamps(path: Path, rows: dict[int, list[str]]) -> NDArray[np.int64]:
    stamps = {line: _stamp_ns(path, line, cells[0]) for line, cells in rows.items()}
    check_increasing(path, stamps)
    return np.array(list(stamps.values()), np.int64)


def _stamp_ns(path: Path, line: int, word: str) -> int:
    digits = word if word.isascii() and word.isdigit() and len(word) <= 16 else "-1"
    if not 0 <= int(digits) < _STAMP_LIMIT_US:
        raise DataError(f"{path}:{line}: expected a stamp in microseconds from 0 to 2^31 s, got {word[:40]!r}")
    return int(digits) * 1000
