# SPDX-License-Identifier: Apache-2.0
"""A tree of static and moving transforms, without tf2; pure Python. Not thread-safe: callers hold a lock."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Protocol

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.pose_buffer import JUMP_BACK_S, PoseBuffer

Edge = tuple[str, str]  # parent frame, child frame
_MOST_NAMES = 20  # in an error: a robot may have hundreds of frames


class TransformTree:
    """Static transforms, and moving ones with a bounded past; frame names compare without a leading slash.

    Args:
        jump_back_s: a moving transform whose stamps go back by more than this starts anew.
    """

    def __init__(self, jump_back_s: float = JUMP_BACK_S) -> None:
        self._jump_back_s = jump_back_s
        self._parents: dict[str, str] = {}
        self._transforms: dict[Edge, Pose | PoseBuffer] = {}
        self._paths: dict[Edge, list[tuple[Edge, bool]] | None] = {}  # found so far; lookups repeat

    def add(self, parent: str, child: str, parent_from_child: Pose, stamp_ns: int | None = None) -> None:
        """Add a transform, static without a stamp. A child has one parent: the latest replaces another one."""
        edge = parent, child = frame_name(parent), frame_name(child)
        if (known := self._parents.get(child, parent)) != parent:
            del self._transforms[known, child]
        if edge not in self._transforms:
            self._paths.clear()
        self._parents[child] = parent
        if stamp_ns is None:
            self._transforms[edge] = parent_from_child
            return
        motion = self._transforms.get(edge)
        if not isinstance(motion, PoseBuffer):
            motion = self._transforms[edge] = PoseBuffer(self._jump_back_s)
        motion.add(stamp_ns, parent_from_child)

    def remove(self, parent: str, child: str) -> None:
        """Forget a transform; does nothing where it is not known."""
        edge = parent, child = frame_name(parent), frame_name(child)
        if self._transforms.pop(edge, None) is not None:
            del self._parents[child]
            self._paths.clear()

    def ancestors(self, frame: str) -> list[str]:
        """See :func:`ancestors`."""
        return ancestors(self._parents, frame)

    def find(self, target: str, source: str, stamp_ns: int | None = None) -> Pose:
        """``target_from_source``: through static transforms alone, or at a stamp through moving ones too.

        Moving transforms are interpolated and never extrapolated.

        Raises:
            DataError: the frames are not connected, or a transform between them is not known at the stamp.
        """
        path = self._find_path(target, source)
        if path is None:
            raise DataError(describe_break(self._parents, frame_name(target), frame_name(source)))
        return self._along(path, stamp_ns)

    def find_static(self, target: str, source: str) -> Pose | None:
        """``target_from_source``, or None where static transforms alone do not connect the frames."""
        path = self._find_path(target, source)
        if path is None or any(isinstance(self._transforms[edge], PoseBuffer) for edge, _ in path):
            return None
        return self._along(path)

    def _find_path(self, target: str, source: str) -> list[tuple[Edge, bool]] | None:
        ends = frame_name(target), frame_name(source)
        if ends not in self._paths:
            self._paths[ends] = find_path(self._transforms, *ends)
        return self._paths[ends]

    def _along(self, path: list[tuple[Edge, bool]], stamp_ns: int | None = None) -> Pose:
        """The product of a path's transforms: in a tree it goes up to a common ancestor first, then down."""
        ancestor_from_target, ancestor_from_source = Pose.identity(), Pose.identity()
        for edge in [edge for edge, is_downwards in path if not is_downwards]:
            ancestor_from_target = self._at(edge, stamp_ns) @ ancestor_from_target
        for edge in [edge for edge, is_downwards in reversed(path) if is_downwards]:
            ancestor_from_source = self._at(edge, stamp_ns) @ ancestor_from_source
        return ancestor_from_target.inverse() @ ancestor_from_source

    def _at(self, edge: Edge, stamp_ns: int | None) -> Pose:
        transform, name = self._transforms[edge], " -> ".join(edge)
        if isinstance(transform, Pose):
            return transform
        if stamp_ns is None:
            raise DataError(f"{name} moves")
        try:
            return transform.at(stamp_ns)
        except DataError as error:
            raise DataError(f"{name} on /tf: {error}") from error


def ancestors(parents: Mapping[str, str], frame: str) -> list[str]:
    """A frame and all frames above it, as far as they are known; ``parents`` maps child to parent."""
    chain = [frame]
    while (parent := parents.get(chain[-1])) is not None and parent not in chain:  # else a loop, in a broken TF
        chain.append(parent)
    return chain


def describe_break(parents: Mapping[str, str], target: str, source: str) -> str:
    """Say that two frames are not connected, and which frames there are; ``parents`` maps child to parent."""
    known = sorted({*parents, *parents.values()})
    if len(known) > _MOST_NAMES:
        known = [*known[:_MOST_NAMES], f"and {len(known) - _MOST_NAMES} more"]
    return (
        f"TF does not lead from {source} to {target}; above {source}: "
        f"{', '.join(ancestors(parents, source)[1:]) or 'nothing'}; frames known: {', '.join(known) or 'none'}"
    )


def find_path(edges: Iterable[Edge], start: str, goal: str) -> list[tuple[Edge, bool]] | None:
    """The shortest path between two frames of a graph of transforms, by breadth-first search.

    Returns:
        The path's edges from ``start`` to ``goal``, each with whether it is taken from parent to child; None where
        the frames are not connected.
    """
    steps: dict[str, list[tuple[str, tuple[Edge, bool]]]] = defaultdict(list)  # by frame: neighbour and edge to it
    for edge in sorted(edges):
        parent, child = edge
        steps[parent].append((child, (edge, True)))
        steps[child].append((parent, (edge, False)))
    paths: dict[str, list[tuple[Edge, bool]]] = {start: []}
    queue = deque([start])
    while queue:
        frame = queue.popleft()
        if frame == goal:
            return paths[frame]
        for neighbour, step in steps[frame]:
            if neighbour not in paths:
                paths[neighbour] = [*paths[frame], step]
                queue.append(neighbour)
    return None


class TransformLookup(Protocol):
    """Finds ``target_from_source`` among the transforms known so far."""

    def find(self, target: str, source: str) -> Pose | None:
        """The latest transform, or None where the frames are not connected."""

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        """The transform at a stamp, interpolated. Raises DataError: it is not known; the message gives the reason."""

    @property
    def problem(self) -> str | None:
        """Publishers of TF that cannot be heard, while a transform is missing; None without any."""

    @property
    def hint(self) -> str:
        """What to append to the text of a missing transform; may be empty."""

    def forget(self) -> None:
        """Drop moving transforms, after a jump back in time."""

    def close(self) -> None:
        """Stop listening."""
