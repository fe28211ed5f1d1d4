# SPDX-License-Identifier: Apache-2.0
"""A lidar's model, measured from a few of its clouds: rings, field of view, ranges, times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.survey.facts import LidarModel
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import PointCloud

Array = NDArray[np.float64]

_BIN_DEG = 0.02  # of elevations; lidars of 128 beams have rings 0.11 degrees apart and more
_NEAR_M = 2.0  # nearer points have coarse angles: drivers round coordinates to millimetres, and beams start off centre
_LEAST_EMPTY = 0.3  # share of bins between rings that hold no point
_LEAST_DENSITY = 3.0  # points of a bin in the mean; spread evenly they would leave one bin in twenty empty
_FEWEST_RINGS = 4
_LEAST_GAP_DEG = 20.0  # without returns, that are no part of the field of view; a robot's mast hides less


def measure_lidar(clouds: Sequence[PointCloud]) -> LidarModel:
    """The model of the lidar that measured these clouds.

    Raises:
        DataError: there are no returns.
    """
    xyz = [_returns(cloud.xyz_m) for cloud in clouds]
    together = np.concatenate(xyz) if xyz else np.empty((0, 3))
    if not len(together):
        raise DataError("none of the sampled clouds has a return; check the lidar's driver and filters")
    ranges = np.linalg.norm(together, axis=1)
    far = together[ranges > _NEAR_M] if np.mean(ranges > _NEAR_M) > 0.2 else together
    elevations = np.degrees(np.arctan2(far[:, 2], np.hypot(far[:, 0], far[:, 1])))
    rings = find_rings(elevations)
    azimuth = _azimuth_limits(np.degrees(np.arctan2(together[:, 1], together[:, 0])))
    limits = (rings[0], rings[-1]) if len(rings) else tuple(np.percentile(elevations, [0.1, 99.9]))
    return LidarModel(
        rings=len(rings),
        elevation_deg=(float(limits[0]), float(limits[1])),
        azimuth_deg=azimuth,
        columns=max(_points_of_a_ring(points, rings) for points in xyz if len(points)),
        median_m=float(np.median(ranges)),
        far_m=float(np.percentile(ranges, 99.5)),
        height_m=(float(np.percentile(together[:, 2], 0.5)), float(np.percentile(together[:, 2], 99.5))),
        intensity=_intensity(clouds),
        points=int(np.median([len(points) for points in xyz])),
        sweep_s=_sweep_s(clouds),
    )


def find_rings(elevations_deg: Array) -> Array:
    """Elevations ``(R,)``, ascending, at which points gather; none where they do not.

    Args:
        elevations_deg: ``(N,)`` of points.
    """
    if not len(elevations_deg):
        return np.empty(0)
    low = np.floor(elevations_deg.min() / _BIN_DEG)
    bins = np.floor(elevations_deg / _BIN_DEG).astype(int) - int(low)
    counts = np.bincount(bins)
    occupied = counts > 0
    starts = np.flatnonzero(occupied & ~np.r_[False, occupied[:-1]])
    sizes = np.add.reduceat(counts, starts)
    kept = sizes >= max(3.0, 0.02 * float(np.median(sizes[sizes >= 3])) if np.any(sizes >= 3) else 3.0)
    if not _is_separate(counts) or kept.sum() < _FEWEST_RINGS or sizes[kept].sum() < 0.95 * len(elevations_deg):
        return np.empty(0)
    sums = np.add.reduceat(np.bincount(bins, elevations_deg), starts)
    return np.asarray(sums[kept] / sizes[kept])


def _is_separate(counts: NDArray[np.int64]) -> bool:
    """Whether bins without points lie among the others in numbers that points which are spread evenly would not leave.

    Args:
        counts: ``(B,)`` points of each bin of elevations; the sparse tails on both sides do not count.
    """
    share = np.cumsum(counts) / counts.sum()
    core = counts[(share >= 0.05) & (share <= 0.95)]
    return len(core) > 0 and float(core.mean()) >= _LEAST_DENSITY and float(np.mean(core == 0)) >= _LEAST_EMPTY


def _returns(xyz_m: NDArray[np.float32]) -> Array:
    """The points ``(N, 3)`` that are returns."""
    finite = np.isfinite(xyz_m).all(axis=1) & xyz_m.any(axis=1)
    return xyz_m[finite].astype(np.float64)


def _azimuth_limits(azimuth_deg: Array) -> tuple[float, float]:
    """Limits of the field of view; the full circle where the gap is small, or where the view lies across the rear."""
    seen = np.flatnonzero(np.bincount(np.floor(azimuth_deg + 180).astype(int).clip(0, 359), minlength=360) >= 2)
    if not len(seen):
        return -180.0, 180.0
    gaps = np.diff(np.r_[seen, seen[0] + 360])
    widest = int(np.argmax(gaps))
    if gaps[widest] < _LEAST_GAP_DEG or widest != len(seen) - 1:
        return -180.0, 180.0
    return float(seen[0] - 180), float(seen[-1] + 1 - 180)


def _points_of_a_ring(xyz: Array, rings: Array) -> int:
    """Of one scan, the number of points of its fullest rings (their 90th percentile)."""
    if not len(rings):
        return len(xyz)
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    nearest = np.searchsorted((rings[1:] + rings[:-1]) / 2, elevation)
    return int(np.percentile(np.bincount(nearest, minlength=len(rings)), 90))


def _intensity(clouds: Sequence[PointCloud]) -> float:
    """99th percentile; 0 without intensities."""
    known = [cloud.intensity[np.isfinite(cloud.intensity)] for cloud in clouds if cloud.intensity is not None]
    values = np.concatenate(known) if known else np.empty(0)
    return float(np.percentile(values, 99)) if len(values) else 0.0


def _sweep_s(clouds: Sequence[PointCloud]) -> float:
    spans = [float(np.ptp(t)) for cloud in clouds if (t := cloud.time_s) is not None and len(t)]
    return float(np.median(spans)) if spans else 0.0
