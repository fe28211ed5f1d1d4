# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a pose on SE(3) from weighted correspondences, batched over frames and hypotheses, float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vmloc_ros.core.correspondences import Correspondences

_LEAST_INLIERS = 6
_WORST_ROTATION_RAD = 0.5  # standard deviation beyond which a pose counts as undetermined
_FLATTEST_RAD = math.radians(0.5)  # rays all this near to one plane may belong to points on one line
_LARGEST_STEP_RAD = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Correspondences as rows ``(B, components, M)``: the cells last, so that sums over them are matrix products."""

    map_points: Tensor  # (B, 3, M)
    points: Tensor  # (B, 3, M)
    lines: Tensor  # (B, 6, M) direction and moment p x d of the rays; zero where ranged
    precision: Tensor  # (B, M) 1 / sigma^2; zero where not valid
    equations: Tensor  # (B, M) 3 or 2
    ranged: Tensor  # (B, M)
    valid: Tensor  # (B, M)
    has_rays: bool

    @staticmethod
    def of(c: Correspondences) -> Cells:
        """Of cleaned float64 correspondences."""
        return Cells(
            c.map_points_m.transpose(1, 2),
            c.points_m.transpose(1, 2),
            torch.cat([c.rays, torch.linalg.cross(c.points_m, c.rays)], dim=-1).transpose(1, 2),
            torch.where(c.valid, 1 / c.std_m**2, 0.0),
            torch.where(c.ranged, 3.0, 2.0).double(),
            c.ranged,
            c.valid,
            bool((c.valid & ~c.ranged).any()),
        )

    def _with(self, map_points: Tensor, points: Tensor, lines: Tensor, precision: Tensor) -> Cells:
        return Cells(map_points, points, lines, precision, self.equations, self.ranged, self.valid, self.has_rays)

    def detached(self) -> Cells:
        return self._with(*(x.detach() for x in (self.map_points, self.points, self.lines, self.precision)))

    def only(self, usable: Tensor) -> Cells:
        """The same without any precision in frames that are not usable ``(B, 1)``."""
        return self._with(self.map_points, self.points, self.lines, torch.where(usable, self.precision, 0.0))

    def normal_equations(
        self, R: Tensor, t: Tensor, gate: float, scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of poses ``(B, K, 3, 3)`` and ``(B, K, 3)``: H ``(B, K, 6, 6)`` and right side ``(B, K, 6)`` in map axes.

        Also the squared residuals in sigma ``(B, K, M)`` and which cells are not behind their camera.

        In body axes the residual ``f = A (R^T (X - t) - p)`` has the Jacobian ``A [-I, [y]x]`` by a shift and a turn
        of the pose, with y the point's place seen from the body. y is taken on the measured ray or point, not at the
        noisy prediction, which changes neither ``J^T f`` nor the solution, but keeps noise from posing as information.
        Of ``A = I - d d^T`` the first part leaves moments of y, the second the product of the line (d, p x d) with
        itself.
        """
        batch, count = R.shape[:2]
        body = (R.transpose(-1, -2).reshape(batch, count * 3, 3) @ self.map_points).unflatten(1, (count, 3))
        place = self.points.unsqueeze(1).expand_as(body)
        residual = body - (t.unsqueeze(-2) @ R).transpose(-1, -2) - place
        infront = torch.ones_like(body[:, :, 0], dtype=torch.bool)
        if self.has_rays:
            direction = self.lines[:, :3].unsqueeze(1)
            depth = (residual * direction).sum(dim=2, keepdim=True)
            residual, place = residual - depth * direction, place + depth * direction
            infront = self.ranged.unsqueeze(1) | (depth.squeeze(2) > 0)
        precision = self.precision.unsqueeze(1)
        squared = residual.square().sum(dim=2) * precision
        weight = torch.sigmoid((gate**2 - squared / scale**2) / 2) * precision
        if self.has_rays:
            weight = torch.where(infront, weight, 0.0)

        rows = torch.cat([torch.ones_like(body[:, :, :1]), place, residual], dim=2)
        moments = (rows * weight.unsqueeze(2)) @ rows.transpose(-1, -2)
        total, first, second = moments[..., 0, 0], moments[..., 0, 1:4], moments[..., 1:4, 1:4]
        eye = torch.eye(3, dtype=body.dtype, device=body.device)
        corner = _cross_matrix(first)
        trace = second.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        H = torch.cat(
            [
                torch.cat([total[..., None, None] * eye, -corner], dim=-1),
                torch.cat([corner, trace[..., None, None] * eye - second], dim=-1),
            ],
            dim=-2,
        )
        if self.has_rays:
            lines = self.lines.unsqueeze(1)
            H = H - (lines * weight.unsqueeze(2)) @ lines.transpose(-1, -2)
        lever = moments[..., 1:4, 4:7]  # sum of w y f^T: its antisymmetric part is the sum of w (y x f)
        turn = torch.stack([lever[..., i, j] - lever[..., j, i] for i, j in ((1, 2), (2, 0), (0, 1))], dim=-1)
        right = torch.cat([moments[..., 0, 4:7], turn], dim=-1)
        zero = torch.zeros_like(R)
        both = torch.cat([torch.cat([R, zero], dim=-1), torch.cat([zero, R], dim=-1)], dim=-2)
        return both @ H @ both.transpose(-1, -2), (both @ right.unsqueeze(-1)).squeeze(-1), squared, infront

    def step(self, R: Tensor, t: Tensor, gate: float, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """One step of Gauss-Newton: new rotations, translations, and how far each moved (metres or radians)."""
        H, right, _, _ = self.normal_equations(R, t, gate, scale)
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        damped = H + torch.diag_embed(1e-9 * diagonal + 1e-9)
        change = torch.linalg.solve_ex(damped, right)[0]
        with torch.no_grad():
            turn = change[..., 3:].norm(dim=-1, keepdim=True)
            shrink = (_LARGEST_STEP_RAD / turn.clamp_min(1e-12)).clamp_max(1.0)
        change = change * shrink
        moved = change.detach().abs().amax(dim=-1)
        return rotation_from_vector(change[..., 3:]) @ R, t + change[..., :3], moved

    def determined(self, R: Tensor, t: Tensor, gate: float, spread_m: float) -> Tensor:
        """Whether enough inliers determine all of the pose, ``(B, K)`` bool."""
        H, _, squared, infront = self.normal_equations(R, t, gate)
        inlier = self.valid.unsqueeze(1) & infront & (squared < gate**2)
        finite = torch.isfinite(H).all(dim=-1).all(dim=-1) & torch.isfinite(t).all(dim=-1)
        worst = torch.tensor([spread_m] * 3 + [_WORST_ROTATION_RAD] * 3, dtype=H.dtype, device=H.device)
        scaled = torch.where(finite[..., None, None], H * torch.outer(worst, worst), 0.0)
        known = torch.linalg.eigvalsh(scaled)[..., 0] > 1
        # Of points on one line, rays show the plane through it at most, and noisy depths would pose as knowledge.
        used = (inlier & ~self.ranged.unsqueeze(1)).to(H.dtype)
        direction = self.lines[:, :3].unsqueeze(1)
        scatter = (direction * used.unsqueeze(2)) @ direction.transpose(-1, -2)
        flat = torch.linalg.eigvalsh(scatter)[..., 0] < _FLATTEST_RAD**2 * used.sum(dim=-1)
        ranged = (inlier & self.ranged.unsqueeze(1)).sum(dim=-1)
        return finite & known & (inlier.sum(dim=-1) >= _LEAST_INLIERS) & ~(flat & (ranged < 3))


def rotation_from_vector(vector: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of rotation vectors ``(..., 3)`` in radians; differentiable at zero too."""
    squared = vector.square().sum(dim=-1)[..., None, None]
    small = squared < 1e-8
    safe = torch.where(small, 1.0, squared)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    cosine = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    cross = _cross_matrix(vector)
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * cross + cosine * (cross @ cross)


def _cross_matrix(vector: Tensor) -> Tensor:
    """``[v]x`` ``(..., 3, 3)``: ``[v]x w`` is ``v x w``."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.stack(rows, dim=-2)


def orthonormal(rotation: Tensor) -> Tensor:
    """The rotation near a matrix that is one but for rounding."""
    first = torch.nn.functional.normalize(rotation[..., 0], dim=-1)
    third = torch.nn.functional.normalize(torch.linalg.cross(first, rotation[..., 1]), dim=-1)
    return torch.stack([first, torch.linalg.cross(third, first), third], dim=-1)
