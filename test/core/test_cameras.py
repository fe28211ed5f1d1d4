# SPDX-License-Identifier: Apache-2.0
"""Which matrix belongs to a picture, and pictures without distortion; OpenCV's projections are the oracle."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import random_frame
from vmloc_ros.bags.messages import camera_info_message
from vmloc_ros.core import cameras
from vmloc_ros.core.cameras import PictureCamera, decode_camera_info, fitted, is_rectified, resized, undistorted
from vmloc_ros.core.errors import MessageError, ModelError
from vmloc_ros.core.frame import Distortion, Frame, PinholeCamera
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

K = [585.0, 0.0, 320.0, 0.0, 580.0, 240.0, 0.0, 0.0, 1.0]
P = [500.0, 0.0, 330.0, -40.0, 0.0, 490.0, 235.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # of the right camera of a stereo pair
IDENTITY = np.eye(3).ravel().tolist()
PLUMB_BOB = [-0.28, 0.07, 0.0005, -0.0003, 0.01]
RATIONAL = [0.4, -0.2, 0.0004, -0.0002, 0.01, 0.7, -0.1, 0.02]
FISHEYE = [-0.01, 0.02, -0.01, 0.002]
NAN = float("nan")


def region(x: int = 0, y: int = 0, width: int = 0, height: int = 0, do_rectify: bool = False) -> Any:
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height, do_rectify=do_rectify)


def camera_info(**changes: Any) -> Any:
    message = SimpleNamespace(
        header=SimpleNamespace(frame_id="camera"),
        width=640,
        height=480,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=K,
        r=IDENTITY,
        p=P,
        binning_x=0,
        binning_y=0,
        roi=region(),
    )
    vars(message).update(changes)
    return message


def numbers(camera: PinholeCamera) -> tuple[float, ...]:
    return (camera.fx, camera.fy, camera.cx, camera.cy)


OF_K, OF_P = (585, 580, 320, 240), (500, 490, 330, 235)


# --- which matrix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("/camera/image_raw", False),
        ("/camera/image", False),
        ("/camera/image_color", False),
        ("/camera/color/image_raw", False),
        ("/rgb_raw/image_raw_color", False),
        ("/rectified/left/image_raw", False),
        ("/correct/direct/image", False),
        ("", False),
        ("/camera/image_rect", True),
        ("/zed/zed_node/rgb/image_rect_color", True),
        ("/zed/zed_node/rgb/color/rect/image", True),
        ("/camera/infra1/image_rect_raw", True),
        ("/camera/image_rect/compressed", True),
        ("/camera/image_raw/compressed", False),
        ("/left/rectified", True),
        ("/cam0/image_undistorted", True),
    ],
)
def test_a_topics_name_tells_whether_its_pictures_are_rectified(topic: str, expected: bool) -> None:
    assert is_rectified(topic) == expected


@pytest.mark.parametrize(
    ("changes", "rectified", "expected", "matrix"),
    [
        ({}, False, OF_K, "K"),
        ({}, True, OF_P, "P"),
        ({"roi": region(do_rectify=True)}, False, OF_K, "K"),  # asks for a region, says nothing of the picture
        ({"d": []}, False, OF_K, "K"),
        ({"d": [0.0, 0.0], "distortion_model": "ideal"}, False, OF_K, "K"),
        ({"k": [0.0] * 9}, False, OF_P, "P of the camera info, since K is not set"),
        ({"k": [NAN] * 9}, False, OF_P, "P of the camera info, since K is not set"),
        ({"k": [0.0] * 9, "d": PLUMB_BOB}, True, OF_P, "P"),
        ({"p": [0.0] * 12}, True, OF_K, "K of the camera info, since P is not set"),
        ({"p": []}, True, OF_K, "K of the camera info, since P is not set"),
    ],
)
def test_raw_pictures_have_k_and_rectified_ones_p(
    changes: dict[str, Any], rectified: bool, expected: tuple[float, ...], matrix: str
) -> None:
    found = decode_camera_info(camera_info(**changes), rectified)
    assert numbers(found.camera) == expected
    assert (found.camera.width, found.camera.height) == (640, 480)
    assert (found.matrix, found.warning, found.camera.distortion) == (matrix, "", None)


def test_k_in_place_of_p_may_be_wrong_where_the_lens_distorts() -> None:
    found = decode_camera_info(camera_info(p=[0.0] * 12, d=PLUMB_BOB), rectified=True)
    assert numbers(found.camera) == OF_K
    assert "P of the camera info is not set" in found.warning


def test_camera_info_of_ros1_has_capital_letters() -> None:
    message = camera_info(K=np.array(K), P=np.array(P), D=np.array(PLUMB_BOB), R=np.eye(3).ravel())
    for name in "kpdr":
        delattr(message, name)
    assert decode_camera_info(message) == decode_camera_info(camera_info(d=PLUMB_BOB))
    assert numbers(decode_camera_info(message, rectified=True).camera) == OF_P


@pytest.mark.parametrize(
    ("model", "coefficients", "expected"),
    [
        ("plumb_bob", PLUMB_BOB, "plumb_bob"),
        ("plumb_bob", PLUMB_BOB[:4], "plumb_bob"),
        ("rational_polynomial", RATIONAL, "rational_polynomial"),
        ("rational_polynomial", [*RATIONAL, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "rational_polynomial"),
        ("rational_polynomial", PLUMB_BOB, "plumb_bob"),
        ("equidistant", FISHEYE, "equidistant"),
        ("fisheye", FISHEYE, "equidistant"),
    ],
)
def test_raw_pictures_of_a_lens_that_distorts(model: str, coefficients: list[float], expected: str) -> None:
    camera = decode_camera_info(camera_info(d=coefficients, distortion_model=model)).camera
    assert numbers(camera) == OF_K
    assert camera.distortion is not None
    assert (camera.distortion.model, camera.distortion.coefficients) == (expected, tuple(coefficients))
    assert numbers(camera.undistorted) == OF_P  # what image_proc would publish


def test_without_p_the_undistorted_picture_has_k() -> None:
    for p in ([0.0] * 12, matrix_of(500, 490, 1320, 940)["p"]):  # the second is of another picture
        camera = decode_camera_info(camera_info(d=PLUMB_BOB, p=p)).camera
        assert numbers(camera.undistorted) == OF_K


def test_a_rectifying_rotation_goes_with_p_and_zeros_are_none() -> None:
    turned = Pose.from_xyz_rpy([0, 0, 0], [0.01, -0.02, 0.03]).rotation.ravel().tolist()
    expected = {tuple(turned): tuple(turned), tuple(IDENTITY): None, (0.0,) * 9: None, (NAN,) * 9: None}
    for given_r, wanted in expected.items():
        distortion = decode_camera_info(camera_info(d=PLUMB_BOB, r=list(given_r))).camera.distortion
        assert distortion is not None
        assert distortion.rotation == wanted


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": [0.0] * 9, "p": [0.0] * 12}, "uncalibrated.*camera_calibration"),
        ({"k": [NAN] * 9, "p": [NAN] * 12}, "uncalibrated"),
        ({"k": [0.0] * 9, "d": PLUMB_BOB}, "uncalibrated"),  # the distortion refers to K
        ({"width": 0}, "no image size: width 0, height 480"),
        ({"d": PLUMB_BOB, "distortion_model": "ftheta"}, "distortion model 'ftheta' with 5 .* image_rect"),
        ({"d": PLUMB_BOB, "distortion_model": ""}, "distortion model ''"),
        ({"d": PLUMB_BOB[:3]}, "distortion model 'plumb_bob' with 3"),
        ({"d": [NAN] * 5}, "distortion model 'plumb_bob' with 5 .*all finite"),
        ({"width": 160, "height": 120}, r"160x120 .* of K at 320, 240.*\(it fits one of about 641x481\)"),
        ({"width": 2560, "height": 1920}, r"2560x1920 .*\(it fits one of about 641x481\)"),
        ({"k": [585.0, 0, -900.0, 0, 580.0, 240.0, 0, 0, 1]}, "of K at -900, 240: the matrix is that of another"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_its_numbers(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(MessageError, match=text):
        decode_camera_info(camera_info(**changes))


# --- region of interest, binning, scale ---------------------------------------------------------------------------


def matrix_of(fx: float, fy: float, cx: float, cy: float) -> dict[str, list[float]]:
    return {"k": [fx, 0, cx, 0, fy, cy, 0, 0, 1], "p": [fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0]}


# The same camera, 320x240 with focal length 160, as drivers write it.
SAME_CAMERA = {
    "plain": {"width": 320, "height": 240, **matrix_of(160, 160, 159.5, 119.5)},
    "size of the region": {
        "width": 320,
        "height": 240,
        "roi": region(100, 60, 320, 240),
        **matrix_of(160, 160, 259.5, 179.5),
    },
    "region": {"roi": region(100, 60, 320, 240), **matrix_of(160, 160, 259.5, 179.5)},
    "binned": {"binning_x": 2, "binning_y": 2, **matrix_of(320, 320, 319, 239)},
    "region, binned": {
        "width": 800,
        "height": 600,
        "binning_x": 2,
        "binning_y": 2,
        "roi": region(40, 20, 640, 480),
        **matrix_of(320, 320, 359, 259),
    },
    "twice the picture": matrix_of(320, 320, 319.5, 239.5),
    "half the picture": {"width": 160, "height": 120, **matrix_of(80, 80, 79.5, 59.5)},
}


@pytest.mark.parametrize("kind", SAME_CAMERA)
@pytest.mark.parametrize("rectified", [False, True])
def test_one_camera_in_many_words(kind: str, rectified: bool) -> None:
    camera = fitted(decode_camera_info(camera_info(**SAME_CAMERA[kind]), rectified).camera, 240, 320)
    assert camera == PinholeCamera(320, 240, 160, 160, 159.5, 119.5)


def test_a_matrix_of_the_binned_picture_is_not_binned_again() -> None:
    """It refers to the full picture by definition; a driver that scales it already must set no binning."""
    broken = camera_info(width=1280, height=960, binning_x=4, binning_y=4, **matrix_of(160, 160, 159.5, 119.5))
    with pytest.raises(MessageError, match=r"1280x960.*it fits one of about 320x240"):
        decode_camera_info(broken)


@given(
    st.tuples(st.floats(200, 900), st.floats(200, 900), st.floats(250, 390), st.floats(180, 300)),
    st.tuples(st.integers(0, 200), st.integers(0, 150), st.integers(64, 400), st.integers(64, 300)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.booleans(),
)
def test_points_project_to_the_same_pixels_of_the_sensor_whatever_is_read_of_it(
    values: tuple[float, float, float, float],
    window: tuple[int, int, int, int],
    binning: tuple[int, int],
    rectified: bool,
) -> None:
    fx, fy, cx, cy = values
    message = camera_info(roi=region(*window), binning_x=binning[0], binning_y=binning[1], **matrix_of(*values))
    camera = decode_camera_info(message, rectified).camera
    x, y = 0.3, -0.2  # of a ray, at z = 1
    steps = np.maximum(binning, 1)
    expected = (np.array([fx * x + cx, fy * y + cy]) - window[:2]) / steps
    np.testing.assert_allclose([camera.fx * x + camera.cx, camera.fy * y + camera.cy], expected, atol=1e-9)
    assert (camera.width, camera.height) == (window[2] // steps[0], window[3] // steps[1])


@given(st.floats(0.2, 5), st.integers(40, 2000), st.integers(40, 2000))
def test_a_scaled_camera_sees_the_same(scale: float, width: int, height: int) -> None:
    camera = PinholeCamera(width, height, 0.8 * width, 0.9 * width, 0.45 * width, 0.55 * height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    scaled = fitted(camera, *size)
    for x, y in ((0.3, 0.1), (-0.2, 0.25)):
        full = np.array([camera.fx * x + camera.cx, camera.fy * y + camera.cy])
        share = (full + 0.5) / (width, height)  # corners are at -0.5
        found = np.array([scaled.fx * x + scaled.cx, scaled.fy * y + scaled.cy])
        np.testing.assert_allclose((found + 0.5) / size[::-1], share, atol=1e-9)


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (180, 320), (120, 161)])
def test_a_picture_of_another_aspect_is_not_that_of_the_camera(size: tuple[int, int]) -> None:
    with pytest.raises(MessageError, match=rf"is {size[1]}x{size[0]}, but its camera info is of pictures of 640x400"):
        fitted(PinholeCamera(640, 400, 300.0, 300.0, 319.5, 199.5), *size)


# --- undistortion -------------------------------------------------------------------------------------------------

TURNED = tuple(Pose.from_xyz_rpy([0, 0, 0], [0.02, -0.03, 0.04]).rotation.ravel().tolist())
LENSES = [
    Distortion("plumb_bob", tuple(PLUMB_BOB), (110.0, 112.0), (100.0, 70.0)),
    Distortion("plumb_bob", tuple(PLUMB_BOB[:4]), (110.0, 112.0), (100.0, 70.0), TURNED),
    Distortion("rational_polynomial", tuple(RATIONAL), (115.0, 112.0), (98.0, 71.0)),
    Distortion("equidistant", tuple(FISHEYE), (120.0, 121.0), (99.0, 72.0), TURNED),
]
RAW = PinholeCamera(200, 150, 130.0, 131.0, 101.0, 73.0)


def raw_pixels(camera: PinholeCamera) -> np.ndarray:
    """``(H, W, 2)`` column and row in the raw picture of each pixel of the undistorted one, by OpenCV's projection."""
    lens, plain = camera.distortion, camera.undistorted
    assert lens is not None
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    rays = np.stack([(u - plain.cx) / plain.fx, (v - plain.cy) / plain.fy, np.ones_like(u)], axis=-1).reshape(-1, 1, 3)
    raw_from_plain = np.eye(3) if lens.rotation is None else np.reshape(lens.rotation, (3, 3)).T
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    rotation = cv2.Rodrigues(raw_from_plain)[0]
    if lens.model == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(rays, rotation, np.zeros(3), matrix, np.array(lens.coefficients))
    else:
        pixels, _ = cv2.projectPoints(rays, rotation, np.zeros(3), matrix, np.array(lens.coefficients))
    return pixels.reshape(camera.height, camera.width, 2)


