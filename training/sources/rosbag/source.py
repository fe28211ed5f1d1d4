# SPDX-License-Identifier: Apache-2.0
"""Data source of bags: rosbag2 (MCAP, sqlite3, compressed or not) and ROS 1, paired by the node's synchronizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sources.caching import fingerprint
from training.sources.options import SourceOptions
from training.sources.rosbag.frames import FrameReader, Serialized
from training.sources.rosbag.index import RULES_VERSION, BagIndex, load_or_build
from training.sources.rosbag.order import read_by_stamps
from training.sources.rosbag.topics import choose_camera_topic, connections_of
from vmloc_ros.bags.files import BagReader, bag_files, is_unfinished, open_bag
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_camera_info, decode_depth, decode_image, decode_point_cloud
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.core.transform_tree import TransformTree

logger = logging.getLogger(__name__)

_DECODERS = {IMAGE: decode_image, DEPTH: decode_depth, LIDAR: decode_point_cloud}


def is_bag(path: Path) -> bool:
    """Whether the path looks like a bag, maybe one that was cut off: a folder with metadata.yaml, or a storage file."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or is_unfinished(path)
    return path.is_file() and (path.suffix in (".mcap", ".db3", ".bag") or path.name.endswith(".bag.active"))


class RosbagSource:
    """Frames of one bag with the pose interpolated at each frame's stamp.

    The bag is read once for poses and stamps, then streamed at each iteration. Frames without a pose and frames of the
    other split are dropped and counted in ``report``.

    Args:
        path: see :func:`is_bag`.
        options: topics, pairing, poses and split.
        modalities: to read, some of ``image``, ``depth``, ``lidar``.
        split: ``train``, ``test`` or ``all``; without a split in the options each of them is all. May be empty.
        index_folder: where to store the bag's index; see :func:`load_or_build`.

    Attributes:
        sensor_frames: by modality ``header.frame_id``.

    Raises:
        DataError: the bag is missing, empty or damaged, a topic is absent, ambiguous or of the wrong type, a pose is
            invalid, transforms do not lead from map to body, or no frame has a pose.
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
        if index.windows:
            logger.info(
                "%s: messages that belong together were not logged together; it is read by the stamps in their headers",
                path,
            )
        for warning in index.warnings:
            logger.warning("%s: %s", path, warning)
        self.modalities = tuple(index.streams)
        self.map_frame, self.body_frame = index.map_frame, index.body_frame
        self.sensor_frames = index.sensor_frames
        self._transforms = _static_tree(index)
        frames = index.sensor_frames.items()
        mounts = {name: self._transforms.find_static(self.body_frame, frame) for name, frame in frames}
        self.mounts = {name: pose for name, pose in mounts.items() if pose is not None}
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

    def __len__(self) -> int:
        return len(self._labels)

    def poses(self) -> list[Pose]:
        return list(self._labels.values())

    def stamps_ns(self) -> list[int]:
        return list(self._labels)

    def __iter__(self) -> Iterator[Sample]:
        sizes: dict[str, tuple[int, ...]] = {}
        with open_bag(self._path, self._options.allow_truncated) as reader:
            camera = self._read_camera(reader)
            for bundle, pose in self._labelled(reader):
                yield Sample(self._frame(reader, bundle, camera, sizes), pose)

    def fingerprint(self) -> str:
        return fingerprint(bag_files(self._path), RULES_VERSION, self._options, self._index.streams, self._split)

    def map_points(self, every: int = 10) -> NDArray[np.float64]:
        """Points ``(N, 3)`` of every ``every``-th cloud in the map frame, by the true poses; for plots of the map.

        Raises:
            DataError: the bag's /tf_static does not connect the lidar with the body.
        """
        clouds = [np.empty((0, 3))]
        with open_bag(self._path, self._options.allow_truncated) as reader:
            for number, (bundle, pose) in enumerate(self._labelled(reader)):
                if number % every or LIDAR not in bundle.messages:
                    continue
                frame_id, cloud = self._decode(reader, bundle, LIDAR)
                body_from_lidar = self._transforms.find(self.body_frame, frame_id)
                clouds.append((pose @ body_from_lidar).transform(cloud.xyz_m))
        return np.concatenate(clouds)

    def _labelled(self, reader: BagReader) -> Iterator[tuple[Bundle[Serialized | None], Pose]]:
        """Frames that have a pose, still serialized; reading stops after the last one."""
        streams, windows, options = self._index.streams, self._index.windows, self._options
        frames = FrameReader(reader, streams, options.slop_s, keep_data=True, by_stamps=bool(windows))
        if windows:
            messages = read_by_stamps(self._path, options.allow_truncated, streams, windows, frames.stamp_of)
        else:
            messages = reader.messages(connections_of(reader, list(streams.values())))
        left = dict(self._labels)
        for message in messages:
            if not left:
                return
            yield from ((b, left.pop(b.stamp_ns)) for b in frames.add(*message) if b.stamp_ns in left)
        yield from ((b, left.pop(b.stamp_ns)) for b in frames.flush() if b.stamp_ns in left)

    def _frame(
        self,
        reader: BagReader,
        bundle: Bundle[Serialized | None],
        camera: PinholeCamera | None,
        sizes: dict[str, tuple[int, ...]],
    ) -> Frame:
        """Decode a frame; ``sizes`` holds the sizes of earlier images, by modality."""
        decoded = {name: self._decode(reader, bundle, name) for name in bundle.messages}
        frame_ids = {name: frame_id for name, (frame_id, _) in decoded.items()}
        data = {name: content for name, (_, content) in decoded.items()}
        for name in (IMAGE, DEPTH):
            if name in data and data[name].shape[:2] != sizes.setdefault(name, data[name].shape[:2]):
                (height, width), (first_height, first_width) = data[name].shape[:2], sizes[name]
                raise DataError(
                    f"{self._where(bundle, name)}: the image is {width}x{height}, those before it {first_width}x"
                    f"{first_height}; one recording has one size and one calibration: split the bag there"
                )
        camera_frame = frame_ids.get(IMAGE, self._index.sensor_frames.get(IMAGE))
        return Frame(
            stamp_ns=bundle.stamp_ns,
            image=data.get(IMAGE),
            depth_m=data.get(DEPTH),
            cloud=data[LIDAR].delayed((bundle.messages[LIDAR][0] - bundle.stamp_ns) * 1e-9) if LIDAR in data else None,
            camera=camera,
            camera_from_lidar=(
                self._transforms.find_static(camera_frame, frame_ids[LIDAR]) if LIDAR in data and camera_frame else None
            ),
        )

    def _decode(self, reader: BagReader, bundle: Bundle[Serialized | None], name: str) -> tuple[str, Any]:
        """Frame id and decoded content of one of the bundle's messages."""
        payload = bundle.messages[name][1]
        assert payload is not None, "the reader keeps the data"
        msgtype, data = payload
        try:
            message: Any = reader.deserialize(data, msgtype)
            return message.header.frame_id, _DECODERS[name](message)
        except (DataError, MessageError) as error:
            raise DataError(f"{self._where(bundle, name)}: {error}") from error

    def _where(self, bundle: Bundle[Serialized | None], name: str) -> str:
        return f"{self._path}: {self._index.streams[name]} at {bundle.messages[name][0]} ns"

    def _read_camera(self, reader: BagReader) -> PinholeCamera | None:
        """Intrinsics of the image; None where the bag has none or the camera is not calibrated."""
        if IMAGE not in self._index.streams:
            return None
        topic = choose_camera_topic(reader, self._options, self._index.streams[IMAGE])
        if topic is None:
            return None
        for connection, _, data in reader.messages(connections_of(reader, [topic])):
            try:
                return decode_camera_info(reader.deserialize(data, connection.msgtype))
            except MessageError as error:
                logger.warning("%s: %s: %s; pinhole projection is not possible", self._path, topic, error)
                return None
        return None

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
