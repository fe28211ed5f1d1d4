# SPDX-License-Identifier: Apache-2.0
"""Geometry of a feature map's cells in the body frame: measured points, or rays where nothing was measured.

Cell (i, j) of stride s stands for the pixel (s i, s j) of the input image: there is the centre of its receptive field
in torchvision's networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vmloc_ros.core.projection import TIME, cylindrical_points


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Geometry of the N cells of each of B images, in the body frame.

    Attributes:
        points_m: ``(B, N, 3)`` measured points; the sensor's centre where only the direction is known.
        rays: ``(B, N, 3)`` unit directions from the sensor's centre.
        ranged: ``(B, N)`` bool: the point is measured.
        valid: ``(B, N)`` bool: point or direction is known.
        times_s: ``(B, N)`` time of measurement, seconds since the frame's stamp; it varies within a lidar's revolution.
    """

    points_m: Tensor
    rays: Tensor
    ranged: Tensor
    valid: Tensor
    times_s: Tensor

    def moved(self, twist: Tensor) -> Cells:
        """Compensate the body's motion between the stamp and each measurement (deskewing), to first order.

        Args:
            twist: ``(B, 6)`` velocity of the body in its own axes, m/s and rad/s, taken to be constant.
        """
        linear, angular = twist[:, None, :3], twist[:, None, 3:]
        velocity = linear + torch.linalg.cross(angular.expand_as(self.points_m), self.points_m)
        return replace(self, points_m=self.points_m + self.times_s.unsqueeze(-1) * velocity)


def camera_cells(intrinsics: Tensor, mount: Tensor, shape: tuple[int, int], stride: int, depth: Tensor | None) -> Cells:
    """Cells of a camera image.

    Args:
        intrinsics: ``(B, 3, 3)``; NaN makes the cells invalid.
        mount: ``(4, 4)`` body from camera.
        shape: rows and columns of cells.
        depth: ``(B, 2, H, W)`` depth along the optical axis in metres, and validity; None without depth measurements.
    """
    rows, columns = (stride * torch.arange(count, device=intrinsics.device) for count in shape)
    v, u = torch.meshgrid(rows.float(), columns.float(), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(-1, 3)
    known = torch.isfinite(intrinsics).all(dim=2).all(dim=1)
    inverse = torch.linalg.inv_ex(torch.where(known[:, None, None], intrinsics, torch.eye(3).to(intrinsics)))[0]
    rays = pixels @ inverse.mT  # (B, N, 3), z = 1
    if depth is None:
        distance = torch.zeros_like(rays[..., 0])
    else:
        distance = (depth[:, 0] * (depth[:, 1] > 0))[:, ::stride, ::stride].flatten(1)
    valid = known.unsqueeze(1).expand_as(distance)
    return _mounted(rays * distance.unsqueeze(-1), rays, mount, distance > 0, valid, torch.zeros_like(distance))


def cylinder_cells(picture: Tensor, mount: Tensor, stride: int) -> Cells:
    """Cells of a cylindrical image: each takes the measurement of its block that is nearest to its pixel.

    Args:
        picture: ``(B, 6, H, W)``, see :func:`vmloc_ros.core.projection.cylindrical_projection`.
        mount: ``(4, 4)`` body from lidar.
    """
    points = cylindrical_points(picture)
    blocks = _blocks(torch.cat([points, picture[:, TIME:]], dim=1), stride)  # (B, 5, S, N)
    measured = blocks[:, 4] > 0
    offsets = torch.arange(stride, device=picture.device).float()
    nearness = -(offsets[:, None] ** 2 + offsets**2).flatten()
    best = torch.where(measured, nearness[:, None], -torch.inf).argmax(dim=1, keepdim=True)  # (B, 1, N)
    chosen = blocks[:, :4].gather(2, best.unsqueeze(1).expand(-1, 4, -1, -1)).squeeze(2).mT
    ranged = measured.any(dim=1)
    return _mounted(chosen[..., :3], chosen[..., :3], mount, ranged, ranged, chosen[..., 3])


def seen_by_camera(
    scan: Cells,
    intrinsics: Tensor,
    mount: Tensor,
    shape: tuple[int, int],
    stride: int,
    tolerance_px: float,
) -> tuple[Tensor, Tensor]:
    """Project a lidar's points to a camera's cells; of several points in a cell, the nearest to the camera is kept.

    Args:
        scan: the lidar's P cells.
        intrinsics: ``(B, 3, 3)``.
        mount: ``(4, 4)`` body from camera.
        shape: rows and columns of cells.
        tolerance_px: largest distance of a point from its cell's pixel, in rows and in columns.

    Returns:
        For each of the camera's N cells, ``(B, N)`` the number of the lidar's cell, and bool whether there is one.
    """
    points_m, valid = scan.points_m, scan.valid
    rotation, translation = mount[:3, :3].float(), mount[:3, 3].float()
    x, y, z = ((points_m - translation) @ rotation).unbind(dim=-1)
    ahead = valid & (z > 0.1)
    depth = torch.where(ahead, z, 1.0)
    k = intrinsics.nan_to_num(0.0)[..., None]
    cell_u = (k[:, 0, 0] * x + k[:, 0, 1] * y) / depth + k[:, 0, 2]
    cell_v = (k[:, 1, 0] * x + k[:, 1, 1] * y) / depth + k[:, 1, 2]
    column, row = (cell_u / stride).round(), (cell_v / stride).round()
    inside = ahead & (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    inside &= ((cell_u - column * stride).abs() <= tolerance_px) & ((cell_v - row * stride).abs() <= tolerance_px)
    inside &= torch.isfinite(intrinsics).all(dim=2).all(dim=1).unsqueeze(1)
    count = shape[0] * shape[1]
    cell = torch.where(inside, row * shape[1] + column, count).long()  # one extra cell for points outside
    nearest = depth.new_full((len(points_m), count + 1), torch.inf).scatter_reduce(1, cell, depth, "amin")
    winner = inside & (depth <= nearest.gather(1, cell))
    index = torch.zeros_like(nearest, dtype=torch.long)
    numbers = torch.arange(points_m.shape[1], device=points_m.device).expand_as(cell)
    index.scatter_(1, torch.where(winner, cell, count), numbers)
    return index[:, :count], torch.isfinite(nearest[:, :count])


def _blocks(picture: Tensor, stride: int) -> Tensor:
    """Reshape ``(B, C, H, W)`` to ``(B, C, stride * stride, cells)``, zero-padded to whole blocks."""
    count, channels, height, width = picture.shape
    padded = torch.nn.functional.pad(picture, (0, -width % stride, 0, -height % stride))
    blocks = padded.reshape(count, channels, -(-height // stride), stride, -(-width // stride), stride)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(4, 5).flatten(2, 3)


def _mounted(points: Tensor, rays: Tensor, mount: Tensor, ranged: Tensor, valid: Tensor, times_s: Tensor) -> Cells:
    """Cells in the body frame from points and directions ``(B, N, 3)`` in the sensor's frame."""
    rotation, translation = mount[:3, :3].to(points), mount[:3, 3].to(points)
    at = torch.where(ranged.unsqueeze(-1), points, 0.0) @ rotation.mT + translation
    directions = torch.nn.functional.normalize(rays, dim=-1) @ rotation.mT
    return Cells(at, directions, ranged & valid, valid, times_s)