def coordinates(camera: PinholeCamera) -> np.ndarray:
    """A picture whose red is its column and whose green is its row."""
    v, u = np.mgrid[: camera.height, : camera.width]
    return np.stack([u, v, np.full_like(u, 255)], axis=-1).astype(np.uint8)


@pytest.mark.numeric
@pytest.mark.parametrize("lens", LENSES)
def test_pixels_come_from_where_the_lens_put_them(lens: Distortion) -> None:
    camera = replace(RAW, distortion=lens)
    frame = undistorted(Frame(0, coordinates(camera), camera=camera))
    expected = raw_pixels(camera)
    inside = ((expected >= 0) & (expected <= [camera.width - 1, camera.height - 1])).all(axis=2)
    outside = ((expected < -1) | (expected > [camera.width, camera.height])).any(axis=2)
    assert inside.mean() > 0.7
    assert frame.image is not None
    np.testing.assert_allclose(frame.image[inside][:, :2], expected[inside], rtol=0, atol=0.55)
    assert not frame.image[outside].any()
    assert frame.camera == camera.undistorted


@pytest.mark.numeric
@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("scale", [1, 2])
def test_depth_of_a_plane_stays_on_the_plane(lens: Distortion, scale: int) -> None:
    """The plane is n . x = 1 in the raw camera's frame; depth may be of another size than the picture."""
    camera = replace(RAW, distortion=lens)
    plain = replace(camera, distortion=replace(lens, focal_px=(camera.fx, camera.fy), centre_px=(camera.cx, camera.cy)))
    large = resized(plain, scale * camera.height, scale * camera.width)
    normal = np.array([0.05, -0.1, 0.3])
    # Rays of the raw picture's pixels, by OpenCV.
    v, u = np.mgrid[: large.height, : large.width].astype(np.float64)
    matrix = np.array([[large.fx, 0, large.cx], [0, large.fy, large.cy], [0, 0, 1]])
    pixels, coefficients = np.stack([u, v], axis=-1).reshape(-1, 1, 2), np.array(lens.coefficients)
    library = cv2.fisheye if lens.model == "equidistant" else cv2
    rays = np.ones((large.height, large.width, 3))
    rays[..., :2] = library.undistortPoints(pixels, matrix, coefficients).reshape(large.height, large.width, 2)
    depth_m = (1 / (rays @ normal)).astype(np.float32)
    frame = undistorted(Frame(0, None, depth_m, camera=plain))
    assert frame.depth_m is not None
    v, u = np.nonzero(frame.depth_m)
    z = frame.depth_m[v, u].astype(np.float64)
    points = np.stack([(u - large.cx) / large.fx * z, (v - large.cy) / large.fy * z, z], axis=-1)
    turned = normal if lens.rotation is None else np.reshape(lens.rotation, (3, 3)) @ normal
    assert len(z) > 0.7 * depth_m.size
    np.testing.assert_allclose(points @ turned, 1.0, atol=0.01)  # half a pixel


