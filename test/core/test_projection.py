# SPDX-License-Identifier: Apache-2.0
"""Cylindrical and pinhole projection against closed forms and against plain loops over points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import float32_tolerance
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.projection import (
    INTENSITY,
    RANGE,
    TIME,
    VALIDITY,
    CylindricalConfig,
    cylindrical_points,
    cylindrical_projection,
    pinhole_projection,
)

pytestmark = pytest.mark.numeric

CONFIG = CylindricalConfig(rows=5, columns=8, elevation_min_deg=-20.0, elevation_max_deg=30.0)
LIMITED = CylindricalConfig(4, 6, -10.0, 10.0, azimuth_min_deg=-30.0, azimuth_max_deg=60.0)


def direction(config: CylindricalConfig, row: Any, column: Any) -> np.ndarray:
    """Unit vectors at fractional cell coordinates; (0, 0) is the upper left corner of the picture."""
    elevation_span = config.elevation_max_deg - config.elevation_min_deg
    azimuth_span = config.azimuth_max_deg - config.azimuth_min_deg
    elevation = np.radians(config.elevation_max_deg - np.asarray(row) / config.rows * elevation_span)
    azimuth = np.radians(config.azimuth_max_deg - np.asarray(column) / config.columns * azimuth_span)
    return np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )


def cylindrical(
    points: Any, intensity: Any = None, config: CylindricalConfig = CONFIG, time_s: Any = None
) -> np.ndarray:
    values, times = (
        None if x is None else torch.as_tensor(np.asarray(x, np.float32))[None] for x in (intensity, time_s)
    )
    xyz_m = torch.as_tensor(np.asarray(points, np.float32))[None]
    return cylindrical_projection(xyz_m, values, config, times)[0].numpy()


def cylindrical_by_loop(points: np.ndarray, intensity: np.ndarray, config: CylindricalConfig) -> np.ndarray:
    """With a time of each point that is a thousandth of its intensity."""
    picture = np.zeros((6, config.rows, config.columns), np.float32)
    for (x, y, z), value in zip(points.astype(float), intensity, strict=True):
        distance = math.sqrt(x * x + y * y + z * z)
        if not math.isfinite(distance) or distance == 0:
            continue
        elevation, azimuth = math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))
        height_deg = (config.elevation_max_deg - config.elevation_min_deg) / config.rows
        width_deg = (config.azimuth_max_deg - config.azimuth_min_deg) / config.columns
        row = math.floor((config.elevation_max_deg - elevation) / height_deg)
        column = math.floor((config.azimuth_max_deg - azimuth) / width_deg)
        if not (0 <= row < config.rows and 0 <= column < config.columns):
            continue
        if picture[VALIDITY, row, column] == 0 or distance < picture[RANGE, row, column]:
            picture[:, row, column] = distance, z, value, math.radians(azimuth), value / 1000, 1
    return picture


inner = st.floats(0.01, 0.99)


@st.composite
def clouds(draw: st.DrawFn, config: CylindricalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Points in and around the field of view, away from cell edges, at different ranges, some no return."""
    count = draw(st.integers(0, 30))
    cell = st.tuples(st.integers(-1, config.rows), st.integers(0, config.columns - 1), inner, inner)
    cells = draw(st.lists(cell, min_size=count, max_size=count))
    row = np.array([row + offset for row, _, offset, _ in cells])
    column = np.array([column + offset for _, column, _, offset in cells])
    ranges = draw(st.permutations(range(1, count + 1)))
    points = direction(config, row, column) * np.asarray(ranges, float)[:, None] * 0.7
    for index in draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=3 if count else 0)):
        points[index] = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    for index in draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=2 if count else 0)):
        points[index, draw(st.integers(0, 2))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return points.reshape(-1, 3).astype(np.float32), np.asarray(ranges, np.float32) * 10


@pytest.mark.parametrize("config", [CONFIG, LIMITED], ids=["full", "limited"])
def test_cylindrical_picture_equals_the_loop_over_points(config: CylindricalConfig) -> None:
    @settings(deadline=None, max_examples=150)
    @given(clouds(config))
    def check(cloud: tuple[np.ndarray, np.ndarray]) -> None:
        points, intensity = cloud
        picture = cylindrical(points, intensity, config, intensity / 1000)
        np.testing.assert_allclose(picture, cylindrical_by_loop(points, intensity, config), rtol=1e-5)

    check()


@settings(deadline=None, max_examples=50)
@given(clouds(CONFIG), st.randoms(use_true_random=False))
def test_cylindrical_picture_does_not_depend_on_the_order_of_points(
    cloud: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    points, intensity = cloud
    order = list(range(len(points)))
    random.shuffle(order)
    shuffled, picture = cylindrical(points[order], intensity[order]), cylindrical(points, intensity)
    np.testing.assert_array_equal(shuffled[VALIDITY], picture[VALIDITY])
    # The last points of a row are computed without vector units: each of both arc tangents may be off by one rounding.
    np.testing.assert_allclose(shuffled, picture, rtol=float32_tolerance(2))


@pytest.mark.parametrize(
    ("point", "row", "column"),
    [
        ((4.0, -1e-3, 0.0), 3, 4),  # forward, a touch to the right: right of the centre; 0 deg is on row 3
        ((4.0, 1e-3, 0.0), 3, 3),
        ((1e-3, 4.0, 0.0), 3, 2),  # left of the robot: left quarter
        ((1e-3, -4.0, 0.0), 3, 5),
        ((-4.0, 1e-3, 0.0), 3, 0),  # behind: the picture's ends
        ((-4.0, -1e-3, 0.0), 3, 7),
        ((4.0, -1e-3, 2.0), 0, 4),  # 26.6 deg up
        ((4.0, -1e-3, -1.0), 4, 4),  # 14 deg down
    ],
)  # fmt: skip
def test_cylindrical_orientation_is_as_seen_by_the_robot(
    point: tuple[float, float, float], row: int, column: int
) -> None:
    picture = cylindrical([point], [7.0], time_s=[-0.05])
    assert np.argwhere(picture[VALIDITY]).tolist() == [[row, column]]
    expected = [np.linalg.norm(point), point[2], 7.0, math.atan2(point[1], point[0]), -0.05, 1.0]
    np.testing.assert_allclose(picture[:, row, column], expected, rtol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, LIMITED, CylindricalConfig()], ids=["full", "limited", "default"])
def test_centre_of_every_cell_falls_into_that_cell(config: CylindricalConfig) -> None:
    row, column = np.mgrid[: config.rows, : config.columns]
    ranges = 1 + row * config.columns + column
    points = direction(config, row + 0.5, column + 0.5) * ranges[..., None]
    picture = cylindrical(points.reshape(-1, 3), config=config)
    np.testing.assert_allclose(picture[RANGE], ranges, rtol=1e-5)
    assert picture[VALIDITY].all()


def test_beams_on_the_limits_of_the_field_of_view_are_kept() -> None:
    config = CylindricalConfig(rows=16, columns=360, elevation_min_deg=-15.0, elevation_max_deg=15.0)
    row, column = np.meshgrid([0.0, 16.0], np.arange(360) + 0.5)
    points = direction(config, row, column)
    valid = cylindrical(points.reshape(-1, 3) * 20, config=config)[VALIDITY]
    assert valid[0].all()
    assert valid[-1].all()


def test_points_straight_above_and_below_are_on_the_outer_rows() -> None:
    config = CylindricalConfig(rows=3, columns=1, elevation_min_deg=-90.0, elevation_max_deg=90.0)
    picture = cylindrical([[0.0, 0.0, 5.0], [0.0, 0.0, -4.0]], config=config)
    np.testing.assert_array_equal(picture[RANGE, :, 0], [5, 0, 4])


def test_points_beyond_the_limits_are_dropped() -> None:
    outside = direction(CONFIG, [-0.1, 5.1], [4.0, 4.0]) * 5
    assert not cylindrical(outside).any()
    assert not cylindrical(direction(LIMITED, [2.0, 2.0], [-0.1, 6.1]) * 5, config=LIMITED).any()


def test_nearest_point_brings_its_own_height_intensity_and_time() -> None:
    near, far = direction(CONFIG, 2.3, 4.2) * 3, direction(CONFIG, 2.7, 4.6) * 9
    picture = cylindrical([far, near, far * 1.1], [90.0, 30.0, 99.0], time_s=[0.09, 0.03, 0.01])
    azimuth = math.atan2(near[1], near[0])
    np.testing.assert_allclose(picture[:, 2, 4], [3.0, near[2], 30.0, azimuth, 0.03, 1.0], rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(clouds(CONFIG))
def test_the_points_of_the_cells_are_those_of_the_cloud(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    picture = cylindrical(*cloud)
    found = cylindrical_points(torch.from_numpy(picture)[None])[0].numpy()
    assert not found[:, picture[VALIDITY] == 0].any()
    for point in found[:, picture[VALIDITY] > 0].T:
        assert np.nanmin(np.linalg.norm(cloud[0] - point, axis=1)) < 1e-6 * np.linalg.norm(point)


def test_a_point_straight_above_is_found_again() -> None:
    above = np.array([[1e-4, 0.0, 7.0], [0.0, -1e-4, -7.0]], np.float32)
    config = CylindricalConfig(4, 8, -90.0, 90.0)
    picture = torch.from_numpy(cylindrical(above, config=config))[None]
    found = cylindrical_points(picture)[0][:, picture[0, VALIDITY] > 0].T
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found, above, atol=5e-3)


def test_absent_and_non_finite_intensities_and_times_are_zero() -> None:
    points = direction(CONFIG, [0.5, 1.5, 2.5], [1.5, 1.5, 1.5]) * 4
    assert not cylindrical(points)[[INTENSITY, TIME]].any()
    picture = cylindrical(points, [np.nan, np.inf, 5.0], time_s=[np.inf, 2.0, np.nan])
    np.testing.assert_array_equal(picture[INTENSITY, :3, 1], [0, 0, 5])
    np.testing.assert_array_equal(picture[TIME, :3, 1], [0, 2, 0])
    assert np.isfinite(picture).all()


@pytest.mark.parametrize("count", [0, 3])
def test_cloud_without_returns_gives_an_empty_picture(count: int) -> None:
    picture = cylindrical_projection(torch.full((2, count, 3), torch.nan), None, CONFIG)
    assert picture.shape == (2, 6, 5, 8)
    assert picture.dtype == torch.float32
    assert not picture.any()


def test_batch_padded_with_nan_equals_single_clouds() -> None:
    generator = np.random.default_rng(3)
    clouds = [generator.normal(0, 5, (count, 3)).astype(np.float32) for count in (40, 0, 17)]
    values = [generator.random(len(cloud)).astype(np.float32) for cloud in clouds]
    batch, intensity = np.full((3, 40, 3), np.nan, np.float32), np.full((3, 40), np.nan, np.float32)
    for index, cloud in enumerate(clouds):
        batch[index, : len(cloud)], intensity[index, : len(cloud)] = cloud, values[index]
    together = cylindrical_projection(torch.from_numpy(batch), torch.from_numpy(intensity), CONFIG).numpy()
    for index, cloud in enumerate(clouds):
        np.testing.assert_array_equal(together[index], cylindrical(cloud, values[index]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rows": 0}, "rows must be a positive integer, got 0"),
        ({"columns": 2.5}, "columns must be a positive integer, got 2.5"),
        ({"elevation_min_deg": 15.0}, "elevation limits .* got min 15.0, max 15.0"),
        ({"elevation_max_deg": 91.0}, "elevation limits must satisfy -90 <= min < max <= 90"),
        ({"azimuth_min_deg": -181.0}, "azimuth limits must satisfy -180"),
        ({"elevation_max_deg": math.nan}, "elevation limits"),
    ],
)
def test_impossible_cylinders_are_rejected(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CylindricalConfig(**arguments)


def test_wrong_shapes_are_rejected() -> None:
    points = torch.zeros(2, 7, 3)
    with pytest.raises(ValueError, match=r"points must be \(B, N, 3\), got \(7, 3\)"):
        cylindrical_projection(points[0], None, CONFIG)
    with pytest.raises(ValueError, match=r"intensity must be \(2, 7\), got \(2, 6\)"):
        cylindrical_projection(points, torch.zeros(2, 6), CONFIG)
    with pytest.raises(ValueError, match=r"camera_from_lidar must be \(2, 4, 4\), got \(1, 4, 4\)"):
        pinhole_projection(points, torch.zeros(1, 4, 4), torch.zeros(2, 3, 3), 4, 4)
    with pytest.raises(ValueError, match=r"intrinsics must be \(2, 3, 3\), got \(2, 4, 4\)"):
        pinhole_projection(points, torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), 4, 4)


HEIGHT_PX, WIDTH_PX = 6, 9
INTRINSICS = np.array([[7.0, 0.0, 4.2], [0.0, 6.0, 2.4], [0.0, 0.0, 1.0]])
# The optical axis is the lidar's x axis, slightly shifted and rotated.
OPTICAL_FROM_LIDAR = Pose(np.array([0.1, -0.2, 0.3]), np.array([0.5, -0.5, 0.5, -0.5]))
CAMERA_FROM_LIDAR = Pose.from_xyz_rpy([0.0, 0.0, 0.0], [0.05, -0.1, 0.02]) @ OPTICAL_FROM_LIDAR


def pinhole(points: Any, camera_from_lidar: Pose = CAMERA_FROM_LIDAR) -> np.ndarray:
    return pinhole_projection(
        torch.as_tensor(np.asarray(points, np.float32)).reshape(1, -1, 3),
        torch.as_tensor(camera_from_lidar.matrix)[None],
        torch.as_tensor(INTRINSICS)[None],
        HEIGHT_PX,
        WIDTH_PX,
    )[0].numpy()


def pinhole_by_loop(points_camera: np.ndarray) -> np.ndarray:
    picture = np.zeros((2, HEIGHT_PX, WIDTH_PX))
    for x, y, z in points_camera:
        if not z > 0:
            continue
        column = round(INTRINSICS[0, 0] * x / z + INTRINSICS[0, 2])
        row = round(INTRINSICS[1, 1] * y / z + INTRINSICS[1, 2])
        inside = 0 <= row < HEIGHT_PX and 0 <= column < WIDTH_PX
        if inside and (picture[1, row, column] == 0 or z < picture[0, row, column]):
            picture[:, row, column] = z, 1
    return picture


def camera_points(row: Any, column: Any, depth: Any) -> np.ndarray:
    """Points of the optical frame that project to fractional pixel coordinates."""
    rays = np.stack([(np.asarray(column) - INTRINSICS[0, 2]) / INTRINSICS[0, 0],
                     (np.asarray(row) - INTRINSICS[1, 2]) / INTRINSICS[1, 1],
                     np.ones(np.shape(row))], axis=-1)  # fmt: skip
    return rays * np.asarray(depth)[..., None]


pixel_offset = st.floats(-0.48, 0.48)
pixels = st.tuples(st.integers(-1, HEIGHT_PX), st.integers(-1, WIDTH_PX), pixel_offset, pixel_offset, st.booleans())


@settings(deadline=None, max_examples=150)
@given(st.lists(pixels, max_size=30), st.randoms(use_true_random=False))
def test_pinhole_picture_equals_the_loop_over_points(hits: list[Any], random: Any) -> None:
    depths = np.arange(1.0, len(hits) + 1)
    random.shuffle(depths)
    row = np.array([hit[0] + hit[2] for hit in hits])
    column = np.array([hit[1] + hit[3] for hit in hits])
    # A negative depth is a point behind the camera whose line of sight passes through the picture.
    depths *= np.where([hit[4] for hit in hits], 1.0, -1.0)
    in_camera = camera_points(row, column, depths).reshape(-1, 3)
    in_lidar = CAMERA_FROM_LIDAR.inverse().transform(in_camera)
    without_returns = np.vstack([in_lidar, [[0.0, 0.0, 0.0], [np.nan] * 3, [np.inf] * 3, [1.0, np.nan, 2.0]]])
    np.testing.assert_allclose(pinhole(without_returns), pinhole_by_loop(in_camera), rtol=1e-4, atol=1e-5)


def test_pixel_centres_have_integer_coordinates() -> None:
    row, column = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    depth = 2.0 + row * WIDTH_PX + column
    in_lidar = CAMERA_FROM_LIDAR.inverse().transform(camera_points(row, column, depth).reshape(-1, 3))
    picture = pinhole(in_lidar)
    np.testing.assert_allclose(picture[0], depth, rtol=1e-5)
    assert picture[1].all()


def test_lidar_origin_is_no_return_even_when_it_lies_before_the_camera() -> None:
    assert not pinhole([[0.0, 0.0, 0.0]], Pose(np.array([0.0, 0.0, 2.0]), np.array([1.0, 0, 0, 0]))).any()


def test_pinhole_of_an_empty_cloud_is_empty() -> None:
    picture = pinhole(np.zeros((0, 3)))
    assert picture.shape == (2, HEIGHT_PX, WIDTH_PX)
    assert not picture.any()


def test_pinhole_batch_uses_each_sample_s_own_calibration() -> None:
    generator = np.random.default_rng(5)
    points = torch.from_numpy(generator.uniform(-4, 4, (2, 2000, 3)).astype(np.float32))
    poses = torch.as_tensor(np.stack([CAMERA_FROM_LIDAR.matrix, OPTICAL_FROM_LIDAR.matrix]))
    intrinsics = torch.as_tensor(np.stack([INTRINSICS, INTRINSICS * [[2.0], [2.0], [1.0]]]))
    together = pinhole_projection(points, poses, intrinsics, 6, 9)
    for index in range(2):
        part = slice(index, index + 1)
        alone = pinhole_projection(points[part], poses[part], intrinsics[part], 6, 9)
        torch.testing.assert_close(together[part], alone, rtol=0, atol=0)
    assert together[:, 1].sum((1, 2)).min() > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_same_picture_as_the_cpu() -> None:
    generator = np.random.default_rng(7)
    points = torch.from_numpy(generator.normal(0, 8, (3, 5000, 3)).astype(np.float32))
    points[:, ::7] = torch.nan
    values = torch.from_numpy(generator.random((3, 5000)).astype(np.float32))
    on_cpu = cylindrical_projection(points, values, CylindricalConfig())
    on_gpu = cylindrical_projection(points.cuda(), values.cuda(), CylindricalConfig()).cpu()
    differing = (on_cpu - on_gpu).abs().amax(1) > 1e-4
    assert differing.float().mean() < 1e-4  # rounding at cell edges only
    matrices = (CAMERA_FROM_LIDAR.matrix, INTRINSICS)
    calibration = [torch.as_tensor(matrix).repeat(3, 1, 1) for matrix in matrices]
    on_cpu = pinhole_projection(points, *calibration, 6, 9)
    on_gpu = pinhole_projection(points.cuda(), *(x.cuda() for x in calibration), 6, 9).cpu()
    assert ((on_cpu - on_gpu).abs().amax(1) > 1e-4).sum() <= 1
