# SPDX-License-Identifier: Apache-2.0
"""Pose of a depth camera or lidar in the camera's frame, estimated from a recording without a target.

Edges of range are projected into the image; the transform that puts them on the image's edges is the estimate
(Levinson and Thrun, "Automatic Online Calibration of Cameras and Lasers", RSS 2013). The score is the mean edge
strength below the projected points, after normalising each image's strengths to zero mean and unit deviation: chance
scores 0. It is maximised with decreasing smoothing.

The uncertainty comes from a delete-a-group jackknife over stretches of the recording: the spread of the estimates gives
the standard deviation, and the gain in score on each held-out stretch shows whether the estimate generalises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose, matrix_from_quaternion, quaternion_exp

Array = NDArray[np.float64]

_BLURS = (0.025, 0.0125, 0.00625, 0.003125, 0.0015625)  # standard deviations, of the image's width
_NEAREST_M = 0.1
_STRETCHES = 8
_POINTS = 400  # of a frame, at most
_FEWEST_POINTS = 1000  # in all
# Rotations in radians; positions in units of the points' median distance, so that both move the image alike.
_SEARCHED = 0.1
_LARGEST_STD = 0.01
_APART = 0.015
_SIGNIFICANT = 3.0  # standard errors
_CAUGHT = 0.9  # of the first estimate's score: a maximum below this share of it is another one
_AXES = ("x", "y", "z", "rotation about x", "rotation about y", "rotation about z")


@dataclass(frozen=True, slots=True, eq=False)
class EdgeFrame:
    """Edges of a frame.

    Attributes:
        image: ``(H, W)`` strength of the image's edges.
        points_m: ``(N, 3)`` edges of range in the camera's optical frame, by the present mounts.
        camera: the image's intrinsics.
    """

    image: NDArray[np.float32]
    points_m: Array
    camera: PinholeCamera


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """An estimated correction of a mount.

    Attributes:
        true_from_present: takes points from where the present mounts put them in the optical frame to where they are.
        std: ``(6,)`` standard deviations of its position (metres) and rotation vector (radians).
        score_before: score of the present mounts.
        score_after: score of the estimate.
        gain: gain in score on held-out frames.
        gain_std: the gain's standard error.
    """

    true_from_present: Pose
    std: Array
    score_before: float
    score_after: float
    gain: float
    gain_std: float

    @property
    def better(self) -> bool:
        """Whether held-out frames prefer it to the present mounts."""
        return self.gain > _SIGNIFICANT * self.gain_std


def estimate_correction(frames: Sequence[EdgeFrame]) -> Correction:
    """The rigid transform that brings edges of range onto the images' edges.

    Args:
        frames: in the order of time, with images of one size.

    Raises:
        DataError: there are too few edges, they leave a direction open, or they meet by chance.
    """
    score = _Score(frames)
    stretch = np.arange(len(frames)) * _STRETCHES // len(frames)
    kept = [np.ones(len(frames), bool), *(stretch != number for number in range(_STRETCHES))]
    # From different starts: where the score is flat, the estimates stay different.
    estimates = np.random.default_rng(0).uniform(-_APART, _APART, (len(kept), 6))
    estimates[0] = 0
    for blur in _BLURS:
        score.smooth(blur)
        estimates = np.array([score.maximise(x, frames) for x, frames in zip(estimates, kept, strict=True)])
    estimates = _restarted(score, estimates, kept)
    x, without = estimates[0], estimates[1:]
    std = np.sqrt((_STRETCHES - 1) * without.var(axis=0))
    scale = np.repeat([score.distance_m, 1.0], 3)
    _check_determined(x, std, scale)
    before, after = score.by_frame(np.zeros(6)), score.by_frame(x)
    held_out = np.array([score.by_frame(y)[stretch == number].mean() for number, y in enumerate(without)])
    _check_better_than_chance(held_out)
    gains = held_out - np.array([before[stretch == number].mean() for number in range(_STRETCHES)])
    return Correction(
        _pose(x * scale),
        std * scale,
        float(before.mean()),
        float(after.mean()),
        float(gains.mean()),
        float(gains.std(ddof=1) / np.sqrt(_STRETCHES)),
    )


def _restarted(score: _Score, estimates: Array, kept: Sequence[NDArray[np.bool_]]) -> Array:
    """The estimates, those that were caught by a maximum far below the first one's sought again from there.

    Where the score is flat none is far below, and estimates stay as different as they are. Where all maxima are chance,
    what is found is no better than chance on the frames that were left out, which the caller checks.
    """
    first = score.by_frame(estimates[0])
    found = estimates.copy()
    for number, frames in enumerate(kept[1:], start=1):
        own = float(score.by_frame(estimates[number])[frames].mean())
        if own < _CAUGHT * float(first[frames].mean()):
            found[number] = score.maximise(estimates[0], frames)
    return found


def _check_better_than_chance(held_out: Array) -> None:
    """Raises DataError: edges do not meet on held-out frames, whose mean scores by stretch are ``(S,)``."""
    mean, error = float(held_out.mean()), float(held_out.std(ddof=1) / np.sqrt(len(held_out)))
    if mean < _SIGNIFICANT * error:
        raise DataError(
            "the edges do not determine the mount: on held-out frames they meet no better than by chance "
            f"({mean:.3f} +- "
            f"{error:.3f}); are picture and range of the same moment, and is the first guess of the mount near?"
        )


def _check_determined(x: Array, std: Array, scale: Array) -> None:
    beyond, axis = np.abs(x) > 0.99 * _SEARCHED, int(std.argmax())
    if beyond.any():
        axis = int(beyond.argmax())
        found = "leaves the range searched"
    elif std[axis] > _LARGEST_STD:
        found = f"has a standard deviation of {std[axis] * scale[axis]:.2g} {'m' if axis < 3 else 'rad'}"
    else:
        return
    raise DataError(
        f"the edges do not determine the mount: its {_AXES[axis]} in the camera's optical frame {found}; give more "
        "frames, of places where near things stand before far ones, or a nearer first guess of the mount"
    )


def _pose(x: Array) -> Pose:
    return Pose(x[:3], quaternion_exp(x[3:] / 2))


class _Score:
    """The edge strength below the projected points, as a function of the correction.

    A correction is ``(6,)``: position in units of ``distance_m`` and rotation vector, so that all have like effects.
    """

    def __init__(self, frames: Sequence[EdgeFrame]) -> None:
        if len(frames) < _STRETCHES:
            raise DataError(f"{len(frames)} frames are too few to estimate a mount; {_STRETCHES} are needed")
        self._camera, self._images = frames[0].camera, [frame.image for frame in frames]
        if blank := sum(float(np.ptp(image)) == 0 for image in self._images):
            raise DataError(f"{blank} of {len(frames)} images are blank: they have no edges to align with")
        self._maps = np.empty(0, np.float32)
        rng = np.random.default_rng(0)
        seen = [frame.points_m[self._project(frame.points_m)[2]] for frame in frames]
        seen = [points[rng.permutation(len(points))[:_POINTS]] for points in seen]
        self._points = np.concatenate(seen)
        self._owners = np.repeat(np.arange(len(frames)), [len(points) for points in seen])
        if len(self._points) < _FEWEST_POINTS:
            raise DataError(
                f"only {len(self._points)} edges of range are seen in {len(frames)} images, {_FEWEST_POINTS} are "
                "needed; check the mounts (vmloc show draws them), or give more frames"
            )
        self.distance_m = float(np.median(self._points[:, 2]))

    def smooth(self, blur: float) -> None:
        """Take images blurred by a share of their width from now on."""
        maps = [cv2.GaussianBlur(image, (0, 0), blur * self._camera.width) for image in self._images]
        self._maps = np.concatenate([((x - x.mean()) / x.std()).ravel() for x in maps])

    def maximise(self, start: Array, frames: NDArray[np.bool_]) -> Array:
        """The best correction near ``start`` for some of the frames."""
        chosen = frames[self._owners]
        points, owners = self._points[chosen], self._owners[chosen]

        def loss(x: Array) -> tuple[float, Array]:
            values, _, gradient = self._sample(x, points, owners)
            return -float(values.sum()) / len(points), -gradient / len(points)

        bounds = [(-_SEARCHED, _SEARCHED)] * 6
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
        return np.asarray(found.x, np.float64)

    def by_frame(self, x: Array) -> Array:
        """Mean over each frame's points ``(F,)``; those out of the picture count 0."""
        values, owners, _ = self._sample(x, self._points, self._owners)
        counts = np.bincount(self._owners, minlength=len(self._images))
        return np.bincount(owners, values, len(counts)) / np.maximum(counts, 1)

    def _project(self, points: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Column and row ``(N,)``, and whether the picture has them."""
        camera = self._camera
        x, y, z = points.T
        ahead = np.where(z > _NEAREST_M, z, np.inf)
        u, v = camera.fx * x / ahead + camera.cx, camera.fy * y / ahead + camera.cy
        inside = (u >= 0) & (v >= 0) & (u < camera.width - 1) & (v < camera.height - 1)
        return u, v, inside & (z > _NEAREST_M)

    def _sample(self, x: Array, points: Array, owners: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64], Array]:
        """Values below the points that are seen, their frames, and the gradient ``(6,)`` of the values' sum."""
        camera = self._camera
        turned = points @ matrix_from_quaternion(quaternion_exp(x[3:] / 2)).T
        moved = turned + x[:3] * self.distance_m
        u, v, seen = self._project(moved)
        u, v, z, turned, owners = u[seen], v[seen], moved[seen, 2], turned[seen], owners[seen]
        column, row = u.astype(np.int64), v.astype(np.int64)
        right, down = u - column, v - row
        corner = (owners * camera.height + row) * camera.width + column
        above, above_right = self._maps[corner], self._maps[corner + 1]
        below, below_right = self._maps[corner + camera.width], self._maps[corner + camera.width + 1]
        along_u = (above_right - above) * (1 - down) + (below_right - below) * down
        along_v = (below - above) * (1 - right) + (below_right - above_right) * right
        values = above + (above_right - above) * right + along_v * down
        by_u, by_v = along_u * camera.fx / z, along_v * camera.fy / z
        depth = -(along_u * (u - camera.cx) + along_v * (v - camera.cy)) / z
        by_point = np.stack([by_u, by_v, depth], axis=1)
        torque = np.cross(turned, by_point).sum(axis=0)
        # The left Jacobian of SO(3), transposed, to second order: turns are small.
        by_rotation = torque - np.cross(x[3:], torque) / 2
        return values, owners, np.concatenate([by_point.sum(axis=0) * self.distance_m, by_rotation])