def test_what_is_rectified_or_has_no_distortion_stays_as_it_is() -> None:
    frame = random_frame(1, names=("image", "depth"))
    assert undistorted(frame) is frame
    assert undistorted(replace(frame, camera=None)).image is frame.image
    assert frame.camera is not None
    lens = Distortion("plumb_bob", (-0.3, 0.1, 0.0, 0.0), (50.0, 50.0), (frame.camera.cx, frame.camera.cy))
    bent = replace(frame, camera=replace(frame.camera, distortion=lens), depth_is_rectified=True)
    found = undistorted(bent)
    assert found.depth_m is frame.depth_m
    assert found.image is not None
    assert (found.image != frame.image).any()


def test_maps_are_computed_once_for_each_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[PinholeCamera] = []
    maps = cameras._maps
    monkeypatch.setattr(cameras, "_maps", lambda camera: computed.append(camera) or maps(camera))
    one, two = (replace(RAW, fx=128.0 + i, distortion=LENSES[0]) for i in range(2))
    for camera in (one, two, one, two, one):
        undistorted(Frame(0, coordinates(camera), camera=camera))
    assert computed == [one, two]


@pytest.mark.parametrize("lens", [None, *LENSES])
def test_a_written_camera_info_is_the_camera_again(lens: Distortion | None) -> None:
    camera = replace(RAW, distortion=lens)
    assert decode_camera_info(camera_info_message(5, "camera", camera)).camera == camera
    assert decode_camera_info(camera_info_message(5, "camera", camera), rectified=True).camera == camera.undistorted


