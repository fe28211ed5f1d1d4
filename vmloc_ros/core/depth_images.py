# SPDX-License-Identifier: Apache-2.0
"""Depth images, raw and compressed, to metres."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.compressed_images import unpack_image
from vmloc_ros.core.encodings import plain_name, raw_pixels
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.rvl import unpack_rvl

_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4", "64FC1": "f8", "16SC1": "i2", "32SC1": "i4"}
_TYPES = {plain_name(name): dtype for name, dtype in _ENCODINGS.items()}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# compressed_depth_image_transport puts int32 format, float32 depthQuantA, float32 depthQuantB before the PNG.
_HEADER_BYTES = 12
_MILLIMETRE_M = 0.001


def convention_m(dtype: np.dtype[Any]) -> float:
    """Metres per unit of depth by REP 118: integers are millimetres, floats are metres."""
    return 1.0 if dtype.kind == "f" else _MILLIMETRE_M


def depth_type(encoding: str) -> np.dtype[Any]:
    """Type of a raw depth image's values.

    Raises:
        MessageError: unknown encoding.
    """
    if (dtype := _TYPES.get(plain_name(encoding))) is None:
        supported = ", ".join(_ENCODINGS)
        raise MessageError(f"depth encoding {encoding!r} is not supported; supported: {supported}")
    return np.dtype(dtype)


def depth_from_raw(msg: Any) -> NDArray[Any]:
    """View ``(H, W)`` of a raw depth image's values, in their unit.

    Raises:
        MessageError: unknown encoding, or inconsistent sizes.
    """
    dtype = depth_type(str(msg.encoding))
    return raw_pixels(msg, dtype.str[1:], 1)[..., 0]


def depth_from_compressed(data: Any, format_text: str) -> NDArray[Any]:
    """``(H, W)`` values, in their unit, of a PNG or TIFF, or of what compressed_depth_image_transport has (PNG, RVL).

    That transport stores a 32FC1 original as inverse depth ``A / z + B``; A and B stand in its header.

    Raises:
        MessageError: not single-channel depth (JPEG, 8 bit), or a truncated one.
    """
    raw = bytes(data)
    what = f"compressed depth of format {format_text!r}"
    original, _, codec = format_text.partition(";")
    if "rvl" in codec.lower():
        pixels = unpack_rvl(raw[_HEADER_BYTES:], what)
        return _undo_quantisation(pixels, raw) if plain_name(original) == "32fc1" else pixels
    start = max(raw[: _HEADER_BYTES + len(_PNG_SIGNATURE)].find(_PNG_SIGNATURE), 0)
    pixels = unpack_image(raw[start:], what)
    if pixels.ndim != 2 or pixels.dtype not in (np.uint16, np.float32):
        raise MessageError(
            f"{what} must have one channel of 16-bit integers or 32-bit floats, got {pixels.dtype} {pixels.shape}; "
            "supported: 16-bit PNG, bare or from compressedDepth, compressedDepth rvl, TIFF"
        )
    if plain_name(original) != "32fc1" or pixels.dtype == np.float32:
        return pixels
    if start == 0:
        raise MessageError(f"{what} lacks compressedDepth's {_HEADER_BYTES}-byte quantisation header")
    return _undo_quantisation(pixels, raw)


def depth_metres(depth: NDArray[Any], unit_m: float | None = None) -> NDArray[np.float32]:
    """Float32 metres, 0 = none; zero, negative, NaN and infinite values are none.

    Args:
        unit_m: metres per unit of depth; None is REP 118's: millimetres for integers, metres for floats.
    """
    unit_m = convention_m(depth.dtype) if unit_m is None else unit_m
    if depth.dtype.kind == "u":
        return np.asarray(np.divide(depth, 1 / unit_m, dtype=np.float32))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is none
        metres = np.asarray(depth, np.float32) if unit_m == 1 else np.divide(depth, 1 / unit_m, dtype=np.float32)
    return np.where((metres > 0) & (metres < np.inf), metres, np.float32(0))


def _undo_quantisation(pixels: NDArray[np.uint16], raw: bytes) -> NDArray[np.float32]:
    quant_a, quant_b = np.frombuffer(raw, "<f4", count=2, offset=4)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = quant_a / (pixels.astype(np.float32) - quant_b)
    return np.where(pixels > 0, depth, np.float32(0))
