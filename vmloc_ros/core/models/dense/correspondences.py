# SPDX-License-Identifier: Apache-2.0
"""Correspondences between predicted map coordinates and measurements, and the likelihood of poses given them.

Correspondence i is a prediction that its cell lies at ``X_i`` in the map, with standard deviation ``sigma_i``. At the
pose ``(R, t)``, map from body, its residual in metres is ``f_i = A_i (R^T (X_i - t) - p_i)``:

* 3D-3D: the point ``p_i`` is measured; ``A_i = I``, three equations.
* 2D-3D: only the direction ``d_i`` from the sensor's centre ``p_i`` is known; ``A_i = I - d_i d_i^T``, two equations:
  the distance between point and ray.

Each cell is a Gaussian expert on the pose, ``exp(-|f_i|^2 / (2 sigma_i^2))``. The product over all cells of all
modalities (VMLoc Eq. 4-5) has the sum of their quadratic forms as exponent; a missing modality adds no term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_NAMES = ("map_points_m", "std_m", "points_m", "rays", "ranged", "valid")
_LEAST_STD_M = 1e-6  # the inverse square of a much smaller one overflows float32
_CHUNK = 1 << 22  # elements of the largest intermediate of log_ratio


@dataclass(frozen=True, slots=True, eq=False)
class Correspondences:
    """M correspondences in each of B frames, of any modalities, in any order. Values of invalid ones are arbitrary.

    Attributes:
        map_points_m: ``(B, M, 3)`` predicted coordinates in the (centred) map.
        std_m: ``(B, M)`` standard deviation of each of the three coordinates, metres, above a micrometre.
        points_m: ``(B, M, 3)`` in the body frame: the measured point, or the sensor's centre where only rays are known.
        rays: ``(B, M, 3)`` unit directions in the body frame; ignored where ``ranged``.
        ranged: ``(B, M)`` bool: the point itself is measured.
        valid: ``(B, M)`` bool.
    """

    map_points_m: Tensor
    std_m: Tensor
    points_m: Tensor
    rays: Tensor
    ranged: Tensor
    valid: Tensor

    def cleaned(self) -> Correspondences:
        """The same, with rows invalid whose numbers are not finite or whose standard deviation is too small.

        Invalid rows are filled with zeros (standard deviation: 1), and so are rays of ranged rows: no NaN reaches a sum
        or, multiplied by zero, a gradient. Where M is 0, one invalid row is added.
        """
        if not self.valid.shape[1]:
            shapes = ((len(self.valid), 1, *getattr(self, name).shape[2:]) for name in _NAMES)
            empty = (getattr(self, name).new_zeros(shape) for name, shape in zip(_NAMES, shapes, strict=True))
            return Correspondences(*empty).cleaned()
        with torch.no_grad():
            numbers = torch.cat([self.map_points_m, self.points_m, self.std_m.unsqueeze(-1)], dim=-1)
            valid = self.valid & torch.isfinite(numbers).all(dim=-1) & (self.std_m > _LEAST_STD_M)
            valid = valid & (self.ranged | torch.isfinite(self.rays).all(dim=-1))
            row, ray = valid.unsqueeze(-1), (valid & ~self.ranged).unsqueeze(-1)
        return Correspondences(
            torch.where(row, self.map_points_m, 0.0),
            torch.where(valid, self.std_m, 1.0),
            torch.where(row, self.points_m, 0.0),
            torch.where(ray, self.rays, 0.0),
            self.ranged & valid,
            valid,
        )

    def to(self, dtype: torch.dtype) -> Correspondences:
        """The same with all numbers in another floating-point type."""
        map_points, std, points, rays = (getattr(self, name).to(dtype) for name in _NAMES[:4])
        return Correspondences(map_points, std, points, rays, self.ranged, self.valid)

    def on(self, device: torch.device) -> Correspondences:
        return Correspondences(*(getattr(self, name).to(device) for name in _NAMES))

    def at(self, rows: Tensor) -> Correspondences:
        """The correspondences of some frames: row numbers or bool."""
        return Correspondences(*(getattr(self, name)[rows] for name in _NAMES))

    def picked(self, cells: Tensor) -> Correspondences:
        """The correspondences of N cells of each frame, by their numbers ``(B, N)``."""
        rows = torch.arange(len(cells), device=cells.device).unsqueeze(1)
        return Correspondences(*(getattr(self, name)[rows, cells] for name in _NAMES))


def log_ratio(c: Correspondences, rotations: Tensor, translations: Tensor, spread_m: float) -> Tensor:
    """Log-likelihood ratio ``(B, H)`` of H poses against uniform outliers, as in MLESAC (Torr and Zisserman 2000).

    It is the sum over cells of ``max(0, k log(spread / (sqrt(2 pi) sigma)) - |f|^2 / (2 sigma^2))``, where k is 3 or 2,
    the number of equations. Uncertain cells add little; outliers and points behind a camera add nothing.

    Args:
        c: cleaned correspondences.
        rotations: ``(B, H, 3, 3)`` map from body.
        translations: ``(B, H, 3)``.
        spread_m: extent of the map.
    """
    map_points, points, rays = (x.transpose(1, 2) for x in (c.map_points_m, c.points_m, c.rays))
    has_rays = bool((c.valid & ~c.ranged).any())
    equations = torch.where(c.ranged, 3.0, 2.0)
    gain = equations * (math.log(spread_m / math.sqrt(2 * math.pi)) - torch.log(c.std_m))
    gain = torch.where(c.valid, gain, -1.0).unsqueeze(1)
    half_precision = (0.5 / c.std_m**2).unsqueeze(1)
    scores = []
    step = max(1, _CHUNK // max(1, 3 * c.valid.numel()))
    for first in range(0, rotations.shape[1], step):
        R, t = rotations[:, first : first + step], translations[:, first : first + step]
        batch, count = R.shape[:2]
        body = (R.transpose(-1, -2).reshape(batch, count * 3, 3) @ map_points).view(batch, count, *points.shape[1:])
        error = body - (points.unsqueeze(1) + (t.unsqueeze(-2) @ R).transpose(-1, -2))
        cell = gain
        if has_rays:
            depth = (error * rays.unsqueeze(1)).sum(dim=2, keepdim=True)
            error = error - depth * rays.unsqueeze(1)
            cell = torch.where(c.ranged.unsqueeze(1) | (depth.squeeze(2) > 0), gain, -1.0)
        scores.append((cell - half_precision * error.square().sum(dim=2)).clamp_min(0).sum(dim=-1))
    return torch.cat(scores, dim=1)