# --- what the model gets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["cylindrical", "pinhole"])
def test_the_model_gets_the_picture_and_the_matrix_of_the_pinhole_camera(projection: Any) -> None:
    config = PreprocessConfig(("image", "depth", "lidar"), 48, lidar_projection=projection, undistort=True)
    frame = random_frame(2, (60, 80), ("image", "depth", "lidar"))
    assert frame.camera is not None
    lens = Distortion("plumb_bob", (-0.3, 0.1, 0.001, 0.002), (45.0, 46.0), (40.0, 29.0))
    frame = replace(frame, camera=replace(frame.camera, distortion=lens))
    preprocessor, plain = Preprocessor(config), undistorted(frame)
    expected = Preprocessor(replace(config, undistort=False)).prepare(plain)
    for name, x in preprocessor.prepare(frame).items():
        assert torch.equal(x, expected[name])
    assert torch.equal(preprocessor.intrinsics(frame), preprocessor.intrinsics(plain))
    np.testing.assert_allclose(
        preprocessor.intrinsics(frame), [[36, 0, 31.9], [0, 36.8, 23.1], [0, 0, 1]], rtol=0, atol=1e-5
    )
    as_it_came = Preprocessor(replace(config, undistort=False))
    assert torch.equal(as_it_came.prepare(frame)["image"], as_it_came.prepare(replace(frame, camera=RAW))["image"])


