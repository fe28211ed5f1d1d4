# SPDX-License-Identifier: Apache-2.0
"""Length of road, revisits and rate of the poses of recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from training.survey.facts import PathFacts
from vmloc_ros.core.geometry import Pose

Array = NDArray[np.float64]
Stamps = NDArray[np.int64]

_SPACING_M = 5.0  # lanes of a road are not farther apart
_OTHER_PASS_S = 10.0  # frames nearer in time are the same pass
_SAME_VIEW_DEG = 20.0  # as of training.data.coverage.known_views
_GAP_S = 1.0
_MOST = 3000  # frames that are looked at for revisits


def path_facts(poses: Sequence[Sequence[Pose]], stamps_ns: Sequence[Sequence[int]]) -> PathFacts:
    """Facts about the poses and stamps of each recording; each has at least one frame."""
    positions = [np.stack([pose.position_m for pose in own]) for own in poses]
    together = np.concatenate(positions)
    steps = [np.linalg.norm(np.diff(own, axis=0), axis=1) for own in positions]
    seconds = [np.diff(np.asarray(own, np.int64)) * 1e-9 for own in stamps_ns]
    joined, length = np.concatenate(seconds), np.concatenate(steps)
    follows = (joined > 0) & (joined <= _GAP_S)
    extent = np.ptp(together, axis=0)
    return PathFacts(
        driven_m=float(length[follows].sum()),
        road_m=road_length_m(together),
        extent_m=(float(extent[0]), float(extent[1]), float(extent[2])),
        step_m=float(np.median(length[follows])) if follows.any() else 0.0,
        rate_hz=float(1 / np.median(joined[follows])) if follows.any() else 0.0,
        revisited=_revisited(poses, stamps_ns),
    )


def road_length_m(positions_m: Array) -> float:
    """Length of road that positions ``(N, 3)`` cover: of a chain of them that are 5 m apart, each part once."""
    left = np.ones(len(positions_m), bool)
    tree, count = cKDTree(positions_m), 0
    for row, position in enumerate(positions_m):
        if left[row]:
            count += 1
            left[tree.query_ball_point(position, _SPACING_M)] = False
    reach = float(np.linalg.norm(np.ptp(positions_m, axis=0)))
    return min(reach, _SPACING_M) if count == 1 else count * _SPACING_M


def _revisited(poses: Sequence[Sequence[Pose]], stamps_ns: Sequence[Sequence[int]]) -> float:
    """Share of frames whose view another pass also shows: at most 0.5 m or a few steps away, and 20 degrees."""
    position = np.concatenate([np.stack([pose.position_m for pose in own]) for own in poses])
    turn = np.concatenate([np.stack([pose.quaternion_wxyz for pose in own]) for own in poses])
    owner = np.repeat(np.arange(len(poses)), [len(own) for own in poses])
    stamp = np.concatenate([np.asarray(own, np.int64) for own in stamps_ns])
    chosen = np.unique(np.linspace(0, len(position) - 1, min(_MOST, len(position))).astype(int))
    steps = np.linalg.norm(np.diff(position[chosen], axis=0), axis=1)
    reach_m = max(0.5, 2 * float(np.median(steps)) if len(steps) else 0.0)
    cosine = math.cos(math.radians(_SAME_VIEW_DEG) / 2)
    tree = cKDTree(position[chosen])
    found = 0
    for row, near in zip(chosen, tree.query_ball_point(position[chosen], reach_m), strict=True):
        others = chosen[near]
        apart = np.abs(stamp[others] - stamp[row]) > _OTHER_PASS_S * 1e9
        alike = np.abs(turn[others] @ turn[row]) >= cosine
        found += bool(np.any(alike & (apart | (owner[others] != owner[row]))))
    return found / len(chosen)
