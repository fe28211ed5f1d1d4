# SPDX-License-Identifier: Apache-2.0
"""Pictures in files' formats: JPEG, PNG, WebP, TIFF and BMP, as ``sensor_msgs/CompressedImage`` holds them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.encodings import Narrow, is_mosaic, plain_name, rgb_from_pixels, upper_byte
from vmloc_ros.core.errors import MessageError

_PNG_SIGNATURE, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG_SIGNATURE, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
_WEBP_SIGNATURE, _BMP_SIGNATURE = b"RIFF", b"BM"
_SIGNATURES = (_JPEG_SIGNATURE, _PNG_SIGNATURE, _WEBP_SIGNATURE, _BMP_SIGNATURE, *_TIFF_SIGNATURES)
_MOST_LEADING_BYTES = 64  # that some drivers put before a JPEG


def rgb_from_compressed(data: Any, format_text: str, narrow: Narrow = upper_byte) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a JPEG, PNG, WebP, TIFF or BMP.

    What the data are is told by themselves; ``format_text`` tells what their channels mean. Those are the rules of
    compressed_image_transport:

    * A codec alone (``jpeg``, ``png``): colours are as in any file.
    * ``ORIGINAL; CODEC compressed ORDER``: OpenCV unpacks the colours in this order. ``bgr8`` is as in any file; with
      ``rgb8``, of transports before 2012, red and blue are exchanged in the file.
    * ``ORIGINAL; tiff compressed``: OpenCV unpacks the colours in the order of the original.
    * ``bayer_...; CODEC compressed``: a mosaic. With ``mono8`` behind it, the transport has made it grey.

    Args:
        data: the file's bytes.
        format_text: ``sensor_msgs/CompressedImage.format``.
        narrow: brings values of 16 bits to 8.

    Raises:
        MessageError: not such a file, or a truncated one.
    """
    what = f"compressed image of format {format_text!r}"
    pixels = unpack_image(data, what)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise MessageError(f"{what} has values of type {pixels.dtype}; supported: 8 and 16 bits")
    return rgb_from_pixels(pixels, _channels_of(pixels, format_text), narrow, what)


def unpack_image(data: Any, what: str) -> NDArray[Any]:
    """Pixels of a JPEG, PNG, WebP, TIFF or BMP as stored: ``(H, W)`` or ``(H, W, C)`` in OpenCV's order.

    A truncated file is an error; OpenCV would fill the rest with grey. A few bytes before a JPEG or PNG, and any after
    it, are ignored.

    Args:
        data: the file's bytes.
        what: names the input in the error.

    Raises:
        MessageError: not such a file, or not a complete one.
    """
    raw = _from_signature(bytes(data))
    complete = _is_complete(raw)
    if complete is None:
        start = f"{len(raw)} bytes beginning with {raw[:8]!r}"
        raise MessageError(f"{what} is neither JPEG nor PNG, WebP, TIFF or BMP: {start}")
    if not complete:
        raise MessageError(f"{what} is truncated: {len(raw)} bytes without the file's end")
    try:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MessageError(f"{what} is corrupt: {error.err}") from error
    if pixels is None:
        raise MessageError(f"{what} is corrupt: OpenCV cannot decode its {len(raw)} bytes")
    return pixels


def _channels_of(pixels: NDArray[Any], format_text: str) -> str:
    """The encoding that OpenCV's pixels have."""
    original, _, rest = format_text.partition(";")
    codec, _, order = (part.strip() for part in rest.lower().partition("compressed"))
    original = plain_name(original)
    if pixels.ndim == 2:
        return original if is_mosaic(original) and not order else "mono8"
    if not order and codec == "tiff":
        order = original
    alpha = "a" if pixels.shape[2] == 4 else ""
    return f"rgb{alpha}8" if order.startswith("rgb") else f"bgr{alpha}8"


def _from_signature(raw: bytes) -> bytes:
    """The bytes from the signature of a JPEG or PNG on, where other bytes are before it."""
    if raw.startswith(_SIGNATURES):
        return raw
    starts = (raw[:_MOST_LEADING_BYTES].find(signature) for signature in (_JPEG_SIGNATURE, _PNG_SIGNATURE))
    return raw[next((start for start in starts if start > 0), 0) :]


def _is_complete(raw: bytes) -> bool | None:
    """Whether the end of the file is there; None where it is of no known format."""
    if raw.startswith(_JPEG_SIGNATURE):  # the end of a preview comes before the picture's scans
        return raw.endswith(_JPEG_END) or raw.find(_JPEG_END, max(raw.rfind(_JPEG_SCAN), 0)) >= 0
    if raw.startswith(_PNG_SIGNATURE):
        return raw.endswith(_PNG_END) or _PNG_END in raw
    if raw.startswith(_WEBP_SIGNATURE) and raw[8:12] == b"WEBP":
        return len(raw) >= 8 + int.from_bytes(raw[4:8], "little")
    if raw.startswith(_BMP_SIGNATURE):
        return len(raw) >= int.from_bytes(raw[2:6], "little")
    return True if raw.startswith(_TIFF_SIGNATURES) else None  # OpenCV refuses a truncated TIFF by itself
