# SPDX-License-Identifier: Apache-2.0
"""Ground-truth poses of a bag, from the messages of one topic or from a graph of transforms."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from training.sources.options import SourceOptions
from training.sources.rosbag.tracks import PoseChain, PoseTrack
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.transform_tree import Edge, ancestors, find_path


class PoseCollector:
    """Collects poses and static transforms of a bag, and finds the chain of transforms from map to body.

    Args:
        path: of the bag, for error messages.
        topic: of the poses.
        is_tree: whether the topic's messages are transforms between many frames.
        options: ``map_frame``, ``body_frame`` and ``skip_invalid`` are used.
    """

    def __init__(self, path: Path, topic: str, is_tree: bool, options: SourceOptions) -> None:
        self._path, self._topic, self._is_tree, self._options = path, topic, is_tree, options
        self._tracks: dict[Edge, PoseTrack] = {}
        self._static: dict[str, tuple[str, Pose]] = {}  # parent and transform by child

    @property
    def static_transforms(self) -> list[tuple[str, str, Pose]]:
        """Parent, child and ``parent_from_child``."""
        return [(parent, child, pose) for child, (parent, pose) in self._static.items()]

    def add_static(self, topic: str, message: Any) -> None:
        """Add a message of static transforms; the newest transform of a child counts.

        Raises:
            DataError: a transform is invalid.
        """
        for transform in message.transforms:
            parent, child = _frames(transform)
            try:
                self._static[child] = parent, decode_pose(transform)
            except MessageError as error:
                raise DataError(f"{self._path}: {topic}: {error}") from error

    def add(self, message: Any, logged_ns: int) -> None:
        """Add a message of the pose topic, in the order of logging."""
        if self._is_tree:
            for transform in message.transforms:
                self._track(_frames(transform)).add(self._stamp_ns(transform, logged_ns), logged_ns, transform)
            return
        parent, child = _frames(message)
        edge = parent or self._options.map_frame, child or self._options.body_frame
        self._track(edge).add(self._stamp_ns(message, logged_ns), logged_ns, message)

    def finish(self) -> PoseChain:
        """The chain of transforms from map to body.

        Raises:
            DataError: there is no chain or more than one, nothing on it moves, or a pose on it is invalid.
        """
        chain = self._find_in_tree() if self._is_tree else self._only_track()
        for transform, _ in chain.steps:
            if isinstance(transform, PoseTrack):
                transform.settle(f"{self._path}: {self._topic}", self._options.skip_invalid)
        return chain

    def _stamp_ns(self, message: Any, logged_ns: int) -> int:
        return logged_ns if self._options.stamps == "log" else stamp_ns(message.header)

    def _track(self, edge: Edge) -> PoseTrack:
        if edge not in self._tracks:
            self._tracks[edge] = PoseTrack()
        return self._tracks[edge]

    def _only_track(self) -> PoseChain:
        if len(self._tracks) > 1:
            edges = ", ".join(f"{parent} -> {child}" for parent, child in sorted(self._tracks))
            raise DataError(f"{self._path}: the poses of {self._topic} are of several frames ({edges})")
        frames = self._options.map_frame, self._options.body_frame
        [(edge, track)] = self._tracks.items() or [(frames, PoseTrack())]
        return PoseChain(*edge, [(track, True)], f"{self._topic} ({track.span})")

    def _find_in_tree(self) -> PoseChain:
        start, goal = self._options.map_frame.lstrip("/"), self._options.body_frame.lstrip("/")
        transforms: dict[Edge, Pose | PoseTrack] = dict(self._tracks)
        transforms.update({(parent, child): pose for child, (parent, pose) in self._static.items()})
        path = find_path(transforms, start, goal)
        if path is None:
            raise DataError(self._broken(transforms, start, goal))
        for edge, _ in path:
            if (other := find_path(transforms.keys() - {edge}, start, goal)) is not None:
                ways = [" -> ".join([start, *(edge[down] for edge, down in way)]) for way in (path, other)]
                raise DataError(
                    f"{self._path}: {self._topic} leads from {start} to {goal} in two ways, {' and '.join(ways)}; "
                    "choose source.map_frame and source.body_frame, or another source.pose_topic"
                )
        moving = [(edge, transforms[edge]) for edge, _ in path if isinstance(transforms[edge], PoseTrack)]
        if not moving:
            raise DataError(
                f"{self._path}: nothing moves between {start} and {goal} in {self._topic}; "
                "choose source.map_frame and source.body_frame, or another source.pose_topic"
            )
        spans = "; ".join(f"{' -> '.join(edge)}: {track.span}" for edge, track in moving)
        return PoseChain(start, goal, [(transforms[edge], down) for edge, down in path], f"{self._topic} ({spans})")

    def _broken(self, edges: Collection[Edge], start: str, goal: str) -> str:
        known = sorted({frame for edge in edges for frame in edge})
        root = ancestors({child: parent for parent, child in edges}, goal)[-1]
        end = f"above {goal} the chain ends at {root}" if goal in known else f"{goal} is unknown"
        return (
            f"{self._path}: {self._topic} does not lead from {start} to {goal}: {end}; frames known: "
            f"{', '.join(known) or 'none'}; choose source.map_frame and source.body_frame, or another source.pose_topic"
        )


def _frames(message: Any) -> Edge:
    """Parent and child frame without leading slashes, which ROS 1 allowed; the child is empty where there is none."""
    return message.header.frame_id.lstrip("/"), getattr(message, "child_frame_id", "").lstrip("/")
