# SPDX-License-Identifier: Apache-2.0
"""Edges of what a camera and a ranging sensor see: where the picture changes, and where range jumps.

After Levinson and Thrun, "Automatic Online Calibration of Cameras and Lasers" (RSS 2013): where a surface ends in front
of another, both sensors see it, as a step of range and, mostly, as a step of brightness.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.frame import PinholeCamera

Array = NDArray[np.float64]

_JUMP_M, _JUMP_SHARE = 0.1, 0.1  # range jumps when it grows by more than the first plus this share of itself
_BRIDGED = 0.05  # of a depth image's width: holes up to this, as there are beside near objects, are bridged
_RING_RAD = np.radians(0.25)  # returns whose elevations differ by less are compared
_STEPS = 3.5  # neighbours are at most this many median steps of azimuth apart, as single returns may be missing


def image_edges(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Strength ``(H, W)`` of the edges of an RGB image ``(H, W, 3)``: root of the largest channel's gradient."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    gradient = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    # The root keeps a few glaring edges from outweighing all others.
    return np.sqrt(gradient.max(axis=2))


def depth_edges(depth_m: NDArray[np.float32], camera: PinholeCamera) -> Array:
    """Points ``(N, 3)`` in the optical frame at the edges of the nearer surfaces in a depth picture ``(H, W)``.

    Args:
        depth_m: 0 is no measurement.
        camera: intrinsics of the picture, or of one of another size with the same view.
    """
    height, width = depth_m.shape
    bridged = round(_BRIDGED * width)
    row, column, z = _row_edges(depth_m, bridged)
    other_column, other_row, other_z = _row_edges(depth_m.T, bridged)
    u = (np.concatenate([column, other_column]) + 0.5) * (camera.width / width) - 0.5
    v = (np.concatenate([row, other_row]) + 0.5) * (camera.height / height) - 0.5
    z = np.concatenate([z, other_z])
    return np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], axis=1)


def scan_edges(xyz_m: NDArray[np.float32]) -> tuple[Array, NDArray[np.int64]]:
    """Points ``(N, 3)`` at the edges of a scan's nearer surfaces, and which returns of ``(M, 3)`` they come from.

    The scan must be seen from one place, the origin: rings are separated by elevation, whatever the order of points.
    An edge lies between two returns of a ring, on average halfway: taking the nearer return itself makes all things
    narrower by a step of the scan. Rows that are not finite, or zero, are ignored.
    """
    xyz = np.asarray(xyz_m, np.float64)
    distance = np.linalg.norm(xyz, axis=1)
    (kept,) = np.nonzero(np.isfinite(distance) & (distance > 0))
    distance = distance[kept]
    direction = xyz[kept] / distance[:, None]
    ring = np.rint(np.arcsin(direction[:, 2]) / _RING_RAD)  # rings are mostly at round elevations: not a border
    azimuth = np.arctan2(direction[:, 1], direction[:, 0])
    first = np.lexsort((azimuth, ring))
    second = np.roll(first, -1)
    step = azimuth[second] - azimuth[first]
    neighbours = (ring[first] == ring[second]) & (step > 0)
    if not neighbours.any():
        return np.empty((0, 3)), kept[:0]
    neighbours &= step < _STEPS * np.median(step[neighbours])
    pair = np.stack([first[neighbours], second[neighbours]])
    near, far = np.concatenate([pair, pair[::-1]], axis=1)
    jump = _jumps(distance[near], distance[far])
    near, far = near[jump], far[jump]
    between = direction[near] + direction[far]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    return between * distance[near, None], kept[near]


def _jumps(near_m: NDArray[np.floating], far_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    return np.asarray(far_m - near_m > _JUMP_M + _JUMP_SHARE * near_m)


def _row_edges(depth_m: NDArray[np.float32], bridged: int) -> tuple[Array, Array, Array]:
    """Row, column and depth where, along a row, a surface ends before a farther one: half a pixel beyond its last."""
    row, column = np.nonzero(depth_m)
    z = depth_m[row, column].astype(np.float64)
    close = (np.diff(row) == 0) & (np.diff(column) <= bridged + 1)
    left, right = close & _jumps(z[:-1], z[1:]), close & _jumps(z[1:], z[:-1])
    near = np.concatenate([np.flatnonzero(left), np.flatnonzero(right) + 1])
    beyond = np.repeat([0.5, -0.5], [left.sum(), right.sum()])
    return row[near].astype(np.float64), column[near] + beyond, z[near]
