# SPDX-License-Identifier: Apache-2.0
"""KITTI (Geiger et al. 2012, 2013): a car with cameras, a Velodyne and GPS/IMU; two layouts.

* Odometry: ``sequences/NN/{image_2 or image_0, velodyne, calib.txt, times.txt}`` with ``poses/NN.txt`` beside
  ``sequences``, which the dataset has for 00 to 10. Scans are compensated for the car's motion. Stamps begin at 1000 s:
  the dataset counts from 0, which ROS takes for "no time".
* Raw: ``DATE/DATE_drive_NNNN_sync/{image_02 or image_00, velodyne_points, oxts}`` with ``calib_cam_to_cam.txt``,
  ``calib_velo_to_cam.txt`` and ``calib_imu_to_velo.txt`` in ``DATE``. Scans are as measured.

Frames have REP-103's axes (x forward, y left, z up). ``base_link`` is, in raw drives, the GPS/IMU unit; in odometry,
which does not include its pose, it is at the left grey camera, whose poses the dataset gives. ``map`` is
``base_link`` of the recording's first pose: recordings do not share a map. Images are those of the left colour camera,
where it is missing of the grey one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.sources.base import report_text
from training.sources.caching import fingerprint
from training.sources.files import read_rgb
from training.sources.kitti.files import (
    Calibration,
    Projection,
    poses_from_oxts,
    read_camera_poses,
    read_oxts,
    read_scan,
    read_times,
    read_timestamps,
)
from training.sources.labels import label_frames
from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import IMAGE, LIDAR, Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose

_FIRST_STAMP_NS = 1_000_000_000_000
_SUFFIXES = {IMAGE: (".png", ".jpg"), LIDAR: (".bin",)}
# base_link's axes from those of a camera that looks forward (x right, y down, z forward).
_BASE_FROM_OPTICAL = Pose(np.zeros(3), np.array([0.5, -0.5, 0.5, -0.5]))


@dataclass(frozen=True, slots=True)
class _Recording:
    """A recording of either layout.

    Attributes:
        name: for messages.
        files: by modality and frame number.
        stamps_ns: stamps of the first modality, by frame number.
        poses: poses of base_link in the map, by stamp.
        metadata_files: files of poses, stamps and calibration.
        mounts: ``base_from_sensor`` of each modality.
        projection: of the images, None without them.
        image_size: width and height, where the calibration has them.
    """

    name: str
    files: dict[str, dict[int, Path]]
    stamps_ns: dict[int, int]
    poses: dict[int, Pose]
    metadata_files: list[Path]
    mounts: dict[str, Pose]
    projection: Projection | None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    stamp_ns: int
    files: dict[str, Path]
    map_from_base: Pose


def is_kitti(path: Path) -> bool:
    """Whether the path looks like a sequence of the odometry benchmark or a raw drive."""
    return (path / "oxts").is_dir() or ((path / "calib.txt").is_file() and (path / "times.txt").is_file())


class KittiSource:
    """Frames of one recording: images, each with the scan of the same number.

    Images whose scan is missing, as a few are in the dataset, are frames without a scan. In raw drives the pose is
    interpolated at the image's stamp; frames outside the poses' time span, or between poses far apart, are dropped and
    counted.

    Args:
        folder: ``sequences/NN``, or a drive's folder.
        options: ``stride`` and ``pose_gap_s`` concern it; the dataset itself pairs images and scans.
        modalities: ``image``, ``lidar`` or both; None reads all that the folder has.

    Raises:
        DataError: a file is missing or malformed, a modality is not there, or no frame has a pose.
    """

    map_frame = "map"
    body_frame = "base_link"

    def __init__(
        self, folder: Path, options: SourceOptions | None = None, modalities: Sequence[str] | None = None
    ) -> None:
        options, folder = options or SourceOptions(), folder.absolute()
        recording = self._recording = _read_recording(folder, modalities)
        self.name, self.mounts, self.modalities = recording.name, recording.mounts, tuple(recording.files)
        files, stamps = recording.files, recording.stamps_ns
        numbers = [number for number in stamps if number in files[self.modalities[0]]][:: options.stride]
        labels, unlabelled = label_frames(
            list(recording.poses), list(recording.poses.values()), [stamps[n] for n in numbers], options.pose_gap_s
        )
        self._entries = [
            _Entry(stamps[n], {name: paths[n] for name, paths in files.items() if n in paths}, pose)
            for n, pose in zip(numbers, labels, strict=True)
            if pose is not None
        ]
        alone = sum(len(entry.files) < len(files) for entry in self._entries)
        self.report = {"frames": len(self._entries), "images without a scan": alone, **unlabelled}
        if not self._entries:
            raise DataError(f"{folder}: no frame has a pose ({report_text(self.report)})")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples_at(self.stamps_ns())

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of the samples that have one of these stamps; no others are read."""
        chosen = set(stamps_ns)
        for entry in self._entries:
            if entry.stamp_ns in chosen:
                yield Sample(self._read(entry), entry.map_from_base)

    def poses(self) -> list[Pose]:
        return [entry.map_from_base for entry in self._entries]

    def stamps_ns(self) -> list[int]:
        return [entry.stamp_ns for entry in self._entries]

    def fingerprint(self) -> str:
        files = [path for entry in self._entries for path in entry.files.values()]
        return fingerprint([*self._recording.metadata_files, *files], self.modalities)

    def _read(self, entry: _Entry) -> Frame:
        image = read_rgb(entry.files[IMAGE]) if IMAGE in entry.files else None
        cloud = read_scan(entry.files[LIDAR]) if LIDAR in entry.files else None
        return Frame(
            entry.stamp_ns,
            image,
            cloud=cloud,
            camera=None if image is None else self._camera(entry.files[IMAGE], *image.shape[:2]),
            camera_from_lidar=None
            if image is None or cloud is None
            else self.mounts[IMAGE].inverse() @ self.mounts[LIDAR],
        )

    def _camera(self, path: Path, height: int, width: int) -> PinholeCamera | None:
        projection, size = self._recording.projection, self._recording.image_size
        if size is not None and size != (width, height):
            raise DataError(f"{path} is of {width} x {height} pixels, its calibration of {size[0]} x {size[1]}")
        if projection is None:
            return None
        return PinholeCamera(width, height, *projection.focal_px, *projection.centre_px)


