# SPDX-License-Identifier: Apache-2.0
"""Decoding of ROS images, raw (sensor_msgs/image_encodings.hpp) and compressed, to RGB or depth."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import MessageError

# encoding: (numpy type, channels, OpenCV conversion to RGB or None).
# ROS names a Bayer pattern by its first two rows, OpenCV by the second and third pixel of its second row: RGGB is "BG".
_IMAGE_ENCODINGS: dict[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "mono16": ("u2", 1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": ("u1", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": ("u1", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": ("u1", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": ("u1", 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
}
_DEPTH_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
_PNG_SIGNATURE, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG_SIGNATURE, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# compressed_depth_image_transport puts int32 format, float32 depthQuantA, float32 depthQuantB before the PNG.
_DEPTH_HEADER_BYTES = 12


def rgb_from_raw(msg: Any) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a raw image message; 16-bit values keep their upper byte.

    Raises:
        MessageError: unknown encoding (and cv_bridge cannot help), or inconsistent sizes.
    """
    encoding = str(msg.encoding)
    if encoding not in _IMAGE_ENCODINGS:
        return _rgb_by_cv_bridge(msg)
    dtype, channels, conversion = _IMAGE_ENCODINGS[encoding]
    pixels = _raw_pixels(msg, dtype, channels)
    return _convert(_eight_bit(pixels), conversion, encoding)


def depth_from_raw(msg: Any) -> NDArray[np.float32]:
    """``(H, W)`` float32 metres, 0 = none, of a raw image of integer millimetres or float metres (REP 118).

    Raises:
        MessageError: unknown encoding, or inconsistent sizes.
    """
    encoding = str(msg.encoding)
    if encoding not in _DEPTH_ENCODINGS:
        supported = ", ".join(_DEPTH_ENCODINGS)
        raise MessageError(f"depth encoding {encoding!r} is not supported; supported: {supported}")
    return depth_metres(_raw_pixels(msg, _DEPTH_ENCODINGS[encoding], 1)[..., 0])


def rgb_from_compressed(data: Any, format_text: str) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a JPEG or PNG.

    Args:
        data: the file's bytes.
        format_text: ``sensor_msgs/CompressedImage.format``: a codec (``jpeg``), or ``ORIGINAL; CODEC
            compressed ORDER``. A Bayer original is debayered. ``compressed rgb8`` means, as
            compressed_image_transport has it, that red and blue are exchanged in the file.

    Raises:
        MessageError: not an image, or a truncated one.
    """
    original, _, codec = format_text.partition(";")
    pixels = _eight_bit(unpack_image(data, f"compressed image of format {format_text!r}"))
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1 and original.startswith("bayer_") and original in _IMAGE_ENCODINGS:
        return _convert(pixels, _IMAGE_ENCODINGS[original][2], original)
    if channels == 3 and "compressed rgb" in codec:
        return pixels
    # OpenCV unpacks grey, blue-green-red or blue-green-red-alpha.
    return _convert(pixels, _IMAGE_ENCODINGS[{1: "mono8", 3: "bgr8", 4: "bgra8"}[channels]][2], format_text)


def depth_from_compressed(data: Any, format_text: str) -> NDArray[np.float32]:
    """``(H, W)`` float32 metres, 0 = none, of a 16-bit PNG, bare or from compressed_depth_image_transport.

    A 32FC1 original is stored as inverse depth ``A / z + B``; A and B stand in the transport's header.

    Raises:
        MessageError: not a 16-bit single-channel PNG (RVL, JPEG, 8 bit), or a truncated one.
    """
    raw = bytes(data)
    what = f"compressed depth of format {format_text!r}"
    start = raw[: _DEPTH_HEADER_BYTES + len(_PNG_SIGNATURE)].find(_PNG_SIGNATURE)
    if start not in (0, _DEPTH_HEADER_BYTES):
        raise MessageError(f"{what} is not a PNG; supported: 16-bit PNG, bare or from compressedDepth")
    pixels = unpack_image(raw[start:], what)
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise MessageError(f"{what} must be a 16-bit single-channel PNG, got {pixels.dtype} {pixels.shape}")
    if not format_text.startswith("32FC1"):
        return depth_metres(pixels)
    if start == 0:
        raise MessageError(f"{what} lacks compressedDepth's {_DEPTH_HEADER_BYTES}-byte quantisation header")
    quant_a, quant_b = np.frombuffer(raw, "<f4", count=2, offset=4)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth_m = quant_a / (pixels.astype(np.float32) - quant_b)
    return depth_metres(np.where(pixels > 0, depth_m, np.float32(0)))


def unpack_image(data: Any, what: str) -> NDArray[Any]:
    """Pixels of JPEG or PNG bytes as stored: ``(H, W)`` or ``(H, W, C)`` in OpenCV's order, uint8 or uint16.

    A truncated file is an error; OpenCV would fill the rest with grey.

    Args:
        data: the file's bytes.
        what: names the input in the error.

    Raises:
        MessageError: not a complete JPEG or PNG.
    """
    raw = bytes(data)
    if raw.startswith(_PNG_SIGNATURE):
        ending = _PNG_END
    elif raw.startswith(_JPEG_SIGNATURE):
        ending = _JPEG_END
    else:
        raise MessageError(f"{what} is neither JPEG nor PNG: {len(raw)} bytes beginning with {raw[:8]!r}")
    if ending not in raw:
        raise MessageError(f"{what} is truncated: {len(raw)} bytes without an end marker")
    try:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MessageError(f"{what} is corrupt: {error.err}") from error
    if pixels is None:
        raise MessageError(f"{what} is corrupt: OpenCV cannot decode its {len(raw)} bytes")
    return pixels


def depth_metres(depth: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 metres, 0 = none, of unsigned millimetres, or float metres where NaN and infinity are none."""
    if depth.dtype.kind == "u":
        return np.asarray(np.divide(depth, 1000, dtype=np.float32))
    return np.where((depth > 0) & (depth < np.inf), depth, 0).astype(np.float32)


