# SPDX-License-Identifier: Apache-2.0
"""A buffer of stamped poses, interpolated at a stamp, and the detection of jumps; pure Python, no ROS."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque

import numpy as np

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose, interpolate_poses, rotation_angle_deg

MAX_SPEED_M_S = 60.0  # odometry that moves faster has been reset
JUMP_BACK_S = 1.0  # stamps that go back by more mean a reset of the clock
MAX_TURN_RATE_RAD_S = 10.0  # odometry that turns faster has been reset
_WATCHED, _ALTERNATING = 20, 5  # jumps in so many latest poses are no resets but two publishers
SLACK_M, SLACK_RAD = 0.3, 0.3  # added to the limits: jitter of the stamps makes a plausible motion look faster


class PoseBuffer:
    """The bounded past of one moving transform: interpolated, never extrapolated. Not thread-safe: callers hold a lock.

    Args:
        jump_back_s: see :func:`find_jump`.
        capacity: number of poses kept.
        max_gap_s: no interpolation between poses farther apart in time.
    """

    def __init__(self, jump_back_s: float = JUMP_BACK_S, capacity: int = 1000, max_gap_s: float = 0.5) -> None:
        self._jump_back_s, self._capacity, self._max_gap_s = jump_back_s, capacity, max_gap_s
        self._stamps_ns: list[int] = []
        self._poses: list[Pose] = []
        self._latest_jump = ""
        self._jumps: deque[bool] = deque(maxlen=_WATCHED)  # of place and not of time, among the latest poses

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def add(self, stamp_ns: int, pose: Pose) -> None:
        """Append a pose. One that is not newer than the latest is dropped; a jump drops all before it instead."""
        if self._stamps_ns:
            latest = (self._stamps_ns[-1], self._poses[-1])
            jump = find_jump(*latest, stamp_ns, pose, MAX_SPEED_M_S, self._jump_back_s)
            self._jumps.append(jump is not None and stamp_ns >= latest[0] - round(self._jump_back_s * 1e9))
            if jump is not None:
                self._latest_jump = jump
                self._stamps_ns.clear()
                self._poses.clear()
            elif stamp_ns <= self._stamps_ns[-1]:
                return
        self._stamps_ns.append(stamp_ns)
        self._poses.append(pose)
        del self._stamps_ns[: -self._capacity], self._poses[: -self._capacity]

    @property
    def alternation(self) -> str | None:
        """Why the latest poses cannot be of one odometry, as text: they jump again and again; None if they do not."""
        if (count := sum(self._jumps)) < _ALTERNATING:
            return None
        return (
            f"{self._latest_jump}, and {count} of the latest {len(self._jumps)} messages jump like that: does it have "
            "two publishers? Stop one of them"
        )

    def at(self, stamp_ns: int) -> Pose:
        """The pose at a stamp.

        Raises:
            DataError: the stamp is outside the buffer's time span or in a gap, or poses alternate between two tracks;
                the message says which.
        """
        if self.alternation is not None:
            raise DataError(self.alternation)
        right = bisect_left(self._stamps_ns, stamp_ns)
        if right < len(self) and self._stamps_ns[right] == stamp_ns:
            return self._poses[right]
        if not self._stamps_ns:
            raise DataError("nothing received yet")
        if right == len(self):
            raise DataError(describe_lag(self._stamps_ns[-1], stamp_ns))
        if right == 0 or self._stamps_ns[right] - self._stamps_ns[right - 1] > round(self._max_gap_s * 1e9):
            raise DataError(
                f"does not reach back to the image's stamp, or has a gap of more than {self._max_gap_s} s there"
            )
        around = slice(right - 1, right + 1)
        [pose] = interpolate_poses(self._stamps_ns[around], self._poses[around], [stamp_ns])
        assert pose is not None, "the stamp lies between these two"
        return pose


def describe_lag(latest_ns: int, stamp_ns: int) -> str:
    """Say by how much the latest pose is too old for an image."""
    return f"the latest is {(stamp_ns - latest_ns) * 1e-9:.3f} s older than the image's stamp"


def find_jump(
    before_ns: int, before: Pose, after_ns: int, after: Pose, max_speed_m_s: float, jump_back_s: float
) -> str | None:
    """Check whether two poses of one odometry can follow each other in one drive.

    Args:
        before: ``odom_from_base`` at ``before_ns``; ``after`` likewise.
        max_speed_m_s: odometry that moves faster has been reset.
        jump_back_s: stamps that go back by more mean a reset of the clock.

    Returns:
        The reason, as text, if the second pose is a jump; None otherwise.
    """
    seconds = (after_ns - before_ns) * 1e-9
    if seconds < -jump_back_s:
        return f"the odometry's stamps went back by {-seconds:.1f} s"
    metres = float(np.linalg.norm(after.position_m - before.position_m))
    if metres > max_speed_m_s * abs(seconds) + SLACK_M:
        return f"the odometry jumped by {metres:.1f} m within {abs(seconds):.2f} s"
    degrees = float(rotation_angle_deg(before.quaternion_wxyz, after.quaternion_wxyz))
    if degrees > math.degrees(MAX_TURN_RATE_RAD_S * abs(seconds) + SLACK_RAD):
        return f"the odometry turned by {degrees:.0f} deg within {abs(seconds):.2f} s"
    return None
