# SPDX-License-Identifier: Apache-2.0
"""Projection of point clouds to images: cylindrical (MV3D, Chen et al. 2017) and pinhole, batched torch code.

Both keep the nearest return of each cell, fill cells without a return with 0 (validity included), and ignore "no
return" points: NaN, infinite, or all zero. Results are the same on every run. Between devices they differ only for
points that rounding puts across the edge of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vmloc_ros.core.errors import ConfigError

# Channels of a cylindrical image.
RANGE, HEIGHT, INTENSITY, AZIMUTH, TIME, VALIDITY = range(6)

_EMPTY = torch.iinfo(torch.int64).max
_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
# In cells: keeps beams on the limit of the field of view inside in spite of float32 rounding.
_EDGE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class CylindricalConfig:
    """Geometry of a cylindrical image; cells tile the field of view from edge to edge.

    Row 0 touches ``elevation_max_deg``. Column 0 touches ``azimuth_max_deg``, and azimuth decreases to the right: with
    the full circle, forward (+x) is in the image's centre and the robot's left (+y) in its left half. The defaults
    cover the usual spinning lidars of 16 to 128 beams.

    Raises:
        ConfigError: a size is not positive, or limits are empty or out of range.
    """

    rows: int = 64
    columns: int = 1024
    elevation_min_deg: float = -25.0
    elevation_max_deg: float = 15.0
    azimuth_min_deg: float = -180.0
    azimuth_max_deg: float = 180.0

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"projection {name} must be a positive integer, got {size!r}")
        _check_limits("elevation", self.elevation_min_deg, self.elevation_max_deg, 90.0)
        _check_limits("azimuth", self.azimuth_min_deg, self.azimuth_max_deg, 180.0)


def cylindrical_projection(
    xyz_m: Tensor, intensity: Tensor | None, config: CylindricalConfig, time_s: Tensor | None = None
) -> Tensor:
    """Project clouds around the lidar's z axis.

    Args:
        xyz_m: ``(B, N, 3)`` points in the lidar frame, padded with NaN where clouds differ in length.
        intensity: ``(B, N)`` in the sensor's unit, or None for zeros; a value that is not finite counts as 0.
        config: rows, columns and field of view.
        time_s: ``(B, N)`` measurement times in seconds, or None for zeros; a value that is not finite counts as 0.

    Returns:
        ``(B, 6, rows, columns)`` float32: range (m), height z (m), intensity, azimuth (rad), time (s), validity (0 or
        1). Of points at the same range in one cell the first counts.

    Raises:
        ValueError: a shape is wrong.
    """
    _check_points(xyz_m)
    for name, values in (("intensity", intensity), ("time", time_s)):
        if values is not None and values.shape != xyz_m.shape[:2]:
            raise ValueError(f"{name} must be {tuple(xyz_m.shape[:2])}, got {tuple(values.shape)}")
    x, y, z = _coordinates(xyz_m)
    ground_range_squared = x * x + y * y
    range_m = torch.sqrt(ground_range_squared + z * z)
    elevation = torch.atan(z / torch.sqrt(ground_range_squared))
    row, row_inside = _angular_cell(elevation, config.rows, config.elevation_min_deg, config.elevation_max_deg)
    azimuth = torch.atan2(y, x)
    column, column_inside = _angular_cell(azimuth, config.columns, config.azimuth_min_deg, config.azimuth_max_deg)
    inside = row_inside & column_inside & (range_m > 0) & (range_m < math.inf)
    cell = row.int() * config.columns + column.int()
    own = [torch.zeros_like(z) if values is None else values.float() for values in (intensity, time_s)]
    channels = (range_m, z, own[0], azimuth, own[1])
    picture = _nearest_per_cell(range_m, inside, cell, config.rows * config.columns, channels)
    for channel in (INTENSITY, TIME):
        picture[:, channel].nan_to_num_(0.0, 0.0, 0.0)
    return picture.reshape(len(xyz_m), 6, config.rows, config.columns)


def cylindrical_points(picture: Tensor) -> Tensor:
    """Inverse of :func:`cylindrical_projection`: points ``(B, 3, rows, columns)`` in metres in the lidar frame.

    Args:
        picture: ``(B, 6, rows, columns)``; a cell without a return gives zeros.
    """
    range_m, z, azimuth = picture[:, RANGE], picture[:, HEIGHT], picture[:, AZIMUTH]
    ground_range = torch.sqrt((range_m * range_m - z * z).clamp(min=0))  # rounding: negative near the axis
    return torch.stack([ground_range * torch.cos(azimuth), ground_range * torch.sin(azimuth), z], dim=1)


def pinhole_projection(xyz_m: Tensor, camera_from_lidar: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Project clouds into an undistorted camera, with a z-buffer.

    Pixel centres lie at integer coordinates (OpenCV, ROS): ``u = fx x / z + cx``, and the point falls into
    column ``floor(u + 0.5)``. Resizing the image by s changes ``cx`` to ``(cx + 0.5) s - 0.5``.

    Args:
        xyz_m: ``(B, N, 3)`` points in the lidar frame, padded with NaN where clouds differ in length.
        camera_from_lidar: ``(B, 4, 4)`` rigid transforms into the optical frame (x right, y down, z forward).
        intrinsics: ``(B, 3, 3)`` camera matrices in pixels of the returned image.
        height: rows of the returned image.
        width: columns of the returned image.

    Returns:
        ``(B, 2, height, width)`` float32: depth along the optical axis (m), validity (0 or 1).

    Raises:
        ValueError: a shape is wrong.
    """
    _check_points(xyz_m)
    batch = len(xyz_m)
    for name, matrix, side in (("camera_from_lidar", camera_from_lidar, 4), ("intrinsics", intrinsics, 3)):
        if matrix.shape != (batch, side, side):
            raise ValueError(f"{name} must be {(batch, side, side)}, got {tuple(matrix.shape)}")
    points = _coordinates(xyz_m)
    # Written out rather than matmul, which may run in TF32 on a GPU and lose centimetres.
    x, y, depth_m = (
        sum((row[:, axis, None] * points[axis] for axis in range(3)), start=row[:, 3, None])
        for row in camera_from_lidar.float().unbind(1)[:3]
    )
    k = intrinsics.float()[..., None]
    column = torch.floor((k[:, 0, 0] * x + k[:, 0, 1] * y) / depth_m + k[:, 0, 2] + 0.5)
    row = torch.floor(k[:, 1, 1] * y / depth_m + k[:, 1, 2] + 0.5)
    returned = (points[0] != 0) | (points[1] != 0) | (points[2] != 0)
    inside = returned & (depth_m > 0) & (depth_m < math.inf)
    inside = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = row.int() * width + column.int()
    picture = _nearest_per_cell(depth_m, inside, cell, height * width, (depth_m,))
    return picture.reshape(batch, 2, height, width)


