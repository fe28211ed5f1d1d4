# SPDX-License-Identifier: Apache-2.0
"""The transforms of /tf and /tf_static, for machines without tf2; pure Python. Not thread-safe: callers hold a lock."""

from __future__ import annotations

from typing import Protocol

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.pose_buffer import OdometryBuffer

_MAX_GAP_S = 0.5


class MovingTransform:
    """The bounded past of one moving transform, interpolated, never extrapolated."""

    def __init__(self, jump_back_s: float) -> None:
        self._buffer = OdometryBuffer(jump_back_s, max_gap_s=_MAX_GAP_S)
        self._newest_ns = 0

    def add(self, stamp_ns: int, pose: Pose) -> None:
        """Take a pose in; one that jumps forgets those before."""
        jumped = self._buffer.add(stamp_ns, pose) is not None
        self._newest_ns = stamp_ns if jumped else max(stamp_ns, self._newest_ns)

    def at(self, stamp_ns: int) -> Pose:
        """The pose at a stamp. Raises DataError: it is not known; the text says what is missing."""
        pose = self._buffer.at(stamp_ns)
        if pose is not None:
            return pose
        if not len(self._buffer):
            raise DataError("nothing received yet")
        if stamp_ns > self._newest_ns:
            raise DataError(f"the latest is {(stamp_ns - self._newest_ns) * 1e-9:.3f} s older than the image's stamp")
        raise DataError(f"does not reach back to the image's stamp, or has a gap of more than {_MAX_GAP_S} s there")


class TransformTree:
    """Static transforms, and moving ones with a bounded past; frame names compare without a leading slash.

    Args:
        jump_back_s: a moving transform whose stamps go back by more starts anew.
    """

    def __init__(self, jump_back_s: float) -> None:
        self._jump_back_s = jump_back_s
        self._edges: dict[str, tuple[str, Pose | MovingTransform]] = {}

    def add(self, parent: str, child: str, parent_from_child: Pose, stamp_ns: int | None = None) -> None:
        """Add a transform, static without a stamp; one to another parent replaces all of the child's before."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if stamp_ns is None:
            self._edges[child] = (parent, parent_from_child)
            return
        known, motion = self._edges.get(child, ("", None))
        if known != parent or not isinstance(motion, MovingTransform):
            motion = MovingTransform(self._jump_back_s)
            self._edges[child] = (parent, motion)
        motion.add(stamp_ns, parent_from_child)

    def ancestors(self, frame: str) -> list[str]:
        """A frame and all above it, as far as they are known."""
        chain = [frame]
        while (edge := self._edges.get(chain[-1])) and edge[0] not in chain:  # else a loop, in a broken TF
            chain.append(edge[0])
        return chain

    def find(self, target: str, source: str, stamp_ns: int | None = None) -> Pose:
        """``target_from_source``: through static transforms alone, or at a stamp through moving ones too.

        Moving transforms are interpolated and never extrapolated.

        Raises:
            DataError: the frames are not connected, or a transform between them is not known at the stamp.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        above = self.ancestors(target)
        common = next((frame for frame in self.ancestors(source) if frame in above), None)
        if common is None:
            raise DataError(f"TF does not lead from {source} to {target}; above {source}: {self._known(source)}")
        return self._up(target, common, stamp_ns).inverse() @ self._up(source, common, stamp_ns)

    def _known(self, frame: str) -> str:
        return ", ".join(self.ancestors(frame)[1:]) or "nothing"

    def _up(self, frame: str, ancestor: str, stamp_ns: int | None) -> Pose:
        """``ancestor_from_frame``."""
        ancestor_from_frame = Pose.identity()
        while frame != ancestor:
            parent, motion = self._edges[frame]
            pose = motion if isinstance(motion, Pose) else _at(motion, f"{parent} -> {frame}", stamp_ns)
            ancestor_from_frame, frame = pose @ ancestor_from_frame, parent
        return ancestor_from_frame


def _at(motion: MovingTransform, name: str, stamp_ns: int | None) -> Pose:
    if stamp_ns is None:
        raise DataError(f"{name} moves")
    try:
        return motion.at(stamp_ns)
    except DataError as error:
        raise DataError(f"{name} on /tf: {error}") from error


class StaticTransformTree:
    """Extrinsics as /tf_static publishes them; frame names compare without a leading slash."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Pose]] = {}

    def add(self, parent: str, child: str, parent_from_child: Pose) -> None:
        """Add or replace the transform of ``child``."""
        self._parents[child.lstrip("/")] = (parent.lstrip("/"), parent_from_child)

    def find(self, target: str, source: str) -> Pose | None:
        """``target_from_source``, or None where the frames are not connected."""
        target_chain, source_chain = self._to_root(target.lstrip("/")), self._to_root(source.lstrip("/"))
        for frame, ancestor_from_target in target_chain.items():
            if frame in source_chain:
                return ancestor_from_target.inverse() @ source_chain[frame]
        return None

    def lookup(self, target: str, source: str) -> Pose:
        """``target_from_source``.

        Raises:
            DataError: the frames are not connected.
        """
        pose = self.find(target, source)
        if pose is None:
            parents = {parent for parent, _ in self._parents.values()}
            known = ", ".join(sorted({*self._parents, *parents}))
            raise DataError(f"no static transform from {source!r} to {target!r}; frames known: {known or 'none'}")
        return pose

    def _to_root(self, frame: str) -> dict[str, Pose]:
        """Every ancestor of a frame, itself first, with ``ancestor_from_frame``."""
        chain = {frame: Pose.identity()}
        while frame in self._parents:
            parent, parent_from_frame = self._parents[frame]
            if parent in chain:  # a loop in a broken /tf_static
                break
            chain[parent] = parent_from_frame @ chain[frame]
            frame = parent
        return chain


class TransformLookup(Protocol):
    """Finds ``target_from_source`` among the transforms known so far."""

    def find(self, target: str, source: str) -> Pose | None:
        """The latest transform, or None where the frames are not connected."""

    def find_at(self, target: str, source: str, stamp_ns: int) -> Pose:
        """The transform at a stamp, interpolated. Raises DataError: it is not known; the text says what is missing."""

    def forget(self) -> None:
        """Drop what moves, after a jump back in time."""

    def close(self) -> None:
        """Stop listening."""
