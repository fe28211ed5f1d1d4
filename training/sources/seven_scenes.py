# SPDX-License-Identifier: Apache-2.0
"""7-Scenes (Shotton et al. 2013): folders of colour, depth and camera pose of a hand-held RGB-D camera.

Layout: ``<scene>/seq-XX/frame-NNNNNN.{color.png,depth.png,pose.txt}``, colour also as JPEG;
``TrainSplit.txt`` and ``TestSplit.txt`` list ``sequenceX``. Depth is 16-bit millimetres, invalid where 0 or
65535. The pose is the 4x4 camera-to-world matrix. Colour and depth are not registered; as is usual, the depth
camera's intrinsics stand for both. With ``register_depth`` depth is brought into the colour camera's view, whose focal
length is about 525 pixels. The cameras' offset of some 2.5 cm is not published: ``depth_mount`` gives it, and ``vmloc
extrinsics`` estimates it; the poses are the depth camera's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sources.caching import fingerprint
from training.sources.files import read_depth, read_rgb
from training.sources.options import SourceOptions
from vmloc_ros.core.depth_images import depth_metres
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import DEPTH, IMAGE, Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose

_SPLIT_FILES = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_FRAME_FILE = re.compile(r"frame-(\d+)\.(color\.png|color\.jpg|depth\.png|pose\.txt)")
_OFFICIAL_SIZE, _FOCAL_LENGTH, _COLOUR_FOCAL_LENGTH = (640, 480), 585.0, 525.0
_INVALID_DEPTH_MM = 65535
# The dataset has no clock: the first frame gets this stamp, and sequences follow each other after a pause.
_RATE_HZ = 30.0
_FIRST_STAMP_NS = 1_000_000_000_000
_PAUSE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Entry:
    colour: Path
    depth: Path
    pose: Path
    stamp_ns: int
    map_from_camera: Pose


def is_scene(path: Path) -> bool:
    """Whether the path looks like a scene of 7-Scenes."""
    return path.is_dir() and ((path / "TrainSplit.txt").exists() or any(path.glob("seq-*")))


class SevenScenesSource:
    """Frames of one scene; poses are read on opening, images and depth on iteration.

    Stamps are generated from frame numbers at 30 Hz; the stride does not change them.

    Args:
        root: the scene's folder.
        split: ``train``, ``test`` or ``all`` (every ``seq-XX`` folder; needs no split files).
        options: ``stride`` (of each sequence), ``skip_invalid``, ``register_depth`` and ``depth_mount`` concern it.

    Raises:
        DataError: a folder or file is missing or malformed, or nothing is left.
    """

    map_frame = "map"
    body_frame = "camera_optical_frame"
    modalities: tuple[str, ...] = (IMAGE, DEPTH)

    def __init__(self, root: Path, split: str, options: SourceOptions | None = None) -> None:
        options = options or SourceOptions()
        self.name = f"{root.name}/{split}"
        self._focal_length = _COLOUR_FOCAL_LENGTH if options.register_depth else _FOCAL_LENGTH
        self._colour_from_depth = colour_from_depth = options.colour_from_depth
        # The body is the depth camera. Registered depth is what the colour camera would measure, from its place.
        mount = Pose.identity() if colour_from_depth is None else colour_from_depth.inverse()
        self.mounts: Mapping[str, Pose] = dict.fromkeys(self.modalities, mount)
        self._entries: list[_Entry] = []
        self.report = {"frames": 0, "frames without a valid pose": 0}
        start_ns = _FIRST_STAMP_NS
        for number in _sequence_numbers(root, split):
            frames = _list_frames(root / f"seq-{number:02d}")
            first = min(frames)
            stamps = {frame: start_ns + round((frame - first) * 1e9 / _RATE_HZ) for frame in frames}
            for frame in sorted(frames)[:: options.stride]:
                self._add(frames[frame], stamps[frame], options.skip_invalid)
            start_ns = max(stamps.values()) + _PAUSE_NS
        if not self._entries:
            raise DataError(f"{root}: no frame of the {split} split has a valid pose")
        self.report["frames"] = len(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples_at(self.stamps_ns())

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of the samples that have one of these stamps; no others are read."""
        chosen = set(stamps_ns)
        for index, entry in enumerate(self._entries):
            if entry.stamp_ns not in chosen:
                continue
            image, depth_mm = self.read(index)
            camera = camera_of(image, self._focal_length)
            frame = Frame(entry.stamp_ns, image, depth_metres(depth_mm), camera=camera)
            yield Sample(frame, entry.map_from_camera)

    def poses(self) -> list[Pose]:
        return [entry.map_from_camera for entry in self._entries]

    def stamps_ns(self) -> list[int]:
        return [entry.stamp_ns for entry in self._entries]

    def fingerprint(self) -> str:
        files = [path for entry in self._entries for path in (entry.colour, entry.depth, entry.pose)]
        moved = () if self._colour_from_depth is None else (self._colour_from_depth.matrix.tolist(),)
        return fingerprint(files, self.stamps_ns(), self._focal_length, *moved)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Colour ``(H, W, 3)`` uint8 RGB and depth ``(H, W)`` uint16 millimetres, 0 = none, of a frame.

        Raises:
            DataError: a file is missing, corrupt or of another kind.
        """
        entry = self._entries[index]
        image, depth_mm = read_rgb(entry.colour), read_depth(entry.depth)
        depth_mm = np.where(depth_mm == _INVALID_DEPTH_MM, np.uint16(0), depth_mm)
        registered = self._focal_length != _FOCAL_LENGTH
        return image, register_depth(depth_mm, self._colour_from_depth) if registered else depth_mm

    def _add(self, files: dict[str, Path], stamp_ns: int, skip_invalid: bool) -> None:
        try:
            pose = _read_pose(files["pose.txt"])
        except DataError:
            if not skip_invalid:
                raise
            self.report["frames without a valid pose"] += 1
            return
        colour = files.get("color.png") or files["color.jpg"]
        self._entries.append(_Entry(colour, files["depth.png"], files["pose.txt"], stamp_ns, pose))


def camera_of(image: NDArray[Any], focal_length: float = _FOCAL_LENGTH) -> PinholeCamera:
    """The official intrinsics (f = 585, centre 320, 240 at 640x480), scaled to the image's size."""
    height, width = image.shape[:2]
    sx, sy = width / _OFFICIAL_SIZE[0], height / _OFFICIAL_SIZE[1]
    return PinholeCamera(width, height, focal_length * sx, focal_length * sy, width / 2, height / 2)


