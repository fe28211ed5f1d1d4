# SPDX-License-Identifier: Apache-2.0
"""Bags: rosbag2 (MCAP, sqlite3) and ROS 1, paired by the node's own synchronizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.options import SourceOptions
from vmloc_ros.core.bags import open_bag
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose, interpolate_poses
from vmloc_ros.core.messages import (
    decode_camera_info,
    decode_depth,
    decode_image,
    decode_point_cloud,
    decode_pose,
    stamp_ns,
)
from vmloc_ros.core.transforms import StaticTransformTree
from vmloc_ros.synchronizer import Bundle, Synchronizer

logger = logging.getLogger(__name__)

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# Ground truth is usually a PoseStamped and odometry, which drifts, an Odometry: the first type found wins.
_POSES = (
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "nav_msgs/msg/Odometry",
)
_TYPES = {
    IMAGE: _IMAGES,
    DEPTH: _IMAGES,
    LIDAR: ("sensor_msgs/msg/PointCloud2",),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
    "pose": _POSES,
}
_DEADLINE_NS = 200_000_000


def is_bag(path: Path) -> bool:
    """Whether the path looks like a bag: a folder with metadata.yaml, or a .mcap, .db3 or .bag file."""
    return (path / "metadata.yaml").is_file() or (path.is_file() and path.suffix in (".mcap", ".db3", ".bag"))


class RosbagSource:
    """Frames of one bag with the pose interpolated at each frame's stamp.

    The bag is read once for poses and stamps, then streamed at each iteration. Frames outside the poses' time span are
    dropped and counted in ``report``.

    Args:
        path: see :func:`is_bag`.
        options: topics and pairing.
        modalities: of ``image``, ``depth``, ``lidar``: what to read.

    Raises:
        DataError: the bag is missing, empty or damaged, a topic is absent, ambiguous or of the wrong type, or no
            frame has a pose.
    """

    def __init__(self, path: Path, options: SourceOptions, modalities: tuple[str, ...] = (IMAGE, LIDAR)) -> None:
        self.name = path.name
        self._path, self._options = path, options
        self._camera_frame: str | None = None  # of the latest image: a cloud without one still lies in its view
        with open_bag(path) as reader:
            self._streams = self._choose_streams(reader, modalities)
            self.modalities = tuple(self._streams)
            stamps, poses = self._read_poses(reader)
            self._transforms = self._read_static_transforms(reader)
            # A stamp comes twice where the recorded clock jumped back, as in a bag that was played in a loop.
            frame_stamps = list(dict.fromkeys(b.stamp_ns for b in self._bundles(reader, decode=False)))
        if options.stride > 1:
            frame_stamps = frame_stamps[:: options.stride]
        labels = interpolate_poses(stamps, poses, frame_stamps)
        inside = sum(pose is not None for pose in labels)
        labels = [
            pose if near else None for pose, near in zip(labels, self._near_poses(stamps, frame_stamps), strict=True)
        ]
        self._labels = {stamp: pose for stamp, pose in zip(frame_stamps, labels, strict=True) if pose is not None}
        self.report = {
            "frames": len(self._labels),
            "frames outside the poses' time span": len(frame_stamps) - inside,
            "frames in a gap between poses": inside - len(self._labels),
            **self._pairing,
        }
        if not self._labels:
            span = f"from {stamps[0]} to {stamps[-1]} ns" if stamps else "at all"
            raise DataError(
                f"{path}: none of {len(frame_stamps)} frames of {', '.join(self._streams.values())} is within poses "
                f"of {self._pose_topic} ({len(poses)} {span}); check that their stamps share one clock"
            )

    def _near_poses(self, pose_stamps: list[int], frame_stamps: list[int]) -> NDArray[np.bool_]:
        """Whether each frame is at a pose, or between two that are near each other in time."""
        if not pose_stamps:
            return np.zeros(len(frame_stamps), bool)
        stamps, frames = np.asarray(pose_stamps, np.int64), np.asarray(frame_stamps, np.int64)
        after = np.searchsorted(stamps, frames).clip(0, len(stamps) - 1)
        before = (np.searchsorted(stamps, frames, side="right") - 1).clip(0)
        return np.asarray(stamps[after] - stamps[before] <= self._options.pose_gap_s * 1e9)

    def __len__(self) -> int:
        return len(self._labels)

    def poses(self) -> list[Pose]:
        return list(self._labels.values())

    def stamps_ns(self) -> list[int]:
        return list(self._labels)

    def __iter__(self) -> Iterator[Sample]:
        with open_bag(self._path) as reader:
            camera = self._read_camera(reader)
            labels = dict(self._labels)
            for bundle in self._bundles(reader, decode=True):
                if (pose := labels.pop(bundle.stamp_ns, None)) is not None:
                    yield Sample(self._frame(bundle, camera), pose)

    def map_points(self, every: int = 10) -> NDArray[np.float64]:
        """Points ``(N, 3)`` of every ``every``-th cloud in the map, by the true poses; for pictures of the map.

        Raises:
            DataError: the bag's /tf_static does not say where the lidar is.
        """
        clouds = [np.empty((0, 3))]
        with open_bag(self._path) as reader:
            for number, bundle in enumerate(self._bundles(reader, decode=True)):
                if number % every or LIDAR not in bundle.messages or bundle.stamp_ns not in self._labels:
                    continue
                message = bundle.messages[LIDAR][1]
                body_from_lidar = self._transforms.lookup(self.body_frame, message.header.frame_id)
                points = decode_point_cloud(message).xyz_m
                clouds.append((self._labels[bundle.stamp_ns] @ body_from_lidar).transform(points))
        return np.concatenate(clouds)

    def _choose_streams(self, reader: AnyReader, modalities: tuple[str, ...]) -> dict[str, str]:
        options = self._options
        wanted = {IMAGE: options.image_topic, DEPTH: options.depth_topic, LIDAR: options.cloud_topic}
        streams = {name: self._topic(reader, name, wanted[name]) for name in modalities}
        self._pose_topic = self._topic(reader, "pose", options.pose_topic)
        return streams

    def _topic(self, reader: AnyReader, role: str, wanted: str) -> str:
        """The topic that plays a role: the one asked for, or the only one that fits."""
        types, kind = _TYPES[role], role.replace("_", " ")
        listing = ", ".join(f"{name} ({info.msgtype})" for name, info in sorted(reader.topics.items()))
        if wanted:
            if wanted not in reader.topics:
                raise DataError(f"{self._path} has no {kind} topic {wanted}; it has {listing}")
            if reader.topics[wanted].msgtype not in types:
                raise DataError(
                    f"{self._path}: the {kind} topic {wanted} is {reader.topics[wanted].msgtype}, "
                    f"expected {' or '.join(types)}"
                )
            return wanted
        groups = [[t] for t in types] if role == "pose" else [list(types)]
        for group in groups:
            found = [name for name, info in reader.topics.items() if info.msgtype in group and info.msgcount]
            if role in (IMAGE, DEPTH):
                found = [name for name in found if ("depth" in name.lower()) == (role == DEPTH)]
            if len(found) == 1:
                return found[0]
            if found:
                option = f"source.{'cloud' if role == LIDAR else role}_topic"
                raise DataError(f"{self._path} has several {kind} topics ({', '.join(sorted(found))}); set {option}")
        raise DataError(f"{self._path} has no {kind} topic ({' or '.join(types)}); it has {listing}")

    def _read_poses(self, reader: AnyReader) -> tuple[list[int], list[Pose]]:
        by_stamp: dict[int, Pose] = {}
        self.map_frame, self.body_frame = "map", self._options.body_frame
        for message in _messages(reader, self._pose_topic):
            by_stamp[stamp_ns(message.header)] = self._pose(self._pose_topic, message)
            self.map_frame = message.header.frame_id or self.map_frame
            self.body_frame = getattr(message, "child_frame_id", "") or self.body_frame
        stamps = sorted(by_stamp)
        return stamps, [by_stamp[stamp] for stamp in stamps]

    def _read_static_transforms(self, reader: AnyReader) -> StaticTransformTree:
        tree = StaticTransformTree()
        for message in _messages(reader, "/tf_static"):
            for transform in message.transforms:
                tree.add(transform.header.frame_id, transform.child_frame_id, self._pose("/tf_static", transform))
        return tree

    def _pose(self, topic: str, message: Any) -> Pose:
        try:
            return decode_pose(message)
        except MessageError as error:
            raise DataError(f"{self._path}: {topic}: {error}") from error

    def _read_camera(self, reader: AnyReader) -> PinholeCamera | None:
        """Intrinsics of the image; None where the bag has none or the camera is not calibrated."""
        topics = [name for name, info in reader.topics.items() if info.msgtype in _TYPES["camera_info"]]
        if IMAGE not in self._streams or not (topics or self._options.camera_info_topic):
            return None
        # By ROS convention the intrinsics of /camera/image_raw are on /camera/camera_info.
        beside_image = f"{self._streams[IMAGE].rpartition('/')[0]}/camera_info"
        wanted = self._options.camera_info_topic or (beside_image if beside_image in topics else "")
        topic = self._topic(reader, "camera_info", wanted)
        message = next(_messages(reader, topic), None)
        try:
            return None if message is None else decode_camera_info(message)
        except MessageError as error:
            logger.warning("%s: %s: %s; pinhole projection is not possible", self._path, topic, error)
            return None

    def _bundles(self, reader: AnyReader, decode: bool) -> Iterator[Bundle[Any]]:
        """Synchronized messages; only their stamps matter, and only those are kept, unless ``decode``."""
        primary, *others = self._streams
        synchronizer: Synchronizer[Any] = Synchronizer(
            primary,
            tuple(others),
            slop_ns=int(self._options.slop_s * 1e9),
            deadline_ns=_DEADLINE_NS,
        )
        roles = {topic: name for name, topic in self._streams.items()}
        connections = [c for topic in roles for c in _connections(reader, topic)]
        for connection, logged_ns, data in reader.messages(connections=connections):
            message: Any = reader.deserialize(data, connection.msgtype)
            payload = message if decode else None
            yield from synchronizer.add(roles[connection.topic], stamp_ns(message.header), payload, logged_ns)
        yield from synchronizer.flush()
        counts = synchronizer.statistics
        self._pairing = {
            "paired": counts.paired,
            f"{primary} alone": counts.primary_only,
            f"without {primary}": counts.secondary_only,
            "late or duplicate": counts.late + counts.duplicate,
        }

    def _frame(self, bundle: Bundle[Any], camera: PinholeCamera | None) -> Frame:
        messages = {name: message for name, (_, message) in bundle.messages.items()}
        try:
            return Frame(
                stamp_ns=bundle.stamp_ns,
                image=decode_image(messages[IMAGE]) if IMAGE in messages else None,
                depth_m=decode_depth(messages[DEPTH]) if DEPTH in messages else None,
                cloud=decode_point_cloud(messages[LIDAR]) if LIDAR in messages else None,
                camera=camera,
                camera_from_lidar=self._camera_from_lidar(messages),
            )
        except MessageError as error:
            raise DataError(f"{self._path}: frame at {bundle.stamp_ns} ns: {error}") from error

    def _camera_from_lidar(self, messages: dict[str, Any]) -> Pose | None:
        if IMAGE in messages:
            self._camera_frame = messages[IMAGE].header.frame_id
        if LIDAR not in messages or self._camera_frame is None:
            return None
        return self._transforms.find(self._camera_frame, messages[LIDAR].header.frame_id)


def _connections(reader: AnyReader, topic: str) -> list[Connection]:
    return [connection for connection in reader.connections if connection.topic == topic]


def _messages(reader: AnyReader, topic: str) -> Iterator[Any]:
    """Decoded messages of one topic; none where the bag lacks it (the reader takes no connections for all)."""
    connections = _connections(reader, topic)
    for connection, _, data in reader.messages(connections=connections) if connections else ():
        yield reader.deserialize(data, connection.msgtype)
