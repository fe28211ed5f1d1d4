# SPDX-License-Identifier: Apache-2.0
"""The street's centre line: a rounded rectangle driven counter-clockwise, in coordinates along and across it.

``s_m`` is the distance along the centre line from the start of its southern straight; ``lateral_m`` is the
signed distance from it, positive to the left (towards the inner block).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CORNER_RADIUS_M = 9.0
STRAIGHT_X_M = 28.0
STRAIGHT_Y_M = 18.726
ROAD_HALF_WIDTH_M = 3.5
FACADE_DISTANCE_M = 7.0

_QUARTER_M = CORNER_RADIUS_M * np.pi / 2
_PIECES_M = np.array([STRAIGHT_X_M, _QUARTER_M, STRAIGHT_Y_M, _QUARTER_M] * 2)
_STARTS_M = np.concatenate([[0.0], np.cumsum(_PIECES_M)])
LENGTH_M = float(_STARTS_M[-1])
# Straights occupy the even pieces: (start, end) in s.
STRAIGHTS_M = [(float(_STARTS_M[i]), float(_STARTS_M[i + 1])) for i in range(0, 8, 2)]

_HALF_X, _HALF_Y = STRAIGHT_X_M / 2, STRAIGHT_Y_M / 2
# Centres of the four corner arcs, in driving order.
_ARC_CENTRES = np.array([[_HALF_X, -_HALF_Y], [_HALF_X, _HALF_Y], [-_HALF_X, _HALF_Y], [-_HALF_X, -_HALF_Y]])
# Start points of the straights.
_STRAIGHT_STARTS = np.array(
    [
        [-_HALF_X, -_HALF_Y - CORNER_RADIUS_M],
        [_HALF_X + CORNER_RADIUS_M, -_HALF_Y],
        [_HALF_X, _HALF_Y + CORNER_RADIUS_M],
        [-_HALF_X - CORNER_RADIUS_M, _HALF_Y],
    ]
)


def centre_line(s_m: ArrayLike) -> tuple[Array, Array]:
    """Points ``(..., 2)`` and headings ``(...)`` in radians, continuous over laps, at any ``s_m``."""
    s = np.asarray(s_m, np.float64)
    lap = np.floor(s / LENGTH_M)
    along = s - lap * LENGTH_M
    piece = np.clip(np.searchsorted(_STARTS_M, along, side="right") - 1, 0, 7)
    offset = along - _STARTS_M[piece]
    side, is_arc = piece // 2, piece % 2 == 1
    heading = side * (np.pi / 2) + np.where(is_arc, offset / CORNER_RADIUS_M, 0.0)
    tangent = np.stack([np.cos(heading), np.sin(heading)], -1)
    right = np.stack([tangent[..., 1], -tangent[..., 0]], -1)
    straight_point = _STRAIGHT_STARTS[side] + tangent * offset[..., None]
    arc_point = _ARC_CENTRES[side] + CORNER_RADIUS_M * right
    return np.where(is_arc[..., None], arc_point, straight_point), heading + lap * 2 * np.pi


def point_at(s_m: ArrayLike, lateral_m: ArrayLike) -> tuple[Array, Array]:
    """Points ``(..., 2)`` and headings at distance ``lateral_m`` to the left of the centre line."""
    point, heading = centre_line(s_m)
    left = np.stack([-np.sin(heading), np.cos(heading)], -1)
    return point + left * np.asarray(lateral_m, np.float64)[..., None], heading


def project(x_m: NDArray[np.float32], y_m: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates ``(s_m, lateral_m)`` of points; inverse of :func:`point_at` near the street."""
    corner_x, corner_y = np.abs(x_m) - np.float32(_HALF_X), np.abs(y_m) - np.float32(_HALF_Y)
    outside_x, outside_y = np.maximum(corner_x, 0), np.maximum(corner_y, 0)
    distance = np.hypot(outside_x, outside_y) + np.minimum(np.maximum(corner_x, corner_y), 0)
    lateral = np.float32(CORNER_RADIUS_M) - distance
    # Angle within the corner arcs (0 at east, counter-clockwise), linear along the straights.
    in_arc = (corner_x > 0) & (corner_y > 0)
    vertical = corner_x > corner_y  # on the eastern or western side
    angle = np.arctan2(np.sign(y_m) * outside_y, np.sign(x_m) * outside_x)
    quadrant = np.where(y_m < 0, np.where(x_m < 0, 3, 0), np.where(x_m < 0, 2, 1))
    start_angle = (quadrant - 1) * np.float32(np.pi / 2)
    within = np.remainder(angle - start_angle, np.float32(2 * np.pi)) * np.float32(CORNER_RADIUS_M)
    s_arc = _STARTS_M[1::2].astype(np.float32)[quadrant] + within
    s_vertical = np.where(x_m > 0, np.float32(_STARTS_M[2] + _HALF_Y) + y_m, np.float32(_STARTS_M[6] + _HALF_Y) - y_m)
    s_horizontal = np.where(y_m < 0, np.float32(_HALF_X) + x_m, np.float32(_STARTS_M[4] + _HALF_X) - x_m)
    s = np.where(in_arc, s_arc, np.where(vertical, s_vertical, s_horizontal))
    return s.astype(np.float32), lateral.astype(np.float32)
