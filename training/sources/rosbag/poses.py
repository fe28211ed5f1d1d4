# SPDX-License-Identifier: Apache-2.0
"""Ground-truth poses of a bag, from the messages of one topic or from a graph of transforms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from training.sources.options import SourceOptions
from training.sources.rosbag.body import BASE_FRAME, choose_body
from training.sources.rosbag.tracks import PoseChain, PoseTrack
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.fixed_transforms import FixedTransforms
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_pose, stamp_ns
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.transform_tree import Edge, ancestors, find_path


class PoseCollector:
    """Collects poses and static transforms of a bag, and finds the chain of transforms from map to body.

    Args:
        path: of the bag, for error messages.
        topic: of the poses.
        is_tree: whether the topic's messages are transforms between many frames.
        options: ``map_frame``, ``body_frame`` and ``skip_invalid`` are used.

    Attributes:
        assumption: what was assumed of the body's frame, as text; empty where nothing was.
    """

    def __init__(self, path: Path, topic: str, is_tree: bool, options: SourceOptions) -> None:
        self._path, self._topic, self._is_tree, self._options = path, topic, is_tree, options
        self._tracks: dict[Edge, PoseTrack] = {}
        self._static: dict[str, tuple[str, Pose]] = {}  # parent and transform by child
        self._repeated = FixedTransforms()
        self.assumption = ""

    @property
    def static_transforms(self) -> list[tuple[str, str, Pose]]:
        """Parent, child and ``parent_from_child``."""
        fixed = [(*edge, pose) for edge, pose in self.fixed_transforms.items()]
        return [*fixed, *((parent, child, pose) for child, (parent, pose) in self._static.items())]

    @property
    def fixed_transforms(self) -> dict[Edge, Pose]:
        """``parent_from_child`` of transforms on /tf that never move, as far as /tf_static does not have them."""
        tracks = {edge: track.fixed() for edge, track in self._tracks.items()} if self._is_tree else {}
        found = {**self._repeated.fixed, **{edge: pose for edge, pose in tracks.items() if pose is not None}}
        return {edge: pose for edge, pose in found.items() if edge[1] not in self._static}

    def knows(self, frames: Collection[str]) -> bool:
        """Whether static transforms know all of these frames."""
        known = {frame for parent, child, _ in self.static_transforms for frame in (parent, child)}
        return known.issuperset(map(frame_name, frames))

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

    def add_repeated(self, message: Any) -> None:
        """Add a message of moving transforms, of which those that never move serve as static ones."""
        for transform in message.transforms:
            try:
                self._repeated.add(*_frames(transform), decode_pose(transform))
            except MessageError:  # a transform that is not needed may be invalid
                continue

    def add(self, message: Any, logged_ns: int) -> None:
        """Add a message of the pose topic, in the order of logging."""
        if self._is_tree:
            for transform in message.transforms:
                self._track(_frames(transform)).add(self._stamp_ns(transform, logged_ns), logged_ns, transform)
            return
        parent, child = _frames(message)
        edge = parent or self._options.map_frame, child
        self._track(edge).add(self._stamp_ns(message, logged_ns), logged_ns, message)

    def finish(self, sensors: Mapping[str, str] = {}) -> PoseChain:
        """The chain of transforms from map to body.

        Args:
            sensors: frames of all of the bag's sensors by topic, from which the body is chosen where poses do not name
                it.

        Raises:
            DataError: there is no chain or more than one, nothing on it moves, or a pose on it is invalid.
        """
        chain = self._find_in_tree() if self._is_tree else self._only_track(sensors)
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

    def _only_track(self, sensors: Mapping[str, str]) -> PoseChain:
        if len(self._tracks) > 1:
            edges = ", ".join(
                f"{parent} -> {child or 'body'}: {len(track)}"
                for (parent, child), track in sorted(self._tracks.items())
            )
            raise DataError(
                f"{self._path}: the poses of {self._topic} are of several frames ({edges}), as two publishers on one "
                "topic make them; choose another source.pose_topic, or record one of them alone"
            )
        [((parent, child), track)] = self._tracks.items() or [((self._options.map_frame, ""), PoseTrack())]
        return PoseChain(parent, child or self._body(sensors), [(track, True)], f"{self._topic} ({track.span})")

    def _body(self, sensors: Mapping[str, str]) -> str:
        """The frame whose poses they are, where the messages do not name it."""
        if self._options.body_frame:
            return self._options.body_frame
        edges = [(parent, child) for parent, child, _ in self.static_transforms]
        body, self.assumption = choose_body(self._topic, edges, sensors)
        return body

    def _find_in_tree(self) -> PoseChain:
        start, goal = self._options.map_frame, self._options.body_frame or BASE_FRAME
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
            f"{', '.join(known) or 'none'}; type --set source.map_frame=FRAME --set source.body_frame=FRAME, or choose "
            "another source.pose_topic"
        )


def _frames(message: Any) -> Edge:
    """Parent and child frame; the child is empty where there is none."""
    return frame_name(message.header.frame_id), frame_name(getattr(message, "child_frame_id", ""))
