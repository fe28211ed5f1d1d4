# SPDX-License-Identifier: Apache-2.0
"""Oxford RobotCar (Maddern et al. 2017): camera, lidar and INS of a car that drives the same streets many times.

A sequence is a folder named by date and time, as the dataset's archives unpack: ``stereo.timestamps``,
``stereo/centre/<stamp>.png``, ``gps/ins.csv``, ``vo/vo.csv``, and per lidar ``<lidar>.timestamps`` and
``<lidar>/<stamp>.bin``. Camera models and extrinsics are in the dataset's SDK.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from training.sources.base import report_text
from training.sources.caching import fingerprint
from training.sources.files import read_table
from training.sources.labels import label_frames
from training.sources.options import SourceOptions
from training.sources.robotcar.calibration import (
    BASE_FRAME,
    CentreCamera,
    base_from_vehicle,
    find_folder,
    stereo_from_base,
    vehicle_from_sensor,
)
from training.sources.robotcar.files import StampedPoses, integrate_vo, read_gps, read_ins, read_stamps, read_vo
from training.sources.robotcar.lidar import ScanAccumulator, list_files
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import IMAGE, LIDAR, Frame, Sample
from vmloc_ros.core.geometry import Pose

# The sequences on which MapNet and those after it report.
_SCENES: dict[str, dict[str, tuple[str, ...]]] = {
    "loop": {
        "train": ("2014-06-26-09-24-58", "2014-06-26-08-53-56"),
        "test": ("2014-06-23-15-36-04", "2014-06-23-15-41-25"),
    },
    "full": {
        "train": ("2014-11-28-12-07-13", "2014-12-02-15-30-08"),
        "test": ("2014-12-09-13-21-02", "2014-12-12-10-45-15"),
    },
}
_POSE_FILES = {"ins": "gps/ins.csv", "rtk": "gps/rtk.csv", "gps": "gps/gps.csv", "vo": "vo/vo.csv"}


def is_sequence(path: Path) -> bool:
    """Whether the path looks like one RobotCar sequence."""
    return (path / "stereo.timestamps").is_file() or (path / "stereo" / "centre").is_dir()


def is_folder_of_sequences(path: Path) -> bool:
    """Whether the path is a folder with RobotCar sequences in it."""
    return path.is_dir() and any(is_sequence(child) for child in path.iterdir())


def select_sequences(root: Path, split: str, scene: str, allow_missing: bool = False) -> list[Path]:
    """Sequence folders of a split.

    Args:
        split: ``train`` or ``test`` of the scene, or ``all``: every sequence that is there.
        scene: see :class:`RobotCarOptions`.

    Raises:
        DataError: the scene or split is unknown, or sequences are missing.
    """
    if split == "all":
        return sorted(child for child in root.iterdir() if is_sequence(child))
    splits = _SCENES.get(scene) or _read_splits(Path(scene))
    if split not in splits:
        raise DataError(f"split must be train, test or all, got {split!r}")
    missing = [name for name in splits[split] if not is_sequence(root / name)]
    found = [root / name for name in splits[split] if name not in missing]
    if missing and not (allow_missing and found):
        raise DataError(
            f"{root} lacks {', '.join(missing)} of the {split} split of {scene!r}; unpack them there, choose "
            "source.robotcar.scene, or use what there is by source.robotcar.allow_missing=true"
            if found or not allow_missing
            else f"{root} has no sequence of the {split} split of {scene!r} ({', '.join(missing)})"
        )
    return found


def _read_splits(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        raise DataError(f"source.robotcar.scene: expected {', '.join(_SCENES)} or a text file, got {str(path)!r}")
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for line, (split, name) in read_table(path, 2, "train NAME or test NAME").items():
        if split not in splits:
            raise DataError(f"{path}:{line}: expected train NAME or test NAME, got {split} {name}")
        splits[split].append(name)
    return {split: tuple(names) for split, names in splits.items()}


class RobotCarSource:
    """Frames of one sequence: the centre image of the stereo camera and a cloud of past scans.

    Each image has the pose interpolated at its own stamp. Images without a file, and frames outside the poses' time
    span, in a gap between poses, or without a scan shortly before, are dropped and counted in ``report``.

    Clouds lie in the frame ``vehicle`` at the image's stamp: at the stereo camera, x forward, y left, z up, whichever
    lidar they are of. The LMS's own frame is upside down, and both projections need one viewpoint for image and cloud.

    Args:
        sequence: its folder.
        options: ``stride``, ``pose_gap_s``, ``slop_s`` (how old the latest scan may be) and ``robotcar`` concern it.
        modalities: ``image``, ``lidar`` or both.

    Raises:
        DataError: a file or folder is missing or malformed, or no frame is left.
    """

    def __init__(
        self, sequence: Path, options: SourceOptions | None = None, modalities: Sequence[str] = (IMAGE, LIDAR)
    ) -> None:
        options = options or SourceOptions()
        if absent := [name for name in modalities if name not in (IMAGE, LIDAR)]:
            raise DataError(f"{sequence}: RobotCar has image and lidar, no {', '.join(absent)}")
        self.name = sequence.absolute().name
        self.modalities = tuple(name for name in (IMAGE, LIDAR) if name in modalities)
        self.body_frame = BASE_FRAME
        self.map_frame = "odom" if options.robotcar.poses == "vo" else "map"
        self._sequence, self._options = sequence.absolute(), options
        if IMAGE in self.modalities:
            self._camera = CentreCamera(self._folder("models") if options.robotcar.undistort else None)
        self.mounts = self._read_mounts()
        stamps, counts = self._image_stamps()
        track = self._read_track()
        labels, unlabelled = label_frames(track.stamps_ns.tolist(), track.poses, stamps, options.pose_gap_s)
        self._labels = {stamp: pose for stamp, pose in zip(stamps, labels, strict=True) if pose is not None}
        self.report = {"frames": 0, **counts, **unlabelled, "poses of bad status": track.dropped}
        if LIDAR in self.modalities:
            self._open_lidar(track)
        self.report["frames"] = len(self._labels)
        self._stamps = list(self._labels)
        if not self._stamps:
            raise DataError(f"{sequence}: no frame is left ({report_text(self.report) or 'there are none'})")

    def __len__(self) -> int:
        return len(self._stamps)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples_at(self._labels)

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of the samples that have one of these stamps; no others are read."""
        chosen = set(stamps_ns)
        for index, (stamp, pose) in enumerate(self._labels.items()):
            if stamp in chosen:
                yield Sample(self.frame(index), pose)

    def poses(self) -> list[Pose]:
        return list(self._labels.values())

    def stamps_ns(self) -> list[int]:
        return self._stamps

    def fingerprint(self) -> str:
        files = [self._pose_file]
        if IMAGE in self.modalities:
            files += [*self._camera.files, *(self._images[stamp] for stamp in self._stamps)]
        if LIDAR in self.modalities:
            files += self._scans.files()
        if LIDAR in self.modalities or self._options.robotcar.poses == "vo":
            files += sorted(self._folder("extrinsics").glob("*.txt"))
        return fingerprint(files, self.stamps_ns(), self.modalities, self._options)

    def frame(self, index: int) -> Frame:
        """A frame, read from disk; in the order of time, each scan is read once.

        Raises:
            DataError: a picture or scan is missing or malformed, or pictures differ in size.
        """
        stamp = self._stamps[index]
        image = camera = cloud = None
        if IMAGE in self.modalities:
            image, camera = self._camera.read(self._images[stamp])
        if LIDAR in self.modalities:
            cloud = self._scans.cloud(stamp, self._labels[stamp] @ self.mounts[LIDAR])
        known = IMAGE in self.mounts and LIDAR in self.mounts
        camera_from_lidar = self.mounts[IMAGE].inverse() @ self.mounts[LIDAR] if known else None
        return Frame(stamp, image, cloud=cloud, camera=camera, camera_from_lidar=camera_from_lidar)

    def _image_stamps(self) -> tuple[list[int], dict[str, int]]:
        listed: list[int] = read_stamps(self._sequence / "stereo.timestamps").tolist()
        if IMAGE not in self.modalities:
            return listed[:: self._options.stride], {}
        self._images = list_files(self._sequence / "stereo" / "centre", (".png",))
        stamps = [stamp for stamp in listed if stamp in self._images]
        return stamps[:: self._options.stride], {"images without a file": len(listed) - len(stamps)}

    def _folder(self, name: Literal["models", "extrinsics"]) -> Path:
        return find_folder(self._sequence, name, getattr(self._options.robotcar, name))

    def _read_mounts(self) -> dict[str, Pose]:
        """Poses of the optical frame and of ``vehicle``, where clouds lie; images alone need no calibration."""
        try:
            extrinsics = self._folder("extrinsics")
            vehicle = base_from_vehicle(extrinsics)
            optical = self._camera.optical_from_vehicle(extrinsics) if IMAGE in self.modalities else None
        except DataError:
            if LIDAR in self.modalities:
                raise
            return {}
        known = {IMAGE: None if optical is None else vehicle @ optical.inverse(), LIDAR: vehicle}
        return {name: pose for name, pose in known.items() if pose is not None and name in self.modalities}

    def _read_track(self) -> StampedPoses:
        robotcar = self._options.robotcar
        self._pose_file = self._sequence / _POSE_FILES[robotcar.poses]
        if robotcar.poses == "vo":
            return integrate_vo(read_vo(self._pose_file), stereo_from_base(self._folder("extrinsics")))
        if robotcar.poses == "gps":
            return read_gps(self._pose_file)
        return read_ins(self._pose_file, robotcar.drop_bad_status and robotcar.poses == "ins")

    def _open_lidar(self, track: StampedPoses) -> None:
        """Find the scans, and drop frames without one shortly before."""
        robotcar, extrinsics = self._options.robotcar, self._folder("extrinsics")
        base_from_lidar = self.mounts[LIDAR] @ vehicle_from_sensor(extrinsics, robotcar.lidar)
        self._scans = ScanAccumulator(
            self._sequence / robotcar.lidar, track, base_from_lidar, robotcar.distance_m, self._options.pose_gap_s
        )
        ages = {stamp: self._scans.age_ns(stamp) for stamp in self._labels}
        recent = {stamp for stamp, age in ages.items() if age is not None and age <= self._options.slop_s * 1e9}
        self.report |= self._scans.report
        self.report[f"frames without a scan in {self._options.slop_s:g} s before"] = len(ages) - len(recent)
        self._labels = {stamp: pose for stamp, pose in self._labels.items() if stamp in recent}
