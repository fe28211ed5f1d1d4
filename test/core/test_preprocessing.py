# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import random_frame
from vmloc_ros.core.config import from_mapping, to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, ModelError
from vmloc_ros.core.frame import Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import AZIMUTH, VALIDITY, CylindricalConfig

pytestmark = pytest.mark.numeric

ALL = ("image", "depth", "lidar")


def preprocessor(**changes: object) -> Preprocessor:
    return Preprocessor(PreprocessConfig(**{"modalities": ALL, "shortest_side": 64, **changes}))


def network_input(processor: Preprocessor, frame: Frame, **crop: tuple[float, float]) -> dict[str, torch.Tensor]:
    prepared = {name: x.unsqueeze(0) for name, x in processor.prepare(frame).items()}
    return processor.normalise(prepared, **crop)


# --- determinism -------------------------------------------------------------------------------------------------


def test_the_same_measurement_gives_the_same_input_whatever_its_stamp_and_company() -> None:
    processor = preprocessor()
    frame = random_frame(0, names=ALL)
    first = processor([frame])[0]
    later = processor([random_frame(1, names=ALL), dataclasses.replace(frame, stamp_ns=5)])[1]
    for name in ALL:
        assert torch.equal(first[name], later[name]), name


def test_a_config_from_a_checkpoint_preprocesses_identically() -> None:
    config = preprocessor(crop=(48, 64), depth_range_m=(0.1, 6.3), lidar_projection="pinhole").config
    again = from_mapping(PreprocessConfig, to_mapping(config))
    assert again == config
    frame = random_frame(2, names=ALL)
    a, b = Preprocessor(config)([frame])[0], Preprocessor(again)([frame])[0]
    assert all(torch.equal(a[name], b[name]) for name in ALL)


@pytest.mark.parametrize("projection", ["cylindrical", "pinhole"])
def test_the_channels_promised_are_the_channels_given(projection: str) -> None:
    processor = preprocessor(lidar_projection=projection)
    inputs = processor([random_frame(0, names=ALL)])[0]
    assert {name: x.shape[1] for name, x in inputs.items()} == processor.channels
    assert list(processor.channels) == list(ALL)


def test_only_modalities_that_are_wanted_and_present_are_prepared() -> None:
    processor = preprocessor(modalities=("depth", "image"))
    assert list(processor.prepare(random_frame(0, names=("image", "lidar")))) == ["image"]
    assert list(processor.prepare(random_frame(0, names=ALL))) == ["depth", "image"]


def test_a_frame_without_any_wanted_modality_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(ModelError, match="the frame has lidar; the model needs at least one of image, depth"):
        preprocessor(modalities=("image", "depth")).prepare(random_frame(0, names=("lidar",)))
    with pytest.raises(ModelError, match="the frame has nothing"):
        preprocessor().prepare(Frame(0))


def test_neither_step_changes_what_it_is_given() -> None:
    processor = preprocessor(crop=(48, 48))
    frame = random_frame(3, names=ALL)
    copies = frame.image.copy(), frame.depth_m.copy(), frame.cloud.xyz_m.copy()
    prepared = {name: x.unsqueeze(0) for name, x in processor.prepare(frame).items()}
    prepared["image"] = prepared["image"].float()  # as augmentation hands it on
    before = {name: x.clone() for name, x in prepared.items()}
    processor.normalise(prepared)
    assert all(torch.equal(prepared[name], before[name]) for name in ALL)
    for original, copy in zip((frame.image, frame.depth_m, frame.cloud.xyz_m), copies, strict=True):
        np.testing.assert_array_equal(original, copy)


def test_read_only_views_of_a_messages_bytes_are_accepted() -> None:
    """Decoding without a copy returns read-only arrays."""
    frame = random_frame(4, size=(64, 64), names=ALL)
    frame.image.setflags(write=False)
    frame.depth_m.setflags(write=False)
    assert set(preprocessor()([frame])[0]) == set(ALL)


# --- image -------------------------------------------------------------------------------------------------------


def test_image_values_map_from_0_255_to_minus_1_1_in_rgb_order() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 255, 0, 51
    result = network_input(preprocessor(modalities=("image",)), Frame(0, image=image))["image"]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[0, :, 10, 10], torch.tensor([1.0, -1.0, -0.6]))


