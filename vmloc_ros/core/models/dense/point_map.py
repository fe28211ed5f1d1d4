# SPDX-License-Identifier: Apache-2.0
"""A map of points measured in training, and the registration of scans to it.

Point-to-plane registration (Chen and Medioni 1992) refines the pose that the solver found. One point with a normal in
each voxel defines a plane. The solver's pose, with inflated covariance, is the prior: it constrains directions that the
planes leave open, such as along a corridor. The points of a spinning lidar are measured one after the other, so the
body's twist during the scan is estimated together with its pose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from vmloc_ros.core.models.dense.gauss_newton import turned

# Voxel sizes by iteration, in voxels of the map: from a prior nearby, and where that puts too few points on the map.
_NEAR = (4, 4, 2, 2, 1, 1, 1, 1)
_WIDE = (32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 2, 2, 2, *[1] * 8)
_COARSE, _SPARSE = 8, 4  # with voxels of at least 8, every fourth point is enough
_ENOUGH_ON_MAP = 0.7  # share of the points on the map above which the second, wider attempt is skipped
_PRIOR_INFLATION = 10.0  # on the prior's standard deviations: errors of neighbouring cells are correlated
_LEAST_SHARE = 0.2  # of the points that must lie on the map for the registration to count
_LEAST_STD = 0.1  # of a point's distance from its plane, in voxels
_BUFFERS = ("points_m", "normals")  # of any length


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Registered poses of B scans.

    Attributes:
        rotations: ``(B, 3, 3)`` map from body, float64.
        translations: ``(B, 3)`` metres.
        covariances: ``(B, 6, 6)`` x, y, z and rotation about the map's fixed axes.
        share: ``(B,)`` share of the points that lie on the map.
        accepted: ``(B,)`` bool; where False, the pose and covariance are the prior's.
    """

    rotations: Tensor
    translations: Tensor
    covariances: Tensor
    share: Tensor
    accepted: Tensor


