# SPDX-License-Identifier: Apache-2.0
"""Data source of bags: rosbag2 (MCAP, sqlite3, compressed or not) and ROS 1, paired by the node's synchronizer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sources.caching import fingerprint
from training.sources.options import SourceOptions
from training.sources.rosbag.body import unknown_mounts
from training.sources.rosbag.frames import FrameReader, Pairing, Serialized
from training.sources.rosbag.index import RULES_VERSION, BagIndex, load_or_build
from training.sources.rosbag.order import read_by_stamps
from training.sources.rosbag.pictures import BITS, UNITS
from training.sources.rosbag.topics import choose_camera_topic, connections_of
from training.sources.rosbag.undecodable import Undecodable
from vmloc_ros.bags.files import BagReader, bag_files, is_unfinished, open_bag
from vmloc_ros.core.cameras import PictureCamera, is_rectified
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.image_decoders import DepthDecoder, ImageDecoder
from vmloc_ros.core.messages import decode_point_cloud
from vmloc_ros.core.point_times import TIMES, PointTimes
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.core.transform_tree import TransformTree

logger = logging.getLogger(__name__)

_MOST_UNCALIBRATED = 100  # CameraInfo messages of a camera that may load its calibration late
_STAMP_END = 12  # of a serialized message with a header: what follows is the same in all of a camera's CameraInfo


@dataclass(frozen=True, slots=True)
class _Decoding:
    """Decoders of one pass through a bag, by modality, and what they could not decode."""

    decoders: Mapping[str, Callable[[Any], Any]]
    undecodable: Undecodable


def is_bag(path: Path) -> bool:
    """Whether the path looks like a bag, maybe one that was cut off: a folder with metadata.yaml, or a storage file."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or is_unfinished(path)
    return path.is_file() and (path.suffix in (".mcap", ".db3", ".bag") or path.name.endswith(".bag.active"))


