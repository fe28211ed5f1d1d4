# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import ListSource, random_frame, yaw_pose
from training.evaluation.corruption import NO_CORRUPTION, Corruption, corrupt, parse_corruption
from training.evaluation.results import write_results
from training.evaluation.tracks import evaluate
from training.testing import write_random_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Frame, PinholeCamera, PointCloud, Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import CylindricalConfig

EVERYTHING = ("image", "depth", "lidar")
CYLINDER = CylindricalConfig(rows=16, columns=64, elevation_min_deg=-25, elevation_max_deg=15)
ROUND = PreprocessConfig(modalities=EVERYTHING, shortest_side=40, cylinder=CYLINDER)
PINHOLE = dataclasses.replace(ROUND, lidar_projection="pinhole")


def picture_frame(stamp_ns: int = 7, size: tuple[int, int] = (40, 60)) -> Frame:
    """No pixel is black and every depth is measured, so that whatever is 0 was masked."""
    return Frame(stamp_ns, np.full((*size, 3), 200, np.uint8), np.full(size, 3.0, np.float32))


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of a mask that is one filled rectangle."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert mask.sum() == height * width
    return int(top), int(left), int(height), int(width)


def masked(frame: Frame, name: str, seed: int = 0) -> tuple[int, int, int, int]:
    corrupted = corrupt(frame, {name: 1}, seed, ROUND)
    picture = corrupted.image.max(axis=2) if name == "image" else corrupted.depth_m
    return box(picture == 0)


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side"), [((40, 60), 20), ((60, 40), 20), ((256, 340), 128), ((41, 41), 20)])
@pytest.mark.parametrize("name", ["image", "depth"])
def test_a_square_of_half_the_shortest_side_is_blacked_out_and_nothing_else(
    name: str, size: tuple[int, int], side: int
) -> None:
    frame = picture_frame(size=size)
    corrupted = corrupt(frame, {name: 1}, 0, ROUND)
    before, after = ((frame.image, corrupted.image), (frame.depth_m, corrupted.depth_m))[name == "depth"]
    changed = (before != after).reshape(*size, -1).any(axis=2)
    assert box(changed)[2:] == (side, side)
    assert not after[changed].any()
    assert after.dtype == before.dtype


def test_the_frame_that_was_given_stays_as_it_was() -> None:
    frame, untouched = random_frame(names=EVERYTHING), random_frame(names=EVERYTHING)
    corrupt(frame, dict.fromkeys(EVERYTHING, 1), 0, ROUND)
    np.testing.assert_array_equal(frame.image, untouched.image)
    np.testing.assert_array_equal(frame.depth_m, untouched.depth_m)
    np.testing.assert_array_equal(frame.cloud.xyz_m, untouched.cloud.xyz_m)


@pytest.mark.parametrize("name", ["image", "depth"])
def test_the_place_is_the_same_for_a_seed_and_another_for_another_seed_or_frame(name: str) -> None:
    places = [masked(picture_frame(stamp), name, seed) for stamp in (1, 10**18, 10**18 + 1) for seed in (0, 1)]
    assert places == [masked(picture_frame(stamp), name, seed) for stamp in (1, 10**18, 10**18 + 1) for seed in (0, 1)]
    assert len(set(places)) == len(places)


def test_modalities_are_masked_in_places_of_their_own() -> None:
    frame = picture_frame()
    both = corrupt(frame, {"image": 1, "depth": 1}, 0, ROUND)
    places = box(both.image.max(axis=2) == 0), box(both.depth_m == 0)
    assert places == (masked(frame, "image"), masked(frame, "depth"))
    assert places[0] != places[1]


def test_every_place_is_as_likely_as_any_other() -> None:
    """Of 21 rows and 41 columns for the corner; the mean of 2000 within five standard errors of the centre."""
    corners = np.array([masked(picture_frame(stamp), "image")[:2] for stamp in range(2000)])
    np.testing.assert_array_equal(corners.min(axis=0), [0, 0])
    np.testing.assert_array_equal(corners.max(axis=0), [20, 40])
    deviation = np.sqrt((np.array([21, 41]) ** 2 - 1) / 12)
    assert np.all(np.abs(corners.mean(axis=0) - [10, 20]) < 5 * deviation / np.sqrt(2000))
    np.testing.assert_allclose(corners.std(axis=0), deviation, rtol=0.08)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 5 / np.sqrt(2000)


# --- levels ------------------------------------------------------------------------------------------------------


