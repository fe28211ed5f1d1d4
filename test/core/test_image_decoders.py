# SPDX-License-Identifier: Apache-2.0
"""Decoders that remember: the bits of a camera, the unit of depth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.image_decoders import DepthDecoder, ImageDecoder, bits_of


def message(values: np.ndarray, encoding: str) -> Any:
    return SimpleNamespace(
        height=len(values),
        width=values.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=values[0].nbytes,
        data=values.tobytes(),
    )


def grey(brightest: int, encoding: str = "mono16") -> Any:
    return message(np.array([[0, brightest // 2], [1, brightest]], np.uint16), encoding)


@pytest.mark.parametrize(
    ("brightest", "bits"), [(0, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (16383, 14), (65535, 16)]
)
def test_the_bits_are_the_fewest_that_hold_the_brightest_value(brightest: int, bits: int) -> None:
    assert bits_of(brightest) == bits


@settings(deadline=None)
@given(
    encoding=st.sampled_from(["mono16", "16UC1", "rgb16", "bgra16", "bayer_gbrg16"]),
    bits=st.sampled_from([10, 12, 14, 16]),
    seed=st.integers(0, 100),
)
def test_a_sensors_values_become_the_eight_bit_picture_whatever_its_bits(encoding: str, bits: int, seed: int) -> None:
    channels = {"r": 3, "b": 4}[encoding[0]] if encoding[3:].startswith(("16", "a16")) else 1
    eight = np.random.default_rng(seed).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    eight[0, 0] = 255
    narrow = {"mono16": "mono8", "16UC1": "8UC1", "rgb16": "rgb8", "bgra16": "bgra8", "bayer_gbrg16": "bayer_gbrg8"}
    wide = message(eight.astype(np.uint16) << (bits - 8), encoding)
    expected = ImageDecoder()(message(eight, narrow[encoding]))
    decoder = ImageDecoder()
    np.testing.assert_array_equal(decoder(wide), expected)
    assert decoder.bits == bits


def test_the_range_is_learnt_once_and_said_so() -> None:
    told: list[str] = []
    decoder = ImageDecoder(inform=told.append)
    assert decoder(grey(4000))[1, 1, 0] == 4000 >> 4
    assert decoder(grey(200))[1, 1, 0] == 200 >> 4  # a dark picture stays dark
    assert told == ["pictures of 16 bits have values up to 4000: they are read as of 12 bits"]


def test_eight_bit_pictures_have_no_range() -> None:
    decoder = ImageDecoder()
    decoder(message(np.full((2, 6), 200, np.uint8), "mono8"))
    assert decoder.bits is None


@pytest.mark.parametrize(("widens", "expected", "bits"), [(True, 9000 >> 6, 14), (False, 255, 10)])
def test_brighter_pictures_widen_a_range_or_are_cut_off_with_one_warning(
    widens: bool, expected: int, bits: int
) -> None:
    warnings: list[str] = []
    decoder = ImageDecoder(10, widens=widens, warn=warnings.append)
    assert decoder(grey(1000))[1, 1, 0] == 250
    for _ in range(3):
        assert decoder(grey(9000))[1, 1, 0] == expected
    assert decoder.bits == bits
    (warning,) = warnings
    assert "values up to 9000, more than the 10 bits so far" in warning


def depth(metres: float, encoding: str = "32FC1") -> Any:
    dtype = np.float32 if encoding == "32FC1" else np.uint16
    return message(np.full((16, 16), metres).astype(dtype), encoding)


@pytest.mark.parametrize(
    ("encoding", "value", "text"),
    [
        ("32FC1", 3000.0, "median depth is 3000 m in units of 1 m"),
        ("16UC1", 5, "median depth is 0.005 m in units of 0.001 m"),
    ],
)
def test_depth_in_another_unit_is_warned_of_once_with_the_remedy(encoding: str, value: float, text: str) -> None:
    warnings: list[str] = []
    decoder = DepthDecoder(remedy="source.depth_unit_m", warn=warnings.append)
    for _ in range(10):
        decoder(depth(value, encoding))
    (warning,) = warnings
    assert text in warning
    assert "set source.depth_unit_m to the camera's metres per unit" in warning


def test_a_single_implausible_depth_image_or_an_empty_one_is_not_warned_of() -> None:
    warnings: list[str] = []
    decoder = DepthDecoder(warn=warnings.append)
    for metres in (3.0, 3000.0, 0.0, 3000.0, 2.0, 3000.0, 3000.0, 1.0):
        decoder(depth(metres))
    assert warnings == []


def test_floats_in_millimetres_become_metres_by_the_unit() -> None:
    told: list[str] = []
    decoder = DepthDecoder(0.001, remedy="source.depth_unit_m", inform=told.append, warn=told.append)
    for _ in range(4):
        np.testing.assert_allclose(decoder(depth(3250.0)), np.full((16, 16), 3.25), rtol=1e-6)
    assert decoder.units_m == {"float": 0.001}
    (text,) = told
    assert text.startswith("depth of float values is read in units of 0.001 m (by source.depth_unit_m)")