def register_depth(depth_mm: NDArray[np.uint16], colour_from_depth: Pose | None = None) -> NDArray[np.uint16]:
    """Depth ``(H, W)`` seen by a camera of the colour camera's focal length; 0 where there is no measurement.

    Without an offset the cameras share their centre and axis, so each pixel takes the depth of the source pixel on its
    ray, without interpolation: a mean across an edge lies on no surface. With an offset each measurement is projected
    into the target image, and of several in one pixel the nearest counts (z-buffer).

    Args:
        depth_mm: ``(H, W)``, 0 = none.
        colour_from_depth: pose of the depth camera in the colour camera's frame; None is the identity.
    """
    target, source = camera_of(depth_mm, _COLOUR_FOCAL_LENGTH), camera_of(depth_mm)
    if colour_from_depth is not None:
        return _reproject(depth_mm, source, target, colour_from_depth)
    rows, columns = (np.arange(count, dtype=np.float64) for count in depth_mm.shape)
    u = (columns - target.cx) * (source.fx / target.fx) + source.cx
    v = (rows - target.cy) * (source.fy / target.fy) + source.cy
    u, v = np.floor(u + 0.5).astype(int), np.floor(v + 0.5).astype(int)
    inside = (v >= 0)[:, None] & (v < len(rows))[:, None] & (u >= 0) & (u < len(columns))
    looked_up = depth_mm[np.ix_(v.clip(0, len(rows) - 1), u.clip(0, len(columns) - 1))]
    return np.where(inside, looked_up, np.uint16(0))