def _check_limits(name: str, low_deg: float, high_deg: float, bound_deg: float) -> None:
    if not -bound_deg <= low_deg < high_deg <= bound_deg:
        raise ConfigError(
            f"projection {name} limits must satisfy -{bound_deg:g} <= min < max <= {bound_deg:g} degrees, "
            f"got min {low_deg!r}, max {high_deg!r}"
        )


def _check_points(xyz_m: Tensor) -> None:
    if xyz_m.ndim != 3 or xyz_m.shape[-1] != 3:
        raise ValueError(f"points must be (B, N, 3), got {tuple(xyz_m.shape)}")


def _coordinates(xyz_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and z as contiguous ``(B, N)`` float32 each: elementwise code is several times faster on these."""
    x, y, z = xyz_m.float().movedim(-1, 0).contiguous()
    return x, y, z


def _angular_cell(angle_rad: Tensor, cells: int, low_deg: float, high_deg: float) -> tuple[Tensor, Tensor]:
    """Cell (float, counted from the upper limit) of each angle, and whether it lies within the limits."""
    per_rad = cells / math.radians(high_deg - low_deg)
    offset = (math.radians(high_deg) - angle_rad) * per_rad
    inside = (offset >= -_EDGE_TOLERANCE) & (offset <= cells + _EDGE_TOLERANCE)
    return offset.floor().clamp(0, cells - 1), inside


def _nearest_per_cell(
    distance: Tensor, inside: Tensor, cell: Tensor, cells: int, channels: tuple[Tensor, ...]
) -> Tensor:
    """Channels of the nearest inside point of every cell, and validity: ``(B, len(channels) + 1, cells)``.

    Bits of positive floats order like the floats, so one integer minimum over (distance bits, point index)
    finds the nearest point and breaks ties by index: exact and independent of the order of execution.
    """
    batch, count = distance.shape
    if not count:
        return distance.new_zeros(batch, len(channels) + 1, cells)
    key = (distance.view(torch.int32).long() << _INDEX_BITS) | torch.arange(count, device=distance.device)
    nearest = torch.full((batch, cells + 1), _EMPTY, dtype=torch.int64, device=distance.device)
    # Points outside go into one extra cell, which is dropped.
    nearest.scatter_reduce_(1, torch.where(inside, cell, cells).long(), key, "amin")
    nearest = nearest[:, :-1]
    valid = nearest != _EMPTY
    winner = (nearest & _INDEX_MASK) * valid
    return torch.stack([*(torch.where(valid, x.gather(1, winner), 0.0) for x in channels), valid.float()], dim=1)