def test_level_zero_gives_back_the_very_frame() -> None:
    frame = random_frame(names=EVERYTHING)
    assert corrupt(frame, {}, 0, ROUND) is frame
    assert corrupt(frame, dict.fromkeys(EVERYTHING, 0), 0, ROUND) is frame


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_other_modalities_calibration_and_stamp_are_left_alone(name: str, level: int) -> None:
    frame = random_frame(names=EVERYTHING)
    corrupted = corrupt(frame, {name: level}, 0, ROUND)
    field = {"image": "image", "depth": "depth_m", "lidar": "cloud"}[name]
    for other in dataclasses.fields(Frame):
        same = getattr(corrupted, other.name) is getattr(frame, other.name)
        assert same == (other.name != field)
    assert (name in corrupted.modalities) == (level != 2)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_was_absent_stays_absent(level: int) -> None:
    frame = Frame(5)
    assert corrupt(frame, dict.fromkeys(EVERYTHING, level), 0, PINHOLE).modalities == ()


@pytest.mark.parametrize("preprocess", [ROUND, PINHOLE])
def test_a_zeroed_sensor_is_there_and_delivers_black_and_no_measurement(preprocess: PreprocessConfig) -> None:
    frame = random_frame(names=EVERYTHING)
    before = Preprocessor(preprocess).prepare(frame)
    assert all(before[name].any() for name in EVERYTHING)
    zeroed = corrupt(frame, dict.fromkeys(EVERYTHING, 3), 0, preprocess)
    assert zeroed.modalities == EVERYTHING
    assert len(zeroed.cloud) == len(zeroed.cloud.intensity) == 0
    for name, tensor in Preprocessor(preprocess).prepare(zeroed).items():
        assert tensor.shape == before[name].shape
        assert not tensor.any()  # validity, the last channel of depth and lidar, too
    assert frame.image.any()
    assert len(frame.cloud)


# --- clouds ------------------------------------------------------------------------------------------------------


def angles_to_xyz(azimuth_deg: np.ndarray, elevation_deg: np.ndarray, range_m: np.ndarray) -> np.ndarray:
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    ground = range_m * np.cos(elevation)
    return np.stack([ground * np.cos(azimuth), ground * np.sin(azimuth), range_m * np.sin(elevation)], axis=-1)


def full_cylinder() -> PointCloud:
    """Two points in each cell of the range image, the limits of the field of view among them, in order of cells."""
    rng = np.random.default_rng(0)
    row, column = np.indices((CYLINDER.rows, CYLINDER.columns)).reshape(2, -1).astype(np.float64)
    offset = rng.uniform(0.05, 0.95, (2, 2, row.size))
    offset[0, 0, row == 0] = 0.0
    offset[0, 0, row == CYLINDER.rows - 1] = 1.0
    offset[0, 1, column == 0] = 1e-4  # azimuth +180 deg itself is -180 deg
    elevation = 15 - (row + offset[:, 0]) * 40 / CYLINDER.rows
    azimuth = 180 - (column + offset[:, 1]) * 360 / CYLINDER.columns
    xyz = angles_to_xyz(azimuth, elevation, rng.uniform(2, 50, azimuth.shape)).reshape(-1, 3).astype(np.float32)
    number = np.arange(len(xyz), dtype=np.float32)
    return PointCloud(xyz, number, -number)


def lidar_picture(frame: Frame, preprocess: PreprocessConfig) -> np.ndarray:
    """Validity of the lidar's picture as the model gets it."""
    return Preprocessor(dataclasses.replace(preprocess, modalities=("lidar",))).prepare(frame)["lidar"][-1].numpy()


@pytest.mark.parametrize("stamp", range(20))
def test_a_window_of_the_range_image_is_emptied_and_nothing_else(stamp: int) -> None:
    frame = Frame(stamp, cloud=full_cylinder())
    assert lidar_picture(frame, ROUND).all()
    corrupted = corrupt(frame, {"lidar": 1}, 0, ROUND)
    empty = lidar_picture(corrupted, ROUND) == 0
    assert box(empty)[2:] == (8, 24)  # half the rows, 3/8 of the columns
    assert empty.mean() == 3 / 16
    in_window = np.tile(empty.flatten(), 2)
    np.testing.assert_array_equal(corrupted.cloud.intensity, np.flatnonzero(~in_window))
    np.testing.assert_array_equal(corrupted.cloud.time_s, -corrupted.cloud.intensity)
    np.testing.assert_array_equal(corrupted.cloud.xyz_m, frame.cloud.xyz_m[~in_window])


def test_windows_of_the_range_image_reach_every_side() -> None:
    cloud = full_cylinder()
    corners = [
        box(lidar_picture(corrupt(Frame(stamp, cloud=cloud), {"lidar": 1}, 0, ROUND), ROUND) == 0)[:2]
        for stamp in range(200)
    ]
    np.testing.assert_array_equal(np.min(corners, axis=0), [0, 0])
    np.testing.assert_array_equal(np.max(corners, axis=0), [8, 40])