class PointMap(nn.Module):
    """A map of points with normals, one a voxel.

    Args:
        voxel_m: side of the voxels.
    """

    points_m: Tensor  # (N, 3) from the map's origin
    normals: Tensor  # (N, 3) unit

    def __init__(self, voxel_m: float) -> None:
        super().__init__()
        self.voxel_m = voxel_m
        self.register_buffer("points_m", torch.empty(0, 3))
        self.register_buffer("normals", torch.empty(0, 3))
        self._grids: dict[tuple[int, torch.device], _Grid] = {}

    def __len__(self) -> int:
        return len(self.points_m)

    def fill(self, points_m: Tensor, normals: Tensor) -> None:
        """Replace the map."""
        self.points_m, self.normals = points_m.to(self.points_m), normals.to(self.normals)
        self._grids = {}

    def register_scan(
        self,
        points_m: Tensor,
        times_s: Tensor,
        valid: Tensor,
        rotations: Tensor,
        translations: Tensor,
        covariances: Tensor,
        twist_std: Tensor,
    ) -> Registration:
        """Register scans to the map from prior poses.

        The first attempt converges from priors that are off by up to four voxels. Where it puts too few points on the
        map, a second one searches sixteen or more, and the attempt with the larger share of points on the map counts.

        Args:
            points_m: ``(B, M, 3)`` in the body frame at the stamp, compensated for the expected motion.
            times_s: ``(B, M)`` time of measurement, seconds since the stamp.
            valid: ``(B, M)`` bool.
            rotations: ``(B, 3, 3)`` map from body, float64: the prior's mean, with
            translations: ``(B, 3)`` metres and
            covariances: ``(B, 6, 6)``, inflated before use.
            twist_std: ``(6,)`` standard deviation of the body's twist about the expected one, m/s and rad/s.
        """
        given = points_m, times_s, valid, rotations, translations, covariances
        found = self._iterate(_NEAR, twist_std, *given)
        unsure = torch.nonzero((found.share < _ENOUGH_ON_MAP) & valid.any(dim=1)).flatten()
        if len(unsure):
            second = self._iterate(_WIDE, twist_std, *(x[unsure] for x in given))
            better = second.share > found.share[unsure]
            chosen = unsure[better]
            pairs = ((getattr(found, field.name), getattr(second, field.name)) for field in fields(Registration))
            found = Registration(*(x.index_copy(0, chosen, y[better]) for x, y in pairs))
        return found

    def _iterate(
        self,
        levels: Sequence[int],
        twist_std: Tensor,
        points_m: Tensor,
        times_s: Tensor,
        valid: Tensor,
        rotations: Tensor,
        translations: Tensor,
        covariances: Tensor,
    ) -> Registration:
        """Gauss-Newton, one step for each voxel size in ``levels``; other arguments as of :meth:`register_scan`."""
        every, every_time = points_m.double(), times_s.double().unsqueeze(-1)
        prior = torch.zeros(len(every), 12, 12, dtype=torch.float64, device=every.device)
        prior[:, :6, :6] = torch.linalg.inv(covariances.double() * _PRIOR_INFLATION**2)
        prior[:, 6:, 6:] = torch.diag(1 / twist_std.double().square())
        twist = every.new_zeros(len(every), 6)
        start, R, t = (rotations.double(), translations.double()), rotations.double(), translations.double()
        for level in levels:
            step = _SPARSE if level >= _COARSE else 1
            points, times = every[:, ::step], every_time[:, ::step]
            linear, angular = twist[:, None, :3], twist[:, None, 3:].expand_as(points)
            moved = points + times * (linear + torch.linalg.cross(angular, points))
            H, right, share, variance = self._equations(moved, times, valid[:, ::step], R, t, level)
            apart = torch.cat([start[1] - t, _small_turn(start[0] @ R.mT), -twist], dim=-1)
            H = H / variance + prior
            right = right / variance.squeeze(-1) + (prior @ apart.unsqueeze(-1)).squeeze(-1)
            change = torch.linalg.solve(H, right)
            R, t, twist = turned(change[:, 3:6]) @ R, t + change[:, :3], twist + change[:, 6:]
        accepted = share >= _LEAST_SHARE
        chosen = accepted[:, None, None]
        return Registration(
            torch.where(chosen, R, start[0]),
            torch.where(accepted[:, None], t, start[1]),
            torch.where(chosen, torch.linalg.inv(H)[:, :6, :6], covariances.double()),
            share,
            accepted,
        )

    def _equations(
        self, points: Tensor, times: Tensor, valid: Tensor, R: Tensor, t: Tensor, level: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normal equations of pose (map axes) and twist.

        Returns:
            H ``(B, 12, 12)``, right side ``(B, 12)``, share of points on the map ``(B,)``, and the variance of their
            distances from the planes ``(B, 1, 1)``.
        """
        levers = points @ R.mT
        places = levers + t.unsqueeze(1)
        foot, normal, found = self._grid(level, places.device).nearest(places)
        found = found & valid
        distance = ((places - foot) * normal).sum(dim=-1)
        gate = self.voxel_m * level
        weight = torch.where(found, (1 - (distance / gate).square()).clamp(min=0).square(), 0.0)  # Tukey's
        body_normal = normal @ R
        by_twist = torch.cat([body_normal, torch.linalg.cross(points, body_normal)], dim=-1)
        jacobian = torch.cat([normal, torch.linalg.cross(levers, normal), times * by_twist], dim=-1)
        weighted = jacobian * weight.unsqueeze(-1)
        total = weight.sum(dim=1).clamp(min=1e-9)
        variance = ((weight * distance.square()).sum(dim=1) / total).clamp(min=(_LEAST_STD * self.voxel_m) ** 2)
        near = (weight > 0.25).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        return (
            weighted.mT @ jacobian,
            -(weighted.mT @ distance.unsqueeze(-1)).squeeze(-1),
            near,
            variance.view(-1, 1, 1),
        )

    def _grid(self, level: int, device: torch.device) -> _Grid:
        if (level, device) not in self._grids:
            self._grids[level, device] = _Grid.of(self.points_m.double(), self.normals.double(), self.voxel_m * level)
        return self._grids[level, device]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        """As in every module, but a stored map may have any number of points."""
        for name in _BUFFERS:
            if prefix + name in state_dict:
                own = getattr(self, name)
                setattr(self, name, own.new_empty(state_dict[prefix + name].shape))
        self._grids = {}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Voxels sorted by their number, so that a position's neighbours are found by binary search."""

    side_m: float
    low: Tensor  # (3,) number of the first voxel along each axis
    counts: Tensor  # (3,) of voxels along each axis
    keys: Tensor  # (N,) sorted
    points: Tensor  # (N, 3)
    normals: Tensor  # (N, 3)

    @staticmethod
    def of(points: Tensor, normals: Tensor, side_m: float) -> _Grid:
        cells = torch.floor(points / side_m).long()
        low = cells.amin(dim=0) - 1
        counts = cells.amax(dim=0) - low + 2
        keys, owner, count = torch.unique(_keys(cells - low, counts), return_inverse=True, return_counts=True)
        ones = torch.ones_like(points[:, :1])
        sums = points.new_zeros(len(keys), 4).index_add_(0, owner, torch.cat([points, ones], dim=1))
        # A voxel keeps the point nearest to the mean of its points; the mean itself lies off the surface at corners.
        distance = (points - sums[owner, :3] / sums[owner, 3:]).square().sum(dim=1)
        order = torch.argsort(distance, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]  # by voxel, the nearest first
        winner = order[torch.cat([count.new_zeros(1), count.cumsum(0)[:-1]])]
        return _Grid(side_m, low, counts, keys, points[winner], normals[winner])

    def nearest(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest points to positions ``(B, M, 3)`` within the eight voxels around each.

        Returns:
            Points ``(B, M, 3)``, their normals ``(B, M, 3)``, and ``(B, M)`` bool whether there is one.
        """
        base = torch.floor(places / self.side_m - 0.5).long() - self.low
        corners = torch.cartesian_prod(*[torch.arange(2, device=places.device)] * 3)
        cells = base.unsqueeze(2) + corners  # (B, M, 8, 3)
        inside = ((cells >= 0) & (cells < self.counts)).all(dim=-1)
        keys = torch.where(inside, _keys(cells, self.counts), -1)
        index = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        known = self.keys[index] == keys
        distance = torch.where(known, (self.points[index] - places.unsqueeze(2)).square().sum(dim=-1), torch.inf)
        best = distance.argmin(dim=2, keepdim=True)
        index = index.gather(2, best).squeeze(2)
        return self.points[index], self.normals[index], known.any(dim=2)


def _small_turn(rotation: Tensor) -> Tensor:
    """Rotation vectors ``(B, 3)`` of small rotations ``(B, 3, 3)``, to second order."""
    skew = (rotation - rotation.mT) / 2
    return torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)


def _keys(cells: Tensor, counts: Tensor) -> Tensor:
    return (cells[..., 0] * counts[1] + cells[..., 1]) * counts[2] + cells[..., 2]