def _reproject(
    depth_mm: NDArray[np.uint16], source: PinholeCamera, target: PinholeCamera, target_from_source: Pose
) -> NDArray[np.uint16]:
    """Depth from another camera, by a z-buffer."""
    v, u = np.nonzero(depth_mm)
    z_m = depth_mm[v, u] / 1000.0
    rays = np.stack([(u - source.cx) / source.fx, (v - source.cy) / source.fy, np.ones(len(u))], axis=1)
    xyz = target_from_source.transform(rays * z_m[:, None])
    xyz = xyz[xyz[:, 2] > 0]
    x, y, z = xyz.T
    u = np.floor(target.fx * x / z + target.cx + 0.5).astype(int)
    v = np.floor(target.fy * y / z + target.cy + 0.5).astype(int)
    inside = (v >= 0) & (v < depth_mm.shape[0]) & (u >= 0) & (u < depth_mm.shape[1])
    pixel = (v * depth_mm.shape[1] + u)[inside]
    moved_mm = np.rint(1000 * z[inside]).clip(0, _INVALID_DEPTH_MM - 1).astype(np.uint16)
    far_first = np.argsort(moved_mm, kind="stable")[::-1]
    registered = np.zeros(depth_mm.size, np.uint16)
    registered[pixel[far_first]] = moved_mm[far_first]  # of several for one pixel the last, nearest one stays
    return registered.reshape(depth_mm.shape)


def _sequence_numbers(root: Path, split: str) -> list[int]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a 7-Scenes scene such as .../redkitchen")
    if split == "all":
        numbers = sorted(int(path.name[4:]) for path in root.glob("seq-*") if path.name[4:].isdigit())
    elif split in _SPLIT_FILES:
        numbers = _read_split(root / _SPLIT_FILES[split])
    else:
        raise DataError(f"split must be train, test or all, got {split!r}")
    if not numbers:
        raise DataError(f"{root}: the {split} split has no sequences (seq-XX folders)")
    return numbers


def _read_split(path: Path) -> list[int]:
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is missing or no text; the split 'all' needs no such file") from error
    matches = [re.fullmatch(r"sequence(\d+)", line) for line in lines]
    if None in matches:
        raise DataError(f"{path}: expected lines like 'sequence1', got {lines[matches.index(None)]!r}")
    return sorted({int(match[1]) for match in matches if match})


def _list_frames(folder: Path) -> dict[int, dict[str, Path]]:
    """Files of every frame by kind; each frame has all but perhaps its pose."""
    if not folder.is_dir():
        hint = "; unpack its zip file" if folder.with_suffix(".zip").exists() else ""
        raise DataError(f"{folder} does not exist{hint}")
    frames: dict[int, dict[str, Path]] = {}
    for path in folder.iterdir():
        if match := _FRAME_FILE.fullmatch(path.name):
            frames.setdefault(int(match[1]), {})[match[2]] = path
    if not frames:
        raise DataError(f"{folder} holds no frame-NNNNNN.color.png")
    for frame, files in sorted(frames.items()):
        name = next(iter(files.values())).name.split(".")[0]
        if "depth.png" not in files:
            raise DataError(f"{folder / name}.depth.png is missing")
        if not files.keys() & {"color.png", "color.jpg"}:
            raise DataError(f"{folder / name}.color.png (or .jpg) is missing")
        frames[frame].setdefault("pose.txt", folder / f"{name}.pose.txt")
    return frames


def _read_pose(path: Path) -> Pose:
    try:
        matrix = np.array(path.read_text().split(), np.float64).reshape(4, 4)
        if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
            raise ValueError(f"the last row must be 0 0 0 1, got {matrix[3].tolist()}")
        return Pose.from_matrix(matrix)
    except (OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError)
        problem = "is missing" if absent else f"is not a camera-to-world matrix ({error})"
        raise DataError(f"{path} {problem}; skip_invalid (--skip-invalid) skips it") from error