def _read_recording(folder: Path, modalities: Sequence[str] | None) -> _Recording:
    if folder.name.endswith("_extract"):
        raise DataError(f"{folder} is neither rectified nor synchronised; give the drive's _sync folder")
    if (folder / "oxts").is_dir():
        return _read_raw(folder, modalities)
    if (folder / "times.txt").is_file():
        return _read_odometry(folder, modalities)
    raise DataError(
        f"{folder} is neither a KITTI odometry sequence (.../sequences/NN with calib.txt and times.txt) nor a raw "
        "drive (DATE_drive_NNNN_sync with oxts)"
    )


def _read_odometry(folder: Path, modalities: Sequence[str] | None) -> _Recording:
    folders = _choose_folders(folder, ("image_2", "image_0"), "velodyne", modalities)
    times, truth, calib = folder / "times.txt", _truth_of(folder), folder / "calib.txt"
    stamps = dict(enumerate(_FIRST_STAMP_NS + stamp for stamp in read_times(times)))
    poses = [_BASE_FROM_OPTICAL @ pose @ _BASE_FROM_OPTICAL.inverse() for pose in read_camera_poses(truth)]
    if len(stamps) != len(poses):
        raise DataError(f"{truth} has {len(poses)} poses for {len(stamps)} stamps in {times}")
    files = {name: _numbered_files(name, path, stamps, digits=6) for name, path in folders.items()}
    names = {IMAGE: f"P{folders[IMAGE].name[-1]}" if IMAGE in folders else "", LIDAR: "Tr"}
    calibration = Calibration(calib, {names[modality]: 12 for modality in folders})
    projection = calibration.projection(names[IMAGE]) if IMAGE in folders else None
    mounts = {}
    if projection is not None:
        mounts[IMAGE] = _BASE_FROM_OPTICAL @ projection.camera_from_camera0.inverse()
    if LIDAR in folders:
        mounts[LIDAR] = _BASE_FROM_OPTICAL @ calibration.rigid("Tr")
    by_stamp = dict(zip(stamps.values(), poses, strict=True))
    return _Recording(f"kitti/{folder.name}", files, stamps, by_stamp, [times, truth, calib], mounts, projection)


