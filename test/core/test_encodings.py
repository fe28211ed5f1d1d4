# SPDX-License-Identifier: Apache-2.0
"""Raw pictures of any encoding, size, row padding and byte order, against arrays and OpenCV."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.encodings import rgb_from_raw
from vmloc_ros.core.errors import MessageError

ORDERS = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 3], "bgra": [2, 1, 0, 3]}
PLANAR = {"nv12": ("uv",), "nv21": ("vu",), "i420": ("u", "v"), "yv12": ("v", "u"), "nv24": ("uv",), "nv42": ("vu",)}
BAYER = ("rggb", "bggr", "gbrg", "grbg")


def message(rows: np.ndarray, encoding: str, size: tuple[int, int], padding: int = 0, is_bigendian: int = 0) -> Any:
    """A sensor_msgs/Image of rows of pixels, each followed by bytes of 0xAB."""
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    padded = np.pad(flat, ((0, 0), (0, padding)), constant_values=0xAB)
    return SimpleNamespace(
        height=size[0],
        width=size[1],
        encoding=encoding,
        is_bigendian=is_bigendian,
        step=flat.shape[1] + padding,
        data=padded.tobytes(),
    )


def random_pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def sizes(even: bool = False) -> st.SearchStrategy[tuple[int, int]]:
    side = st.integers(1, 9).map(lambda n: 2 * n) if even else st.integers(1, 17)
    return st.tuples(side, side)


@settings(deadline=None)
@given(
    order=st.sampled_from(sorted(ORDERS)),
    bits=st.sampled_from([8, 16]),
    big=st.booleans(),
    size=sizes(),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
    case=st.sampled_from([str.lower, str.upper, str.capitalize]),
)
def test_colours_of_any_order_depth_and_padding_are_exact(
    order: str, bits: int, big: bool, size: tuple[int, int], padding: int, seed: int, case: Any
) -> None:
    rgba = random_pixels(seed, *size, channels=4)
    stored = rgba[..., ORDERS[order]]
    if bits == 16:
        stored = (stored.astype(np.uint16) * 257).astype(">u2" if big else "<u2")
    encoded = message(stored, case(f"{order}{bits}"), size, padding, int(big))
    np.testing.assert_array_equal(rgb_from_raw(encoded), rgba[..., :3])


@settings(deadline=None)
@given(encoding=st.sampled_from(["mono8", "8UC1", "CV_8UC1", "mono16", "16UC1"]), size=sizes(), big=st.booleans())
def test_grey_becomes_three_equal_channels(encoding: str, size: tuple[int, int], big: bool) -> None:
    grey = random_pixels(1, *size, channels=1)
    stored = (grey.astype(np.uint16) * 257).astype(">u2" if big else "<u2") if "16" in encoding else grey
    decoded = rgb_from_raw(message(stored, encoding, size, is_bigendian=int(big)))
    np.testing.assert_array_equal(decoded, np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("encoding", ["8UC3", "CV_8UC3", "cv_8uc3", "8UC4", "16UC3", "16UC4"])
def test_opencvs_types_have_blue_first_as_cv2_has(encoding: str) -> None:
    rgba = random_pixels(2, 5, 4, channels=4)
    stored = rgba[..., [2, 1, 0, 3][: int(encoding[-1])]]
    stored = stored.astype(np.uint16) * 257 if "16" in encoding else stored
    np.testing.assert_array_equal(rgb_from_raw(message(stored, encoding, (5, 4))), rgba[..., :3])


@settings(deadline=None)
@given(pattern=st.sampled_from(BAYER), size=sizes(even=True), padding=st.integers(0, 3), big=st.booleans())
def test_a_mosaic_of_sixteen_bits_is_that_of_eight(
    pattern: str, size: tuple[int, int], padding: int, big: bool
) -> None:
    mosaic = random_pixels(3, *size, channels=1)[..., 0]
    wide = (mosaic.astype(np.uint16) * 256 + 99).astype(">u2" if big else "<u2")
    expected = rgb_from_raw(message(mosaic, f"bayer_{pattern}8", size))
    decoded = rgb_from_raw(message(wide, f"bayer_{pattern}16", size, padding, int(big)))
    np.testing.assert_array_equal(decoded, expected)


def planes_of(size: tuple[int, int], encoding: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random luma and chroma, with as many chroma samples as the encoding has."""
    height, width = size
    luma = random_pixels(4, height, width, 1)[..., 0]
    every = 1 if encoding in ("nv24", "nv42") else 2
    chroma = random_pixels(5, height // every, width // every, 2)
    return luma, {"u": chroma[..., 0], "v": chroma[..., 1]}


def planar_message(size: tuple[int, int], encoding: str, padding: int) -> Any:
    """The encoding's planes one after the other, their rows padded in proportion to their length."""
    luma, chroma = planes_of(size, encoding)
    parts = [np.pad(luma, ((0, 0), (0, padding)))]
    for names in PLANAR[encoding]:
        rows = np.stack([chroma[name] for name in names], axis=-1).reshape(len(chroma["u"]), -1)
        parts.append(np.pad(rows, ((0, 0), (0, padding * rows.shape[1] // size[1]))))
    data = b"".join(part.tobytes() for part in parts)
    step = size[1] + padding
    return SimpleNamespace(
        height=size[0], width=size[1], encoding=encoding, is_bigendian=0, step=step, data=data
    )  # fmt: skip


def rgb_of_yuv(luma: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 of studio range, chroma repeated."""
    every = len(luma) // len(u)
    y, u, v = luma.astype(float) - 16, *(x.repeat(every, 0).repeat(every, 1).astype(float) - 128 for x in (u, v))
    y = np.maximum(y, 0) * 255 / 219
    u, v = u * 255 / 224, v * 255 / 224
    return np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=-1).clip(0, 255)


@settings(deadline=None)
@given(encoding=st.sampled_from(sorted(PLANAR)), size=sizes(even=True), padding=st.sampled_from([0, 2, 14]))
def test_planes_of_luma_and_chroma_give_their_colours(encoding: str, size: tuple[int, int], padding: int) -> None:
    luma, chroma = planes_of(size, encoding)
    decoded = rgb_from_raw(planar_message(size, encoding, padding))
    bright = luma >= 16  # OpenCV takes darker luma as black, whatever the encoding
    assert decoded.shape == (*size, 3)
    np.testing.assert_allclose(decoded.astype(float)[bright], rgb_of_yuv(luma, **chroma)[bright], atol=2)


@pytest.mark.parametrize("encoding", sorted(PLANAR))
@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_without_padding_any_step_is_understood(encoding: str, factor: float) -> None:
    encoded = planar_message((4, 6), encoding, 0)
    expected = rgb_from_raw(encoded)
    encoded.step = int(6 * factor)
    np.testing.assert_array_equal(rgb_from_raw(encoded), expected)


@pytest.mark.parametrize("name", ["nv12", "i420", "nv21"])
def test_chroma_for_two_by_two_pixels_is_decoded_as_opencv_has_it(name: str) -> None:
    luma, chroma = planes_of((8, 12), name)
    rows = np.concatenate([luma.ravel(), *(np.stack([chroma[c] for c in p], -1).ravel() for p in PLANAR[name])])
    conversion = getattr(cv2, f"COLOR_YUV2RGB_{name.upper()}")
    expected = cv2.cvtColor(rows.reshape(12, 12), conversion)
    np.testing.assert_array_equal(rgb_from_raw(planar_message((8, 12), name, 0)), expected)


@pytest.mark.parametrize("alias", ["iyuv", "yuv420p", "I420"])
def test_other_names_of_i420(alias: str) -> None:
    encoded = planar_message((4, 6), "i420", 0)
    expected = rgb_from_raw(encoded)
    encoded.encoding = alias
    np.testing.assert_array_equal(rgb_from_raw(encoded), expected)


@pytest.mark.parametrize(("encoding", "chroma_at", "u_at"), [("yuv422", 0, 0), ("yuyv", 1, 0), ("yvyu", 1, 1)])
def test_one_chroma_sample_for_two_pixels(encoding: str, chroma_at: int, u_at: int) -> None:
    packed = random_pixels(6, 4, 6, 2)
    luma, chroma = packed[..., 1 - chroma_at], packed[..., chroma_at]
    u, v = (chroma[:, at::2].repeat(2, 1) for at in (u_at, 1 - u_at))
    bright = luma >= 16
    decoded = rgb_from_raw(message(packed, encoding, (4, 6)))
    np.testing.assert_allclose(decoded.astype(float)[bright], rgb_of_yuv(luma, u, v)[bright], atol=2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 5}, r"nv12 image of 5 x 4 pixels: both must be even"),
        ({"height": 3}, r"nv12 image of 6 x 3 pixels: both must be even"),
        ({"height": 0}, r"nv12 image is empty"),
        ({"data": bytes(35)}, r"nv12 image of 6 x 4 pixels, step 6: expected step 6 or more and 36 bytes, got 35"),
        ({"step": 4, "data": bytes(40)}, r"step 4: expected step 6 or more"),
    ],
)
def test_planes_that_do_not_fit_are_refused(changes: dict[str, Any], text: str) -> None:
    encoded = planar_message((4, 6), "nv12", 0)
    vars(encoded).update(changes)
    with pytest.raises(MessageError, match=text):
        rgb_from_raw(encoded)


@pytest.mark.parametrize("encoding", ["32FC1", "32FC3", "8SC3", "16SC1", "8UC2", "mjpeg", "", "bayer_rggb12"])
def test_what_is_no_picture_is_refused(encoding: str) -> None:
    with pytest.raises(
        MessageError, match=r"encoding '.*' is not supported; supported: rgb8.* have the driver publish"
    ):
        rgb_from_raw(message(random_pixels(0, 4, 4, 4), encoding, (4, 4)))


def test_rgb8_is_a_view_of_the_messages_data() -> None:
    pixels = random_pixels(7, 4, 6)
    encoded = message(pixels, "rgb8", (4, 6))
    encoded.data = np.frombuffer(encoded.data, np.uint8)
    assert np.shares_memory(rgb_from_raw(encoded), encoded.data)
