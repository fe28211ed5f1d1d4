# SPDX-License-Identifier: Apache-2.0
"""Geometry of a feature map's cells, for cameras and lidars, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from helpers import random_frame
from training.data.augment import AugmentConfig, move_pixels
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.models.dense.cells import Cells, camera_cells, cylinder_cells, seen_by_camera
from vmloc_ros.core.projection import CylindricalConfig, cylindrical_projection

pytestmark = pytest.mark.numeric

STRIDE = 4
CYLINDER = CylindricalConfig(rows=18, columns=70)  # neither is a multiple of the stride


def random_pose(seed: int) -> Tensor:
    """``(4, 4)`` float64 of any rotation, centimetres to metres from the origin."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    matrix[:3, 3] = torch.from_numpy(np.random.default_rng(seed).normal(0, 1.5, 3))
    return matrix


def random_cameras(count: int, seed: int = 0) -> Tensor:
    """Matrices of cameras whose pictures of 22 x 35 pixels were turned and scaled: also skewed ones."""
    rng = np.random.default_rng(seed)
    plain = np.tile(np.eye(3), (count, 1, 1))
    plain[:, [0, 1], [0, 1]] = rng.uniform(20, 60, (count, 2))
    plain[:, :2, 2] = rng.uniform(5, 25, (count, 2))
    picture = {"image": torch.zeros(count, 3, 22, 35)}
    config = AugmentConfig(rotation_deg=30.0, zoom=1.5)
    return move_pixels(picture, torch.from_numpy(plain).float(), config, torch.Generator().manual_seed(seed))[1]


