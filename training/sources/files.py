# SPDX-License-Identifier: Apache-2.0
"""Readers of text tables and images of datasets; errors name the file and the line."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.compressed_images import unpack_image
from vmloc_ros.core.errors import DataError, MessageError

_TO_RGB = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}  # by OpenCV's channels
_STAMP_LIMIT_S = 2**31  # of builtin_interfaces/Time


def read_lines(path: Path) -> list[str]:
    """Stripped lines of a text file; empty ones stay, so that line ``i`` is number ``i + 1``.

    Raises:
        DataError: the file is missing or no text.
    """
    try:
        lines = [line.strip() for line in path.read_text().split("\n")]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_table(path: Path, columns: int, layout: str) -> dict[int, list[str]]:
    """Words of every line that is neither empty nor a comment (#), by line number from 1.

    Args:
        columns: number of words per line.
        layout: names of the columns, for the error.

    Raises:
        DataError: the file is missing, no text or without a line, or a line has another number of words.
    """
    rows = {number: line.split() for number, line in enumerate(read_lines(path), 1) if line and line[0] != "#"}
    for number, words in rows.items():
        if len(words) != columns:
            raise DataError(f"{path}:{number}: expected {columns} columns ({layout}), got {len(words)}")
    if not rows:
        raise DataError(f"{path} is empty; expected lines of {layout}")
    return rows


def parse_numbers(path: Path, line: int, words: Sequence[str]) -> NDArray[np.float64]:
    """Finite numbers of a line's words.

    Raises:
        DataError: a word is no number, or is NaN or infinite.
    """
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        raise DataError(f"{path}:{line}: {error}") from error
    if not np.isfinite(numbers).all():
        raise DataError(f"{path}:{line}: expected finite numbers, got {' '.join(words)}")
    return numbers


def parse_stamp_ns(path: Path, line: int, word: str) -> int:
    """Nanoseconds of decimal seconds, exactly: a float64 of today's Unix time resolves 240 ns.

    Raises:
        DataError: not a number from 0 to 2^31.
    """
    try:
        seconds = Decimal(word)
    except InvalidOperation:
        seconds = Decimal("nan")
    if not (seconds.is_finite() and 0 <= seconds < _STAMP_LIMIT_S):
        raise DataError(f"{path}:{line}: expected a stamp in seconds from 0 to 2^31, got {word!r}")
    return round(seconds * 1_000_000_000)


def check_increasing(path: Path, stamps_ns: dict[int, int]) -> None:
    """Raise DataError unless the stamps, by line number, increase strictly."""
    for (before, earlier_ns), (line, stamp_ns) in pairwise(stamps_ns.items()):
        if stamp_ns <= earlier_ns:
            raise DataError(f"{path}:{line}: {stamp_ns} ns does not come after {earlier_ns} ns of line {before}")


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of an 8-bit PNG or JPEG, in colour or grey.

    Raises:
        DataError: the file is missing, damaged, or has 16 bits (a depth image, perhaps).
    """
    pixels = _read_pixels(path)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: an image must have 8 bits per channel, got {pixels.dtype} {pixels.shape}")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return np.asarray(cv2.cvtColor(pixels, _TO_RGB[channels]), np.uint8)


def read_depth(path: Path) -> NDArray[np.uint16]:
    """``(H, W)`` uint16 of a single-channel PNG, in the dataset's unit.

    Raises:
        DataError: the file is missing, damaged, or not a 16-bit single-channel PNG.
    """
    pixels = _read_pixels(path)
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise DataError(f"{path}: depth must be a 16-bit single-channel PNG, got {pixels.dtype} {pixels.shape}")
    return pixels


def _read_pixels(path: Path) -> NDArray[Any]:
    try:
        return unpack_image(path.read_bytes(), "the picture")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, MessageError) as error:
        raise DataError(f"{path}: {error}") from error
