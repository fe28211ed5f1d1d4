# SPDX-License-Identifier: Apache-2.0
"""Encodings of raw pictures (sensor_msgs/image_encodings.hpp) and how they become RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import MessageError

# Brings 16-bit values to 8 bits; gets and returns arrays of one shape.
Narrow = Callable[[NDArray[np.uint16]], NDArray[np.uint8]]

# encoding: (numpy type, channels, OpenCV conversion to RGB or None).
# ROS names a Bayer pattern by its first two rows, OpenCV by the second and third pixel of its second row: RGGB is "BG".
_PACKED: dict[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "rgb16": ("u2", 3, None),
    "bgr16": ("u2", 3, cv2.COLOR_BGR2RGB),
    "rgba16": ("u2", 4, cv2.COLOR_RGBA2RGB),
    "bgra16": ("u2", 4, cv2.COLOR_BGRA2RGB),
    "mono16": ("u2", 1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": ("u1", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": ("u1", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": ("u1", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": ("u1", 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": ("u2", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": ("u2", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": ("u2", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": ("u2", 1, cv2.COLOR_BayerGB2RGB),
    "uyvy": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yvyu": ("u1", 2, cv2.COLOR_YUV2RGB_YVYU),
}
# One chroma sample for two by two pixels: a plane of luma, then one of both chromas, or one of each.
_SUBSAMPLED: dict[str, int] = {
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "nv21": cv2.COLOR_YUV2RGB_NV21,
    "i420": cv2.COLOR_YUV2RGB_I420,
    "yv12": cv2.COLOR_YUV2RGB_YV12,
}
_CHROMA_PLANES = {"nv12": 1, "nv21": 1, "i420": 2, "yv12": 2}
# A plane of luma and one of both chromas for every pixel: which of the two is U.
_FULL = {"nv24": 0, "nv42": 1}
# ITU-R BT.601, studio range, as OpenCV has it for the other YUV encodings: rows R G B, columns Y U V 1.
_RGB_FROM_YUV = np.array(
    [
        [1.164383, 0.0, 1.596027, -222.921],
        [1.164383, -0.391762, -0.812968, 135.576],
        [1.164383, 2.017232, 0.0, -276.836],
    ]
)
# Other names: deprecated ones of ROS, those of V4L2 and FFmpeg, and OpenCV's types, whose colours cv2 has in the order
# blue, green, red: they are what cv_bridge.cv2_to_imgmsg writes where it is given no encoding.
_SAME_AS = {
    "yuv422": "uyvy",
    "yuv422_yuy2": "yuyv",
    "yuy2": "yuyv",
    "iyuv": "i420",
    "yuv420p": "i420",
    "8u": "mono8",
    "8uc": "mono8",
    "8uc1": "mono8",
    "8uc3": "bgr8",
    "8uc4": "bgra8",
    "16u": "mono16",
    "16uc": "mono16",
    "16uc1": "mono16",
    "16uc3": "bgr16",
    "16uc4": "bgra16",
}
_NAMED = (*_PACKED, *_SUBSAMPLED, *_FULL, "yuv422", "yuv422_yuy2", "8UC1", "8UC3", "8UC4", "16UC1", "16UC3", "16UC4")


def upper_byte(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """8-bit values of 16-bit ones that use their whole range."""
    return (pixels >> 8).astype(np.uint8)


def plain_name(encoding: str) -> str:
    """The encoding's name without case, OpenCV's prefix ``CV_`` and what surrounds it."""
    return encoding.strip(" \0").lower().removeprefix("cv_")


def is_mosaic(encoding: str) -> bool:
    """Whether the encoding is a known Bayer pattern."""
    name = plain_name(encoding)
    return name.startswith("bayer_") and name in _PACKED


def rgb_from_raw(msg: Any, narrow: Narrow = upper_byte) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a raw image message.

    An encoding's name may be in upper or lower case, or that of an OpenCV type (``8UC3``, ``CV_8UC3``). YUV is taken to
    be ITU-R BT.601 of studio range, as cv_bridge has it.

    Args:
        narrow: brings values of 16 bits to 8.

    Raises:
        MessageError: unknown encoding, or inconsistent sizes.
    """
    name = plain_name(str(msg.encoding))
    name = _SAME_AS.get(name, name)
    if name in _PACKED:
        dtype, channels, _ = _PACKED[name]
        return rgb_from_pixels(raw_pixels(msg, dtype, channels), name, narrow, str(msg.encoding))
    if name in _SUBSAMPLED:
        return _convert(_joined_planes(msg, name), _SUBSAMPLED[name], str(msg.encoding))
    if name in _FULL:
        return _rgb_from_full_chroma(msg, name)
    raise MessageError(
        f"image encoding {str(msg.encoding)!r} is not supported; supported: {', '.join(_NAMED)}; have the driver "
        "publish one of these"
    )


