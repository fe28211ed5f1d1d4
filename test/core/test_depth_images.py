# SPDX-License-Identifier: Apache-2.0
"""Depth images of every encoding and unit, and compressedDepth's RVL against an encoder written here."""

from __future__ import annotations

import contextlib
import struct
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.depth_images import depth_from_compressed, depth_from_raw, depth_metres
from vmloc_ros.core.errors import MessageError

TYPES = {"16UC1": "u2", "mono16": "u2", "16SC1": "i2", "32SC1": "i4", "32FC1": "f4", "64FC1": "f8"}


def depth_message(values: np.ndarray, encoding: str, padding: int = 0) -> Any:
    rows = np.pad(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1), ((0, 0), (0, padding)))
    return SimpleNamespace(
        height=len(values),
        width=values.shape[1],
        encoding=encoding,
        is_bigendian=int(values.dtype.byteorder == ">"),
        step=rows.shape[1],
        data=rows.tobytes(),
    )


def rvl(values: np.ndarray) -> bytes:
    """Wilson's encoder, pixel by pixel, behind the image's size."""
    nibbles: list[int] = []

    def put(number: int) -> None:
        while True:
            nibbles.append((number & 7) | (8 if number >> 3 else 0))
            number >>= 3
            if not number:
                return

    pixels, at, previous = values.ravel().tolist(), 0, 0
    while at < len(pixels):
        zeros = next((n for n, x in enumerate(pixels[at:]) if x), len(pixels) - at)
        at += zeros
        others = next((n for n, x in enumerate(pixels[at:]) if not x), len(pixels) - at)
        put(zeros)
        put(others)
        for value in pixels[at : at + others]:
            difference = value - previous
            put(2 * difference if difference >= 0 else -2 * difference - 1)
            previous = value
        at += others
    nibbles += [0] * (-len(nibbles) % 8)
    words = [
        sum(nibble << (28 - 4 * i) for i, nibble in enumerate(nibbles[k : k + 8])) for k in range(0, len(nibbles), 8)
    ]
    return struct.pack(f"<{2 + len(words)}I", values.shape[1], values.shape[0], *words)


@settings(deadline=None)
@given(
    encoding=st.sampled_from(sorted(TYPES)),
    big=st.booleans(),
    padding=st.sampled_from([0, 8]),
    unit_m=st.sampled_from([None, 0.001, 0.0001, 0.0002, 1.0, 0.01]),
    case=st.sampled_from([str, str.lower, str.upper]),
)
def test_depth_of_any_type_and_byte_order_is_in_its_unit(
    encoding: str, big: bool, padding: int, unit_m: float | None, case: Any
) -> None:
    dtype = np.dtype(TYPES[encoding]).newbyteorder(">" if big else "<")
    values = np.array([[0, 1, 1000], [4321, 32767, 255]]).astype(dtype)
    decoded = depth_metres(depth_from_raw(depth_message(values, case(encoding), padding)), unit_m)
    unit = unit_m or (1.0 if dtype.kind == "f" else 0.001)
    assert decoded.dtype == np.dtype(np.float32)
    np.testing.assert_allclose(decoded, values.astype(np.float64) * unit, rtol=2e-7)


def test_what_is_no_measurement_is_zero() -> None:
    floats = np.array([[np.nan, np.inf, -np.inf, -1.0, 1e300, 0.0, 3.25]], "f8")
    np.testing.assert_array_equal(depth_metres(floats), [[0, 0, 0, 0, 0, 0, 3.25]])
    np.testing.assert_array_equal(depth_metres(np.array([[-5, 0, 2000]], "i2")), [[0, 0, 2]])


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_a_tiff_of_depth(dtype: str) -> None:
    values = np.array([[0, 1.5, 1000], [4321, 65535, 255]]).astype(dtype)
    data = bytes(cv2.imencode(".tiff", values)[1])
    encoding = "32FC1" if dtype == "<f4" else "16UC1"
    np.testing.assert_array_equal(depth_from_compressed(data, f"{encoding}; tiff compressed "), values)


@st.composite
def depth_pictures(draw: st.DrawFn) -> np.ndarray:
    """Runs of zeros and of values, of differences small and large."""
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    count = height * width
    value = st.one_of(st.just(0), st.integers(990, 1010), st.integers(0, 65535))
    return np.array(draw(st.lists(value, min_size=count, max_size=count)), np.uint16).reshape(height, width)


@settings(deadline=None, max_examples=300)
@given(values=depth_pictures())
def test_rvl_gives_back_what_was_encoded(values: np.ndarray) -> None:
    decoded = depth_from_compressed(bytes(12) + rvl(values), "16UC1; compressedDepth rvl")
    np.testing.assert_array_equal(decoded, values)


@settings(deadline=None)
@given(values=depth_pictures(), cut=st.integers(1, 40))
def test_a_truncated_rvl_stream_is_refused_or_ends_in_what_it_has(values: np.ndarray, cut: int) -> None:
    data = bytes(12) + rvl(values)
    try:
        decoded = depth_from_compressed(data[:-cut], "16UC1; compressedDepth rvl")
    except MessageError as error:
        assert "truncated" in str(error) or "corrupt" in str(error)  # noqa: PT017
    else:  # the last word is longer than what was cut off
        np.testing.assert_array_equal(decoded, values)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=120))
def test_arbitrary_rvl_data_give_an_image_or_a_message_error(data: bytes) -> None:
    sized = bytes(12) + struct.pack("<II", 4, 3) + data
    with contextlib.suppress(MessageError):
        assert depth_from_compressed(sized, "16UC1; compressedDepth rvl").shape == (3, 4)


def test_rvl_of_float_depth_undoes_the_inverse_quantisation() -> None:
    depth_m = np.linspace(0.5, 9.5, 60, dtype=np.float32).reshape(6, 10)
    quant_a, quant_b = 10100.0, 1.0 - 1010.0
    stored = (quant_a / depth_m + quant_b).astype(np.uint16)
    data = struct.pack("<iff", 0, quant_a, quant_b) + rvl(stored)
    decoded = depth_metres(depth_from_compressed(data, "32FC1; compressedDepth rvl"))
    assert np.all(np.abs(decoded - depth_m) <= decoded**2 / quant_a * 1.01)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(20), "corrupt: its RVL data of 8 bytes are 0 x 0 pixels"),
        (bytes(12) + struct.pack("<II", 1 << 20, 1 << 20), "corrupt: .* 1048576 x 1048576 pixels"),
        (bytes(12) + struct.pack("<III", 640, 480, 0x11111111), "truncated"),
    ],
)
def test_malformed_rvl_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(MessageError, match=f"'16UC1; compressedDepth rvl' is .*{text}"):
        depth_from_compressed(data, "16UC1; compressedDepth rvl")
