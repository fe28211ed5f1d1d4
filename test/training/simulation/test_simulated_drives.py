# SPDX-License-Identifier: Apache-2.0
"""Simulated drives and odometry, the street's coordinates, and filtered textures."""

from __future__ import annotations

import numpy as np
import pytest

from simulated_bags import pose_of, read, stamp_ns, truth
from training.simulation import simulate, street
from training.simulation.textures import band, stripes
from training.simulation.traffic import Traffic
from training.simulation.trajectory import Trajectory
from training.simulation.world import World, build_world
from vmloc_ros.core.geometry import interpolate_poses


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


# --- driving ---


@pytest.mark.parametrize("seed", range(6))
def test_drive_keeps_to_the_road_and_to_plausible_speeds(seed):
    drive = Trajectory(np.random.default_rng(seed), laps=1.2)
    times = np.arange(0, drive.duration_s, 0.02)
    position, rotation = drive.at(times)
    _, lateral = street.project(*position[:, :2].T.astype(np.float32))
    assert np.abs(lateral).max() < 2.37  # farther out the vehicle would touch parked cars
    assert lateral.max() - lateral.min() > 0.1
    speed = np.linalg.norm(np.diff(position[:, :2], axis=0), axis=1) / 0.02
    assert 2.4 < speed.min() < 5
    assert 5 < speed.max() < 9
    travelled = drive.distance([times[-1]])[0] - drive.distance([0.0])[0]
    assert travelled == pytest.approx(1.2 * street.LENGTH_M, rel=0.01)
    yaw = np.unwrap(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    assert yaw[-1] - yaw[0] == pytest.approx(1.2 * 2 * np.pi, abs=1.2)  # counter-clockwise
    forward = np.einsum("ni,ni->n", rotation[:-1, :, 0], np.diff(position, axis=0)) / 0.02
    assert np.all(forward > 0.97 * speed)
    tilt = np.degrees(np.arccos(rotation[:, 2, 2]))
    assert 0.1 < tilt.max() < 1.5
    assert np.abs(position[:, 2]).max() < 0.05


def rectangles_overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Separating-axis test of two convex quadrilaterals ``(4, 2)``."""
    for shape in (first, second):
        for edge in np.roll(shape, -1, axis=0) - shape:
            axis = np.array([-edge[1], edge[0]])
            a, b = first @ axis, second @ axis
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True


@pytest.mark.parametrize("seed", range(8))
def test_nothing_drives_or_stands_where_we_drive(world, seed):
    drive = Trajectory(np.random.default_rng(seed), laps=1.0)
    traffic = Traffic(world, drive, np.random.default_rng(100 + seed))
    body = np.array([[-2.1, -0.9], [2.1, -0.9], [2.1, 0.9], [-2.1, 0.9]])
    car = np.array([[-2.45, -0.98], [2.45, -0.98], [2.45, 0.98], [-2.45, 0.98]])
    parked = []
    for slot in world.slots:
        c, s = np.cos(slot.heading_rad), np.sin(slot.heading_rad)
        parked.append(car @ np.array([[c, s], [-s, c]]) + slot.xy_m)
    for time_s in np.arange(0, drive.duration_s, 0.1):
        position, rotation = drive.at([time_s])
        ego = body @ rotation[0, :2, :2].T + position[0, :2]
        for other in [*traffic.footprints(float(time_s)), *parked]:
            assert not rectangles_overlap(ego, other), time_s


def test_odometry_drifts_but_keeps_its_scale(tmp_path):
    simulate(tmp_path / "lap", seed=5, image_size=(16, 12), camera_rate_hz=0.5, lidar_rate_hz=0.5, progress=False)
    messages = read(tmp_path / "lap")
    odometry = [m for _, m in messages["/odom"]]
    first = pose_of(odometry[0].pose.pose.position, odometry[0].pose.pose.orientation)
    np.testing.assert_array_equal(first.matrix, np.eye(4))
    stamps, poses = truth(messages)
    inside = [m for m in odometry if stamps[0] <= stamp_ns(m) <= stamps[-1]]
    true = interpolate_poses(stamps, poses, [stamp_ns(m) for m in inside])
    odom_xy = np.array([[m.pose.pose.position.x, m.pose.pose.position.y] for m in inside])
    true_xy = np.array([pose.position_m[:2] for pose in true])
    lengths = [np.linalg.norm(np.diff(xy, axis=0), axis=1).sum() for xy in (odom_xy, true_xy)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.04)
    assert lengths[0] != pytest.approx(lengths[1], rel=1e-5)
    # Over a second it is nearly right, over the lap it is metres away.
    start = true[0].inverse()
    error = np.linalg.norm(odom_xy - start.transform([pose.position_m for pose in true])[:, :2], axis=1)
    assert error[50] < 0.3
    assert 0.3 < error.max() < 20
    speed = np.array([m.twist.twist.linear.x for m in inside[1:]])
    assert speed.mean() == pytest.approx(lengths[0] / (len(inside) * 0.02), rel=0.01)


# --- textures ---


def test_filtered_stripes_keep_their_mean_at_every_footprint():
    x = np.linspace(0, 40, 4001, dtype=np.float32)
    for footprint in (0.01, 0.3, 2.0, 7.0):
        covered = stripes(x, 2.0, 0.5, np.full_like(x, footprint))
        assert covered.mean() == pytest.approx(0.25, abs=0.01)
        if footprint >= 7:
            assert np.ptp(covered) < 0.1
    fine = stripes(x, 2.0, 0.5, np.full_like(x, 0.001))
    away = np.abs((x + 0.1) % 0.5 - 0.1) > 0.01
    np.testing.assert_allclose(fine[away], (x % 2.0 < 0.5)[away], atol=1e-2)


def test_band_is_the_share_of_the_footprint_inside():
    share = band(np.array([0.0, 1.0, 2.0, 5.0], np.float32), 0.0, 2.0, np.full(4, 1.0, np.float32))
    np.testing.assert_allclose(share, [0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("lateral_m", [-6.0, -1.5, 0.0, 2.3, 6.0])
def test_street_coordinates_invert_each_other(lateral_m):
    s = np.linspace(0, street.LENGTH_M, 500, endpoint=False)
    point, _ = street.point_at(s, np.full(500, lateral_m))
    found_s, found_lateral = street.project(*point.T.astype(np.float32))
    gap = np.abs(found_s - s)
    assert np.minimum(gap, street.LENGTH_M - gap).max() < 1e-3
    assert np.abs(found_lateral - lateral_m).max() < 1e-4
