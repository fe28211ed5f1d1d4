# SPDX-License-Identifier: Apache-2.0
"""RobotCar's camera and extrinsics: colours, undistortion, and sensors where they are on the car."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robotcar_sequence as mini
from training.sources.robotcar.calibration import (
    CAMERAS,
    LIDARS,
    CentreCamera,
    base_from_vehicle,
    find_folder,
    read_bayer,
    read_camera_model,
    read_lookup_table,
    stereo_from_base,
    undistort,
    vehicle_from_sensor,
)
from vmloc_ros.core.errors import DataError

IN_TMP_PATH = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LUT = "stereo_narrow_left_distortion_lut.bin"


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    mini.write_calibration(tmp_path)
    return tmp_path


def write_image(path: Path, number: int = 0) -> Path:
    cv2.imwrite(str(path), mini.bayer_gbrg(mini.color_scene(number)))
    return path


def test_raw_image_gets_its_colours(tmp_path: Path) -> None:
    image, scene = read_bayer(write_image(tmp_path / "1.png", 7)), mini.color_scene(7)
    assert image.shape == scene.shape
    middle = mini.WIDTH // 2
    for columns in (slice(0, middle - 2), slice(middle + 2, None)):  # between the colours they mix
        np.testing.assert_array_equal(image[:, columns], scene[:, columns])


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, 3), (-4, 1)])
def test_undistortion_takes_each_pixel_from_where_the_table_says(sdk: Path, dx: int, dy: int) -> None:
    mini.write_calibration(sdk, mini.identity_lut() + np.array([dx, dy])[:, None, None])
    path = write_image(sdk / "1.png")
    distorted, expected = read_bayer(path), np.zeros((mini.HEIGHT, mini.WIDTH, 3), np.uint8)
    for row in range(mini.HEIGHT):
        for column in range(mini.WIDTH):
            if 0 <= row + dy < mini.HEIGHT and 0 <= column + dx < mini.WIDTH:
                expected[row, column] = distorted[row + dy, column + dx]
    image, camera = CentreCamera(sdk / "models").read(path)
    np.testing.assert_array_equal(image, expected)
    assert camera is not None
    assert (camera.width, camera.height) == (mini.WIDTH, mini.HEIGHT)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == mini.FOCAL


def test_undistortion_is_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    table = np.stack(np.meshgrid(np.arange(6) * 0.75 + 0.25, np.arange(5) * 0.5)).astype(np.float32)
    column, row = table.astype(float)
    x, y = column.astype(int), row.astype(int)
    fx, fy = (column - x)[..., None], (row - y)[..., None]
    right, below = np.minimum(x + 1, 5), np.minimum(y + 1, 4)
    upper = image[y, x] * (1 - fx) + image[y, right] * fx
    lower = image[below, x] * (1 - fx) + image[below, right] * fx
    np.testing.assert_allclose(undistort(image, table), upper * (1 - fy) + lower * fy, atol=1)


def test_without_models_images_stay_distorted_and_have_no_intrinsics(tmp_path: Path) -> None:
    path = write_image(tmp_path / "1.png")
    image, camera = CentreCamera(None).read(path)
    np.testing.assert_array_equal(image, read_bayer(path))
    assert camera is None


def test_missing_lookup_table_is_named_with_the_way_round(sdk: Path) -> None:
    (sdk / "models" / LUT).unlink()
    with pytest.raises(DataError, match=rf"{LUT} is missing; .*SDK.*--no-undistort"):
        CentreCamera(sdk / "models")


@IN_TMP_PATH
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_any_lookup_table_comes_back(tmp_path: Path, height: int, width: int, data: st.DataObject) -> None:
    numbers = st.floats(-1e4, 1e4, width=32)
    values = data.draw(st.lists(numbers, min_size=2 * height * width, max_size=2 * height * width))
    path = tmp_path / LUT
    path.write_bytes(np.array(values, "<f8").tobytes())
    table = read_lookup_table(path, height, width)
    np.testing.assert_array_equal(table.ravel(), values)
    assert table.shape == (2, height, width)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (np.zeros(23), r"expected 192 bytes for images of 4 x 3 pixels, got 184"),
        (np.zeros(0), r"expected 192 bytes .* got 0"),
        (np.r_[np.zeros(17), np.nan, np.zeros(6)], "the entry of column 1, row 1 is not finite"),
    ],
)
def test_broken_lookup_table_is_named(tmp_path: Path, content: np.ndarray, text: str) -> None:
    (tmp_path / LUT).write_bytes(content.tobytes())
    with pytest.raises(DataError, match=rf"{LUT}: {text}"):
        read_lookup_table(tmp_path / LUT, 3, 4)


def test_images_of_two_sizes_are_rejected(tmp_path: Path) -> None:
    camera = CentreCamera(None)
    camera.read(write_image(tmp_path / "1.png"))
    cv2.imwrite(str(tmp_path / "2.png"), np.zeros((mini.HEIGHT, mini.WIDTH + 2), np.uint8))
    with pytest.raises(DataError, match=r"2.png is 34 x 24 pixels, others of its sequence are 32 x 24"):
        camera.read(tmp_path / "2.png")


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.zeros((4, 6, 3), np.uint8), r"expected a raw Bayer image, .* got uint8 \(4, 6, 3\)"),
        (np.zeros((4, 6), np.uint16), r"expected a raw Bayer image, .* got uint16"),
        (np.zeros((1, 6), np.uint8), r"expected a raw Bayer image, .* \(1, 6\)"),
    ],
)
def test_what_is_no_raw_image_is_rejected(tmp_path: Path, pixels: np.ndarray, text: str) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), pixels)
    with pytest.raises(DataError, match=f"1.png: {text}"):
        read_bayer(tmp_path / "1.png")


@IN_TMP_PATH
@given(st.integers(0, 400))
def test_truncated_image_is_named(tmp_path: Path, kept: int) -> None:
    whole = write_image(tmp_path / "whole.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: min(kept, len(whole) - 1)])
    with pytest.raises(DataError, match=r"1.png: the image is (neither JPEG nor PNG|truncated|corrupt)"):
        read_bayer(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"absent.png is missing"):
        read_bayer(tmp_path / "absent.png")


@IN_TMP_PATH
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_extrinsics_are_read_as_the_dataset_writes_them(tmp_path: Path, values: list[float]) -> None:
    for name in ("ldmrs", "mono_left", "ins"):
        mini.write_lines(tmp_path / f"{name}.txt", [" ".join(map(repr, values))])
    matrix = mini.matrix_of(values)
    np.testing.assert_allclose(vehicle_from_sensor(tmp_path, "ldmrs").matrix, mini.FLIP @ matrix, atol=1e-12)
    inverse = mini.FLIP @ np.linalg.inv(matrix)
    np.testing.assert_allclose(vehicle_from_sensor(tmp_path, "mono_left").matrix, inverse, atol=1e-12)
    np.testing.assert_allclose(stereo_from_base(tmp_path).matrix, matrix @ mini.FLIP, atol=1e-12)
    np.testing.assert_allclose(
        base_from_vehicle(tmp_path).matrix, mini.FLIP @ np.linalg.inv(matrix) @ mini.FLIP, atol=1e-12
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 0 0 0 0", r"ins.txt:1: expected 6 columns"),
        ("0 0 0 0 0 nan", r"ins.txt:1: expected finite numbers"),
        ("0 0 0 0 0 x", r"ins.txt:1: could not convert"),
        ("", r"ins.txt is empty"),
        ("0 0 0 0 0 0\n0 0 0 0 0 0", r"ins.txt:2: expected one line"),
    ],
)
def test_broken_extrinsics_are_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "ins.txt").write_text(text)
    with pytest.raises(DataError, match=problem):
        stereo_from_base(tmp_path)


@pytest.mark.parametrize(
    ("line", "text", "problem"),
    [
        (0, "20 21 15", r"stereo_narrow_left.txt:1: expected 4 columns"),
        (0, "20 -21 15 11", r"expected fx fy cx cy, positive focal lengths"),
        (1, "0 0 2 0", r"stereo_narrow_left.txt: not a rotation matrix"),
        (4, None, r"expected fx fy cx cy, .* 4 lines"),
    ],
)
def test_broken_camera_model_is_named(sdk: Path, line: int, text: str | None, problem: str) -> None:
    path = sdk / "models" / "stereo_narrow_left.txt"
    lines = path.read_text().splitlines()
    lines[line : line + 1] = [] if text is None else [text]
    mini.write_lines(path, lines)
    with pytest.raises(DataError, match=problem):
        read_camera_model(sdk / "models", "stereo_narrow_left")


def test_calibration_is_looked_for_beside_the_sequence_or_where_it_is_said_to_be(sdk: Path, tmp_path: Path) -> None:
    sequence = sdk / "2014-01-01-00-00-00"
    sequence.mkdir()
    assert find_folder(sequence, "models", "") == sdk / "models"
    (sequence / "models").mkdir()
    assert find_folder(sequence, "models", "") == sequence / "models"
    assert find_folder(sequence, "models", str(sdk / "extrinsics")) == sdk / "extrinsics"
    with pytest.raises(DataError, match=r"^nowhere is not a folder; .*source.robotcar.extrinsics .*--extrinsics"):
        find_folder(sequence, "extrinsics", "nowhere")
    with pytest.raises(DataError, match=r"a/b/extrinsics or \S+/a/extrinsics is not a folder"):
        find_folder(tmp_path / "a" / "b", "extrinsics", "")


def test_real_sensors_are_where_they_are_on_the_car(real_data: Path) -> None:
    """Of the vehicle's frame, at the camera on the roof: x forward, y left, z up."""
    extrinsics = real_data / "robotcar" / "calibration" / "extrinsics"
    at = {name: vehicle_from_sensor(extrinsics, name) for name in (*CAMERAS, *LIDARS, "ins")}
    looks = {name: pose.rotation[:, 0] for name, pose in at.items()}
    assert at["mono_left"].position_m[1] > 0.4
    assert at["mono_right"].position_m[1] < -0.4
    assert at["mono_rear"].position_m[0] < -1.5
    assert looks["mono_left"][1] > 0.9
    assert looks["mono_right"][1] < -0.9
    assert looks["mono_rear"][0] < -0.9
    assert looks["ldmrs"][0] > 0.99
    assert at["velodyne_left"].position_m[1] > 0 > at["velodyne_right"].position_m[1]
    for lidar, forward_m in {"lms_front": 1.7, "lms_rear": -2.5, "ldmrs": 1.5}.items():
        assert at[lidar].position_m[0] == pytest.approx(forward_m, abs=0.1)
        assert at[lidar].position_m[2] < -1  # bumper height
    for lidar in ("lms_front", "lms_rear"):  # the plane stands upright across the road, its middle beam looks down
        assert abs(at[lidar].rotation[0, 2]) > 0.98
        assert looks[lidar][2] < -0.98
    for name in ("velodyne_left", "velodyne_right", "ldmrs", "ins", *CAMERAS):
        assert at[name].rotation[2, 2] < -0.9  # the dataset's z is down


def test_real_centre_camera_looks_forward_and_upright(real_data: Path) -> None:
    calibration = real_data / "robotcar" / "calibration"
    model = read_camera_model(calibration / "models", "stereo_narrow_left")
    pose = vehicle_from_sensor(calibration / "extrinsics", "stereo") @ model.camera_from_optical
    np.testing.assert_allclose(pose.rotation, [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-9)
    assert 60 < np.degrees(2 * np.arctan(1280 / 2 / model.fx)) < 70  # documented: 66 degrees
    with pytest.raises(DataError, match=rf"{LUT} is missing"):
        CentreCamera(calibration / "models")
