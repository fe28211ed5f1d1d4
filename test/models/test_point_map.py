# SPDX-License-Identifier: Apache-2.0
"""Registration of scans to a map of points: known rooms, known motions."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from training.trainer.map_points import VoxelMeans, plane_normals
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models.dense.gauss_newton import turned
from vmloc_ros.core.models.dense.point_map import PointMap, _Grid

pytestmark = pytest.mark.numeric

VOXEL_M = 0.2
STILL = torch.full((6,), 0.1)


def walls(rng, faces="xyzXYZ", size=(8.0, 6.0, 3.0), spacing=0.05):
    """Points on the walls of a room around the origin, floor and ceiling being z and Z."""
    half = np.array(size) / 2
    parts = []
    for face in faces:
        axis = "xyz".index(face.lower())
        count = int(np.prod(np.delete(2 * half, axis)) / spacing**2)
        points = rng.uniform(-half, half, (count, 3))
        points[:, axis] = half[axis] * (1 if face.isupper() else -1)
        parts.append(points)
    return np.concatenate(parts)


def point_map(points):
    voxels = VoxelMeans(VOXEL_M)
    voxels.add(points)
    means = voxels.means(1)
    built = PointMap(VOXEL_M)
    built.fill(torch.from_numpy(means), torch.from_numpy(plane_normals(means)))
    return built


def pose(rng, shift_m, turn_rad):
    rotation = turned(torch.from_numpy(rng.normal(0, turn_rad, (1, 3))))
    return rotation, torch.from_numpy(rng.normal(0, shift_m, (1, 3)))


def prior(deviation_m=0.02, deviation_rad=0.005):
    return torch.diag(torch.tensor([deviation_m**2] * 3 + [deviation_rad**2] * 3)).double()[None]


def seen_from(points, rotation, translation):
    """``(1, N, 3)`` in the body frame."""
    return (torch.from_numpy(points) - translation) @ rotation[0].unsqueeze(0)


def register(built, body, start, covariance=None, times=None, valid=None, twist_std=STILL):
    times = torch.zeros(body.shape[:2]) if times is None else times
    valid = torch.ones(body.shape[:2], dtype=torch.bool) if valid is None else valid
    return built.register_scan(body, times, valid, *start, prior() if covariance is None else covariance, twist_std)


def apart(result, rotation, translation):
    turn = result.rotations @ rotation.mT
    angle = torch.arccos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    return float((result.translations - translation).norm()), float(angle)


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_of_a_room_finds_its_pose(seed):
    rng = np.random.default_rng(seed)
    built = point_map(walls(rng))
    rotation, translation = pose(rng, 0.5, 0.5)
    body = seen_from(walls(rng, spacing=0.3), rotation, translation)
    offset_rotation, offset = pose(rng, 0.08, 0.015)
    result = register(built, body + 0.01 * torch.randn(body.shape), (offset_rotation @ rotation, translation + offset))
    assert bool(result.accepted)
    assert float(result.share) > 0.95
    distance_m, angle_rad = apart(result, rotation, translation)
    assert distance_m < 0.01
    assert angle_rad < 0.003
    assert float(torch.linalg.eigvalsh(result.covariances).min()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_prior_that_is_many_voxels_off_converges_and_changes_no_other_frame(seed):
    rng = np.random.default_rng(seed)
    built = point_map(walls(rng))
    rotation, translation = pose(rng, 0.2, 0.2)
    body = seen_from(walls(rng, spacing=0.3), rotation, translation).repeat(2, 1, 1)
    offsets = torch.from_numpy(rng.choice([-1, 1], (1, 3)) * [1.4, 1.2, 0.5])
    start = rotation.repeat(2, 1, 1), torch.cat([translation + offsets, translation + 0.05])
    both = register(built, body, start, prior(0.2).repeat(2, 1, 1))
    assert (both.translations - translation).norm(dim=1).max() < 0.01
    assert both.share.min() > 0.95
    alone = register(built, body[1:], (rotation, translation + 0.05), prior(0.2))
    assert torch.allclose(both.translations[1:], alone.translations, atol=1e-9)


def test_along_a_corridor_the_prior_decides():
    rng = np.random.default_rng(0)
    built = point_map(walls(rng, faces="yYz", size=(40.0, 3.0, 3.0)))
    near = walls(rng, faces="yYz", size=(10.0, 3.0, 3.0), spacing=0.2)
    rotation, translation = torch.eye(3).double()[None], torch.zeros(1, 3).double()
    start = rotation, torch.tensor([[0.3, 0.15, -0.1]]).double()
    result = register(built, seen_from(near, rotation, translation), start, prior(0.01))
    assert result.translations[0, 0] == pytest.approx(0.3, abs=0.25)  # with other points up to 0.19 off
    assert result.translations[0, 1:].abs().max() < 0.01
    deviations = torch.linalg.inv(torch.linalg.inv(result.covariances))[0].diagonal().sqrt()
    assert deviations[0] > 20 * deviations[1]


def test_the_velocity_of_a_moving_lidar_is_found_with_its_pose():
    rng = np.random.default_rng(1)
    built = point_map(walls(rng))
    points = walls(rng, spacing=0.2)
    rotation, translation = pose(rng, 0.3, 0.3)
    at_stamp = seen_from(points, rotation, translation)
    times = torch.from_numpy(rng.uniform(-0.05, 0.1, (1, len(points))))
    linear, angular = torch.tensor([2.0, 0.3, 0.0]).double(), torch.tensor([0.0, 0.0, 0.6]).double()
    measured = at_stamp.clone()
    for row, time in enumerate(times[0]):  # the body moved on by the time of the point: exact rigid motion
        moved = turned((angular * time).unsqueeze(0))[0]
        measured[0, row] = moved.T @ (at_stamp[0, row] - linear * time)
    start = rotation, translation + 0.05
    fast = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    found, ignored = register(built, measured, start, times=times, twist_std=fast), register(built, measured, start)
    distance_m, angle_rad = apart(found, rotation, translation)
    assert distance_m < 0.015
    assert angle_rad < 0.003
    assert apart(ignored, rotation, translation)[0] > 3 * distance_m


def test_a_scan_of_another_place_changes_nothing():
    rng = np.random.default_rng(2)
    built = point_map(walls(rng))
    elsewhere = torch.from_numpy(rng.uniform(20, 30, (1, 500, 3)))
    start, covariance = pose(rng, 0.1, 0.1), prior()
    result = register(built, elsewhere, start, covariance)
    assert not bool(result.accepted)
    assert float(result.share) == 0
    assert torch.equal(result.rotations, start[0])
    assert torch.equal(result.translations, start[1])
    assert torch.equal(result.covariances, covariance)


def test_invalid_points_count_for_nothing_and_frames_are_registered_singly():
    rng = np.random.default_rng(3)
    built = point_map(walls(rng))
    rotation, translation = pose(rng, 0.3, 0.3)
    body = seen_from(walls(rng, spacing=0.3), rotation, translation)
    alone = register(built, body, (rotation, translation + 0.05))
    rubbish = torch.cat([body, torch.full((1, 50, 3), 1e3).double()], dim=1)
    valid = torch.arange(rubbish.shape[1]).unsqueeze(0) < body.shape[1]
    start = rotation.repeat(2, 1, 1), torch.cat([translation + 0.05, translation - 0.05])
    both = register(
        built, rubbish.repeat(2, 1, 1), start, prior().repeat(2, 1, 1), valid=valid.repeat(2, 1), times=None
    )
    assert torch.allclose(both.translations[:1], alone.translations, atol=1e-9)
    assert float(both.share[0]) == pytest.approx(float(alone.share[0]))


def test_every_point_within_half_a_voxel_is_found_as_the_nearest():
    rng = np.random.default_rng(4)
    points = rng.uniform(-5, 5, (800, 3))
    grid = _Grid.of(torch.from_numpy(points), torch.zeros(800, 3).double(), 0.5)
    kept = grid.points.numpy()
    places = rng.uniform(-6, 6, (2, 400, 3))
    distance, index = cKDTree(kept).query(places)
    found_points, _, found = (x.numpy() for x in grid.nearest(torch.from_numpy(places)))
    near = distance < 0.25
    assert near.any()
    assert found[near].all()
    np.testing.assert_allclose(found_points[near], kept[index[near]])


def test_voxels_average_in_any_order_and_drop_those_of_too_few_points():
    rng = np.random.default_rng(5)
    points = rng.uniform(0, 1, (500, 3))
    whole, parts = VoxelMeans(0.5), VoxelMeans(0.5)
    whole.add(points)
    for part in np.array_split(points, 7):
        parts.add(part)
        parts._reduce()
    np.testing.assert_allclose(whole.means(1), parts.means(1))
    assert len(whole.means(1)) == 8
    assert len(whole.means(501)) == 0
    corner = points[(points < 0.5).all(axis=1)]
    np.testing.assert_allclose(whole.means(1)[0], corner.mean(axis=0))


def test_points_that_no_map_can_hold_are_rejected():
    voxels = VoxelMeans(0.5)
    voxels.add(np.array([[0.0, 0.0, 0.0], [0.0, -1e7, 0.0]]))
    with pytest.raises(DataError, match=r"more than 524288 m from the map's origin; make model\.map_voxel_m larger"):
        voxels.means(1)


def test_normals_are_those_of_the_planes():
    rng = np.random.default_rng(6)
    floor = np.column_stack([rng.uniform(-2, 2, (300, 2)), np.full(300, 0.3)])
    np.testing.assert_allclose(np.abs(plane_normals(floor)), np.tile([0, 0, 1], (300, 1)), atol=1e-9)


def test_a_map_of_any_size_survives_its_state_dict():
    built = point_map(walls(np.random.default_rng(7)))
    other = PointMap(VOXEL_M)
    other.load_state_dict(built.state_dict())
    assert torch.equal(other.points_m, built.points_m)
    assert torch.equal(other.normals, built.normals)
