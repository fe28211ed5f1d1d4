# SPDX-License-Identifier: Apache-2.0
"""Debug images of the model's input: colours are distances, and points lie where they project to."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from helpers import random_frame
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import Distortion, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import CylindricalConfig
from vmloc_ros.runtime.debug_images import overlay_picture, range_modality, range_picture

CAMERA = PinholeCamera(64, 48, 40.0, 40.0, 31.5, 23.5)
CYLINDER = CylindricalConfig(rows=4, columns=8, elevation_min_deg=-40.0, elevation_max_deg=40.0)
CONFIG = PreprocessConfig(cylinder=CYLINDER, lidar_range_m=(0.0, 20.0), shortest_side=48)


def cloud(*points) -> PointCloud:
    return PointCloud(np.array(points, np.float32))


def frame_with(points: PointCloud | None, image_value: int = 100) -> Frame:
    image = np.full((CAMERA.height, CAMERA.width, 3), image_value, np.uint8)
    return Frame(0, image, None, points, CAMERA, Pose.identity())


def hue(colour) -> float:
    """Hue in degrees: 0 is red, 120 green, 240 blue."""
    return float(cv2.cvtColor(np.float32(colour).reshape(1, 1, 3) / 255, cv2.COLOR_RGB2HSV)[0, 0, 0])


def test_the_range_image_is_red_near_blue_far_and_black_where_nothing_returned():
    ahead_near, left, behind_far = (1.0, -0.1, 0.1), (0.1, 10.0, 0.1), (-19.0, 0.1, 0.1)
    picture = range_picture(frame_with(cloud(ahead_near, left, behind_far)), Preprocessor(CONFIG))
    assert picture.shape == (4, 8, 3)
    hit = {tuple(cell): hue(picture[tuple(cell)]) for cell in np.argwhere(picture.any(axis=2))}
    # Rows count downwards from 40 deg, columns from +180 deg (behind) over the left to -180 deg.
    assert set(hit) == {(1, 4), (1, 2), (1, 0)}
    assert hit[1, 4] < 30 < hit[1, 2] < 200 < hit[1, 0]


def test_the_range_image_is_of_the_normalised_tensor_that_the_model_gets():
    """Colours have the order of the network's input in every cell of a random scan."""
    preprocessor = Preprocessor(replace(CONFIG, cylinder=replace(CYLINDER, rows=16, columns=64)))
    frame = random_frame()
    (tensors,) = preprocessor([frame])
    seen, valid = tensors["lidar"][0, 0].numpy(), tensors["lidar"][0, -1].numpy() > 0
    picture = range_picture(frame, preprocessor)
    np.testing.assert_array_equal(picture.any(axis=2), valid)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_TURBO)[:, 0, ::-1].astype(int)
    index = np.abs(picture[valid][:, None] - table).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(1 - 2 * index / 255, seen[valid], atol=1.01 / 255)


def test_a_depth_model_draws_depth_and_one_of_both_the_lidar():
    frame = random_frame(names=("image", "depth", "lidar"))
    depth_only = Preprocessor(PreprocessConfig(modalities=("image", "depth"), shortest_side=60))
    assert range_modality(frame, depth_only) == "depth"
    assert range_picture(frame, depth_only).shape == (60, 80, 3)
    both = Preprocessor(PreprocessConfig(modalities=("image", "depth", "lidar"), shortest_side=60))
    assert range_modality(frame, both) == "lidar"
    assert range_modality(replace(frame, cloud=None), both) == "depth"


def test_without_cloud_and_depth_there_is_no_range_image():
    assert range_picture(frame_with(None), Preprocessor(CONFIG)) is None


def test_a_pinhole_model_without_extrinsics_is_an_error():
    pinhole = Preprocessor(replace(CONFIG, lidar_projection="pinhole"))
    frame = replace(frame_with(cloud((0.0, 0.0, 5.0))), camera_from_lidar=None)
    with pytest.raises(ModelError, match="extrinsics"):
        range_picture(frame, pinhole)


