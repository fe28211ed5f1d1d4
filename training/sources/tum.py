# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D (Sturm et al. 2012): colour and depth of a hand-held Kinect with motion capture.

Layout of a sequence: ``rgb.txt`` and ``depth.txt`` list ``stamp file``, ``groundtruth.txt`` lists
``stamp tx ty tz qx qy qz qw``: the pose of the colour camera's optical frame in the motion capture's, here ``map``.
Stamps are Unix seconds, lines with # are comments. Depth is 16 bit, 5000 per metre, 0 is none, and registered to
colour pixel by pixel.

The folder holds no intrinsics. Those that the dataset documents for its three cameras are chosen by the folder's name
(``freiburg1`` to ``freiburg3``), otherwise ROS's default for a Kinect. The lens distortion is left in the pictures of
freiburg1 and freiburg2, as it is in the depth registered to them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.sources.base import report_text
from training.sources.caching import fingerprint
from training.sources.files import (
    check_increasing,
    parse_numbers,
    parse_stamp_ns,
    read_depth,
    read_rgb,
    read_table,
)
from training.sources.labels import label_frames
from training.sources.options import SourceOptions
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose

_CAMERAS = {
    "1": PinholeCamera(640, 480, 517.3, 516.5, 318.6, 255.3),
    "2": PinholeCamera(640, 480, 520.9, 521.0, 325.1, 249.7),
    "3": PinholeCamera(640, 480, 535.4, 539.2, 320.1, 247.6),
}
_KINECT = PinholeCamera(640, 480, 525.0, 525.0, 319.5, 239.5)
_LISTS = {IMAGE: "rgb.txt", DEPTH: "depth.txt"}
_DEPTH_UNITS_PER_M = 5000.0
# The poses have four decimals: their quaternions' norm is 1 within 1e-4.
_NORM_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class _Entry:
    files: dict[str, Path]
    stamp_ns: int
    map_from_camera: Pose


def is_tum(path: Path) -> bool:
    """Whether the path looks like a sequence of TUM RGB-D."""
    return (path / "rgb.txt").is_file() and (path / "groundtruth.txt").is_file()


