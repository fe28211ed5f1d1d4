# SPDX-License-Identifier: Apache-2.0
"""Index of a bag's frames and poses, cached on disk, so that a bag of hours is read through only once."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.sources.caching import fingerprint
from training.sources.options import SourceOptions
from training.sources.rosbag.frames import FirstReading, PairedStamps, pair_stamps
from training.sources.rosbag.pictures import PictureSample
from training.sources.rosbag.poses import PoseCollector
from training.sources.rosbag.scans import ScanSurvey
from training.sources.rosbag.topics import (
    choose_pose_topic,
    choose_streams,
    connections_of,
    describe_streams,
    describe_topic,
    is_odometry,
    is_transforms,
    moving_topics,
    other_pose_topics,
    sensor_frames,
    static_topics,
    strays,
)
from training.sources.rosbag.tracks import PoseChain
from vmloc_ros.bags.files import BagReader, bag_files, open_bag
from vmloc_ros.core.errors import OutputError
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.names import frame_name

logger = logging.getLogger(__name__)

# Increase it whenever the same bag and options may give other frames than before.
RULES_VERSION = 5


_BY_STAMPS = "messages that belong together were not logged together: it is read by the stamps in their headers"


@dataclass(frozen=True, slots=True, eq=False)
class BagIndex:
    """All frames of a bag, with a pose or without; stride and split are applied later.

    Attributes:
        streams: topics by modality.
        pose_description: topic, number and time span of the poses, for messages.
        sensor_frames: frame of the first message, by modality.
        choices: topics and frames that are used, as texts to print.
        doubts: what was assumed and may be wrong, as texts to warn with.
        counts: numbers of messages and poses that were used, and that were dropped, by reason.
        false_stamps: stamps and log times of the messages that are left out, by modality.
        stamps_ns: ``(N,)`` increasing stamps of frames.
        poses: ``(N, 7)`` x y z qw qx qy qz of ``map_from_body``; NaN where there is none.
        outside: ``(N,)`` bool, whether a frame lies outside the poses' time span; others without a pose are in a gap.
        static_edges: parent and child of M static transforms.
        static_poses: ``(M, 7)`` their ``parent_from_child``.
        readings: how messages of this recording are read where they leave it open, by name; as JSON has it. See
            :class:`RosbagSource`.
        scans: number of lidar messages.
        empty_scans_ns: ``(K,)`` stamps of those without a return. They are missing scans, and a frame that would hold
            nothing else is left out.
        windows: by modality, where messages are to be read by their stamps (see ``order``); empty: as they were logged.
    """

    streams: dict[str, str]
    map_frame: str
    body_frame: str
    pose_description: str
    sensor_frames: dict[str, str]
    choices: list[str]
    doubts: list[str]
    counts: dict[str, int]
    false_stamps: dict[str, list[list[int]]]
    stamps_ns: NDArray[np.int64]
    poses: NDArray[np.float64]
    outside: NDArray[np.bool_]
    static_edges: list[list[str]]
    static_poses: NDArray[np.float64]
    readings: dict[str, Any]
    scans: int
    empty_scans_ns: NDArray[np.int64]
    windows: dict[str, int]


def load_or_build(path: Path, options: SourceOptions, modalities: tuple[str, ...], folder: Path | None) -> BagIndex:
    """Load the bag's index from the folder, or build and store it where it is missing or damaged.

    A folder that cannot be written only causes a warning; None stores nothing.

    Raises:
        DataError: see :func:`build_index`.
    """
    if folder is None:
        return build_index(path, options, modalities)
    # Stride and split choose among the frames of the same index; mounts come later.
    every = SourceOptions()
    same = {
        name: getattr(every, name)
        for name in ("stride", "test_from_s", "test_every", "test_block_s", "robotcar", "mounts")
    }
    key = fingerprint(bag_files(path), RULES_VERSION, replace(options, **same), modalities)
    file = folder / f"{key[:32]}.npz"
    if (index := _load(file)) is not None:
        return index
    index = build_index(path, options, modalities)
    try:
        _save(file, index)
    except OutputError as error:
        logger.warning("%s; %s will be read through again next time", error, path)
    return index


def build_index(path: Path, options: SourceOptions, modalities: tuple[str, ...]) -> BagIndex:
    """Read a bag through once; only poses, transforms and a sample of the pictures are decoded.

    Raises:
        DataError: the bag is missing, empty or damaged, a topic is absent, ambiguous or of the wrong type, a pose is
            invalid, transforms do not lead from map to body, or no picture can be decoded.
    """
    with open_bag(path, options.allow_truncated) as reader:
        streams = choose_streams(reader, options, modalities)
        pose_topic = choose_pose_topic(reader, options)
        static = static_topics(reader, pose_topic)
        first = FirstReading(reader, streams, options.stamps == "log")
        pictures = PictureSample(reader, streams, options)
        scans = ScanSurvey(reader, streams)
        poses = PoseCollector(path, pose_topic, is_transforms(reader, pose_topic), options)
        topics = [*streams.values(), pose_topic, *static]
        for connection, logged_ns, data in reader.messages(connections_of(reader, topics)):
            if connection.topic in streams.values():
                scans.add(connection, data, first.add(connection, logged_ns, data))
                pictures.add(connection, data)
                continue
            message: Any = reader.deserialize(data, connection.msgtype)
            if connection.topic in static:
                poses.add_static(connection.topic, message)
            else:
                poses.add(message, logged_ns)
        first.judge()
        frames = pair_stamps(first, streams, options.slop_s, scans.usable)
        _look_for_repeated(reader, pose_topic, static, first.first_frames, poses)
        chain = poses.finish(sensor_frames(reader))
        choices = [describe_streams(reader, options, streams, first.first_frames)]
        choices += _describe_poses(reader, pose_topic, chain, poses)
        if frames.windows:
            choices.append(_BY_STAMPS)
        doubts = [_drift(reader, pose_topic, chain, options), poses.assumption, *strays(reader, topics), frames.lost]
    mixed, labels = _label(frames, chain, options)
    return BagIndex(
        streams=streams,
        map_frame=chain.map_frame,
        body_frame=chain.body_frame,
        pose_description=chain.description,
        sensor_frames={name: frame_name(frame) for name, frame in first.first_frames.items()},
        choices=choices,
        doubts=[text for text in doubts if text],
        counts={
            **frames.counts,
            **first.counts,
            **chain.counts,
            "frames after the clock jumped back": frames.repeated + mixed,
            "empty scans": scans.empty,
        },
        false_stamps={name: [list(pair) for pair in sorted(pairs)] for name, pairs in first.false.items()},
        stamps_ns=labels.stamps_ns,
        poses=_to_rows(labels.poses),
        outside=labels.outside,
        static_edges=[[parent, child] for parent, child, _ in poses.static_transforms],
        static_poses=_to_rows([pose for _, _, pose in poses.static_transforms]),
        readings={**scans.readings, **pictures.readings()},
        scans=scans.count,
        empty_scans_ns=np.array(sorted(scans.empty_ns), np.int64),
        windows=frames.windows,
    )


class _Labels(NamedTuple):
    """Stamps ``(N,)`` of frames, their poses or None, and ``(N,)`` bool: outside the poses' time span."""

    stamps_ns: NDArray[np.int64]
    poses: list[Pose | None]
    outside: NDArray[np.bool_]