def test_points_are_drawn_where_they_project_to_and_coloured_by_their_range():
    pixels = {(40, 30): 2.0, (50, 40): 18.0}  # (u, v): z
    points = [((u - CAMERA.cx) * z / CAMERA.fx, (v - CAMERA.cy) * z / CAMERA.fy, z) for (u, v), z in pixels.items()]
    plain = overlay_picture(frame_with(cloud((0.0, 0.0, -1.0))), (0.0, 20.0))
    picture = overlay_picture(frame_with(cloud(*points)), (0.0, 20.0))
    changed = {(u, v) for v, u in np.argwhere((picture != plain).any(axis=2))}
    assert changed == set(pixels)
    assert hue(picture[30, 40]) < 30
    assert hue(picture[40, 50]) > 200


def test_colour_is_by_the_distance_from_the_camera_not_by_depth():
    """At 45 degrees a point of depth 10 m is 14.1 m away."""
    aside = overlay_picture(frame_with(cloud((7.5, 0.0, 10.0))), (0.0, 20.0))
    ahead = overlay_picture(frame_with(cloud((0.0, 0.0, 12.5))), (0.0, 20.0))
    np.testing.assert_allclose(aside[24, 62].astype(int), ahead[24, 32], atol=8)


def test_in_larger_images_near_points_are_drawn_wider_and_in_front():
    camera = PinholeCamera(1280, 480, 800.0, 800.0, 639.5, 239.5)
    near, far = (0.5 * 2 / 800, 0.5 * 2 / 800, 2.0), (1.5 * 15 / 800, 0.5 * 15 / 800, 15.0)  # neighbouring pixels
    frame = replace(frame_with(cloud(near, far)), image=np.zeros((480, 1280, 3), np.uint8), camera=camera)
    drawn = overlay_picture(frame, (0.0, 20.0))[230:250, 630:650]
    hues = np.array([[hue(pixel) if pixel.any() else np.nan for pixel in row] for row in drawn])
    rows, columns = np.argwhere(hues < 60).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 8, 12)
    assert np.nanmax(hues) > 150
    assert np.isfinite(hues).sum() == 5 * 6


def test_points_are_drawn_in_the_undistorted_image():
    """The lens shows the world at half its size; undistorted, a point is where the pinhole camera has it."""
    lens = Distortion("plumb_bob", (1e-9, 0.0, 0.0, 0.0), (CAMERA.fx, CAMERA.fy), (CAMERA.cx, CAMERA.cy))
    raw = replace(CAMERA, fx=CAMERA.fx / 2, fy=CAMERA.fy / 2, distortion=lens)
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    image[26:29, 37:40] = 200  # around (38, 27), half as far from the centre as (44.5, 30.5)
    frame = replace(frame_with(cloud((12.5 / 40 * 5, 6.5 / 40 * 5, 5.0))), image=image, camera=raw)
    picture = overlay_picture(frame, (0.0, 20.0))
    coloured = np.argwhere(np.ptp(picture.astype(int), axis=2) > 20)
    np.testing.assert_allclose(coloured.mean(axis=0), [30, 44], atol=1)
    plain = overlay_picture(replace(frame, cloud=None), (0.0, 20.0))
    assert plain[30, 44].min() > 150
    assert plain[27, 36].max() < 50


def test_an_image_of_another_size_than_the_intrinsics_is_scaled_to_them():
    frame = replace(frame_with(None), image=np.zeros((24, 32, 3), np.uint8), cloud=cloud((0.0, 0.0, 5.0)))
    assert overlay_picture(frame, (0.0, 20.0)).shape == (48, 64, 3)


@pytest.mark.parametrize("unknown", ["intrinsics", "extrinsics"])
def test_without_calibration_the_overlay_has_another_text_and_no_points(unknown):
    frame = replace(frame_with(cloud((0.0, 0.2, 1.0))), image=np.full((240, 640, 3), 100, np.uint8))
    with_text = overlay_picture(replace(frame, cloud=None, camera=None), (0.0, 20.0))
    frame = replace(frame, **({"camera": None} if unknown == "intrinsics" else {"camera_from_lidar": None}))
    picture = overlay_picture(frame, (0.0, 20.0))
    np.testing.assert_array_equal(picture[60:], frame.image[60:])
    assert (picture[:60] != with_text[:60]).any()


def test_the_frames_own_image_is_unchanged_and_without_one_there_is_no_overlay():
    frame = frame_with(cloud((0.0, 0.0, 5.0)))
    overlay_picture(frame, (0.0, 20.0))
    assert (frame.image == 100).all()
    assert overlay_picture(replace(frame, image=None), (0.0, 20.0)) is None