class TumSource:
    """Frames of one sequence, with the pose interpolated at the colour image's stamp.

    Each colour image goes with the depth image of the nearest stamp, one to one. Images without a partner and frames
    outside the poses' time span, or between poses far apart, are dropped and counted in ``report``. So are poses that
    repeat the stamp of the one before, as some in freiburg2_desk do.

    Args:
        root: the sequence's folder.
        options: ``stride``, ``slop_s`` and ``pose_gap_s`` concern it.
        modalities: ``image``, ``depth`` or both; a single one needs no partner, and frames have its stamps.

    Raises:
        DataError: a file is missing or malformed, or no frame is left.
    """

    map_frame = "map"
    body_frame = "camera_optical_frame"

    def __init__(
        self,
        root: Path,
        options: SourceOptions | None = None,
        modalities: Sequence[str] = (IMAGE, DEPTH),
    ) -> None:
        options = options or SourceOptions()
        root = root.absolute()
        if absent := [name for name in modalities if name not in _LISTS]:
            raise DataError(f"{root}: TUM RGB-D has image and depth, no {', '.join(absent)}; set preprocess.modalities")
        self.name = root.name
        self.modalities = tuple(name for name in _LISTS if name in modalities)
        self.mounts = dict.fromkeys(self.modalities, Pose.identity())
        self._camera = _documented_camera(root.name)
        self._lists = [root / "groundtruth.txt", *(root / _LISTS[name] for name in self.modalities)]
        truth, *lists = self._lists
        streams = {name: _read_list(path) for name, path in zip(self.modalities, lists, strict=True)}
        frames, unpaired = _pair(streams, round(options.slop_s * 1e9))
        frames = frames[:: options.stride]
        stamps, poses, repeated = _read_truth(truth)
        labels, unlabelled = label_frames(stamps, poses, [stamp for stamp, _ in frames], options.pose_gap_s)
        self._entries = [
            _Entry(files, stamp, pose) for (stamp, files), pose in zip(frames, labels, strict=True) if pose is not None
        ]
        self.report = {"frames": len(self._entries), **unpaired, **unlabelled, "repeated poses": repeated}
        if not self._entries:
            reasons = report_text(self.report)
            raise DataError(f"{root}: no frame has all of {', '.join(self.modalities)} and a pose ({reasons})")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples_at(self.stamps_ns())

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of the samples that have one of these stamps; no others are read."""
        chosen = set(stamps_ns)
        for entry in self._entries:
            if entry.stamp_ns not in chosen:
                continue
            image = read_rgb(entry.files[IMAGE]) if IMAGE in entry.files else None
            depth = read_depth(entry.files[DEPTH]) if DEPTH in entry.files else None
            frame = Frame(
                entry.stamp_ns,
                image,
                None if depth is None else np.divide(depth, _DEPTH_UNITS_PER_M, dtype=np.float32),
                camera=None if image is None else _resized(self._camera, *image.shape[:2]),
            )
            yield Sample(frame, entry.map_from_camera)

    def poses(self) -> list[Pose]:
        return [entry.map_from_camera for entry in self._entries]

    def stamps_ns(self) -> list[int]:
        return [entry.stamp_ns for entry in self._entries]

    def fingerprint(self) -> str:
        files = [path for entry in self._entries for path in entry.files.values()]
        return fingerprint([*self._lists, *files], self.modalities, self._camera)


def associate(first_ns: Sequence[int], second_ns: Sequence[int], slop_ns: int) -> list[tuple[int, int]]:
    """Match stamps one to one within the slop, nearest pairs first.

    Args:
        first_ns: increasing stamps.
        second_ns: increasing stamps.

    Returns:
        Pairs of indices, in the order of ``first_ns``.
    """
    first, second = np.asarray(first_ns, np.int64), np.asarray(second_ns, np.int64)
    low, high = np.searchsorted(second, first - slop_ns), np.searchsorted(second, first + slop_ns, side="right")
    candidates = sorted(
        (abs(int(first[i] - second[j])), i, j) for i in range(len(first)) for j in range(low[i], high[i])
    )
    partners: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in candidates:
        if i not in partners and j not in taken:
            partners[i] = j
            taken.add(j)
    return sorted(partners.items())


def _pair(
    streams: dict[str, dict[int, Path]], slop_ns: int
) -> tuple[list[tuple[int, dict[str, Path]]], dict[str, int]]:
    """Stamp and files of every frame, and the counts of files without a partner."""
    if len(streams) == 1:
        ((name, stream),) = streams.items()
        return [(stamp, {name: path}) for stamp, path in stream.items()], {}
    images, depths = list(streams[IMAGE].items()), list(streams[DEPTH].items())
    pairs = associate([stamp for stamp, _ in images], [stamp for stamp, _ in depths], slop_ns)
    frames = [(images[i][0], {IMAGE: images[i][1], DEPTH: depths[j][1]}) for i, j in pairs]
    unpaired = {
        "images without depth": len(images) - len(pairs),
        "depth images without an image": len(depths) - len(pairs),
    }
    return frames, unpaired


def _read_list(path: Path) -> dict[int, Path]:
    """Files by stamp, in time order."""
    stamps, files = {}, {}
    for line, (stamp, name) in read_table(path, 2, "stamp file").items():
        stamps[line] = parse_stamp_ns(path, line, stamp)
        files[stamps[line]] = path.parent / name
        if not files[stamps[line]].is_file():
            raise DataError(f"{path}:{line}: {files[stamps[line]]} is missing")
    check_increasing(path, stamps)
    return files


def _read_truth(path: Path) -> tuple[list[int], list[Pose], int]:
    """Stamps, poses, and the number of poses dropped because they repeat a stamp."""
    stamps: dict[int, int] = {}
    poses: list[Pose] = []
    repeated, newest_ns = 0, None
    for line, words in read_table(path, 8, "stamp tx ty tz qx qy qz qw").items():
        stamp = parse_stamp_ns(path, line, words[0])
        pose = _parse_pose(path, line, words[1:])
        if stamp == newest_ns:
            repeated += 1
            continue
        newest_ns = stamps[line] = stamp
        poses.append(pose)
    check_increasing(path, stamps)
    return list(stamps.values()), poses, repeated


def _parse_pose(path: Path, line: int, words: Sequence[str]) -> Pose:
    x, y, z, qx, qy, qz, qw = parse_numbers(path, line, words)
    quaternion = np.array([qw, qx, qy, qz])
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1) > _NORM_TOLERANCE:
        raise DataError(f"{path}:{line}: qx qy qz qw must be a unit quaternion, its norm is {norm:g}")
    return Pose(np.array([x, y, z]), quaternion)


def _documented_camera(folder: str) -> PinholeCamera:
    match = re.search(r"freiburg([123])(?!\d)", folder)
    return _CAMERAS[match[1]] if match else _KINECT


def _resized(camera: PinholeCamera, height: int, width: int) -> PinholeCamera:
    """The camera of pictures scaled to another size; pixel centres are integers, so the corner is at -0.5."""
    sx, sy = width / camera.width, height / camera.height
    cx, cy = (camera.cx + 0.5) * sx - 0.5, (camera.cy + 0.5) * sy - 0.5
    return PinholeCamera(width, height, camera.fx * sx, camera.fy * sy, cx, cy)