@pytest.mark.parametrize(
    ("config", "needs_geometry", "expected"),
    [
        (PreprocessConfig(), False, False),
        (PreprocessConfig(), True, True),
        (PreprocessConfig(lidar_projection="pinhole"), False, True),
        (PreprocessConfig(("image",), lidar_projection="pinhole"), False, False),
        (PreprocessConfig(undistort=False), True, False),
        (PreprocessConfig(undistort=True), False, True),
    ],
)
def test_pictures_are_undistorted_where_geometry_counts(
    config: PreprocessConfig, needs_geometry: bool, expected: bool
) -> None:
    assert config.for_system(needs_geometry).undistort == expected


def test_pictures_of_an_unknown_camera_are_missing_where_geometry_counts() -> None:
    frame = replace(random_frame(3, names=("image", "lidar")), camera=None)
    geometric = Preprocessor(PreprocessConfig().for_system(needs_geometry=True))
    assert set(geometric.prepare(frame)) == {"lidar"}
    assert set(Preprocessor(PreprocessConfig()).prepare(frame)) == {"image", "lidar"}
    with pytest.raises(ModelError, match=r"the camera of image is not known.*no valid CameraInfo that fits"):
        geometric.prepare(replace(frame, cloud=None))


# --- a topic's camera ---------------------------------------------------------------------------------------------


