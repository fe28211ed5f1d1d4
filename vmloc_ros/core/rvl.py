# SPDX-License-Identifier: Apache-2.0
"""RVL (Wilson 2017, "Fast lossless depth image compression"), as compressed_depth_image_transport writes it.

Pixels alternate between a run of zeros and one of others; of the latter the differences to the pixel before are stored,
zigzag-coded so that small ones of either sign are small numbers. Lengths and differences are numbers of as many nibbles
as they need: three bits each, lowest first, and one that says whether more follow. Eight nibbles make a 32-bit
little-endian word, first nibble highest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import MessageError

_SIZE_BYTES = 8  # width and height, 32 bits each
_MOST_PIXELS = 1 << 28
_MOST_NIBBLES = 11  # of a number of 32 bits


def unpack_rvl(raw: bytes, what: str) -> NDArray[np.uint16]:
    """``(H, W)`` values of width and height followed by an RVL stream.

    Args:
        what: names the input in the error.

    Raises:
        MessageError: the stream is truncated or corrupt.
    """
    width, height = np.frombuffer(raw[:_SIZE_BYTES].ljust(_SIZE_BYTES, b"\0"), "<u4").tolist()
    if not 0 < width * height <= _MOST_PIXELS:
        raise MessageError(f"{what} is corrupt: its RVL data of {len(raw)} bytes are {width} x {height} pixels")
    numbers = _numbers(raw[_SIZE_BYTES:])
    filled, differences = _runs(numbers, width * height, what)
    pixels = np.zeros(width * height, np.uint16)
    pixels[filled] = np.cumsum((differences >> 1) ^ -(differences & 1)).astype(np.uint16)
    return pixels.reshape(height, width)


def _numbers(raw: bytes) -> NDArray[np.int64]:
    """The stream's numbers; the zeros that fill its last word are numbers, too."""
    words = np.frombuffer(raw[: len(raw) // 4 * 4], "<u4")
    nibbles = (words[:, None] >> np.arange(28, -1, -4, dtype=np.uint32) & 15).astype(np.uint8).ravel()
    ends = np.flatnonzero(nibbles < 8) + 1
    if not len(ends):
        return np.empty(0, np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    numbers = (nibbles[starts] & 7).astype(np.int64)
    for place in range(1, min(int(lengths.max()), _MOST_NIBBLES)):
        longer = np.flatnonzero(lengths > place)
        numbers[longer] |= (nibbles[starts[longer] + place] & 7).astype(np.int64) << 3 * place
    return numbers


def _runs(numbers: NDArray[np.int64], count: int, what: str) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of the pixels are not zero, and their zigzag-coded differences, from the stream's numbers."""
    lengths: list[int] = []  # of runs of zeros and of others, by turns
    at = pixel = 0
    while pixel < count:
        if at + 2 > len(numbers):
            raise MessageError(f"{what} is truncated: its RVL data have {pixel} of {count} pixels")
        zeros, others = numbers.item(at), numbers.item(at + 1)
        lengths += (zeros, others)
        at, pixel = at + 2 + others, pixel + zeros + others
    if pixel > count or at > len(numbers):
        raise MessageError(f"{what} is truncated or corrupt: its RVL data have other than {count} pixels")
    turns = np.array(lengths).reshape(-1, 2)
    filled = np.repeat(np.tile([False, True], len(turns)), turns.ravel())
    # Two numbers for the lengths come before each run of differences.
    return filled, numbers[:at][np.repeat(np.tile([False, True], len(turns)), (turns * [0, 1] + [2, 0]).ravel())]