def projected(points_m: Tensor, intrinsics: Tensor, mount: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels ``(N, 2)`` and depths of points ``(N, 3)`` in the body, in float64."""
    in_camera = (points_m.double() - mount[:3, 3]) @ mount[:3, :3]
    homogeneous = in_camera @ intrinsics.double().T
    return homogeneous[:, :2] / homogeneous[:, 2:], in_camera[:, 2]


def pixels_of(shape: tuple[int, int], stride: int) -> Tensor:
    """Column and row ``(N, 2)`` of the cells' pixels."""
    cells = [[stride * column, stride * row] for row in range(shape[0]) for column in range(shape[1])]
    return torch.tensor(cells, dtype=torch.float64)


# --- cameras -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_measured_points_project_back_to_their_cells_pixel_at_their_depth(seed: int) -> None:
    intrinsics, mount, shape = random_cameras(4, seed), random_pose(seed), (6, 9)
    metres = 1 + 9 * torch.rand(4, 1, 22, 35, generator=torch.Generator().manual_seed(seed))
    cells = camera_cells(intrinsics, mount, shape, STRIDE, torch.cat([metres, torch.ones_like(metres)], dim=1))
    assert bool(cells.valid.all() & cells.ranged.all())
    assert not bool(cells.times_s.any())
    for row in range(4):
        pixels, depth = projected(cells.points_m[row], intrinsics[row], mount)
        torch.testing.assert_close(pixels, pixels_of(shape, STRIDE), rtol=0, atol=1e-3)
        torch.testing.assert_close(depth, metres[row, 0, ::STRIDE, ::STRIDE].flatten().double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_without_depth_cells_are_unit_rays_from_the_cameras_centre_through_their_pixels(seed: int) -> None:
    intrinsics, mount, shape = random_cameras(3, seed), random_pose(seed), (6, 9)
    cells = camera_cells(intrinsics, mount, shape, STRIDE, None)
    assert bool(cells.valid.all())
    assert not bool(cells.ranged.any())
    centre = mount[:3, 3].float().expand_as(cells.points_m)
    torch.testing.assert_close(cells.points_m, centre)
    torch.testing.assert_close(cells.rays.norm(dim=-1), torch.ones(3, 54))
    for row in range(3):
        pixels, depth = projected(centre[row] + 7 * cells.rays[row], intrinsics[row], mount)
        torch.testing.assert_close(pixels, pixels_of(shape, STRIDE), rtol=0, atol=1e-3)
        assert bool((depth > 0).all())


def test_a_cell_without_measurement_keeps_its_ray_and_one_with_it_lies_on_its_ray() -> None:
    intrinsics, mount = random_cameras(1), random_pose(7)
    depth = torch.full((1, 2, 22, 35), 3.0)
    depth[:, 1] = 1
    depth[0, :, :, :16] = 0  # no measurement
    depth[0, 1, :, 16:20] = 0  # withdrawn by validity alone
    cells = camera_cells(intrinsics, mount, (6, 9), STRIDE, depth)
    ranged = (pixels_of((6, 9), STRIDE)[:, 0] >= 20).unsqueeze(0)
    assert torch.equal(cells.ranged, ranged)
    assert bool(cells.valid.all())
    alone = camera_cells(intrinsics, mount, (6, 9), STRIDE, None)
    torch.testing.assert_close(cells.rays, alone.rays)
    torch.testing.assert_close(cells.points_m[~ranged], alone.points_m[~ranged])
    towards = cells.points_m[ranged] - mount[:3, 3].float()
    torch.testing.assert_close(torch.nn.functional.normalize(towards, dim=-1), cells.rays[ranged], rtol=0, atol=1e-5)


def test_an_unknown_camera_makes_its_own_frames_cells_invalid_and_no_number_infinite() -> None:
    intrinsics, depth = random_cameras(3), torch.ones(3, 2, 22, 35)
    intrinsics[1] = torch.nan
    for measured in (depth, None):
        cells = camera_cells(intrinsics, random_pose(0), (6, 9), STRIDE, measured)
        assert cells.valid.any(dim=1).tolist() == [True, False, True]
        assert not bool(cells.ranged[1].any())
        assert bool(torch.isfinite(cells.points_m).all() & torch.isfinite(cells.rays).all())


# --- lidars ------------------------------------------------------------------------------------------------------


def scan(count: int = 400, seed: int = 0, frames: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(B, N, 3)`` of which some return nothing, their times ``(B, N)``, and the picture of them."""
    generator = torch.Generator().manual_seed(seed)
    xyz = 10 * torch.randn(frames, count, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.15])
    xyz[:, ::50] = torch.nan
    times = torch.rand(frames, count, generator=generator) / 10
    return xyz, times, cylindrical_projection(xyz, None, CYLINDER, times)


def in_body(xyz: Tensor, mount: Tensor) -> Tensor:
    return (xyz.double() @ mount[:3, :3].T + mount[:3, 3]).float()


def nearest_distance(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cdist(points.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_lidar_cells_are_points_of_the_scan_with_their_own_times(stride: int) -> None:
    xyz, times, picture = scan()
    mount = random_pose(1)
    cells = cylinder_cells(picture, mount, stride)
    rows, columns = math.ceil(CYLINDER.rows / stride), math.ceil(CYLINDER.columns / stride)
    assert cells.points_m.shape == (2, rows * columns, 3)
    assert torch.equal(cells.ranged, cells.valid)
    for frame in range(2):
        real = torch.isfinite(xyz[frame, :, 0])
        distance, which = nearest_distance(cells.points_m[frame][cells.ranged[frame]], in_body(xyz[frame, real], mount))
        assert len(distance) > 20
        assert float(distance.max()) < 1e-4
        torch.testing.assert_close(cells.times_s[frame][cells.ranged[frame]], times[frame, real][which])


@pytest.mark.parametrize("stride", [2, 4])
def test_of_a_lidar_cells_block_the_measurement_nearest_to_its_pixel_is_taken(stride: int) -> None:
    _, _, picture = scan()
    mount = random_pose(2)
    each, cells = cylinder_cells(picture, mount, 1), cylinder_cells(picture, mount, stride)
    points = each.points_m.unflatten(1, (CYLINDER.rows, CYLINDER.columns))
    measured = each.ranged.unflatten(1, (CYLINDER.rows, CYLINDER.columns))
    columns = math.ceil(CYLINDER.columns / stride)
    for frame in range(2):
        for cell in range(cells.valid.shape[1]):
            row, column = stride * (cell // columns), stride * (cell % columns)
            block = measured[frame, row : row + stride, column : column + stride]
            assert bool(cells.ranged[frame, cell]) == bool(block.any())
            if bool(block.any()):
                places = torch.nonzero(block)
                squared = places.square().sum(dim=1)
                nearest = places[squared == squared.min()]  # of equally near ones any
                candidates = points[frame, row + nearest[:, 0], column + nearest[:, 1]]
                assert float((candidates - cells.points_m[frame, cell]).norm(dim=1).min()) < 1e-5


def test_an_empty_scan_has_no_valid_cell() -> None:
    picture = cylindrical_projection(torch.full((1, 5, 3), torch.nan), None, CYLINDER)
    cells = cylinder_cells(picture, random_pose(0), STRIDE)
    assert not bool(cells.valid.any())
    assert bool(torch.isfinite(cells.points_m).all() & torch.isfinite(cells.rays).all())


# --- a lidar's points in a camera --------------------------------------------------------------------------------


def oracle(
    points: Tensor,
    valid: Tensor,
    intrinsics: Tensor,
    mount: Tensor,
    shape: tuple[int, int],
    stride: int,
    tolerance: float,
) -> Iterator[int | None]:
    """Of each cell of one frame, the point that it sees."""
    pixels, depth = projected(points, intrinsics, mount)
    for pixel in pixels_of(shape, stride):
        near = valid & (depth > 0.1) & ((pixels - pixel).abs() <= tolerance).all(dim=1)
        seen = torch.nonzero(near).flatten()
        yield int(seen[depth[seen].argmin()]) if len(seen) else None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_a_camera_cell_sees_the_nearest_point_that_falls_on_it(seed: int, tolerance: float) -> None:
    """Against brute force: points some behind the camera, beside its picture or between its cells."""
    generator, shape = torch.Generator().manual_seed(seed), (6, 9)
    intrinsics, mount = random_cameras(2, seed), random_pose(seed)
    depth = 13 * torch.rand(2, 900, 1, generator=generator) - 5
    across = depth.abs() * (2 * torch.rand(2, 900, 2, generator=generator) - 1)
    points = in_body(torch.cat([across, depth], dim=2), mount)
    valid = torch.rand(2, 900, generator=generator) < 0.8
    clouds = Cells(points, points, valid, valid, torch.zeros(2, 900))
    index, found = seen_by_camera(clouds, intrinsics, mount, shape, STRIDE, tolerance)
    for frame in range(2):
        expected = list(oracle(points[frame], valid[frame], intrinsics[frame], mount, shape, STRIDE, tolerance))
        assert sum(one is not None for one in expected) > 5
        assert any(one is None for one in expected) or tolerance == 2.0
        assert [int(i) if here else None for i, here in zip(index[frame], found[frame], strict=True)] == expected


def test_an_unknown_camera_sees_no_point() -> None:
    points, valid = torch.tensor([[[0.0, 0.0, 2.0]]] * 2), torch.ones(2, 1, dtype=torch.bool)
    clouds = Cells(points, points, valid, valid, torch.zeros(2, 1))
    intrinsics = torch.tensor([[30.0, 0.0, 16.0], [0.0, 30.0, 8.0], [0.0, 0.0, 1.0]]).repeat(2, 1, 1)
    intrinsics[1] = torch.nan
    index, found = seen_by_camera(clouds, intrinsics, torch.eye(4, dtype=torch.float64), (6, 9), STRIDE, 1.0)
    assert found.sum(dim=1).tolist() == [1, 0]
    assert bool(found[0, 2 * 9 + 4])
    assert int(index[0, 2 * 9 + 4]) == 0


# --- motion ------------------------------------------------------------------------------------------------------


def test_points_are_moved_to_where_the_body_would_have_measured_them_at_the_stamp() -> None:
    """Against the exact motion under a constant twist: what is left is of second order in the turn."""
    generator = torch.Generator().manual_seed(0)
    points, times = 10 * torch.randn(3, 50, 3, generator=generator), 0.1 * torch.rand(3, 50, generator=generator) - 0.05
    twist = torch.randn(3, 6, generator=generator) * torch.tensor([10.0, 1.0, 0.2, 0.1, 0.1, 0.5])
    yes = torch.ones(3, 50, dtype=torch.bool)
    moved = Cells(points, points, yes, yes, times).moved(twist).points_m
    for frame in range(3):
        generators = torch.zeros(50, 4, 4, dtype=torch.float64)
        x, y, z = twist[frame, 3:].double()
        zero = torch.zeros(())
        generators[:, :3, :3] = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
        generators[:, :3, 3] = twist[frame, :3]
        motion = torch.linalg.matrix_exp(
            generators * times[frame, :, None, None].double()
        )  # of the body since the stamp
        exact = (motion[:, :3, :3] @ points[frame].double().unsqueeze(-1)).squeeze(-1) + motion[:, :3, 3]
        turn = (twist[frame, 3:].norm() * times[frame].abs()).double()
        allowed = (
            1e-4 + turn**2 * points[frame].double().norm(dim=1) + turn * twist[frame, :3].norm() * times[frame].abs()
        )
        error = (moved[frame] - exact).norm(dim=1)
        assert bool((error <= allowed).all())
        unmoved = (points[frame] - exact).norm(dim=1)
        assert float(error.mean()) < 0.05 * float(unmoved.mean())


def test_what_was_measured_at_the_stamp_is_not_moved() -> None:
    points, yes = torch.randn(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)
    cells = Cells(points, points, yes, yes, torch.zeros(1, 5))
    assert torch.equal(cells.moved(torch.full((1, 6), 9.0)).points_m, points)


def test_a_delayed_cloud_has_times_from_the_frames_stamp() -> None:
    cloud = random_frame(0).cloud
    assert cloud is not None
    assert cloud.delayed(0.0) is cloud
    later = cloud.delayed(0.03)  # without times of its own, all of it was measured then
    np.testing.assert_array_equal(later.time_s, np.full(len(cloud), 0.03, np.float32))
    np.testing.assert_array_equal(later.xyz_m, cloud.xyz_m)
    np.testing.assert_array_equal(later.intensity, cloud.intensity)
    timed = PointCloud(cloud.xyz_m, cloud.intensity, np.linspace(0, 0.1, len(cloud), dtype=np.float32))
    np.testing.assert_allclose(timed.delayed(-0.04).time_s, np.linspace(-0.04, 0.06, len(cloud)), atol=1e-7)
    assert timed.delayed(-0.04).time_s.dtype == np.float32