def _label(frames: PairedStamps, chain: PoseChain, options: SourceOptions) -> tuple[int, _Labels]:
    """The frames' poses, and the number of frames that are left out since their poses are of another pass."""
    stamps_ns, frames_logged_ns = np.array(frames.stamps, np.int64).reshape(-1, 2).T
    mixed = chain.is_of_other_pass(stamps_ns, frames_logged_ns)
    return int(mixed.sum()), _Labels(stamps_ns[~mixed], *chain.label(stamps_ns[~mixed], options.pose_gap_s))


def _look_for_repeated(
    reader: BagReader, pose_topic: str, static: list[str], sensors: dict[str, str], poses: PoseCollector
) -> None:
    """Read moving transforms too where static ones do not know all sensors: fixed mounts may be among them."""
    topics = [topic for topic in moving_topics(reader, static) if topic != pose_topic]
    if not topics or poses.knows(sensors.values()):
        return
    for connection, _, data in reader.messages(connections_of(reader, topics)):
        poses.add_repeated(reader.deserialize(data, connection.msgtype))


def _describe_poses(reader: BagReader, pose_topic: str, chain: PoseChain, poses: PoseCollector) -> list[str]:
    """Which poses are used, which are not, and which transforms were taken for static ones."""
    others = ", ".join(describe_topic(reader, name) for name in other_pose_topics(reader, pose_topic))
    texts = [
        f"poses of {chain.body_frame} in {chain.map_frame} from {describe_topic(reader, pose_topic)}"
        + (f"; others, which source.pose_topic would choose: {others}" if others else "")
    ]
    if fixed := poses.fixed_transforms:
        listing = ", ".join(" -> ".join(edge) for edge in sorted(fixed))
        texts.append(f"these transforms are not on /tf_static, and on /tf they never move: taken as fixed: {listing}")
    return texts


def _drift(reader: BagReader, pose_topic: str, chain: PoseChain, options: SourceOptions) -> str:
    """A warning where poses that drift were taken for the truth without the user's word; else empty."""
    is_named = options.pose_topic or is_transforms(reader, pose_topic)  # of transforms the user names the frames
    if is_named or not (is_odometry(reader, pose_topic) or chain.map_frame.rpartition("/")[2] == "odom"):
        return ""
    frames = f"{chain.map_frame} -> {chain.body_frame}"
    return (
        f"the true poses are those of {describe_topic(reader, pose_topic, frames)}, the only ones there are: odometry "
        "drifts on most robots, and the model learns the drift. Record poses in a map (SLAM, GNSS, motion capture) and "
        f"choose them by source.pose_topic; if these do not drift, confirm them: --set source.pose_topic={pose_topic}"
    )


def _to_rows(poses: list[Pose | None] | list[Pose]) -> NDArray[np.float64]:
    rows = [np.full(7, np.nan) if pose is None else [*pose.position_m, *pose.quaternion_wxyz] for pose in poses]
    return np.array(rows, np.float64).reshape(-1, 7)


def _save(file: Path, index: BagIndex) -> None:
    arrays, texts = {}, {}
    for field in fields(index):
        value = getattr(index, field.name)
        (arrays if isinstance(value, np.ndarray) else texts)[field.name] = value
    with write_aside(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, texts=json.dumps(texts), **arrays)


def _load(file: Path) -> BagIndex | None:
    """The index in a file; None where it is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as content:
            values = {name: content[name] for name in content.files}
        texts = json.loads(str(values.pop("texts")))
        return BagIndex(**texts, **values)
    except FileNotFoundError:
        return None
    except Exception as error:  # zip, zlib, numpy, JSON: damage shows in many ways
        logger.warning("the index %s cannot be used (%s); it is built again", file, error)
        return None
