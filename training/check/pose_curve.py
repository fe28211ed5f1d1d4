# SPDX-License-Identifier: Apache-2.0
"""The recorded poses as a smooth function of time, to ask where the body was a little earlier or later."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from vmloc_ros.core.geometry import Pose

Array = NDArray[np.float64]

GAP_S = 1.0  # poses farther apart in time are of different parts: no curve leads from one to the other


class PoseCurve:
    """Cubic splines of position and rotation through poses, one for each part without a gap.

    Args:
        times_s: ``(N,)`` increasing.
        poses: N poses ``map_from_body``.
    """

    def __init__(self, times_s: ArrayLike, poses: Sequence[Pose]) -> None:
        times = np.asarray(times_s, np.float64)
        self.times_s = times
        self.positions_m = np.array([pose.position_m for pose in poses]).reshape(-1, 3)
        self.quaternions_wxyz = np.array([pose.quaternion_wxyz for pose in poses]).reshape(-1, 4)
        ends = [0, *(np.flatnonzero(np.diff(times) > GAP_S) + 1).tolist(), len(times)]
        self.parts = [slice(a, b) for a, b in pairwise(ends) if b - a > 2]
        self._curves = [
            (
                times[part][0],
                times[part][-1],
                CubicSpline(times[part], self.positions_m[part]),
                RotationSpline(times[part], _rotation(self.quaternions_wxyz[part])),
            )
            for part in self.parts
        ]

    def at(self, times_s: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Positions ``(M, 3)`` and rotations ``(M, 3, 3)`` at M times, and ``(M,)`` bool: the curve reaches there."""
        times = np.asarray(times_s, np.float64)
        positions, rotations = np.zeros((len(times), 3)), np.tile(np.eye(3), (len(times), 1, 1))
        known = np.zeros(len(times), bool)
        for first, last, position, rotation in self._curves:
            inside = (times >= first) & (times <= last)
            if inside.any():
                positions[inside], rotations[inside] = position(times[inside]), rotation(times[inside]).as_matrix()
                known |= inside
        return positions, rotations, known

    def speeds(self) -> tuple[Array, Array]:
        """Speed (m/s) and rate of rotation (rad/s) from each pose to the next, ``(N - 1,)``; NaN across gaps."""
        steps = np.diff(self.times_s)
        turns = (_rotation(self.quaternions_wxyz[:-1]).inv() * _rotation(self.quaternions_wxyz[1:])).magnitude()
        steps = np.where((steps > 0) & (steps <= GAP_S), steps, np.nan)
        return np.linalg.norm(np.diff(self.positions_m, axis=0), axis=1) / steps, turns / steps


def _rotation(quaternions_wxyz: Array) -> Rotation:
    return Rotation.from_quat(quaternions_wxyz[:, [1, 2, 3, 0]])
