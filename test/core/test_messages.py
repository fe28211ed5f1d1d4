# SPDX-License-Identifier: Apache-2.0
"""Message decoding: every encoding against images made here, any cloud layout, and invalid messages."""

from __future__ import annotations

import struct
from array import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.messages import (
    decode_depth,
    decode_image,
    decode_point_cloud,
    decode_pose,
    has_returns,
    stamp_ns,
)

HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=1_700_000_000, nanosec=250_000_000), frame_id="sensor")
BUFFERS = {"bytes": bytes, "memoryview": memoryview, "array": lambda raw: array("B", raw),
           "numpy": lambda raw: np.frombuffer(raw, np.uint8)}  # fmt: skip


def image_message(pixels: np.ndarray, encoding: str, padding: int = 0, is_bigendian: int = 0) -> Any:
    """A duck-typed sensor_msgs/Image with ``padding`` bytes of 0xAB after each row but the last."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB).tobytes()
    return SimpleNamespace(
        header=HEADER,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=is_bigendian,
        step=rows.shape[1] + padding,
        data=padded[: len(padded) - padding],
    )


def compressed_message(data: bytes, format_text: str) -> Any:
    return SimpleNamespace(header=HEADER, format=format_text, data=data)


def encode(pixels: np.ndarray, extension: str = ".png") -> bytes:
    return bytes(cv2.imencode(extension, pixels)[1])


def random_rgb(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_rgb(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose channels differ strongly and vary slowly, so that subsampling loses little."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([200 - 20 * x, 90 + 30 * y, 20 + 25 * x * y], axis=-1)).round().astype(np.uint8)


def test_stamp_has_nanosecond_precision() -> None:
    assert stamp_ns(HEADER) == 1_700_000_000_250_000_000


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "order"), [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 3]),
                            ("bgra8", [2, 1, 0, 3])]
)  # fmt: skip
def test_colour_encodings_are_reordered_exactly(encoding: str, order: list[int], padding: int, buffer: str) -> None:
    rgb = random_rgb()
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])
    message = image_message(rgba[..., order], encoding, padding)
    message.data = BUFFERS[buffer](message.data)
    np.testing.assert_array_equal(decode_image(message), rgb)


@pytest.mark.parametrize("padding", [0, 3])
def test_mono8_becomes_three_equal_channels(padding: int) -> None:
    grey = random_rgb()[..., 0]
    decoded = decode_image(image_message(grey, "mono8", padding))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_mono16_keeps_the_upper_byte_in_either_byte_order(byte_order: str) -> None:
    grey = np.array([[0, 255, 256], [4660, 65535, 32768]], byte_order + "u2")
    decoded = decode_image(image_message(grey, "mono16", 4, is_bigendian=byte_order == ">"))
    np.testing.assert_array_equal(decoded[..., 1], [[0, 0, 1], [18, 255, 128]])


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaic_gives_back_its_picture(pattern: str) -> None:
    rgb = smooth_rgb()
    mosaic = np.empty(rgb.shape[:2], np.uint8)
    for position, colour in enumerate(pattern):
        row, column = divmod(position, 2)
        mosaic[row::2, column::2] = rgb[row::2, column::2, "rgb".index(colour)]
    decoded = decode_image(image_message(mosaic, f"bayer_{pattern}8", padding=2))
    np.testing.assert_allclose(decoded[2:-2, 2:-2].astype(int), rgb[2:-2, 2:-2], atol=3)


@pytest.mark.parametrize(
    ("encoding", "luma_first"), [("yuv422", False), ("uyvy", False), ("yuv422_yuy2", True), ("yuyv", True)]
)
def test_yuv422_gives_back_its_picture(encoding: str, luma_first: bool) -> None:
    rgb = smooth_rgb()
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    # ITU-R BT.601, studio range, as UVC cameras send it.
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    chroma = np.where(np.arange(rgb.shape[1]) % 2 == 0, u, v)
    packed = np.stack([y, chroma] if luma_first else [chroma, y], axis=-1).round().astype(np.uint8)
    decoded = decode_image(image_message(packed, encoding, padding=4))
    np.testing.assert_allclose(decoded.astype(int), rgb, atol=4)


@pytest.mark.parametrize("format_text", ["jpeg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8", ""])
def test_jpeg_gives_rgb(format_text: str) -> None:
    rgb = smooth_rgb()
    decoded = decode_image(compressed_message(encode(rgb[..., ::-1], ".jpg"), format_text))
    np.testing.assert_allclose(decoded.astype(int), rgb, atol=6)


@pytest.mark.parametrize(
    ("pixels_of", "format_text"),
    [
        (lambda rgb: rgb[..., ::-1], "png"),
        (lambda rgb: rgb[..., ::-1], "rgb8; png compressed bgr8"),
        (lambda rgb: rgb, "rgb8; png compressed rgb8"),
        (lambda rgb: np.dstack([rgb[..., ::-1], rgb[..., 0]]), "png"),
        (lambda rgb: rgb[..., ::-1].astype(np.uint16) * 256 + 9, "rgb16; png compressed bgr16"),
    ],
    ids=["plain", "transport", "transport-rgb", "alpha", "sixteen-bit"],
)
def test_png_gives_rgb_exactly(pixels_of: Any, format_text: str) -> None:
    rgb = random_rgb()
    decoded = decode_image(compressed_message(encode(pixels_of(rgb)), format_text))
    np.testing.assert_array_equal(decoded, rgb)


def test_compressed_grey_becomes_three_equal_channels() -> None:
    grey = random_rgb()[..., 0]
    decoded = decode_image(compressed_message(encode(grey), "mono8; png compressed "))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))


def test_compressed_bayer_mosaic_is_debayered_like_a_raw_one() -> None:
    mosaic = random_rgb()[..., 0]
    decoded = decode_image(compressed_message(encode(mosaic), "bayer_gbrg8; png compressed "))
    np.testing.assert_array_equal(decoded, decode_image(image_message(mosaic, "bayer_gbrg8")))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_every_truncation_of_a_compressed_image_is_rejected(extension: str) -> None:
    data = encode(random_rgb(), extension)
    for length in range(0, len(data) - 1):
        with pytest.raises(MessageError, match=r"truncated|neither JPEG nor PNG|corrupt"):
            decode_image(compressed_message(data[:length], "jpeg"))


def test_damaged_png_is_rejected() -> None:
    data = bytearray(encode(random_rgb()))
    data[20:24] = b"\0\0\0\0"  # height 0
    with pytest.raises(MessageError, match="corrupt"):
        decode_image(compressed_message(bytes(data), "png"))


def test_unknown_encoding_names_itself_and_the_supported_ones() -> None:
    with pytest.raises(MessageError, match=r"'hsv8' is not supported; supported: rgb8, .*yuyv.*nv12.*8UC3"):
        decode_image(image_message(random_rgb(), "hsv8"))


@pytest.mark.parametrize("decode", [decode_image, decode_depth])
def test_other_message_types_are_rejected_as_images(decode: Any) -> None:
    with pytest.raises(MessageError, match=r"expected sensor_msgs/Image or CompressedImage.* SimpleNamespace"):
        decode(SimpleNamespace(data=b""))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"step": 23}, "step 23, expected at least 24 for 8 pixels"),
        ({"data": b"\0" * 143}, "expected 144 bytes, got 143"),
        ({"data": b""}, "expected 144 bytes, got 0"),
        ({"width": 0}, "empty: 0 x 6"),
        ({"height": 0}, "empty: 8 x 0"),
        ({"height": 7}, "expected 168 bytes, got 144"),
    ],
)
def test_inconsistent_image_sizes_are_rejected(changes: dict[str, Any], text: str) -> None:
    message = image_message(random_rgb(), "rgb8")
    vars(message).update(changes)
    with pytest.raises(MessageError, match=text):
        decode_image(message)


def test_yuv422_of_odd_width_is_rejected() -> None:
    with pytest.raises(MessageError, match="yuv422 image of 3 x 2 pixels"):
        decode_image(image_message(np.zeros((2, 3, 2), np.uint8), "yuv422"))


@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("padding", [0, 6])
def test_integer_depth_is_millimetres(encoding: str, byte_order: str, padding: int) -> None:
    depth_mm = np.array([[0, 1, 1000], [4321, 65535, 255]], byte_order + "u2")
    message = image_message(depth_mm, encoding, padding, is_bigendian=byte_order == ">")
    decoded = decode_depth(message)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, np.array([[0, 0.001, 1], [4.321, 65.535, 0.255]], np.float32))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_float_depth_is_metres_and_no_measurement_is_zero(byte_order: str) -> None:
    depth_m = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 3.25]], byte_order + "f4")
    decoded = decode_depth(image_message(depth_m, "32FC1", 4, is_bigendian=byte_order == ">"))
    assert decoded.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(decoded, [[0, 0, 0], [0, 0, 3.25]])


@pytest.mark.parametrize("header", [b"", bytes(12)])
@pytest.mark.parametrize("format_text", ["16UC1; compressedDepth png", "16UC1; png compressed ", "png"])
def test_compressed_depth_is_millimetres_with_or_without_header(header: bytes, format_text: str) -> None:
    depth_mm = np.array([[0, 1, 1000], [4321, 65535, 255]], np.uint16)
    decoded = decode_depth(compressed_message(header + encode(depth_mm), format_text))
    np.testing.assert_array_equal(decoded, depth_mm.astype(np.float32) / np.float32(1000))


def test_compressed_float_depth_undoes_the_inverse_quantisation() -> None:
    depth_m = np.linspace(0.5, 9.5, 60, dtype=np.float32).reshape(6, 10)
    # compressed_depth_image_transport: depth_quantization 100, depth_max 10.
    quant_a = 100.0 * 101.0
    quant_b = 1.0 - quant_a / 10.0
    stored = (quant_a / depth_m + quant_b).astype(np.uint16)
    stored[0, 0] = 0
    data = struct.pack("<iff", 0, quant_a, quant_b) + encode(stored)
    decoded = decode_depth(compressed_message(data, "32FC1; compressedDepth png"))
    assert decoded[0, 0] == 0
    # One quantisation step of inverse depth is z^2 / A metres.
    assert np.all(np.abs(decoded - depth_m).ravel()[1:] <= (decoded**2 / quant_a).ravel()[1:] * 1.01)


@pytest.mark.parametrize(
    ("data", "format_text", "text"),
    [
        (encode(random_rgb()[..., 0]), "16UC1; compressedDepth", "one channel of .*, got uint8"),
        (encode(random_rgb().astype(np.uint16)), "png", "one channel of .*, got uint16"),
        (encode(random_rgb(), ".jpg"), "jpeg", "'jpeg' must have one channel of .*, got uint8 .*supported: 16-bit PNG"),
        (bytes(12) + b"\x01\x02", "16UC1; compressedDepth rvl", "rvl' is corrupt: its RVL data of 2 bytes"),
        (encode(np.ones((2, 2), np.uint16)), "32FC1; compressedDepth", "12-byte quantisation header"),
        (encode(np.ones((2, 2), np.uint16))[:-4], "png", "truncated"),
        (b"", "png", "is neither JPEG nor PNG.*: 0 bytes"),
    ],
)  # fmt: skip
def test_malformed_compressed_depth_is_rejected(data: bytes, format_text: str, text: str) -> None:
    with pytest.raises(MessageError, match=text):
        decode_depth(compressed_message(data, format_text))


def test_unknown_depth_encoding_is_named() -> None:
    with pytest.raises(MessageError, match="depth encoding 'rgb8' is not supported; supported: 16UC1"):
        decode_depth(image_message(random_rgb(), "rgb8"))


DATATYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
CODES = {kind: code for code, kind in DATATYPES.items()}


def cloud_message(
    columns: dict[str, tuple[str, list[Any]]],
    *,
    height: int = 1,
    gap: int = 0,
    row_padding: int = 0,
    big: bool = False,
    order: list[str] | None = None,
) -> Any:
    """A duck-typed PointCloud2 packed point by point with struct: the independent oracle.

    Args:
        columns: name to (datatype, value of every point).
        gap: unused bytes before every field and at the end of every point.
        row_padding: unused bytes after every row.
        order: field order in memory.
    """
    letters = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
    names = order or list(columns)
    count = len(next(iter(columns.values()))[1])
    width = count // height
    data, fields = b"", []
    for index in range(count):
        point = b""
        for name in names:
            kind, values = columns[name]
            point += b"\xee" * gap
            if index == 0:
                fields.append(SimpleNamespace(name=name, offset=len(point), datatype=CODES[kind], count=1))
            point += struct.pack((">" if big else "<") + letters[kind], values[index])
        data += point + b"\xee" * gap
        if (index + 1) % width == 0:
            data += b"\xee" * row_padding
    point_step = (len(data) - height * row_padding) // count
    return SimpleNamespace(
        header=HEADER, height=height, width=width, fields=fields, is_bigendian=big, point_step=point_step,
        row_step=width * point_step + row_padding, data=data, is_dense=False,
    )  # fmt: skip


def xyz_columns(points: list[tuple[float, float, float]], kind: str = "f4") -> dict[str, tuple[str, list[Any]]]:
    return {name: (kind, [point[axis] for point in points]) for axis, name in enumerate("xyz")}


coordinate = st.one_of(
    st.floats(-200, 200, width=32), st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0])
)


@settings(deadline=None)
@given(
    points=st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=6),
    rows=st.integers(1, 3),
    kind=st.sampled_from(["f4", "f8"]),
    intensity_kind=st.sampled_from(sorted(CODES)),
    intensity_name=st.sampled_from(["intensity", "i", "reflectivity"]),
    order=st.permutations(["x", "y", "z", "value", "ring"]),
    gap=st.integers(0, 5),
    row_padding=st.integers(0, 9),
    big=st.booleans(),
    buffer=st.sampled_from(sorted(BUFFERS)),
)
def test_any_cloud_layout_is_decoded(
    points: list[tuple[float, float, float]],
    rows: int,
    kind: str,
    intensity_kind: str,
    intensity_name: str,
    order: list[str],
    gap: int,
    row_padding: int,
    big: bool,
    buffer: str,
) -> None:
    points = points * rows
    intensity = [index % 100 for index in range(len(points))]
    columns = {
        **xyz_columns(points, kind),
        intensity_name: (intensity_kind, intensity),
        "ring": ("u2", [index % 16 for index in range(len(points))]),
    }
    names = [intensity_name if name == "value" else name for name in order]
    message = cloud_message(columns, height=rows, gap=gap, row_padding=row_padding, big=big, order=names)
    message.data = BUFFERS[buffer](message.data)
    cloud = decode_point_cloud(message)
    assert cloud.xyz_m.dtype == np.float32
    np.testing.assert_array_equal(cloud.xyz_m, np.array(points, np.float32))
    np.testing.assert_array_equal(cloud.intensity, np.array(intensity, np.float32))
    assert cloud.time_s is None


@pytest.mark.parametrize("kind", ["i2", "i4", "u1"])
def test_integer_coordinates_are_decoded(kind: str) -> None:
    cloud = decode_point_cloud(cloud_message(xyz_columns([(1, 2, 3), (4, 5, 6)], kind)))
    np.testing.assert_array_equal(cloud.xyz_m, [[1, 2, 3], [4, 5, 6]])
    assert cloud.intensity is None


def test_intensity_is_preferred_to_reflectivity() -> None:
    columns = xyz_columns([(1, 2, 3)]) | {"reflectivity": ("u2", [5]), "intensity": ("f4", [0.5])}
    np.testing.assert_array_equal(decode_point_cloud(cloud_message(columns)).intensity, [0.5])


@pytest.mark.parametrize(
    ("name", "kind", "values", "expected"),
    [
        ("t", "u4", [0, 50_000_000, 99_999_744], [0.0, 0.05, 0.099999744]),
        ("offset_time", "u4", [0, 1, 100_000_000], [0.0, 1e-9, 0.1]),
        ("time", "f4", [-0.1, -0.05, 0.0], [-0.1, -0.05, 0.0]),
        ("time_stamp", "f8", [0.0, 0.02, 0.1], [0.0, 0.02, 0.1]),
        ("timestamp", "f8", [1_700_000_000.15, 1_700_000_000.25, float("nan")], [-0.1, 0.0, -0.05]),
        ("timestamp", "f8", [1.70000000025e18, 1.70000000035e18, 1.7000000003e18], [0.0, 0.1, 0.05]),
    ],
    ids=["ouster", "livox", "velodyne", "relative-double", "hesai", "livox-absolute"],
)  # fmt: skip
def test_point_times_become_seconds_since_the_header(
    name: str, kind: str, values: list[Any], expected: list[float]
) -> None:
    columns = xyz_columns([(1, 2, 3)] * 3) | {name: (kind, values)}
    time_s = decode_point_cloud(cloud_message(columns)).time_s
    assert time_s is not None
    assert time_s.dtype == np.float32
    np.testing.assert_allclose(time_s, expected, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{}, {"fields": []}, {"point_step": 0}, {"fields": [], "point_step": 0, "height": 0}]
)
def test_a_cloud_without_points_may_lack_everything_else(change: dict[str, Any]) -> None:
    message = cloud_message(xyz_columns([(1, 2, 3)]))
    message.width, message.row_step, message.data = 0, 0, b""
    vars(message).update(change)
    assert len(decode_point_cloud(message)) == 0
    assert not has_returns(message)


@pytest.mark.parametrize("rows", [1, 30])
def test_a_scan_of_nothing_but_nan_infinity_and_zeros_has_no_return(rows: int) -> None:
    nothing = [(0.0, 0.0, 0.0), (float("nan"), 1.0, 1.0), (1.0, float("inf"), 1.0)] * 600
    assert not has_returns(cloud_message(xyz_columns(nothing), height=rows))
    nothing[1201] = (0.0, 0.0, 0.1)  # anywhere, not only where one looks first
    assert has_returns(cloud_message(xyz_columns(nothing), height=rows))


def test_points_without_coordinates_are_an_error_even_when_looked_for_returns() -> None:
    message = cloud_message({"x": ("f4", [1.0]), "y": ("f4", [1.0])})
    with pytest.raises(MessageError, match="lacks field z; its fields: x, y"):
        has_returns(message)


@pytest.mark.parametrize("size", [(0, 0), (1, 0), (0, 5)])
def test_empty_cloud_is_decoded(size: tuple[int, int]) -> None:
    message = cloud_message(xyz_columns([(1, 2, 3)]) | {"intensity": ("f4", [1]), "t": ("u4", [1])})
    message.height, message.width = size
    message.row_step, message.data = 0, b""
    cloud = decode_point_cloud(message)
    assert (len(cloud), cloud.xyz_m.shape) == (0, (0, 3))
    assert cloud.intensity is not None
    assert len(cloud.intensity) == 0
    assert cloud.time_s is not None
    assert len(cloud.time_s) == 0


def test_row_step_of_a_single_row_does_not_matter() -> None:
    message = cloud_message(xyz_columns([(1, 2, 3), (4, 5, 6)]))
    message.row_step = 0
    np.testing.assert_array_equal(decode_point_cloud(message).xyz_m, [[1, 2, 3], [4, 5, 6]])


def test_missing_coordinate_field_is_named() -> None:
    columns = xyz_columns([(1, 2, 3)])
    del columns["z"]
    with pytest.raises(MessageError, match="lacks field z; its fields: x, y"):
        decode_point_cloud(cloud_message(columns))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: setattr(m, "data", m.data[:-1]), "3 x 2 points: expected 72 bytes, got 71"),
        (lambda m: setattr(m, "row_step", 35), "row_step 35, expected at least 36"),
        (lambda m: setattr(m, "point_step", 11), "field 'z' ends at byte 12 of a 11-byte point"),
        (lambda m: setattr(m.fields[1], "datatype", 9), "field 'y' has datatype 9"),
        (lambda m: setattr(m.fields[0], "count", 3), "field 'x' has datatype 7, count 3"),
    ],
)
def test_malformed_clouds_are_rejected(change: Any, text: str) -> None:
    message = cloud_message(xyz_columns([(1, 2, 3)] * 6), height=2)
    change(message)
    with pytest.raises(MessageError, match=text):
        decode_point_cloud(message)


def xyz(x: float, y: float, z: float) -> Any:
    return SimpleNamespace(x=x, y=y, z=z)


def xyzw(x: float, y: float, z: float, w: float) -> Any:
    return SimpleNamespace(x=x, y=y, z=z, w=w)


POSE = SimpleNamespace(position=xyz(1, 2, 3), orientation=xyzw(0.0, 0.0, 0.6, 0.8))
TRANSFORM = SimpleNamespace(translation=xyz(1, 2, 3), rotation=xyzw(0.0, 0.0, 0.6, 0.8))
WITH_COVARIANCE = SimpleNamespace(pose=POSE, covariance=np.zeros(36))


@pytest.mark.parametrize(
    "message",
    [
        POSE,
        SimpleNamespace(header=HEADER, pose=POSE),
        SimpleNamespace(header=HEADER, pose=WITH_COVARIANCE),
        SimpleNamespace(header=HEADER, child_frame_id="base", pose=WITH_COVARIANCE, twist=None),
        TRANSFORM,
        SimpleNamespace(header=HEADER, child_frame_id="base", transform=TRANSFORM),
    ],
    ids=["Pose", "PoseStamped", "PoseWithCovarianceStamped", "Odometry", "Transform", "TransformStamped"],
)
def test_pose_messages_are_decoded(message: Any) -> None:
    pose = decode_pose(message)
    np.testing.assert_array_equal(pose.position_m, [1, 2, 3])
    np.testing.assert_allclose(pose.quaternion_wxyz, [0.8, 0, 0, 0.6], rtol=1e-15)


@pytest.mark.parametrize(
    "pose",
    [
        SimpleNamespace(position=xyz(1, float("nan"), 3), orientation=xyzw(0, 0, 0, 1)),
        SimpleNamespace(position=xyz(1, 2, 3), orientation=xyzw(0, 0, 0, 0)),
        SimpleNamespace(position=xyz(1, 2, 3), orientation=xyzw(float("inf"), 0, 0, 1)),
    ],
)
def test_invalid_poses_are_rejected(pose: Any) -> None:
    with pytest.raises(MessageError, match="invalid pose in SimpleNamespace: "):
        decode_pose(SimpleNamespace(pose=pose))


def test_other_message_types_are_rejected_as_poses() -> None:
    with pytest.raises(MessageError, match="expected a pose, transform or odometry message"):
        decode_pose(SimpleNamespace(point=xyz(1, 2, 3)))


def fill(message_types: dict[str, Any]) -> tuple[Any, Any]:
    """An Image and a PointCloud2 of a message library, through its own classes."""
    rgb = random_rgb()
    source = image_message(rgb, "rgb8")
    cloud = cloud_message(xyz_columns([(1, 2, 3), (4, 5, 6)]))
    header = message_types["Header"](
        stamp=message_types["Time"](sec=5, nanosec=6), frame_id="sensor", **message_types["header_extra"]
    )
    data = message_types["buffer"]
    image = message_types["Image"](
        header=header, height=6, width=8, encoding="rgb8", is_bigendian=0, step=24, data=data(source.data)
    )
    fields = [message_types["PointField"](**vars(field)) for field in cloud.fields]
    rest = {name: vars(cloud)[name] for name in ("height", "width", "point_step", "row_step", "is_dense")}
    points = message_types["PointCloud2"](
        header=header, fields=fields, is_bigendian=False, data=data(cloud.data), **rest
    )
    return image, points


def check_filled(image: Any, points: Any) -> None:
    assert stamp_ns(image.header) == 5_000_000_006
    np.testing.assert_array_equal(decode_image(image), random_rgb())
    np.testing.assert_array_equal(decode_point_cloud(points).xyz_m, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("store", [Stores.ROS2_JAZZY, Stores.ROS2_HUMBLE, Stores.ROS1_NOETIC])
def test_messages_of_the_rosbags_library_are_decoded(store: Stores) -> None:
    types = get_typestore(store).types
    names = {"Header": "std_msgs/msg/Header", "Time": "builtin_interfaces/msg/Time"}
    names |= {name: f"sensor_msgs/msg/{name}" for name in ("Image", "PointField", "PointCloud2")}
    extra = {"seq": 0} if store == Stores.ROS1_NOETIC else {}
    library = {key: types[name] for key, name in names.items()}
    check_filled(*fill(library | {"header_extra": extra, "buffer": BUFFERS["numpy"]}))


def test_messages_of_rclpy_are_decoded() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="ROS 2 messages are not installed")
    std_msgs = pytest.importorskip("std_msgs.msg", reason="ROS 2 messages are not installed")
    interfaces = pytest.importorskip("builtin_interfaces.msg", reason="ROS 2 messages are not installed")
    library = {name: getattr(sensor_msgs, name) for name in ("Image", "PointField", "PointCloud2")}
    library |= {"Header": std_msgs.Header, "Time": interfaces.Time, "header_extra": {}, "buffer": bytes}
    check_filled(*fill(library))