def rgb_from_pixels(pixels: NDArray[Any], encoding: str, narrow: Narrow, what: str) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of pixels ``(H, W)`` or ``(H, W, C)`` of 8 or 16 bits.

    Args:
        encoding: gives the order of channels or the mosaic's pattern: a name of ROS, of an encoding without planes.
        what: names the pixels in the error.

    Raises:
        MessageError: their size does not suit the encoding.
    """
    return _convert(narrow(pixels) if pixels.dtype.itemsize == 2 else pixels, _PACKED[encoding][2], what)


def _convert(pixels: NDArray[np.uint8], conversion: int | None, what: str) -> NDArray[np.uint8]:
    if conversion is None:
        return pixels
    try:
        return cv2.cvtColor(np.ascontiguousarray(pixels), conversion).astype(np.uint8, copy=False)
    except cv2.error as error:  # such as yuv422 of odd width
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise MessageError(f"{what} image of {size} pixels cannot be converted: {error.err}") from error


def raw_pixels(msg: Any, dtype: str, channels: int) -> NDArray[Any]:
    """View ``(H, W, channels)`` of a raw image's data by its step and byte order, without a copy.

    Raises:
        MessageError: the image is empty, its step too small, or its data too short.
    """
    height, width, step, encoding = _size(msg)
    data = np.frombuffer(msg.data, np.uint8)
    pixel_type = np.dtype(dtype).newbyteorder(">" if msg.is_bigendian else "<")
    pixel_bytes = channels * pixel_type.itemsize
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


def _size(msg: Any) -> tuple[int, int, int, str]:
    """Height, width, step and encoding. Raises MessageError: there are no pixels."""
    height, width, step, encoding = int(msg.height), int(msg.width), int(msg.step), str(msg.encoding)
    if height < 1 or width < 1:
        raise MessageError(f"{encoding} image is empty: {width} x {height} pixels")
    return height, width, step, encoding


def _joined_planes(msg: Any, name: str) -> NDArray[np.uint8]:
    """Luma and chroma ``(3 H / 2, W)`` without padding, as OpenCV wants them."""
    height, width, _, encoding = _size(msg)
    if height % 2 or width % 2:
        raise MessageError(f"{encoding} image of {width} x {height} pixels: both must be even")
    count = _CHROMA_PLANES[name]
    chroma = (height // 2 * count, width // count)
    luma, halves = _planes(msg, chroma, per_step=1 / count)
    if luma.flags.c_contiguous and halves.flags.c_contiguous:
        return np.frombuffer(msg.data, np.uint8, count=height * width * 3 // 2).reshape(-1, width)
    return np.concatenate([luma.ravel(), halves.ravel()]).reshape(-1, width)


def _rgb_from_full_chroma(msg: Any, name: str) -> NDArray[np.uint8]:
    height, width, _, _ = _size(msg)
    luma, chroma = _planes(msg, (height, 2 * width), per_step=2)
    both = chroma.reshape(height, width, 2) if chroma.flags.c_contiguous else chroma.copy().reshape(height, width, 2)
    u = _FULL[name]
    yuv = np.dstack([luma, both[..., u], both[..., 1 - u]])
    return np.asarray(cv2.transform(yuv, _RGB_FROM_YUV), np.uint8)


def _planes(msg: Any, chroma: tuple[int, int], per_step: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Views of the planes of luma ``(H, W)`` and chroma, without a copy.

    Drivers disagree on ``step``: it is the length of a row of luma, or that of all planes' bytes in a row, without any
    padding; the data's length tells them apart.

    Args:
        chroma: rows and bytes per row of the chroma.
        per_step: length of a row of chroma, in steps.
    """
    height, width, step, encoding = _size(msg)
    data = np.frombuffer(msg.data, np.uint8)
    rows, row_bytes = chroma
    if data.size == height * width + rows * row_bytes:
        step = width
    pitch = int(step * per_step)
    needed = height * step + (rows - 1) * pitch + row_bytes
    if step < width or data.size < needed:
        raise MessageError(
            f"{encoding} image of {width} x {height} pixels, step {step}: expected step {width} or more and {needed} "
            f"bytes, got {data.size}"
        )
    luma = np.ndarray((height, width), np.uint8, data, strides=(step, 1))
    return luma, np.ndarray((rows, row_bytes), np.uint8, data, offset=height * step, strides=(pitch, 1))
