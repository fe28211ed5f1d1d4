# SPDX-License-Identifier: Apache-2.0
"""Models of lidars are recovered from clouds that known ones would measure."""

from __future__ import annotations

import numpy as np
import pytest

from training.survey.lidar_model import find_rings, measure_lidar
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import PointCloud


def scan(
    elevations_deg: np.ndarray, seed: int, azimuth_deg: tuple[float, float] = (-180.0, 180.0), columns: int = 400
) -> PointCloud:
    """A revolution in a scene of random ranges from 3 to 60 m, with noise along the beam and a third of dropouts."""
    rng = np.random.default_rng(seed)
    azimuth = np.radians(rng.uniform(0, 0.5) + np.linspace(*azimuth_deg, columns, endpoint=False))
    elevation, azimuth = (x.ravel() for x in np.meshgrid(np.radians(elevations_deg), azimuth))
    ranges = rng.uniform(3, 60, len(azimuth)) + rng.normal(0, 0.02, len(azimuth))
    rays = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=1
    )
    xyz = (ranges[:, None] * rays).astype(np.float32)
    xyz[rng.random(len(xyz)) < 0.2] = np.nan
    xyz[rng.random(len(xyz)) < 0.1] = 0.0
    time_s = np.linspace(-0.05, 0.05, len(xyz), dtype=np.float32)
    return PointCloud(xyz, np.full(len(xyz), 100, np.float32), time_s)


@pytest.mark.parametrize("seed", range(8))
def test_rings_and_their_elevations_are_found_whatever_their_number_and_spacing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.choice([4, 8, 16, 32, 40, 64, 128]))
    # Neighbouring rings are 0.11 to 0.55 degrees apart, unevenly.
    elevations = rng.uniform(-30, 0) + np.cumsum(rng.uniform(0.11, 0.55, count))
    model = measure_lidar([scan(elevations, number) for number in range(3)])
    assert model.rings == count
    np.testing.assert_allclose(model.elevation_deg, elevations[[0, -1]], atol=0.02)
    assert model.columns == pytest.approx(400 * 0.8 * 0.9, rel=0.15)
    assert 55 < model.far_m < 61
    assert model.sweep_s == pytest.approx(0.1, abs=1e-6)
    assert model.intensity == 100


def test_a_narrow_field_of_view_is_found_and_one_across_the_rear_is_the_full_circle() -> None:
    elevations = np.linspace(-15, 15, 16)
    ahead = measure_lidar([scan(elevations, 0, (-60.0, 60.0))])
    np.testing.assert_allclose(ahead.azimuth_deg, (-60, 60), atol=1.5)
    behind = measure_lidar([scan(elevations, 0, (120.0, 240.0))])
    assert behind.azimuth_deg == (-180.0, 180.0)
    assert measure_lidar([scan(elevations, 0)]).azimuth_deg == (-180.0, 180.0)


def test_points_that_were_moved_have_no_rings_but_a_range_of_elevations() -> None:
    cloud = scan(np.linspace(-20, 12, 32), 0)
    rng = np.random.default_rng(0)
    moved = cloud.xyz_m + rng.normal(0, 0.3, cloud.xyz_m.shape).astype(np.float32)
    moved[~cloud.xyz_m.any(axis=1)] = 0
    model = measure_lidar([PointCloud(moved)])
    assert (model.rings, model.sweep_s, model.intensity) == (0, 0.0, 0.0)
    assert -32 < model.elevation_deg[0] < -18
    assert 11 < model.elevation_deg[1] < 25


def test_rings_need_points_that_gather() -> None:
    assert len(find_rings(np.empty(0))) == 0
    assert len(find_rings(np.random.default_rng(0).uniform(-10, 10, 5000))) == 0


def test_clouds_without_returns_are_refused() -> None:
    with pytest.raises(DataError, match="none of the sampled clouds has a return"):
        measure_lidar([PointCloud(np.full((10, 3), np.nan, np.float32))])