@pytest.mark.parametrize("preprocess", [ROUND, PINHOLE])
def test_points_outside_of_the_picture_and_nan_stay(preprocess: PreprocessConfig) -> None:
    high = angles_to_xyz(np.linspace(-180, 180, 50), np.full(50, 80.0), np.full(50, 9.0))
    low = angles_to_xyz(np.linspace(-180, 180, 50), np.full(50, -80.0), np.full(50, 9.0))
    nowhere = [[np.nan] * 3, [0, np.nan, 1]]
    cloud = PointCloud(np.concatenate([high, low, nowhere]).astype(np.float32))
    for stamp in range(60):
        frame = dataclasses.replace(random_frame(), stamp_ns=stamp, cloud=cloud)
        corrupted = corrupt(frame, {"lidar": 1}, 0, preprocess).cloud
        np.testing.assert_array_equal(corrupted.xyz_m, cloud.xyz_m)
        assert corrupted.intensity is None
        assert corrupted.time_s is None


def test_a_planar_lidar_loses_the_same_share() -> None:
    planar = dataclasses.replace(ROUND, cylinder=CylindricalConfig(1, 64, -1.0, 1.0))
    azimuth = 180 - (np.arange(64) + 0.5) * 360 / 64
    xyz = angles_to_xyz(azimuth, np.zeros(64), np.full(64, 5.0)).astype(np.float32)
    frame = Frame(3, cloud=PointCloud(xyz))
    corrupted = corrupt(frame, {"lidar": 1}, 0, planar)
    assert len(corrupted.cloud) == 64 - 12
    assert box(lidar_picture(corrupted, planar) == 0)[2:] == (1, 12)


@pytest.mark.parametrize("stamp", range(10))
def test_a_square_of_the_cameras_picture_is_emptied_of_its_points_and_nothing_else(stamp: int) -> None:
    """Two points behind each other in each pixel, and their mirror images behind the camera."""
    camera = PinholeCamera(60, 40, 45.0, 50.0, 31.0, 18.0)
    camera_from_lidar = dataclasses.replace(random_frame().camera_from_lidar, position_m=np.array([0.3, -0.2, 0.1]))
    rng = np.random.default_rng(stamp)
    v, u = np.indices((40, 60)).reshape(2, 1, -1) + rng.uniform(-0.4, 0.4, (2, 2, 2400))
    depth = rng.uniform(1, 20, u.shape)
    seen = np.stack([(u - 31) / 45 * depth, (v - 18) / 50 * depth, depth], axis=-1).reshape(-1, 3)
    xyz = camera_from_lidar.inverse().transform(np.concatenate([seen, -seen])).astype(np.float32)
    frame = Frame(stamp, None, None, PointCloud(xyz, np.arange(len(xyz), dtype=np.float32)), camera, camera_from_lidar)
    corrupted = corrupt(frame, {"lidar": 1}, 0, PINHOLE)  # 40 pixels is the shortest side: nothing is scaled
    empty = lidar_picture(corrupted, PINHOLE) == 0
    assert box(empty)[2:] == (20, 20)
    in_square = np.concatenate([np.tile(empty.flatten(), 2), np.zeros(len(seen), bool)])
    np.testing.assert_array_equal(corrupted.cloud.intensity, np.flatnonzero(~in_square))


def test_a_cloud_that_cannot_be_seen_in_the_camera_is_an_error() -> None:
    for lacking in ("camera", "camera_from_lidar"):
        frame = dataclasses.replace(random_frame(3), **{lacking: None})
        with pytest.raises(DataError, match=r"0003 ns: masking the cloud in the camera needs intrinsics and"):
            corrupt(frame, {"lidar": 1}, 0, PINHOLE)
        assert corrupt(frame, {"lidar": 1}, 0, ROUND).cloud is not None


