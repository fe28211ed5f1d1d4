# SPDX-License-Identifier: Apache-2.0
"""How a camera turned between two pictures, from the pictures alone.

Corners are tracked from one picture to the next (Shi and Tomasi 1994; Lucas and Kanade 1981), the five-point method
with
RANSAC (Nister 2004) gives a first essential matrix, and Gauss-Newton on the epipolar angles of all tracks, with
Cauchy's
weights, gives rotation and direction of translation. Of these only the rotation is used: pictures do not know how far
the camera moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import matrix_from_quaternion, quaternion_exp

Array = NDArray[np.float64]

SHORTEST_SIDE = 480  # larger pictures are scaled to it: corners are as good, and tracking takes less time
_CORNERS = 400
_FEWEST_TRACKS = 25  # below, rotation and direction of translation are hardly determined
_BACKWARD_PX = 0.5  # a track that does not lead back to where it began is none
_ITERATIONS = 8
_LEAST_ERROR_PX = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A measured rotation.

    Attributes:
        rotation: ``(3, 3)`` first camera from second camera.
        covariance: ``(3, 3)`` of its rotation vector, in the first camera's axes, radians squared.
        tracks: number of tracks.
    """

    rotation: Array
    covariance: Array
    tracks: int


def grey_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture ``(H, W, 3)`` in grey, at most :data:`SHORTEST_SIDE` pixels high or wide."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = SHORTEST_SIDE / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.uint8)


def corners(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Corners ``(N, 2)`` that can be tracked, x and y in pixels."""
    apart = max(4.0, min(grey.shape) / 40)
    found = cv2.goodFeaturesToTrack(grey, _CORNERS, 0.01, apart)
    return np.empty((0, 2), np.float32) if found is None else found.reshape(-1, 2)


def turn_between(first: NDArray[np.uint8], second: NDArray[np.uint8], camera: PinholeCamera) -> Turn | None:
    """The camera's rotation between two grey pictures of one size; None where too few corners can be followed.

    Args:
        camera: without distortion; of the same view, at any size.
    """
    tracks = _tracks(first, second)
    if len(tracks) < _FEWEST_TRACKS:
        return None
    height, width = first.shape
    sx, sy = width / camera.width, height / camera.height
    focal = np.array([camera.fx * sx, camera.fy * sy])
    centre = np.array([(camera.cx + 0.5) * sx - 0.5, (camera.cy + 0.5) * sy - 0.5])
    plane = (tracks.astype(np.float64) - centre) / focal
    error = _LEAST_ERROR_PX / focal.mean()
    start = _five_points(plane, 1.0 / focal.mean())
    if start is None:
        return None
    bearings = np.concatenate([plane, np.ones((len(plane), 2, 1))], axis=2)
    bearings /= np.linalg.norm(bearings, axis=2, keepdims=True)
    rotation, covariance = _refined(*start, bearings[:, 1], bearings[:, 0], error)
    return Turn(rotation, covariance, len(tracks))


def _tracks(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Positions ``(N, 2, 2)`` of N corners in both pictures."""
    there = corners(first)
    if not len(there):
        return np.empty((0, 2, 2), np.float32)
    start = there.reshape(-1, 1, 2)
    flow = {"winSize": (15, 15), "maxLevel": 4}
    moved, found, _ = cv2.calcOpticalFlowPyrLK(first, second, start, None, **flow)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(second, first, moved, None, **flow)
    close = np.linalg.norm((back - start).reshape(-1, 2), axis=1) < _BACKWARD_PX
    kept = close & (found.ravel() == 1) & (returned.ravel() == 1)
    return np.stack([there, moved.reshape(-1, 2)], axis=1)[kept]


def _five_points(plane: Array, tolerance: float) -> tuple[Array, Array] | None:
    """First from second rotation ``(3, 3)`` and direction of translation ``(3,)``, of either sign."""
    essential, _ = cv2.findEssentialMat(
        plane[:, 1], plane[:, 0], np.eye(3), method=cv2.RANSAC, prob=0.999, threshold=tolerance
    )
    if essential is None or essential.shape[0] < 3:
        return None
    one, other, direction = cv2.decomposeEssentialMat(essential[:3])
    # The two differ by half a turn: between neighbouring pictures the smaller rotation is the true one.
    return (one if np.trace(one) > np.trace(other) else other), direction.ravel()


def _refined(R: Array, t: Array, seconds: Array, firsts: Array, least: float) -> tuple[Array, Array]:
    """Rotation and the covariance of its rotation vector; bearings ``(N, 3)`` are unit vectors."""
    for _ in range(_ITERATIONS):
        turned = seconds @ R.T
        normal = np.cross(t, turned)
        other = np.cross(firsts, t)
        size = np.sqrt((normal**2).sum(1) + (other**2).sum(1)).clip(0.05)
        error = (firsts * normal).sum(1) / size
        scale = max(float(np.median(np.abs(error))) * 1.4826, least)
        weight = 1 / (1 + (error / (2.4 * scale)) ** 2)
        by_turn = firsts * (turned @ t)[:, None] - t * (firsts * turned).sum(1)[:, None]
        # Two directions across t: its length is not determined.
        across = np.linalg.svd(t[None])[2][1:]
        by_direction = np.cross(turned, firsts) @ across.T
        jacobian = np.concatenate([by_turn, by_direction], axis=1) / size[:, None]
        hessian = (jacobian * weight[:, None]).T @ jacobian + 1e-9 * np.eye(5)
        step = -np.linalg.solve(hessian, jacobian.T @ (weight * error))
        R = matrix_from_quaternion(quaternion_exp(step[:3] / 2)) @ R
        t = t + across.T @ step[3:]
        t = t / np.linalg.norm(t)
    variance = float((weight * error**2).sum() / weight.sum())
    covariance = np.linalg.inv(hessian) * max(variance, least**2)
    return R, covariance[:3, :3]