@pytest.fixture
def told() -> tuple[list[str], list[str]]:
    return [], []


def picture_camera(told: tuple[list[str], list[str]], topic: str = "/camera/image_raw", **options: Any) -> Any:
    return PictureCamera(topic, options.get("kind", "auto"), told[0].append, told[1].append)


def test_the_choice_is_told_once(told: tuple[list[str], list[str]]) -> None:
    camera = picture_camera(told)
    for _ in range(3):
        camera.take(camera_info(d=PLUMB_BOB))
        assert numbers(camera.of((480, 640, 3))) == OF_K
    assert told == (
        [
            "/camera/image_raw is raw by its name: its camera is K, with plumb_bob distortion, which is undone for "
            "systems that need geometry"
        ],
        [],
    )


@pytest.mark.parametrize(("kind", "expected"), [("auto", OF_P), ("raw", OF_K), ("rectified", OF_P)])
def test_the_kind_of_picture_can_be_set(
    told: tuple[list[str], list[str]], kind: str, expected: tuple[float, ...]
) -> None:
    camera = picture_camera(told, "/camera/image_rect", kind=kind)
    camera.take(camera_info())
    assert numbers(camera.of((480, 640))) == expected
    assert ("by its name" in told[0][0]) == (kind == "auto")


def test_uncalibrated_messages_before_and_after_valid_ones_do_no_harm(told: tuple[list[str], list[str]]) -> None:
    blank = camera_info(k=[0.0] * 9, p=[0.0] * 12)
    camera = picture_camera(told)
    assert camera.of((480, 640)) is None
    camera.take(blank)
    assert camera.of((480, 640)) is None
    camera.take(blank)
    assert camera.of((480, 640)) is None
    camera.take(camera_info())
    assert numbers(camera.of((480, 640))) == OF_K
    camera.take(blank)
    assert numbers(camera.of((480, 640))) == OF_K
    before, after = told[1]
    assert before.endswith("until a valid one comes, the camera is not known")
    assert after.endswith("the one before is kept")


def test_a_camera_that_zooms_has_its_latest_matrix_and_is_told_of_once(told: tuple[list[str], list[str]]) -> None:
    camera = picture_camera(told)
    for focal in (500.0, 510.0, 520.0):
        camera.take(camera_info(k=[focal, *K[1:]]))
        assert camera.of((480, 640)).fx == focal
    assert len([text for text in told[0] if "has changed" in text]) == 1


def test_pictures_of_another_size_are_scaled_or_have_no_camera(told: tuple[list[str], list[str]]) -> None:
    camera = picture_camera(told)
    camera.take(camera_info())
    assert camera.of(None).width == 640  # before any picture
    for _ in range(3):
        assert camera.of((240, 320, 3)).fx == 292.5
        assert camera.of(None).width == 320
        assert camera.of((360, 640, 3)) is None
        assert camera.of(None) is None
    assert "the picture is 320x240, its camera info of 640x480; the camera is scaled" in told[0][-1]
    (warning,) = told[1]
    assert "the picture is 640x360, but its camera info is of pictures of 640x480" in warning
