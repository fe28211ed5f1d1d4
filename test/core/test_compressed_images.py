# SPDX-License-Identifier: Apache-2.0
"""Compressed pictures of every format text that old and new transports and drivers write."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.core.compressed_images import rgb_from_compressed, unpack_image
from vmloc_ros.core.encodings import rgb_from_pixels, upper_byte
from vmloc_ros.core.errors import MessageError


def random_rgb(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_rgb(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([200 - 20 * x, 90 + 30 * y, 20 + 25 * x * y], axis=-1)).round().astype(np.uint8)


def encode(pixels: np.ndarray, extension: str) -> bytes:
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if extension == ".webp" else []
    return bytes(cv2.imencode(extension, pixels, options)[1])


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("extension", "format_text", "order"),
    [
        (".jpg", "jpeg", "bgr"),
        (".jpg", "JPEG", "bgr"),
        (".jpg", "jpg", "bgr"),
        (".jpg", "", "bgr"),
        (".jpg", "bgr8; jpeg compressed bgr8", "bgr"),
        (".jpg", "bgr8;jpeg compressed bgr8", "bgr"),
        (".jpg", "rgb8; jpeg compressed bgr8", "bgr"),
        (".jpg", "yuv422; jpeg compressed bgr8", "bgr"),
        (".jpg", "rgb8; jpeg compressed rgb8", "rgb"),  # transports before 2012
        (".jpg", "bgr8; jpeg compressed rgb8", "rgb"),
        (".png", "png", "bgr"),
        (".png", "rgb8; png compressed bgr8", "bgr"),
        (".png", "rgb8; png compressed rgb8", "rgb"),
        (".png", "rgba8; png compressed bgra8", "bgra"),
        (".tiff", "rgb8; tiff compressed ", "rgb"),  # the transport does not convert for TIFF
        (".tiff", "rgba8; tiff compressed ", "rgba"),
        (".tiff", "bgr8; tiff compressed ", "bgr"),
        (".tiff", "tiff", "bgr"),
        (".bmp", "bmp", "bgr"),
        (".webp", "webp", "bgr"),
    ],
)
def test_the_format_text_tells_the_order_of_the_files_colours(extension: str, format_text: str, order: str) -> None:
    rgb = smooth_rgb()
    stored = np.dstack([rgb[..., "rgb".index(c)] if c in "rgb" else np.full_like(rgb[..., 0], 9) for c in order])
    decoded = rgb_from_compressed(encode(stored, extension), format_text)
    np.testing.assert_allclose(decoded.astype(int), rgb, atol=6 if extension == ".jpg" else 0)


def test_sixteen_bit_colours_are_narrowed() -> None:
    rgb = random_rgb()
    wide = rgb[..., ::-1].astype(np.uint16) * 16 + 5
    decoded = rgb_from_compressed(
        encode(wide, ".png"), "rgb16; png compressed bgr16", lambda x: (x >> 4).astype(np.uint8)
    )
    np.testing.assert_array_equal(decoded, rgb)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ending", [" compressed ", " compressed"])
def test_a_mosaic_is_debayered(pattern: str, bits: int, ending: str) -> None:
    mosaic = random_rgb()[..., 0]
    wide = mosaic.astype(np.uint16) * 257 if bits == 16 else mosaic
    decoded = rgb_from_compressed(encode(wide, ".png"), f"bayer_{pattern}{bits}; png{ending}")
    np.testing.assert_array_equal(decoded, rgb_from_pixels(mosaic, f"bayer_{pattern}8", upper_byte, ""))


def test_a_mosaic_that_the_transport_has_made_grey_stays_grey() -> None:
    pixels = smooth_rgb()[..., 0]
    decoded = rgb_from_compressed(encode(pixels, ".jpg"), "bayer_rggb8; jpeg compressed mono8")
    np.testing.assert_allclose(decoded.astype(int), grey(pixels), atol=6)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("format_text", ["mono16; png compressed ", "png", "16UC1; png compressed "])
def test_grey_of_sixteen_bits(format_text: str) -> None:
    pixels = random_rgb()[..., 0]
    decoded = rgb_from_compressed(encode(pixels.astype(np.uint16) * 257, ".png"), format_text)
    np.testing.assert_array_equal(decoded, grey(pixels))


def without_huffman_tables(jpeg: bytes) -> bytes:
    """What cameras send as motion JPEG: the tables are those of the standard, and left out."""
    kept, at = bytearray(jpeg[:2]), 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if jpeg[at + 1] == 0xC4 else jpeg[at : at + length]
        at += length
    return bytes(kept + jpeg[at:])


@pytest.mark.parametrize(
    "change",
    [without_huffman_tables, lambda raw: raw + bytes(37), lambda raw: bytes(4) + raw, lambda raw: b"\r\n" + raw + b"x"],
    ids=["motion JPEG", "zeros behind", "zeros before", "text around"],
)
def test_jpegs_as_cameras_send_them(change: Any) -> None:
    jpeg = encode(smooth_rgb(), ".jpg")
    np.testing.assert_array_equal(unpack_image(change(jpeg), "it"), unpack_image(jpeg, "it"))


@pytest.mark.parametrize("extension", [".webp", ".bmp", ".tiff", ".jpg", ".png"])
def test_a_truncated_file_is_refused(extension: str) -> None:
    data = encode(random_rgb(16, 16), extension)
    for length in sorted({0, 1, 4, 12, 20, len(data) // 2, len(data) - 3}):
        with pytest.raises(MessageError, match=r"is (truncated|corrupt|neither JPEG nor PNG)"):
            rgb_from_compressed(data[:length], "anything")


def test_the_end_of_a_preview_is_not_that_of_the_picture() -> None:
    """As digital cameras write it: a whole JPEG inside the header of another."""
    preview, jpeg = encode(random_rgb(), ".jpg"), encode(smooth_rgb(), ".jpg")
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    whole = jpeg[:2] + segment + jpeg[2:]
    assert unpack_image(whole, "it").shape == (48, 64, 3)
    with pytest.raises(MessageError, match="truncated"):
        unpack_image(whole[: -len(jpeg) // 4], "it")


@settings(deadline=None, max_examples=200)
@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"])
)
def test_arbitrary_bytes_are_refused_by_a_message_error(data: bytes, start: bytes) -> None:
    with pytest.raises(MessageError, match=r"compressed image of format 'jpeg' is "):
        rgb_from_compressed(start + data, "jpeg")


@pytest.mark.parametrize("format_text", ["h264", "avif", "rgb8; qoi compressed"])
def test_other_formats_are_named(format_text: str) -> None:
    with pytest.raises(MessageError, match=rf"'{format_text}' is neither JPEG nor PNG, WebP, TIFF or BMP: 9 bytes"):
        rgb_from_compressed(b"\0\0\0\1\x67BCDE", format_text)