def _truth_of(folder: Path) -> Path:
    truth = folder.parent.parent / "poses" / f"{folder.name}.txt"
    if not truth.is_file():
        raise DataError(f"{truth} is missing; the dataset has poses of the sequences 00 to 10")
    return truth


def _read_raw(folder: Path, modalities: Sequence[str] | None) -> _Recording:
    folders = _choose_folders(folder, ("image_02", "image_00"), "velodyne_points", modalities)
    clock, oxts = next(iter(folders.values())) / "timestamps.txt", folder / "oxts"
    stamps = read_timestamps(clock)
    files = {name: _numbered_files(name, path / "data", stamps, digits=10) for name, path in folders.items()}
    records = {
        stamp: oxts / "data" / f"{number:010d}.txt"
        for number, stamp in read_timestamps(oxts / "timestamps.txt").items()
    }
    poses = poses_from_oxts(np.array([read_oxts(path) for path in records.values()]))
    calibs = [folder.parent / f"calib_{name}.txt" for name in ("imu_to_velo", "velo_to_cam", "cam_to_cam")]
    lidar_from_base, camera0_from_lidar = (Calibration(path, {"R": 9, "T": 3}).rigid("R", "T") for path in calibs[:2])
    mounts, projection, size = {}, None, None
    if IMAGE in folders:
        number = folders[IMAGE].name[-2:]
        projected, sized = f"P_rect_{number}", f"S_rect_{number}"
        cameras = Calibration(calibs[2], {"R_rect_00": 9, projected: 12, sized: 2})
        projection, size = cameras.projection(projected), cameras.size(sized)
        # R_rect_00 turns camera 0 into the rectified one, whichever camera's images are used.
        rectified_from_lidar = cameras.rigid("R_rect_00") @ camera0_from_lidar
        mounts[IMAGE] = (projection.camera_from_camera0 @ rectified_from_lidar @ lidar_from_base).inverse()
    if LIDAR in folders:
        mounts[LIDAR] = lidar_from_base.inverse()
    by_stamp = dict(zip(records, poses, strict=True))
    metadata_files = [clock, oxts / "timestamps.txt", *records.values(), *calibs]
    return _Recording(folder.name, files, stamps, by_stamp, metadata_files, mounts, projection, size)


def _choose_folders(
    folder: Path, images: tuple[str, str], scans: str, modalities: Sequence[str] | None
) -> dict[str, Path]:
    """The folder of each modality to read, the image first."""
    candidates = {IMAGE: [folder / name for name in images], LIDAR: [folder / scans]}
    there = {modality: [path for path in paths if path.is_dir()] for modality, paths in candidates.items()}
    wanted = [name for name, paths in there.items() if paths] if modalities is None else modalities
    for modality in wanted or [IMAGE]:
        if modality not in candidates:
            raise DataError(f"{folder}: KITTI has image and lidar, no {modality}; set preprocess.modalities")
        if not there[modality]:
            names = " or ".join(path.name for path in candidates[modality])
            raise DataError(f"{folder} has no {modality}: there is no folder {names}")
    return {modality: paths[0] for modality, paths in there.items() if modality in wanted}


def _numbered_files(modality: str, folder: Path, stamps: dict[int, int], digits: int) -> dict[int, Path]:
    """Files by frame number. Raises DataError: there are none, or an image is missing or has no stamp."""
    suffixes = _SUFFIXES[modality]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = {int(path.stem): path for path in paths if path.suffix in suffixes and path.stem.isdecimal()}
    if not files:
        raise DataError(f"{folder} holds no files like {0:0{digits}d}{suffixes[0]}")
    if modality == IMAGE:
        if absent := sorted(stamps.keys() - files):
            raise DataError(f"{folder / f'{absent[0]:0{digits}d}'}.png is missing")
        if unknown := sorted(files.keys() - stamps):
            raise DataError(f"{files[unknown[0]]} has no stamp; there are stamps of {len(stamps)} frames")
    return files
