# SPDX-License-Identifier: Apache-2.0
"""Detects two publishers on one topic: their poses alternate between two tracks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.pose_buffer import MAX_SPEED_M_S, MAX_TURN_RATE_RAD_S, SLACK_M, SLACK_RAD

# Fewer returns are outliers of one publisher, such as a swapped marker of a motion capture.
_LEAST_RETURNS, _LEAST_SHARE = 3, 0.01

Array = NDArray[np.float64]


def find_alternation(stamps_ns: NDArray[np.int64], poses: Array) -> str | None:
    """Why stamped poses cannot be of one body, as text; None if they can.

    Poses of two publishers jump away and back again and again, faster than any robot moves; a reset of one publisher
    jumps away and stays.

    Args:
        stamps_ns: ``(N,)`` in any order; equal ones too.
        poses: ``(N, 7)`` x y z qw qx qy qz; those that are not finite are left out.
    """
    valid = np.isfinite(poses).all(axis=1) & (np.linalg.norm(poses[:, 3:], axis=1) > 1e-9)
    order = np.argsort(stamps_ns[valid], kind="stable")
    stamps, poses = stamps_ns[valid][order], poses[valid][order]
    (jumps,) = np.nonzero(_is_jump(stamps, poses, np.arange(len(stamps))[:-1], np.arange(len(stamps))[1:]))
    returns = ~_is_jump(stamps, poses, jumps[:-1], jumps[1:] + 1)
    if returns.sum() < max(_LEAST_RETURNS, _LEAST_SHARE * len(stamps)):
        return None
    apart_m = np.linalg.norm(poses[jumps + 1, :3] - poses[jumps, :3], axis=1)
    return (
        f"its poses alternate between two tracks, {np.median(apart_m):.1f} m apart: {int(returns.sum())} of "
        f"{len(stamps)} jump away and back, first at {stamps[jumps[0] + 1]} ns; two publishers wrote to one topic: "
        "choose another source.pose_topic, or record one of them alone"
    )


def _is_jump(
    stamps_ns: NDArray[np.int64], poses: Array, before: NDArray[np.intp], after: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """``(M,)`` bool: pose ``after`` is out of reach of pose ``before``; rows ``(M,)`` of both."""
    seconds = (stamps_ns[after] - stamps_ns[before]) * 1e-9
    metres = np.linalg.norm(poses[after, :3] - poses[before, :3], axis=1)
    unit = poses[:, 3:] / np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
    radians = 2 * np.arccos(np.abs((unit[after] * unit[before]).sum(axis=1)).clip(0, 1))
    is_far = metres > MAX_SPEED_M_S * seconds + SLACK_M
    return is_far | (radians > MAX_TURN_RATE_RAD_S * seconds + SLACK_RAD)