@given(st.integers(40, 700), st.integers(40, 700), st.sampled_from([32, 64, 100]))
@settings(max_examples=30, deadline=None)
def test_the_shortest_side_is_exact_and_the_aspect_ratio_kept(height: int, width: int, side: int) -> None:
    processor = preprocessor(modalities=("image", "depth"), shortest_side=side)
    frame = Frame(0, np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.float32))
    prepared = processor.prepare(frame)
    rows, columns = prepared["image"].shape[1:]
    assert min(rows, columns) == side
    assert abs(columns / rows - width / height) <= 0.5 * (1 + width / height) / min(rows, columns)
    assert prepared["depth"].shape[1:] == (rows, columns)


def test_shrinking_averages_fine_texture_instead_of_picking_from_it() -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    small = preprocessor(modalities=("image",)).prepare(Frame(0, image=image))["image"].float()
    assert small.std() < 2
    assert abs(small.mean() - 127.5) < 2


# --- depth -------------------------------------------------------------------------------------------------------


def test_depth_is_scaled_by_its_own_range_with_validity_and_clipped() -> None:
    depth = np.full((64, 64), 2.5, np.float32)
    depth[0, :4] = [0.0, 10.0, 65.535, 0.001]
    result = network_input(preprocessor(modalities=("depth",), depth_range_m=(0.0, 10.0)), Frame(0, depth_m=depth))
    measured, validity = result["depth"][0]
    torch.testing.assert_close(measured[0, :4], torch.tensor([0.0, 1.0, 1.0, -0.9998]))
    assert validity[0, :4].tolist() == [0.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(measured[10, 10], torch.tensor(-0.5))


def test_sixteen_bit_depth_keeps_its_millimetres() -> None:
    """8 bits over 10 m would be steps of 39 mm."""
    millimetres = (1000 + np.arange(64 * 64) % 4096).reshape(64, 64).astype(np.uint16)
    frame = Frame(0, depth_m=millimetres.astype(np.float32) / 1000)
    result = network_input(preprocessor(modalities=("depth",)), frame)["depth"][0, 0].double()
    recovered = ((result + 1) * 5000).round().int().numpy()
    np.testing.assert_array_equal(recovered, millimetres)


@pytest.mark.parametrize("size", [(480, 640), (100, 130), (40, 50)])
def test_scaled_depth_invents_no_surface(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    depth = rng.choice(np.array([0.0, 1.0, 5.0], np.float32), size)
    scaled, validity = preprocessor(modalities=("depth",)).prepare(Frame(0, depth_m=depth))["depth"]
    assert set(np.unique(scaled)) <= {0.0, 1.0, 5.0}
    assert torch.equal(validity, (scaled > 0).float())


def test_an_edge_lies_in_the_same_column_of_image_and_depth() -> None:
    image, depth = np.zeros((240, 320, 3), np.uint8), np.full((240, 320), 1.0, np.float32)
    image[:, 200:], depth[:, 200:] = 255, 5.0
    prepared = preprocessor(modalities=("image", "depth"), shortest_side=60).prepare(Frame(0, image, depth))
    assert int((prepared["image"][0, 0] > 127).int().argmax()) == int((prepared["depth"][0, 0] > 3).int().argmax())


# --- lidar -------------------------------------------------------------------------------------------------------


def test_cylindrical_channels_are_scaled_by_their_own_ranges_where_something_returned() -> None:
    config = CylindricalConfig(rows=8, columns=16, elevation_min_deg=-20.0, elevation_max_deg=20.0)
    processor = preprocessor(
        modalities=("lidar",),
        cylinder=config,
        lidar_range_m=(0.0, 50.0),
        lidar_height_m=(-5.0, 5.0),
        lidar_intensity=(0.0, 200.0),
    )
    cloud = PointCloud(np.array([[4.0, 0.0, 1.0], [np.nan, 1, 1], [0, 0, 0]], np.float32), np.float32([150, 9, 9]))
    picture = network_input(processor, Frame(0, cloud=cloud))["lidar"][0]
    assert picture.shape == (4, 8, 16)
    assert picture[3].sum() == 1
    row, column = (int(i) for i in torch.nonzero(picture[3])[0])
    expected = [np.hypot(4, 1) / 25 - 1, 0.2, 0.5, 1.0]
    torch.testing.assert_close(picture[:, row, column], torch.tensor(expected, dtype=torch.float32))
    assert picture[:3, picture[3] == 0].abs().max() == 0


def test_the_azimuth_is_prepared_but_no_input_of_networks() -> None:
    processor = preprocessor(modalities=("lidar",))
    prepared = processor.prepare(random_frame(1))["lidar"][None]
    elsewhere = prepared.clone()
    elsewhere[:, AZIMUTH] = 9.0
    given = processor.normalise({"lidar": prepared})["lidar"]
    assert given.shape[1] == 4
    assert torch.equal(given, processor.normalise({"lidar": elsewhere})["lidar"])
    assert torch.equal(given[:, -1], prepared[:, VALIDITY])


@pytest.mark.parametrize("projection", ["cylindrical", "pinhole"])
@pytest.mark.parametrize("intensity", [True, False])
def test_an_empty_cloud_is_a_picture_without_returns(projection: str, intensity: bool) -> None:
    processor = preprocessor(modalities=("lidar",), lidar_projection=projection)
    frame = random_frame(0)
    values = np.zeros(0, np.float32) if intensity else None
    picture = network_input(
        processor, dataclasses.replace(frame, cloud=PointCloud(np.zeros((0, 3), np.float32), values))
    )["lidar"]
    assert picture.abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(32, 200),
    x=st.floats(-0.8, 0.8),
    y=st.floats(-0.6, 0.6),
    depth=st.floats(1.0, 9.0),
)
def test_a_point_lands_on_the_scaled_pixel_of_where_the_camera_saw_it(
    side: int, x: float, y: float, depth: float
) -> None:
    """Draw the point's true pixel into the image's grid, scale that grid as images are, compare with the projection."""
    camera = PinholeCamera(320, 240, 180.0, 170.0, 150.3, 124.6)
    camera_from_lidar = Pose.from_xyz_rpy([0.1, -0.2, 0.3], [0.02, -0.01, 0.03])
    in_camera = np.array([x * depth, y * depth, depth])
    u, v = 180.0 * x + 150.3, 170.0 * y + 124.6  # integer at pixel centres
    cloud = PointCloud(camera_from_lidar.inverse().transform(in_camera)[None].astype(np.float32))
    processor = preprocessor(modalities=("lidar",), lidar_projection="pinhole", shortest_side=side)
    measured, validity = processor.prepare(Frame(0, cloud=cloud, camera=camera, camera_from_lidar=camera_from_lidar))[
        "lidar"
    ]
    rows, columns = validity.shape
    # A continuous coordinate runs from the image's edge at -0.5 to width - 0.5, in any size.
    column, row = (u + 0.5) * columns / 320, (v + 0.5) * rows / 240
    hit = torch.nonzero(validity)
    if 0 < column < columns and 0 < row < rows:
        assert len(hit) == 1
        assert abs(float(hit[0, 1]) + 0.5 - column) <= 0.5 + 1e-2
        assert abs(float(hit[0, 0]) + 0.5 - row) <= 0.5 + 1e-2
        assert measured.max().item() == pytest.approx(depth, rel=1e-4)


def test_an_object_seen_by_camera_and_lidar_lies_at_the_same_place_of_both_inputs() -> None:
    camera = PinholeCamera(320, 240, 200.0, 200.0, 159.5, 119.5)
    corner = np.array([[0.4, 0.2, 2.0]])
    u, v = (200 * corner[0, :2] / 2 + [159.5, 119.5]).round().astype(int)
    image = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(image, (int(u), int(v)), 4, (255, 255, 255), -1)
    frame = Frame(0, image, None, PointCloud(corner.astype(np.float32)), camera, Pose.identity())
    prepared = preprocessor(modalities=("image", "lidar"), lidar_projection="pinhole").prepare(frame)
    brightest = np.unravel_index(int(prepared["image"][0].argmax()), prepared["image"].shape[1:])
    hit = torch.nonzero(prepared["lidar"][1])[0].tolist()
    assert np.abs(np.subtract(brightest, hit)).max() <= 1


@pytest.mark.parametrize("lost", ["camera", "camera_from_lidar"])
def test_pinhole_projection_without_calibration_is_an_error(lost: str) -> None:
    frame = dataclasses.replace(random_frame(0), **{lost: None})
    with pytest.raises(ModelError, match="needs camera intrinsics and the lidar's extrinsics"):
        preprocessor(modalities=("lidar",), lidar_projection="pinhole").prepare(frame)


# --- crop --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_one_crop_window_serves_image_depth_and_pinhole_lidar(down: float, right: float) -> None:
    processor = preprocessor(crop=(40, 56), lidar_projection="pinhole", depth_range_m=(0.0, 100.0))
    rows, columns = np.indices((64, 96))
    position = torch.from_numpy(rows * 1.0 + columns * 0.01).float()
    batch = {
        "image": torch.from_numpy(np.stack([rows, columns, columns])).to(torch.uint8)[None],
        "depth": torch.stack([position, torch.ones(64, 96)])[None],
        "lidar": torch.stack([position, torch.ones(64, 96)])[None],
    }
    result = processor.normalise(batch, (down, right))
    assert {x.shape[2:] for x in result.values()} == {(40, 56)}
    assert torch.equal(result["depth"], result["lidar"])
    top, left = round(down * 24), round(right * 40)
    depth_m = (result["depth"][0, 0] + 1) * 50
    torch.testing.assert_close(depth_m, position[top : top + 40, left : left + 56], rtol=0, atol=1e-4)
    pixels = (result["image"][0] + 1) * 127.5
    torch.testing.assert_close(pixels[0, :, 0], torch.arange(top, top + 40.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(pixels[1, 0], torch.arange(left, left + 56.0), rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_the_cropped_windows_intrinsics_see_each_pixel_along_the_ray_of_the_whole_pictures(
    down: float, right: float
) -> None:
    processor = preprocessor(modalities=("image", "depth"), shortest_side=64, crop=(40, 56))
    frame = random_frame(0, (128, 192), ALL)
    whole = processor.intrinsics(frame)
    rows, columns = np.indices((64, 96))
    position = torch.from_numpy(np.stack([columns, rows])).float()[None]
    batch = {"image": position, "depth": position}
    cropped = processor.crop_intrinsics(whole[None], batch, (down, right))[0]
    u, v = processor.crop(batch, (down, right))["image"][0, :, 7, 11]
    ray = torch.linalg.inv(whole) @ torch.stack([u, v, torch.ones_like(u)])
    torch.testing.assert_close(torch.linalg.inv(cropped) @ torch.tensor([11.0, 7.0, 1.0]), ray)


def test_the_intrinsics_of_an_unknown_camera_are_nan() -> None:
    frame = dataclasses.replace(random_frame(0), camera=None)
    assert bool(preprocessor().intrinsics(frame).isnan().all())


def test_the_default_crop_is_central_and_leaves_the_range_image_whole() -> None:
    processor = preprocessor(crop=(40, 40))
    frame = random_frame(5, size=(64, 96), names=ALL)
    inputs = network_input(processor, frame)
    whole = network_input(preprocessor(), frame)
    assert torch.equal(inputs["image"], whole["image"][..., 12:52, 28:68])
    assert torch.equal(inputs["lidar"], whole["lidar"])


def test_a_crop_wider_than_the_scaled_image_is_an_error_with_both_sizes() -> None:
    processor = preprocessor(modalities=("image",), crop=(64, 120))
    with pytest.raises(DataError, match="crop 64x120 does not fit the scaled image of 64x64"):
        network_input(processor, random_frame(0, size=(64, 64)))


# --- ranges and configuration ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["cylindrical", "pinhole"]))
def test_every_input_lies_in_minus_1_1_and_is_0_where_nothing_was_measured(seed: int, projection: str) -> None:
    frame = random_frame(seed, names=ALL)
    rng = np.random.default_rng(seed)
    frame.depth_m[rng.random(frame.depth_m.shape) < 0.3] = 0
    frame.cloud.xyz_m[::7] *= 1e4
    frame.cloud.xyz_m[1::7] = np.nan
    frame.cloud.intensity[::5] = np.inf
    for name, x in preprocessor(lidar_projection=projection)([frame])[0].items():
        assert torch.isfinite(x).all(), name
        assert x.abs().max() <= 1, name
        if name != "image":
            assert set(x[:, -1].unique().tolist()) <= {0.0, 1.0}
            assert (x[:, :-1] * (1 - x[:, -1:])).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"modalities": ()}, "modalities must be distinct names"),
        ({"modalities": ("image", "image")}, "modalities must be distinct names"),
        ({"modalities": ("sonar",)}, "modalities must be distinct names of image, depth, lidar, got"),
        ({"shortest_side": 31}, "shortest_side must be at least 32 pixels, got 31"),
        ({"crop": (16, 64)}, "crop must be at least 32"),
        ({"crop": (300, 300)}, "fit shortest_side 64, got"),
        ({"depth_range_m": (3.0, 3.0)}, "depth_range_m must increase, got 3.0 .. 3.0"),
        ({"lidar_range_m": (80.0, 0.0)}, "lidar_range_m must increase"),
        ({"lidar_height_m": (0.0, float("nan"))}, "lidar_height_m must increase"),
        ({"lidar_intensity": (1.0, 0.0)}, "lidar_intensity must increase"),
    ],
)
def test_a_configuration_out_of_range_is_rejected(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        preprocessor(**change)


def test_an_unknown_projection_is_rejected_where_configurations_are_read() -> None:
    with pytest.raises(ConfigError, match="expected one of cylindrical, pinhole, got 'spherical'"):
        from_mapping(PreprocessConfig, {"lidar_projection": "spherical"}, "preprocess")
