# SPDX-License-Identifier: Apache-2.0
"""RobotCar's lidar scans, and clouds accumulated from past ones while the car drives.

Formats, in the lidar's frame (x forward, y right, z down, as mounted), without any correction for motion:

* LMS-151 ``.bin``: float64 triples x, y, reflectance; the plane is z = 0.
* LD-MRS ``.bin``: float64 triples x, y, z.
* Velodyne ``.bin``: float32, all x, then all y, all z, all intensities.
* Velodyne ``.png``: a column per azimuth; 32 rows of intensity, then little-endian pairs of rows with 32 ranges
  (2 mm), the azimuth (0.01 degrees), and the time. HDL-32E's beams are 4/3 degrees apart, the lowest file row first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sources.labels import label_frames
from training.sources.robotcar.files import StampedPoses, read_stamps
from vmloc_ros.core.compressed_images import unpack_image
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Array, Pose

_HDL32E_DEPRESSION_RAD = np.radians(np.arange(-8, 24) * 4 / 3)[:, None]  # positive is down
_HDL32E_HEIGHT_M = 0.090805  # of the beams' origin above the sensor's base
_HDL32E_MIN_RANGE_M = 1.0
_HDL32E_ROWS = 32 + 2 * 32 + 2 + 8
# Scans nearer to each other than this along the way add nothing; a standing car would accumulate them without end.
_SPACING_M = 0.1


def read_scan(path: Path) -> PointCloud:
    """Points of a scan; the file format follows from the name of its folder. Beams without return are omitted.

    Raises:
        DataError: the file is missing, empty, cut short, damaged, or holds something that is not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not data:
        raise DataError(f"{path} is empty; delete it to skip the scan")
    points, shades = _decoder(path)(path, data)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        xyz, intensity = points.astype(np.float32), None if shades is None else shades.astype(np.float32)
    broken = ~np.isfinite(xyz).all(axis=1)
    if intensity is not None:
        broken |= ~np.isfinite(intensity)
    if broken.any():
        raise DataError(f"{path}: point {int(np.argmax(broken))} of {len(xyz)} is not finite")
    returned = xyz.any(axis=1)
    return PointCloud(xyz[returned], None if intensity is None else intensity[returned])


_Points = tuple[NDArray[np.floating], NDArray[np.floating] | None]


def _decoder(path: Path) -> Callable[[Path, bytes], _Points]:
    lidar = path.parent.name
    if lidar.startswith("velodyne"):
        return _decode_velodyne_picture if path.suffix == ".png" else _decode_velodyne
    return _decode_ldmrs if lidar == "ldmrs" else _decode_lms


def _decode_lms(path: Path, data: bytes) -> _Points:
    table = _table(path, data, "<f8", "x, y and reflectance", 3)
    return np.column_stack([table[:, :2], np.zeros(len(table))]), table[:, 2]


def _decode_ldmrs(path: Path, data: bytes) -> _Points:
    return _table(path, data, "<f8", "x, y and z", 3), None


def _decode_velodyne(path: Path, data: bytes) -> _Points:
    columns = _table(path, data, "<f4", "x, y, z and intensity", 4).reshape(4, -1)
    return columns[:3].T, columns[3]


def _table(path: Path, data: bytes, dtype: str, layout: str, width: int) -> NDArray[np.floating]:
    record = width * np.dtype(dtype).itemsize
    if len(data) % record:
        raise DataError(
            f"{path} is cut short: {len(data)} bytes are not whole points of {record} bytes ({layout}); "
            f"it ends in point {len(data) // record}"
        )
    return np.frombuffer(data, dtype).reshape(-1, width)


def _decode_velodyne_picture(path: Path, data: bytes) -> _Points:
    try:
        picture = unpack_image(data, "the scan")
    except MessageError as error:
        raise DataError(f"{path}: {error}") from error
    if picture.ndim != 2 or picture.dtype != np.uint8 or len(picture) != _HDL32E_ROWS:
        raise DataError(
            f"{path}: expected {_HDL32E_ROWS} rows of 8 bits in one channel, got {picture.dtype} {picture.shape}"
        )
    words = picture[32:98].reshape(33, 2, -1).astype(np.uint16)
    values = words[:, 0] + 256 * words[:, 1]
    range_m, azimuth = values[:32] * 0.002, np.radians(values[32] * 0.01)
    ground_m = range_m * np.cos(_HDL32E_DEPRESSION_RAD)
    x, y = ground_m * np.sin(azimuth), -ground_m * np.cos(azimuth)
    z = range_m * np.sin(_HDL32E_DEPRESSION_RAD) - _HDL32E_HEIGHT_M
    valid = range_m > _HDL32E_MIN_RANGE_M
    return np.stack([x[valid], y[valid], z[valid]], axis=1), picture[:32][valid].astype(np.float32)


