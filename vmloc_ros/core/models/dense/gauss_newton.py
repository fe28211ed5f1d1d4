# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a pose on SE(3) from weighted correspondences, batched over frames and hypotheses, float64.

The residual ``f = A (R^T (X - t) - p)`` of :mod:`vmloc_ros.core.models.dense.correspondences` has the Jacobian
``A [-I, [y]x]`` with respect to translation and rotation in body axes, where y is the point's position in the body
frame. y is taken on the measured ray or at the measured point, not at the noisy prediction: this changes neither
``J^T f`` nor the solution, but noise would otherwise count as information. Of ``A = I - d d^T``, the sum over I is made
of moments of (1, y, f), and the sum over ``d d^T`` of outer products of the Pluecker line (d, p x d).

A cell's weight is the probability that it is an inlier, ``1 / (1 + exp((s - gate^2) / 2))`` for a squared residual of
s sigma^2: expectation maximisation for Gaussian inliers among uniform outliers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.core.models.dense.correspondences import Correspondences

_LEAST_INLIERS = 6
_LEAST_SHARE = 0.02  # of the valid cells: a smaller share may agree by chance
_WORST_ROTATION_RAD = 0.5  # standard deviation above which a pose counts as undetermined
_FLATTEST_RAD = math.radians(0.5)  # rays that are all nearer to one plane may belong to points on one line
_LARGEST_STEP_RAD = 0.5
_DAMPING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class NormalEquations:
    """Correspondences ``(B, components, M)``: cells come last, so that sums over them are matrix products."""

    map_points: Tensor  # (B, 3, M)
    points: Tensor  # (B, 3, M)
    lines: Tensor  # (B, 6, M) direction and moment p x d of the rays; zero where ranged
    precision: Tensor  # (B, M) 1 / sigma^2; zero where not valid
    equations: Tensor  # (B, M) 3 or 2
    ranged: Tensor  # (B, M)
    valid: Tensor  # (B, M)
    has_rays: bool

    @staticmethod
    def of(c: Correspondences) -> NormalEquations:
        """From cleaned float64 correspondences."""
        return NormalEquations(
            c.map_points_m.transpose(1, 2),
            c.points_m.transpose(1, 2),
            torch.cat([c.rays, torch.linalg.cross(c.points_m, c.rays)], dim=-1).transpose(1, 2),
            torch.where(c.valid, 1 / c.std_m**2, 0.0),
            torch.where(c.ranged, 3.0, 2.0).double(),
            c.ranged,
            c.valid,
            bool((c.valid & ~c.ranged).any()),
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of one frame's points: ``(3, M)``."""
        return self.points.shape[1:]

    @property
    def need_gradients(self) -> bool:
        numbers = (self.map_points, self.points, self.lines, self.precision)
        return torch.is_grad_enabled() and any(number.requires_grad for number in numbers)

    def _with(self, map_points: Tensor, points: Tensor, lines: Tensor, precision: Tensor) -> NormalEquations:
        return NormalEquations(
            map_points, points, lines, precision, self.equations, self.ranged, self.valid, self.has_rays
        )

    def detached(self) -> NormalEquations:
        return self._with(*(x.detach() for x in (self.map_points, self.points, self.lines, self.precision)))

    def only(self, usable: Tensor) -> NormalEquations:
        """The same with a precision of zero in frames that are not ``usable`` ``(B, 1)`` bool."""
        return self._with(self.map_points, self.points, self.lines, torch.where(usable, self.precision, 0.0))

    def normal_equations(
        self, R: Tensor, t: Tensor, gate: float, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normal equations at poses ``(B, K, 3, 3)`` and ``(B, K, 3)``, in body axes.

        Args:
            gate: residual in sigma at which a cell is as likely an outlier as an inlier.
            scale: factor on sigma.

        Returns:
            H ``(B, K, 6, 6)``, right side ``(B, K, 6)``, squared residuals in sigma ``(B, K, M)``, and which cells are
            valid and not behind their camera ``(B, K, M)`` bool.
        """
        batch, count = R.shape[:2]
        turned = (R.transpose(-1, -2).reshape(batch, count * 3, 3) @ self.map_points).view(batch, count, *self.shape)
        place = self.points.unsqueeze(1)
        residual = turned - (place + (t.unsqueeze(-2) @ R).transpose(-1, -2))
        infront = self.valid.unsqueeze(1)
        if self.has_rays:
            direction = self.lines[:, :3].unsqueeze(1)
            depth = (residual * direction).sum(dim=2, keepdim=True)
            along = depth * direction
            residual, place = residual - along, place + along
            infront = infront & (self.ranged.unsqueeze(1) | (depth.squeeze(2) > 0))
        precision = self.precision.unsqueeze(1)
        squared = residual.square().sum(dim=2) * precision
        weight = torch.sigmoid(gate**2 / 2 - squared * (0.5 / scale**2)) * precision
        if self.has_rays:
            weight = weight * infront

        rows = torch.cat([torch.ones_like(residual[:, :, :1]), place.expand_as(residual), residual], dim=2)
        moments = (rows * weight.unsqueeze(2)) @ rows.transpose(-1, -2)
        both = moments.flatten(2) @ _from_moments(moments.device)
        H, right = both[..., :36].view(batch, count, 6, 6), both[..., 36:]
        if self.has_rays:
            lines = self.lines.unsqueeze(1)
            H = H - (lines * weight.unsqueeze(2)) @ lines.transpose(-1, -2)
        return H, right, squared, infront

    def step(self, R: Tensor, t: Tensor, gate: float, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """One Gauss-Newton step: new rotations, translations, and each pose's largest change (metres or radians)."""
        H, right, _, _ = self.normal_equations(R, t, gate, scale)
        damping = torch.eye(6, dtype=H.dtype, device=H.device) * _DAMPING
        change = torch.linalg.solve_ex(H + H * damping + damping, right)[0]
        turn = change.detach()[..., 3:].norm(dim=-1, keepdim=True)
        change = change * (_LARGEST_STEP_RAD / turn.clamp_min(_LARGEST_STEP_RAD))
        moved = change.detach().abs().amax(dim=-1)
        return R @ turned(change[..., 3:]), t + (R @ change[..., :3, None]).squeeze(-1), moved

    def determined(self, H: Tensor, inlier: Tensor, spread_m: float) -> Tensor:
        """Whether there are enough inliers and they determine all six degrees of freedom: ``(B, K)`` bool.

        Args:
            H: ``(B, K, 6, 6)`` information of the poses.
            inlier: ``(B, K, M)`` bool.
            spread_m: extent of the map; a position with a larger standard deviation counts as undetermined.
        """
        finite = torch.isfinite(H).flatten(2).all(dim=-1)
        worst = torch.tensor([spread_m] * 3 + [_WORST_ROTATION_RAD] * 3, dtype=H.dtype, device=H.device)
        eye = torch.eye(6, dtype=H.dtype, device=H.device)
        known = _positive(torch.where(finite[..., None, None], H * torch.outer(worst, worst), 0.0) - eye)
        needed = (_LEAST_SHARE * self.valid.sum(dim=-1, keepdim=True)).clamp_min(_LEAST_INLIERS)
        enough = finite & known & (inlier.sum(dim=-1) >= needed)
        if not self.has_rays:
            return enough
        # Rays to points on one line leave a rotation about it open. H does not show that: it holds noise of the depths.
        used = (inlier & ~self.ranged.unsqueeze(1)).to(H.dtype)
        direction = self.lines[:, :3].unsqueeze(1)
        scatter = (direction * used.unsqueeze(2)) @ direction.transpose(-1, -2)
        round_ = _positive(scatter - _FLATTEST_RAD**2 * used.sum(dim=-1)[..., None, None] * eye[:3, :3])
        return enough & (round_ | ((inlier & self.ranged.unsqueeze(1)).sum(dim=-1) >= 3))


@cache
def _from_moments(device: torch.device) -> Tensor:
    """Linear map ``(49, 42)`` from moments ``sum w v v^T`` of v = (1, y, f) to H (for ``A = I``) and the right side.

    H is ``sum w [I, -[y]x; [y]x, |y|^2 I - y y^T]``, the right side ``sum w (f, y x f)``.
    """
    H, right = np.zeros((7, 7, 6, 6)), np.zeros((7, 7, 6))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        H[0, 0, i, i] = 1
        H[0, 1 + i, j, 3 + k] = H[0, 1 + i, 3 + k, j] = 1
        H[0, 1 + i, k, 3 + j] = H[0, 1 + i, 3 + j, k] = -1
        H[1 + j, 1 + j, 3 + i, 3 + i] = H[1 + k, 1 + k, 3 + i, 3 + i] = 1
        H[1 + i, 1 + j, 3 + i, 3 + j] = H[1 + i, 1 + j, 3 + j, 3 + i] = -1
        right[0, 4 + i, i] = 1
        right[1 + j, 4 + k, 3 + i], right[1 + k, 4 + j, 3 + i] = 1, -1
    return _constant(np.concatenate([H.reshape(49, 36), right.reshape(49, 6)], axis=1), device)


@cache
def _crosses(device: torch.device) -> Tensor:
    """Linear map ``(3, 9)`` from a vector v to the flattened cross-product matrix ``[v]x``."""
    return _constant(np.stack([np.cross(axis, np.eye(3)).T.ravel() for axis in np.eye(3)]), device)


def _constant(array: NDArray[np.float64], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training could not use a cached inference tensor
        return torch.from_numpy(array).to(device)


def turned(vector: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of rotation vectors ``(..., 3)`` by Cayley's map, exact to second order.

    This is enough for a Gauss-Newton step, and unlike the exponential map it has no special case at zero.
    """
    cross = (vector @ _crosses(vector.device)).view(*vector.shape, 3)
    factor = 4 / (4 + vector.square().sum(dim=-1)[..., None, None])
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + factor * (cross + cross @ cross / 2)


def _positive(matrix: Tensor) -> Tensor:
    """Whether symmetric matrices ``(..., N, N)`` are positive definite."""
    return torch.linalg.cholesky_ex(matrix)[1] == 0


def rotated(H: Tensor, R: Tensor) -> Tensor:
    """Rotate a quadratic form ``(..., 6, 6)`` from body axes to the map's axes, block by block of 3 x 3."""
    blocks = H.reshape(*H.shape[:-2], 2, 3, 2, 3)
    return torch.einsum("...ij,...ajbk,...lk->...aibl", R, blocks, R).flatten(-2).flatten(-3, -2)


def orthonormal(rotation: Tensor) -> Tensor:
    """Re-orthonormalise a matrix that is a rotation up to rounding errors."""
    first = torch.nn.functional.normalize(rotation[..., 0], dim=-1)
    third = torch.nn.functional.normalize(torch.linalg.cross(first, rotation[..., 1]), dim=-1)
    return torch.stack([first, torch.linalg.cross(third, first), third], dim=-1)
