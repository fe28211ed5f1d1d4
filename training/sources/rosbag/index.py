# SPDX-License-Identifier: Apache-2.0
"""Index of a bag's frames and poses, cached on disk, so that a bag of hours is read through only once."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sources.caching import fingerprint
from training.sources.options import SourceOptions
from training.sources.rosbag.frames import FrameReader
from training.sources.rosbag.poses import PoseCollector
from training.sources.rosbag.topics import (
    choose_pose_topic,
    choose_streams,
    connections_of,
    is_transforms,
    static_topics,
    strays,
)
from vmloc_ros.bags.files import BagReader, bag_files, open_bag
from vmloc_ros.core.errors import OutputError
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.geometry import Pose

logger = logging.getLogger(__name__)

# Increase it whenever the same bag and options may give other frames than before.
RULES_VERSION = 3

# Share of frames that the order of logging must lose, or leave without their nearest partner, before that of stamps is
# used: the robot, too, goes on without a scan that comes late now and then, and one reader is faster than several.
_NOTABLE_GAIN = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class BagIndex:
    """All frames of a bag, with a pose or without; stride and split are applied later.

    Attributes:
        streams: topics by modality.
        pose_description: topic, number and time span of the poses, for messages.
        sensor_frames: ``header.frame_id`` of the first message, by modality.
        counts: numbers of messages and poses that were used, and that were dropped, by reason.
        stamps_ns: ``(N,)`` increasing stamps of frames.
        poses: ``(N, 7)`` x y z qw qx qy qz of ``map_from_body``; NaN where there is none.
        outside: ``(N,)`` bool, whether a frame lies outside the poses' time span; others without a pose are in a gap.
        static_edges: parent and child of M static transforms.
        static_poses: ``(M, 7)`` their ``parent_from_child``.
        windows: by modality, where messages are to be read by their stamps (see ``order``); empty: as they were logged.
        warnings: what is to be known about the bag, one line each.
    """

    streams: dict[str, str]
    map_frame: str
    body_frame: str
    pose_description: str
    sensor_frames: dict[str, str]
    counts: dict[str, int]
    stamps_ns: NDArray[np.int64]
    poses: NDArray[np.float64]
    outside: NDArray[np.bool_]
    static_edges: list[list[str]]
    static_poses: NDArray[np.float64]
    windows: dict[str, int]
    warnings: list[str]


def load_or_build(path: Path, options: SourceOptions, modalities: tuple[str, ...], folder: Path | None) -> BagIndex:
    """Load the bag's index from the folder, or build and store it where it is missing or damaged.

    A folder that cannot be written only causes a warning; None stores nothing.

    Raises:
        DataError: see :func:`build_index`.
    """
    if folder is None:
        return build_index(path, options, modalities)
    # Stride and split choose among the frames of the same index.
    every = SourceOptions()
    same = {name: getattr(every, name) for name in ("stride", "test_from_s", "test_every", "test_block_s", "robotcar")}
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
    """Read a bag through once; only poses and transforms are decoded.

    Raises:
        DataError: the bag is missing, empty or damaged, a topic is absent, ambiguous or of the wrong type, a pose is
            invalid, or transforms do not lead from map to body.
    """
    with open_bag(path, options.allow_truncated) as reader:
        streams = choose_streams(reader, options, modalities)
        pose_topic = choose_pose_topic(reader, options)
        static = static_topics(reader, pose_topic)
        frames = FrameReader(reader, streams, options.slop_s, keep_data=False)
        poses = PoseCollector(path, pose_topic, is_transforms(reader, pose_topic), options)
        stamps: list[tuple[int, int]] = []  # and when the message that gave it was logged
        for connection, logged_ns, data in reader.messages(
            connections_of(reader, [*streams.values(), pose_topic, *static])
        ):
            if connection.topic in streams.values():
                stamps += ((b.stamp_ns, b.arrival_ns) for b in frames.add(connection, logged_ns, data))
                continue
            message: Any = reader.deserialize(data, connection.msgtype)
            if connection.topic in static:
                poses.add_static(connection.topic, message)
            else:
                poses.add(message, logged_ns)
        stamps += ((b.stamp_ns, b.arrival_ns) for b in frames.flush())
        frames, stamps, windows = _better_by_stamps(reader, frames, stamps, options, streams)
        topics = [*streams.values(), pose_topic, *static]
        warnings = strays(reader, topics)
    lost = frames.log.lost_pairs(streams, frames.counts[f"{next(iter(streams))} alone"], options.slop_s)
    return _index_of(streams, frames, poses, stamps, options, windows, [*warnings, *([lost] if lost else [])])


def _better_by_stamps(
    reader: BagReader,
    frames: FrameReader,
    stamps: list[tuple[int, int]],
    options: SourceOptions,
    streams: dict[str, str],
) -> tuple[FrameReader, list[tuple[int, int]], dict[str, int]]:
    """Frames by the order of their stamps, and the windows for it, where the order of logging pairs many otherwise."""
    log = frames.log
    if log.has_restart:
        return frames, stamps, {}
    windows = log.windows
    ordered = FrameReader(reader, streams, options.slop_s, keep_data=False, by_stamps=True)
    logged_at: dict[int, int] = {}
    bundles = []
    for role, stamp_ns, logged_ns in log.in_order(windows):
        logged_at.setdefault(stamp_ns, logged_ns)
        bundles += ordered.add_stamp(role, stamp_ns, logged_ns)
    bundles += ordered.flush()
    if len(ordered.pairs - frames.pairs) <= _NOTABLE_GAIN * len(ordered.pairs):
        return frames, stamps, {}
    ordered.log, ordered.first_frames = log, frames.first_frames
    return ordered, [(b.stamp_ns, logged_at[b.stamp_ns]) for b in bundles], windows


def _index_of(
    streams: dict[str, str],
    frames: FrameReader,
    poses: PoseCollector,
    stamps: list[tuple[int, int]],
    options: SourceOptions,
    windows: dict[str, int],
    warnings: list[str],
) -> BagIndex:
    """The index of a bag that was read through; stamps and log times of its frames are in nanoseconds."""
    chain = poses.finish()
    stamps_ns, frames_logged_ns = np.array(stamps, np.int64).reshape(-1, 2).T
    mixed = chain.is_of_other_pass(stamps_ns, frames_logged_ns)
    stamps_ns = stamps_ns[~mixed]
    labels, outside = chain.label(stamps_ns, options.pose_gap_s)
    return BagIndex(
        streams=streams,
        map_frame=chain.map_frame,
        body_frame=chain.body_frame,
        pose_description=chain.description,
        sensor_frames=frames.first_frames,
        counts={
            **frames.counts,
            **chain.counts,
            "frames after the clock jumped back": frames.repeated + int(mixed.sum()),
        },
        stamps_ns=stamps_ns,
        poses=_to_rows(labels),
        outside=outside,
        static_edges=[[parent, child] for parent, child, _ in poses.static_transforms],
        static_poses=_to_rows([pose for _, _, pose in poses.static_transforms]),
        windows=windows,
        warnings=warnings,
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
