# SPDX-License-Identifier: Apache-2.0
"""How a lidar or depth camera moved between two scans, from the scans alone: point-to-plane ICP.

Chen and Medioni, "Object modelling by registration of multiple range images" (1992), with Tukey's weights and gates
that
close from coarse to fine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vmloc_ros.core.frame import Frame
from vmloc_ros.core.geometry import Pose, matrix_from_quaternion, quaternion_exp, quaternion_from_matrix

Array = NDArray[np.float64]

_MOST_POINTS = 4000  # of a surface
_MOST_MATCHED = 1500
_NEIGHBOURS = 10
_FLAT = 0.1  # a neighbourhood is a plane when its smallest extent is at most this share of the middle one, squared
_FEWEST = 50
# In spacings of the surface's points. While gates close all points within count: most walls may lie well already where
# few show that it is the wrong place. Then those of the others' precision do.
_GATES = (8, 8, 6, 6, 4, 4, 3, 3, 2, 2)
_ROBUST_ROUNDS = 3
_NEAR, _ON_PLANE = 3.0, 0.25  # along and across a plane, in spacings
_PRIOR_STD = np.repeat([1.0, 0.2], 3)  # of the start: only what the planes leave open is held by it
_LEAST_ERROR_M = 0.002


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Points of a scan with the normals of the planes that they lie on.

    Attributes:
        points_m: ``(N, 3)`` in the sensor's frame.
        normals: ``(N, 3)`` unit vectors of either sign.
        spacing_m: distance from a point to its neighbours.
        tree: of the points.
    """

    points_m: Array
    normals: Array
    spacing_m: float
    tree: cKDTree


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A registration of a second scan to a first.

    Attributes:
        first_from_second: where the second sensor was in the first one's frame.
        covariance: ``(6, 6)`` of position and rotation vector, in the first one's axes; large where planes leave
            it open.
        share: of the second scan's points that lie on the first scan's planes, see :func:`share_on`.
        error_m: standard deviation of their distances from the planes.
    """

    first_from_second: Pose
    covariance: Array
    share: float
    error_m: float


def depth_points(frame: Frame) -> Array:
    """Points ``(N, 3)`` of a frame's depth image in the optical frame; frame and camera without distortion."""
    assert frame.depth_m is not None and frame.camera is not None  # noqa: PT018 (for the type checker)
    height, width = frame.depth_m.shape
    step = max(1, min(height, width) // 160)
    depth = frame.depth_m[::step, ::step]
    row, column = np.nonzero(depth)
    z, camera = depth[row, column].astype(np.float64), frame.camera
    u = (column * step + 0.5) * (camera.width / width) - 0.5
    v = (row * step + 0.5) * (camera.height / height) - 0.5
    return np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], axis=1)


def surface_of(points_m: Array) -> Surface | None:
    """The planes of a scan ``(N, 3)`` without missing returns; None where there are too few."""
    if len(points_m) < _FEWEST:
        return None
    points = _thinned(points_m)
    if len(points) < _FEWEST:
        return None
    distance, rows = cKDTree(points).query(points, _NEIGHBOURS)
    around = points[rows]
    centred = around - around.mean(axis=1, keepdims=True)
    extents, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))
    flat = extents[:, 0] < _FLAT**2 * extents[:, 1].clip(1e-12)
    if flat.sum() < _FEWEST:
        flat = extents[:, 0] < _FLAT * extents[:, 1].clip(1e-12)
    if flat.sum() < _FEWEST:
        return None
    spacing = float(np.median(distance[flat, 3]))
    return Surface(points[flat], axes[flat, :, 0], spacing, cKDTree(points[flat]))


def _thinned(points_m: Array) -> Array:
    """Mean points of the finest voxels of which few enough are occupied."""
    side = float(np.median(np.linalg.norm(points_m, axis=1))) / 200
    while True:
        cells = np.floor(points_m / side).astype(np.int64)
        cells -= cells.min(axis=0)
        sizes = cells.max(axis=0) + 1
        keys = (cells[:, 0] * sizes[1] + cells[:, 1]) * sizes[2] + cells[:, 2]
        found, owner, counts = np.unique(keys, return_inverse=True, return_counts=True)
        if len(found) <= _MOST_POINTS:
            sums = [np.bincount(owner.ravel(), column, len(found)) for column in points_m.T]
            return np.stack(sums, axis=1) / counts[:, None]
        side *= 1.25


def register(first: Surface, second: Surface, start: Pose) -> Registered | None:
    """Where the second scan was taken, in the first one's frame; None where too few points find a plane.

    Args:
        start: of ``first_from_second``; right within some 8 spacings of the points.
    """
    step = max(1, len(second.points_m) // _MOST_MATCHED)
    points = second.points_m[::step]
    R, t = start.rotation, start.position_m
    prior = np.diag(1 / _PRIOR_STD**2)
    for number, gate in enumerate(_GATES + _GATES[-1:] * _ROBUST_ROUNDS):
        reach = gate * first.spacing_m
        levers = points @ R.T
        places = levers + t
        distance, rows = first.tree.query(places, distance_upper_bound=2 * reach)
        found = np.isfinite(distance)
        if found.sum() < _FEWEST:
            return None
        normals, levers = first.normals[rows[found]], levers[found]
        apart = ((places[found] - first.points_m[rows[found]]) * normals).sum(1)
        error = max(1.4826 * float(np.median(np.abs(apart))), _LEAST_ERROR_M)
        width = reach if number < len(_GATES) else min(reach, 4.7 * error)
        weight = (1 - (apart / width) ** 2).clip(0) ** 2  # Tukey's
        jacobian = np.concatenate([normals, np.cross(levers, normals)], axis=1)
        variance = max(float((weight * apart**2).sum() / weight.sum().clip(1e-9)), _LEAST_ERROR_M**2)
        hessian = (jacobian * weight[:, None]).T @ jacobian / variance
        held = np.concatenate([t - start.position_m, np.zeros(3)])
        right = -jacobian.T @ (weight * apart) / variance - prior @ held
        change = np.linalg.solve(hessian + prior, right)
        R = matrix_from_quaternion(quaternion_exp(change[3:] / 2)) @ R
        t = t + change[:3]
    pose = Pose(t, quaternion_from_matrix(R))
    share = share_on(first, second, pose)
    return Registered(pose, np.linalg.inv(hessian + prior), share, float(np.sqrt(variance)))


def share_on(first: Surface, second: Surface, first_from_second: Pose) -> float:
    """Share of the second scan's points that lie on the first one's planes: within a quarter of the points' spacing."""
    places = first_from_second.transform(second.points_m[:: max(1, len(second.points_m) // _MOST_MATCHED)])
    distance, rows = first.tree.query(places, distance_upper_bound=_NEAR * first.spacing_m)
    found = np.isfinite(distance)
    apart = ((places[found] - first.points_m[rows[found]]) * first.normals[rows[found]]).sum(axis=1)
    return float((np.abs(apart) < _ON_PLANE * first.spacing_m).sum() / len(places))