def _raw_pixels(msg: Any, dtype: str, channels: int) -> NDArray[Any]:
    """View ``(H, W, channels)`` of a raw image's data by its step and byte order, without a copy."""
    height, width, step, encoding = int(msg.height), int(msg.width), int(msg.step), str(msg.encoding)
    data = np.frombuffer(msg.data, np.uint8)
    pixel_type = np.dtype(dtype).newbyteorder(">" if msg.is_bigendian else "<")
    pixel_bytes = channels * pixel_type.itemsize
    if height < 1 or width < 1:
        raise MessageError(f"{encoding} image is empty: {width} x {height} pixels")
    if step < width * pixel_bytes:
        raise MessageError(
            f"{encoding} image has step {step}, expected at least {width * pixel_bytes} for {width} pixels"
        )
    needed = (height - 1) * step + width * pixel_bytes
    if data.size < needed:
        raise MessageError(
            f"{encoding} image of {width} x {height} pixels, step {step}: expected {needed} bytes, got {data.size}"
        )
    strides = (step, pixel_bytes, pixel_type.itemsize)
    return np.ndarray((height, width, channels), pixel_type, data, strides=strides)


def _eight_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return (pixels >> 8).astype(np.uint8) if pixels.dtype.itemsize == 2 else pixels


def _convert(pixels: NDArray[np.uint8], conversion: int | None, what: str) -> NDArray[np.uint8]:
    if conversion is None:
        return pixels
    try:
        return cv2.cvtColor(np.ascontiguousarray(pixels), conversion).astype(np.uint8, copy=False)
    except cv2.error as error:  # such as yuv422 of odd width
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise MessageError(f"{what} image of {size} pixels cannot be converted: {error.err}") from error


def _rgb_by_cv_bridge(msg: Any) -> NDArray[np.uint8]:
    """Decode other encodings by cv_bridge, which ROS distributions have but PyPI does not."""
    problem = f"image encoding {msg.encoding!r} is not supported; supported: {', '.join(_IMAGE_ENCODINGS)}"
    try:
        from cv_bridge import CvBridge
    except ImportError as error:
        raise MessageError(f"{problem} (a ROS distribution's cv_bridge would add more)") from error
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(msg, "rgb8"), np.uint8)
    except Exception as error:  # cv_bridge raises its own and OpenCV's classes, and plain KeyError
        raise MessageError(f"{problem}; cv_bridge: {error}") from error
