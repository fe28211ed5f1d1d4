# SPDX-License-Identifier: Apache-2.0
"""The past of an odometry, looked up by stamp, and what cannot be one drive; pure Python, no ROS."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

from vmloc_ros.core.geometry import Pose, interpolate_poses, rotation_angle_deg

MAX_SPEED_M_S = 60.0  # odometry that moves faster has been reset
JUMP_BACK_S = 1.0  # stamps that go back by more mean a reset of the clock
_MAX_TURN_RATE_RAD_S = 10.0  # no robot's: odometry that turns faster has been reset
_SLACK_M, _SLACK_RAD = 0.3, 0.3  # what stamps that jitter may make of a motion that is possible


class OdometryBuffer:
    """The latest odometry in order of time, to look poses up by stamp. Not thread-safe: callers hold a lock.

    Args:
        jump_back_s: see :func:`find_jump`.
        capacity: messages kept.
        max_gap_s: nothing is interpolated between messages farther apart.
    """

    def __init__(self, jump_back_s: float = JUMP_BACK_S, capacity: int = 1000, max_gap_s: float = 0.5) -> None:
        self._jump_back_s, self._capacity, self._max_gap_ns = jump_back_s, capacity, round(max_gap_s * 1e9)
        self._stamps_ns: list[int] = []
        self._poses: list[Pose] = []

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def add(self, stamp_ns: int, odom_from_base: Pose) -> str | None:
        """Take a message in; one that is not newer than the one before is left out.

        Returns:
            Why everything before it was forgotten, if it was: see :func:`find_jump`.
        """
        jump = None
        if self._stamps_ns:
            latest = (self._stamps_ns[-1], self._poses[-1])
            jump = find_jump(*latest, stamp_ns, odom_from_base, MAX_SPEED_M_S, self._jump_back_s)
            if jump is not None:
                self.clear()
            elif stamp_ns <= self._stamps_ns[-1]:
                return None
        self._stamps_ns.append(stamp_ns)
        self._poses.append(odom_from_base)
        del self._stamps_ns[: -self._capacity], self._poses[: -self._capacity]
        return jump

    def at(self, stamp_ns: int) -> Pose | None:
        """``odom_from_base`` at a stamp; None where the buffer does not reach (yet, or any more) or has a gap."""
        right = bisect_left(self._stamps_ns, stamp_ns)
        if right < len(self) and self._stamps_ns[right] == stamp_ns:
            return self._poses[right]
        if not 0 < right < len(self) or self._stamps_ns[right] - self._stamps_ns[right - 1] > self._max_gap_ns:
            return None
        around = slice(right - 1, right + 1)
        return interpolate_poses(self._stamps_ns[around], self._poses[around], [stamp_ns])[0]

    def clear(self) -> None:
        """Forget everything."""
        self._stamps_ns.clear()
        self._poses.clear()


def find_jump(
    before_ns: int, before: Pose, after_ns: int, after: Pose, max_speed_m_s: float, jump_back_s: float
) -> str | None:
    """Why two ``odom_from_base`` cannot belong to one drive, or None where they can.

    Args:
        max_speed_m_s: odometry that moves faster has been reset.
        jump_back_s: stamps that go back by more mean a reset of the clock.
    """
    seconds = (after_ns - before_ns) * 1e-9
    if seconds < -jump_back_s:
        return f"the odometry's stamps went back by {-seconds:.1f} s"
    metres = float(np.linalg.norm(after.position_m - before.position_m))
    if metres > max_speed_m_s * abs(seconds) + _SLACK_M:
        return f"the odometry jumped by {metres:.1f} m within {abs(seconds):.2f} s"
    degrees = float(rotation_angle_deg(before.quaternion_wxyz, after.quaternion_wxyz))
    if degrees > math.degrees(_MAX_TURN_RATE_RAD_S * abs(seconds) + _SLACK_RAD):
        return f"the odometry turned by {degrees:.0f} deg within {abs(seconds):.2f} s"
    return None