class ScanAccumulator:
    """Clouds accumulated from the scans up to a time, each placed by the pose at its own stamp.

    Scans are read when a cloud needs them, and those of the latest cloud are kept: clouds made in time order read each
    scan once.

    Args:
        folder: folder of the scans; its sibling ``<name>.timestamps`` lists them.
        track: poses of the car.
        base_from_lidar: pose of the lidar in ``base_link``.
        distance_m: how far back along the way scans are used, metres; 0 takes the latest scan alone.
        gap_s: scans between poses farther apart in time than this are not used.

    Attributes:
        report: counts of scans without a file or a pose.

    Raises:
        DataError: the folder or its stamps are missing or malformed, or no scan has a file and a pose.
    """

    def __init__(
        self, folder: Path, track: StampedPoses, base_from_lidar: Pose, distance_m: float, gap_s: float
    ) -> None:
        listed = read_stamps(folder.parent / f"{folder.name}.timestamps")
        files = list_files(folder, (".bin", ".png"))
        present = [stamp for stamp in listed.tolist() if stamp in files]
        labels, unplaced = label_frames(track.stamps_ns.tolist(), track.poses, present, gap_s)
        placed = [(stamp, pose) for stamp, pose in zip(present, labels, strict=True) if pose is not None]
        self.report = {
            "scans without a file": len(listed) - len(present),
            "scans without a pose": sum(unplaced.values()),
        }
        if not placed:
            raise DataError(f"{folder}: none of {len(listed)} scans has both a file and a pose")
        self._stamps = np.array([stamp for stamp, _ in placed], np.int64)
        self._paths = [files[stamp] for stamp, _ in placed]
        self._map_from_lidar = [map_from_base @ base_from_lidar for _, map_from_base in placed]
        self._distance_m = distance_m
        self._keys, self._key_way_m = _spaced([map_from_base.position_m for _, map_from_base in placed])
        self._loaded: dict[int, tuple[Array, NDArray[np.float32] | None]] = {}

    def files(self) -> list[Path]:
        """All files that clouds may be made of."""
        return self._paths

    def age_ns(self, stamp_ns: int) -> int | None:
        """Age of the latest scan at a time; None before the first."""
        latest = self._latest(stamp_ns)
        return None if latest < 0 else stamp_ns - int(self._stamps[latest])

    def cloud(self, stamp_ns: int, map_from_target: Pose) -> PointCloud:
        """Points of the scans up to ``stamp_ns`` in the frame ``target`` of that time.

        Raises:
            DataError: a scan is malformed.
            ValueError: no scan is that old.
        """
        latest = self._latest(stamp_ns)
        if latest < 0:
            raise ValueError(f"no scan at or before {stamp_ns} ns")
        wanted = self._window(latest)
        self._loaded = {scan: self._loaded.get(scan) or self._load(scan) for scan in wanted}
        xyz = map_from_target.inverse().transform(np.concatenate([points for points, _ in self._loaded.values()]))
        shades = [intensity for _, intensity in self._loaded.values() if intensity is not None]
        return PointCloud(xyz.astype(np.float32), np.concatenate(shades) if shades else None)

    def _latest(self, stamp_ns: int) -> int:
        return int(np.searchsorted(self._stamps, stamp_ns, side="right")) - 1

    def _window(self, latest: int) -> list[int]:
        """Scans of the way before ``latest``, and itself."""
        last = int(np.searchsorted(self._keys, latest, side="right")) - 1
        first = int(np.searchsorted(self._key_way_m, self._key_way_m[last] - self._distance_m))
        keys = self._keys[first : last + 1] if self._distance_m > 0 else self._keys[:0]
        return sorted({*keys.tolist(), latest})

    def _load(self, scan: int) -> tuple[Array, NDArray[np.float32] | None]:
        cloud = read_scan(self._paths[scan])
        return self._map_from_lidar[scan].transform(cloud.xyz_m), cloud.intensity


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Files ``<stamp in microseconds><suffix>`` of a folder by stamp in nanoseconds; of several, the first suffix's.

    Raises:
        DataError: the folder is missing.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; it should hold <stamp>{suffixes[0]} files") from error
    files: dict[int, Path] = {}
    for suffix in reversed(suffixes):
        stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        files |= {int(stem) * 1000: folder / f"{stem}{suffix}" for stem in stems if stem.isdecimal()}
    return files


def _spaced(positions_m: list[Array]) -> tuple[NDArray[np.int64], Array]:
    """Indices of positions at least the spacing apart, and how far along the way each is."""
    keys, way_m = [0], [0.0]
    for index, position in enumerate(positions_m):
        step_m = float(np.linalg.norm(position - positions_m[keys[-1]]))
        if step_m >= _SPACING_M:
            keys.append(index)
            way_m.append(way_m[-1] + step_m)
    return np.array(keys, np.int64), np.array(way_m)
