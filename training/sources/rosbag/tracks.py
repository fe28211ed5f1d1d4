# SPDX-License-Identifier: Apache-2.0
"""Stamped poses of a recording and chains of them, interpolated at the frames' stamps."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import matmul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sources.labels import label_frames
from training.sources.rosbag.alternation import find_alternation
from training.sources.rosbag.message_stamps import check_stamps
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.fixed_transforms import fixed_pose
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.stamps import TOLERANCE_NS, StampReport, find_false_stamps

_NEVER_NS = (1 << 63) - 1


class PoseTrack:
    """All poses of one frame in another that a recording holds, in arrays of 72 bytes a pose.

    Unlike :class:`vmloc_ros.core.pose_buffer.PoseBuffer` it is unbounded, sorted once and interpolated at many stamps
    together. Poses may arrive out of order; of equal stamps the first counts. Poses whose stamp cannot be true are
    dropped. After the clock jumps back (a bag played in a loop, a reset of a simulation), poses are dropped until the
    clock has caught up.
    """

    def __init__(self) -> None:
        self._stamps_ns, self._logged_ns, self._numbers = array("q"), array("q"), array("d")
        # For each jump back: log time, newest stamp before it, first newer stamp after it.
        self._jumps_ns: list[tuple[int, int, int]] = []
        self._stamp_report: StampReport | None = None
        self.repeated = 0
        self.invalid = 0

    def __len__(self) -> int:
        return len(self._stamps_ns)

    @property
    def false(self) -> int:
        """Number of poses whose stamp cannot be true."""
        report = self._stamp_report
        return 0 if report is None else report.zeros + report.departed

    @property
    def span(self) -> str:
        """Number of poses and their first and last stamp, as text; after it no more poses can be added."""
        self._judge()
        return f"{len(self)} from {min(self._stamps_ns)} to {max(self._stamps_ns)} ns" if len(self) else "0 at all"

    def add(self, stamp_ns: int, logged_ns: int, message: Any) -> None:
        """Add a pose, transform or odometry message, unchecked, in the order of logging."""
        self._stamps_ns.append(stamp_ns)
        self._logged_ns.append(logged_ns)
        self._numbers.extend(_numbers(message))

    def _judge(self) -> StampReport:
        """Drop the poses whose stamp cannot be true, and those after a jump back; once."""
        if self._stamp_report is None:
            stamps, logged = np.array(self._stamps_ns, np.int64), np.array(self._logged_ns, np.int64)
            self._stamp_report = find_false_stamps(stamps, logged)
            rows = np.flatnonzero(~self._stamp_report.false)
            rows = rows[self._first_pass(stamps[rows], logged[rows])]
            numbers = np.array(self._numbers, np.float64).reshape(-1, 7)[rows]
            self._stamps_ns, self._numbers = array("q", stamps[rows]), array("d", numbers.ravel())
            self._logged_ns = array("q")  # no longer needed
        return self._stamp_report

    def _first_pass(self, stamps_ns: NDArray[np.int64], logged_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``(N,)`` bool: the pose does not repeat stamps from before a jump back."""
        newest_ns = np.maximum.accumulate(stamps_ns)
        before_ns = np.concatenate([newest_ns[:1], newest_ns[:-1]])
        kept = np.ones(len(stamps_ns), bool)
        end = 0
        for row in np.flatnonzero(stamps_ns < before_ns - TOLERANCE_NS).tolist():
            if row < end:
                continue
            newer = np.flatnonzero(stamps_ns[row:] > before_ns[row])
            end = row + int(newer[0]) if len(newer) else len(stamps_ns)
            resumed_ns = int(stamps_ns[end]) if len(newer) else _NEVER_NS
            self._jumps_ns.append((int(logged_ns[row]), int(before_ns[row]), resumed_ns))
            kept[row:end] = False
        self.repeated = int((~kept).sum())
        return kept

    def settle(self, where: str, skip_invalid: bool) -> None:
        """Check and sort the poses; of equal stamps the first counts.

        Args:
            where: name of bag and topic in errors and warnings.
            skip_invalid: drop invalid poses instead of raising.

        Raises:
            DataError: a pose has a number that is not finite or a zero quaternion, none has a stamp, or poses alternate
                between two tracks.
        """
        check_stamps(where, self._judge())
        if (found := find_alternation(*self._arrays())) is not None:
            raise DataError(f"{where}: {found}")
        stamps, first = np.unique(np.array(self._stamps_ns, np.int64), return_index=True)
        numbers = np.array(self._numbers, np.float64).reshape(-1, 7)[first]
        valid = np.isfinite(numbers).all(axis=1) & (np.linalg.norm(numbers[:, 3:], axis=1) > 1e-9)
        if not (skip_invalid or valid.all()):
            row = int(np.argmin(valid))
            raise DataError(
                f"{where}: invalid pose at {stamps[row]} ns: position {numbers[row, :3].tolist()}, quaternion wxyz "
                f"{numbers[row, 3:].tolist()}; poses must be finite; source.skip_invalid drops such poses"
            )
        self.invalid = int((~valid).sum())
        self._stamps_ns, self._numbers = array("q", stamps[valid]), array("d", numbers[valid].ravel())

    def fixed(self) -> Pose | None:
        """The pose of a track that never moves; None if it does, or has less than two poses."""
        numbers = self._arrays()[1]
        return fixed_pose(numbers) if len(numbers) > 1 else None

    def _arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """``(N,)`` stamps and ``(N, 7)`` poses."""
        return np.array(self._stamps_ns, np.int64), np.array(self._numbers, np.float64).reshape(-1, 7)

    def label(self, frames_ns: NDArray[np.int64], gap_s: float) -> tuple[list[Pose | None], NDArray[np.bool_]]:
        """Poses at M stamps, after :meth:`settle`.

        Args:
            gap_s: no interpolation between poses farther apart in time, seconds.

        Returns:
            M poses, None outside the time span and in gaps; and ``(M,)`` bool: the stamp is outside the time span.
        """
        if not len(self):
            return [None] * len(frames_ns), np.ones(len(frames_ns), bool)
        stamps = np.array(self._stamps_ns, np.int64)
        numbers = np.array(self._numbers, np.float64).reshape(-1, 7)
        after = np.searchsorted(stamps, frames_ns).clip(0, len(stamps) - 1)
        before = (np.searchsorted(stamps, frames_ns, side="right") - 1).clip(0)
        # Only each stamp's two neighbours are converted: odometry has many times more poses.
        used = np.unique(np.concatenate([[0, len(stamps) - 1], before, after]))
        poses = [Pose(row[:3], row[3:]) for row in numbers[used]]
        labels, _ = label_frames(stamps[used].tolist(), poses, frames_ns.tolist(), gap_s)
        return labels, (frames_ns < stamps[0]) | (frames_ns > stamps[-1])

    def is_of_other_pass(self, frames_ns: NDArray[np.int64], logged_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``(N,)`` bool: the frame's pose would be of another pass over the same stamps, or between two passes.

        Args:
            frames_ns: ``(N,)`` stamps of the frames.
            logged_ns: ``(N,)`` their log times.
        """
        mixed = np.zeros(len(frames_ns), bool)
        for jump_ns, newest_ns, resumed_ns in self._jumps_ns:
            is_newer = frames_ns > newest_ns
            mixed |= (is_newer != (logged_ns > jump_ns)) | (is_newer & (frames_ns < resumed_ns))
        return mixed


@dataclass(frozen=True, slots=True, eq=False)
class PoseChain:
    """Chain of transforms from map to body.

    Attributes:
        steps: from map to body: a static or moving transform, and whether the step goes from parent to child.
        description: topic, number and time span of the poses, for error messages.
    """

    map_frame: str
    body_frame: str
    steps: list[tuple[Pose | PoseTrack, bool]]
    description: str

    def label(self, frames_ns: NDArray[np.int64], gap_s: float) -> tuple[list[Pose | None], NDArray[np.bool_]]:
        """``map_from_body`` at M stamps, each transform interpolated for itself; see :meth:`PoseTrack.label`."""
        columns: list[list[Pose | None]] = []
        outside = np.zeros(len(frames_ns), bool)
        for transform, is_downwards in self.steps:
            if isinstance(transform, Pose):
                found: list[Pose | None] = [transform] * len(frames_ns)
            else:
                found, beyond = transform.label(frames_ns, gap_s)
                outside |= beyond
            columns.append(found if is_downwards else [pose and pose.inverse() for pose in found])
        return [_product(poses) for poses in zip(*columns, strict=True)], outside

    def is_of_other_pass(self, frames_ns: NDArray[np.int64], logged_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See :meth:`PoseTrack.is_of_other_pass`."""
        mixed = np.zeros(len(frames_ns), bool)
        for track in self._tracks:
            mixed |= track.is_of_other_pass(frames_ns, logged_ns)
        return mixed

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped poses, by reason."""
        return {
            "poses with a false stamp": sum(track.false for track in self._tracks),
            "poses after the clock jumped back": sum(track.repeated for track in self._tracks),
            "invalid poses": sum(track.invalid for track in self._tracks),
        }

    @property
    def _tracks(self) -> list[PoseTrack]:
        return [transform for transform, _ in self.steps if isinstance(transform, PoseTrack)]


def _product(poses: Sequence[Pose | None]) -> Pose | None:
    known = [pose for pose in poses if pose is not None]
    return reduce(matmul, known) if len(known) == len(poses) else None


def _numbers(message: Any) -> tuple[float, ...]:
    """x, y, z, qw, qx, qy, qz, unchecked: many times faster than decoding each message to a Pose."""
    inner = message
    while (wrapped := getattr(inner, "pose", None) or getattr(inner, "transform", None)) is not None:
        inner = wrapped
    is_pose = hasattr(inner, "position")
    p, q = (inner.position, inner.orientation) if is_pose else (inner.translation, inner.rotation)
    return p.x, p.y, p.z, q.w, q.x, q.y, q.z