class RosbagSource:
    """Frames of one bag with the pose interpolated at each frame's stamp.

    The bag is read once for poses and stamps, then streamed at each iteration. Frames without a pose and frames of the
    other split are dropped and counted in ``report``. Messages that cannot be decoded are missing ones: their frames go
    on without them. They are counted in ``report`` by the first iteration, and warned of once; more than half of a
    topic's are a DataError then.

    Args:
        path: see :func:`is_bag`.
        options: topics, pairing, poses and split.
        modalities: to read, some of ``image``, ``depth``, ``lidar``.
        split: ``train``, ``test`` or ``all``; without a split in the options each of them is all. May be empty.
        index_folder: where to store the bag's index; see :func:`load_or_build`.

    Attributes:
        sensor_frames: by modality ``header.frame_id``.
        readings: how messages are read where they leave it open, such as the unit of the points' times; by name, as
            JSON has it. The checkpoint remembers it, and the robot reads its messages alike.
        choices: topics and frames that are used and what is not known, as texts to print.
        doubts: what was assumed and may be wrong, as texts to warn with.

    Raises:
        DataError: the bag is missing, empty or damaged, a topic is absent, ambiguous or of the wrong type, a pose is
            invalid, transforms do not lead from map to body, no frame has a pose, or no picture can be decoded.
    """

    def __init__(
        self,
        path: Path,
        options: SourceOptions,
        modalities: tuple[str, ...] = (IMAGE, LIDAR),
        split: str = "all",
        index_folder: Path | None = None,
    ) -> None:
        self.name = path.name
        self._path, self._options = path, options
        self._split = split if options.test_from_s or options.test_every else "all"
        self._index = index = load_or_build(path, options, modalities, index_folder)
        self._empty_scans_ns = set(index.empty_scans_ns.tolist())
        self.modalities = tuple(name for name in index.streams if name != LIDAR or self._has_scans())
        self.map_frame, self.body_frame = index.map_frame, index.body_frame
        self.sensor_frames = index.sensor_frames
        self.readings = dict(index.readings)
        self._logged: set[str] = set()
        self._times = PointTimes(
            index.streams.get(LIDAR, ""),
            index.readings.get(TIMES),
            partial(self._log, INFO),
            partial(self._log, WARNING),
        )
        self._times.announce()
        self._announce_pictures()
        self._camera, self._camera_info = self._picture_camera(), b""
        self._transforms = _static_tree(index)
        frames = index.sensor_frames.items()
        mounts = {name: self._transforms.find_static(self.body_frame, frame) for name, frame in frames}
        self.mounts = {name: pose for name, pose in mounts.items() if pose is not None}
        self.mounts |= {name: pose for name, pose in options.mounts.poses.items() if name in index.streams}
        self.choices, self.doubts = [*index.choices], [*index.doubts]
        if missing := {name: index.sensor_frames.get(name, "") for name in index.streams if name not in self.mounts}:
            self.choices.append(unknown_mounts(self.body_frame, missing))
        rows = np.arange(0, len(index.stamps_ns), options.stride)
        has_pose = ~np.isnan(index.poses[rows, 0])
        if not has_pose.any():
            raise DataError(self._no_poses(rows))
        chosen = np.ones(len(rows), bool)
        if self._split != "all":
            chosen = in_test(index.stamps_ns, options)[rows] == (self._split == "test")
        self._labels = {
            int(index.stamps_ns[row]): Pose(index.poses[row, :3], index.poses[row, 3:])
            for row in rows[has_pose & chosen]
        }
        self.report = {
            "frames": len(self._labels),
            "frames outside the poses' time span": int((index.outside[rows] & chosen).sum()),
            "frames in a gap between poses": int((~has_pose & ~index.outside[rows] & chosen).sum()),
            "frames of the other split": int((~chosen).sum()),
            **index.counts,
        }

    @property
    def path(self) -> Path:
        """Of the bag."""
        return self._path

    def __len__(self) -> int:
        return len(self._labels)

    def poses(self) -> list[Pose]:
        return list(self._labels.values())

    def stamps_ns(self) -> list[int]:
        return list(self._labels)

    def __iter__(self) -> Iterator[Sample]:
        return self._samples(self._labels)

    def samples_at(self, stamps_ns: Collection[int]) -> Iterator[Sample]:
        """Those of the samples that have one of these stamps; no others are decoded; reading stops after the last."""
        return self._samples({stamp: pose for stamp, pose in self._labels.items() if stamp in stamps_ns})

    def _samples(self, labels: Mapping[int, Pose]) -> Iterator[Sample]:
        sizes: dict[str, tuple[int, ...]] = {}
        decoding = self._new_decoding()
        with open_bag(self._path, self._options.allow_truncated) as reader:
            camera_topic = self._find_camera(reader)
            for bundle, pose in self._labelled(reader, labels, camera_topic):
                frame = self._frame(reader, bundle, sizes, decoding)
                if frame.modalities:
                    yield Sample(frame, pose)
        decoding.undecodable.finish(partial(self._log_once, INFO))
        self.report |= decoding.undecodable.counts

    def share_image_bits(self, bits: int) -> None:
        """Read pictures of 16 bits as of so many, where another recording of the same data needs them."""
        if bits != self.readings[BITS]:
            self.readings[BITS] = bits
            self._announce_pictures()

    def fingerprint(self) -> str:
        return fingerprint(
            bag_files(self._path), RULES_VERSION, self._options, self._index.streams, self._split, self.readings
        )

    def map_points(self, every: int = 10) -> NDArray[np.float64]:
        """Points ``(N, 3)`` of every ``every``-th cloud in the map frame, by the true poses; for plots of the map.

        Raises:
            DataError: the bag's /tf_static does not connect the lidar with the body.
        """
        clouds, decoding = [np.empty((0, 3))], self._new_decoding()
        with open_bag(self._path, self._options.allow_truncated) as reader:
            for number, (bundle, pose) in enumerate(self._labelled(reader, self._labels)):
                if number % every or LIDAR not in self._present(bundle):
                    continue
                if (decoded := self._decode(reader, bundle, LIDAR, decoding)) is None:
                    continue
                frame_id, cloud = decoded
                body_from_lidar = self.mounts.get(LIDAR) or self._transforms.find(self.body_frame, frame_id)
                clouds.append((pose @ body_from_lidar).transform(cloud.xyz_m))
        return np.concatenate(clouds)

    def _labelled(
        self, reader: BagReader, labels: Mapping[int, Pose], camera_topic: str | None = None
    ) -> Iterator[tuple[Bundle[Serialized | None], Pose]]:
        """Frames with the stamps of labels, still serialized; reading stops after the last one.

        Args:
            labels: poses by stamp.
            camera_topic: of CameraInfo messages, which are taken in as they come, as the node does; not where messages
                are read by their stamps.
        """
        index, options = self._index, self._options
        false = {name: {(stamp, logged) for stamp, logged in rows} for name, rows in index.false_stamps.items()}
        pairing = Pairing(index.streams, options.slop_s, by_stamps=bool(index.windows))
        frames = FrameReader(reader, index.streams, pairing, false, options.stamps == "log")
        if index.windows:
            messages = read_by_stamps(
                self._path, options.allow_truncated, index.streams, index.windows, frames.stamp_of
            )
        else:
            camera_topics = [] if camera_topic is None else [camera_topic]
            messages = reader.messages(connections_of(reader, [*index.streams.values(), *camera_topics]))
        left = dict(labels)
        for message in messages:
            if not left:
                return
            if message[0].topic == camera_topic:
                self._take_camera_info(reader, message[0].msgtype, message[2])
                continue
            yield from ((b, left.pop(b.stamp_ns)) for b in frames.add(*message) if b.stamp_ns in left)
        yield from ((b, left.pop(b.stamp_ns)) for b in frames.flush() if b.stamp_ns in left)

    def _frame(
        self,
        reader: BagReader,
        bundle: Bundle[Serialized | None],
        sizes: dict[str, tuple[int, ...]],
        decoding: _Decoding,
    ) -> Frame:
        """Decode a frame; ``sizes`` holds the sizes of earlier images, by modality."""
        found = {name: self._decode(reader, bundle, name, decoding) for name in self._present(bundle)}
        decoded = {name: content for name, content in found.items() if content is not None}
        frame_ids = {name: frame_id for name, (frame_id, _) in decoded.items()}
        data = {name: content for name, (_, content) in decoded.items()}
        for name in (IMAGE, DEPTH):
            if name in data and data[name].shape[:2] != sizes.setdefault(name, data[name].shape[:2]):
                (height, width), (first_height, first_width) = data[name].shape[:2], sizes[name]
                raise DataError(
                    f"{self._where(bundle, name)}: the image is {width}x{height}, those before it {first_width}x"
                    f"{first_height}; one recording has one size and one calibration: split the bag there"
                )
        picture = next((data[name] for name in (IMAGE, DEPTH) if name in data), None)
        camera_frame = frame_ids.get(IMAGE, self._index.sensor_frames.get(IMAGE))
        return Frame(
            stamp_ns=bundle.stamp_ns,
            image=data.get(IMAGE),
            depth_m=data.get(DEPTH),
            cloud=data[LIDAR].delayed((bundle.messages[LIDAR][0] - bundle.stamp_ns) * 1e-9) if LIDAR in data else None,
            camera=self._camera.of(None if picture is None else picture.shape),
            camera_from_lidar=self._camera_from_lidar(camera_frame, frame_ids[LIDAR]) if LIDAR in data else None,
            depth_is_rectified=is_rectified(self._index.streams.get(DEPTH, "")),
        )

    def _present(self, bundle: Bundle[Serialized | None]) -> list[str]:
        """The bundle's modalities; an empty scan is a missing one."""
        scan_ns = bundle.messages[LIDAR][0] if LIDAR in bundle.messages else None
        return [name for name in bundle.messages if name != LIDAR or scan_ns not in self._empty_scans_ns]

    def _has_scans(self) -> bool:
        """Whether a scan has a return. Raises DataError: none has, and nothing else is read."""
        index = self._index
        if not index.scans or index.counts["empty scans"] < index.scans:
            return True
        problem = (
            f"{self._path}: all {index.scans} scans of {index.streams[LIDAR]} are empty (no points, or only NaN and "
            "zeros); check the lidar's driver and filters"
        )
        if len(index.streams) == 1:
            raise DataError(problem)
        logger.warning("%s; frames go without lidar", problem)
        return False

    def _log(self, level: int, text: str) -> None:
        logger.log(level, "%s: %s", self._path, text)

    def _camera_from_lidar(self, camera_frame: str | None, lidar_frame: str) -> Pose | None:
        """From the options' mounts where they move a sensor, else from the bag's transforms; None where unknown."""
        if self._options.mounts.poses and IMAGE in self.mounts and LIDAR in self.mounts:
            return self.mounts[IMAGE].inverse() @ self.mounts[LIDAR]
        return self._transforms.find_static(camera_frame, lidar_frame) if camera_frame else None

    def _decode(
        self, reader: BagReader, bundle: Bundle[Serialized | None], name: str, decoding: _Decoding
    ) -> tuple[str, Any] | None:
        """Frame id and decoded content of one of the bundle's messages; None where it cannot be decoded."""
        stamp_ns, payload = bundle.messages[name]
        assert payload is not None, "the reader keeps the data"
        msgtype, data = payload
        try:
            message: Any = reader.deserialize(data, msgtype)
            decoded = message.header.frame_id, decoding.decoders[name](message)
        except (DataError, MessageError) as error:
            decoding.undecodable.failed(name, stamp_ns, str(error))
            return None
        decoding.undecodable.decoded(name)
        return decoded

    def _new_decoding(self) -> _Decoding:
        """For one pass through the bag."""
        warn = partial(self._log_once, WARNING)
        return _Decoding(
            {
                IMAGE: ImageDecoder(self.readings.get(BITS), widens=False, warn=warn),
                DEPTH: DepthDecoder(remembered=self.readings.get(UNITS), remedy="source.depth_unit_m", warn=warn),
                LIDAR: partial(decode_point_cloud, times=self._times.restarted()),
            },
            Undecodable(self._index.streams, warn),
        )

    def _announce_pictures(self) -> None:
        if (bits := self.readings.get(BITS)) is not None:
            self._log(INFO, f"pictures of 16 bits are read as of {bits} bits; source.image_bits sets more")
        for kind, unit_m in self.readings.get(UNITS, {}).items():
            self._log(INFO, f"depth of {kind} values is read in units of {unit_m:g} m, see source.depth_unit_m")

    def _log_once(self, level: int, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._log(level, text)

    def _where(self, bundle: Bundle[Serialized | None], name: str) -> str:
        return f"{self._path}: {self._index.streams[name]} at {bundle.messages[name][0]} ns"

    def _picture_camera(self) -> PictureCamera:
        return PictureCamera(
            self._picture_topic,
            self._options.image_kind,
            lambda text: logger.info("%s: %s", self._path, text),
            lambda text: logger.warning("%s: %s", self._path, text),
        )

    @property
    def _picture_topic(self) -> str:
        """The topic whose camera it is: that of images, of depth images where there are no others; or empty."""
        streams = self._index.streams
        return streams.get(IMAGE) or streams.get(DEPTH, "")

    def _find_camera(self, reader: BagReader) -> str | None:
        """Take in the first valid CameraInfo, which holds for the frames before it, too.

        Returns:
            The topic; None without images and depth images, and in bags without CameraInfo.
        """
        if not self._picture_topic:
            return None
        topic = choose_camera_topic(reader, self._options, self._picture_topic)
        if topic is None:
            self._camera.reject("the recording has no camera info")
            return None
        self._camera.restart()
        self._camera_info = b""
        messages = reader.messages(connections_of(reader, [topic]))
        for connection, _, data in itertools.islice(messages, _MOST_UNCALIBRATED):
            self._take_camera_info(reader, connection.msgtype, data)
            if self._camera.calibration is not None:
                break
        return topic

    def _take_camera_info(self, reader: BagReader, msgtype: str, data: bytes) -> None:
        content = data[_STAMP_END:]
        if content == self._camera_info:
            return
        self._camera_info = content
        try:
            self._camera.take(reader.deserialize(data, msgtype))
        except DataError as error:
            self._camera.reject(str(error))

    def _no_poses(self, rows: NDArray[np.int64]) -> str:
        index, gap_s = self._index, self._options.pose_gap_s
        stamps, in_gap = index.stamps_ns[rows], int((~index.outside[rows]).sum())
        span = f" (from {stamps[0]} to {stamps[-1]} ns)" if len(rows) else ""
        hint = f"; {in_gap} are between poses more than source.pose_gap_s = {gap_s:g} s apart" if in_gap else ""
        return (
            f"{self._path}: none of {len(rows)} frames of {', '.join(index.streams.values())}{span} is within poses of "
            f"{index.pose_description}; check that their stamps share one clock{hint}"
        )


def in_test(stamps_ns: NDArray[np.int64], options: SourceOptions) -> NDArray[np.bool_]:
    """``(N,)`` bool: the frame belongs to the test split, by its time since the first frame."""
    since_ns = stamps_ns - stamps_ns[0]
    if options.test_from_s:
        return np.asarray(since_ns >= round(options.test_from_s * 1e9))
    block = since_ns // max(round(options.test_block_s * 1e9), 1)
    return np.asarray(block % options.test_every == options.test_every - 1)


def _static_tree(index: BagIndex) -> TransformTree:
    tree = TransformTree()
    for (parent, child), row in zip(index.static_edges, index.static_poses, strict=True):
        tree.add(parent, child, Pose(row[:3], row[3:]))
    return tree