# --- valid corruptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corruption", "error", "match"),
    [
        (Corruption({"depth": 1}), ConfigError, "corruption of 'depth': the model takes image, lidar"),
        (Corruption({"sonar": 0}), ConfigError, "corruption of 'sonar': the model takes image, lidar"),
        (
            Corruption({"image": 4}),
            ConfigError,
            r"must be one of 0 \(none\), 1 \(masked\), 2 \(missing\), 3 \(zeroed\), got 4",
        ),
        (Corruption({"image": -1}), ConfigError, "got -1"),
        (Corruption({"image": 1}, -4), ConfigError, "seed must not be negative, got -4"),
        (Corruption({"image": 2, "lidar": 2}), DataError, r"removes all inputs of the model \(image, lidar\)"),
    ],
)
def test_a_corruption_that_the_model_cannot_have_is_rejected(corruption: Corruption, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        corruption.check(("image", "lidar"))


@pytest.mark.parametrize(
    "levels", [{}, {"image": 2}, {"image": 2, "lidar": 1}, {"lidar": 2, "image": 0}, {"image": 3, "lidar": 3}]
)
def test_a_corruption_that_leaves_some_input_is_accepted(levels: dict[str, int]) -> None:
    Corruption(levels).check(("image", "lidar"))


def test_assignments_become_levels() -> None:
    assert parse_corruption(["image=1", "lidar=2"], 5) == Corruption({"image": 1, "lidar": 2}, 5)
    assert parse_corruption([]) == NO_CORRUPTION
    for wrong in ("image", "image=", "=1", "image=one", "image=-1", "image=1.5"):
        with pytest.raises(ConfigError, match=rf"corruption '{wrong}' is not of the form modality=level"):
            parse_corruption([wrong])


def test_a_corruption_names_itself() -> None:
    corruption = Corruption({"image": 1, "depth": 0, "lidar": 2}, 3)
    assert str(corruption) == "image masked, lidar missing, seed 3"
    assert corruption.tag == "image1_lidar2"
    assert str(Corruption({"depth": 3})) == "depth zeroed, seed 0"
    assert str(Corruption({"image": 0})) == Corruption({"image": 0}).tag == ""


# --- evaluation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    path = tmp_path_factory.mktemp("corruption") / "model.safetensors"
    write_random_checkpoint(path, preprocess=dataclasses.replace(ROUND, modalities=("image", "lidar")))
    return Localizer.load(path, "cpu")


def samples(count: int) -> list[Sample]:
    return [Sample(random_frame(i), yaw_pose(float(i))) for i in range(count)]


def test_evaluation_localizes_the_corrupted_frames_as_the_robot_would(localizer: Localizer) -> None:
    corruption = Corruption({"image": 1, "lidar": 2}, 8)
    result = evaluate(localizer, [ListSource(samples(3))], progress=False, corruption=corruption)
    for sample, estimate in zip(samples(3), result.estimates, strict=True):
        expected = localizer.localize(corrupt(sample.frame, corruption.levels, 8, localizer.header.preprocess))
        np.testing.assert_array_equal(estimate.map_from_body.matrix, expected.map_from_body.matrix)
        clean = localizer.localize(dataclasses.replace(sample.frame, cloud=None))
        assert np.abs(estimate.map_from_body.matrix - clean.map_from_body.matrix).max() > 0
        assert estimate.modalities == ("image",)


def test_frames_without_any_input_left_are_skipped_and_counted(
    localizer: Localizer, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = [*samples(2), Sample(random_frame(7, names=("image",)), yaw_pose(0.0)), *samples(4)[3:]]
    with caplog.at_level(logging.WARNING):
        result = evaluate(localizer, [ListSource(mixed, "yard")], progress=False, corruption=Corruption({"image": 2}))
    assert [e.stamp_ns for e in result.estimates] == [mixed[i].frame.stamp_ns for i in (0, 1, 3)]
    assert len(result.errors) == 3
    assert "yard: 1 frames skipped: no input of the model is left with image missing, seed 0" in caplog.text
    only_images = [Sample(random_frame(i, names=("image",)), yaw_pose(0.0)) for i in range(2)]
    with pytest.raises(DataError, match="there is no frame to evaluate"):
        evaluate(localizer, [ListSource(only_images)], progress=False, corruption=Corruption({"image": 2}))


def test_a_corruption_that_does_not_fit_is_rejected_before_anything_is_read(localizer: Localizer) -> None:
    class Unread(ListSource):
        def __iter__(self) -> Iterator[Sample]:
            raise AssertionError("the source was read")

    for levels, error in (({"image": 2, "lidar": 2}, DataError), ({"depth": 1}, ConfigError)):
        with pytest.raises(error):
            evaluate(localizer, [Unread(samples(1))], progress=False, corruption=Corruption(levels))


def test_the_results_record_the_corruption(localizer: Localizer, tmp_path: Path) -> None:
    for corruption in (Corruption({"lidar": 1}, 2), NO_CORRUPTION):
        result = evaluate(localizer, [ListSource(samples(2))], progress=False, corruption=corruption)
        write_results(result, tmp_path)
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        recorded = metrics.pop("corruption", None)
        assert recorded == ({"levels": {"lidar": 1}, "seed": 2} if corruption.tag else None)
        assert metrics.items() >= result.errors.summary().items()
