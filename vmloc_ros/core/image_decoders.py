# SPDX-License-Identifier: Apache-2.0
"""Decoders of one topic's pictures or depth images, which remember what a single message does not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.depth_images import convention_m, depth_metres
from vmloc_ros.core.encodings import upper_byte
from vmloc_ros.core.messages import decode_image, depth_values

Report = Callable[[str], object]

SENSOR_BITS = (8, 10, 12, 14, 16)
# Medians of depth outside are in another unit: sensors measure neither so near nor so far.
_PLAUSIBLE_DEPTH_M = (0.02, 100.0)
_SAMPLE_STEP = 8  # every so many rows and columns are enough for a median
_IMPLAUSIBLE_RUN = 3  # images in a row: one may be of a lens that is covered


def bits_of(brightest: int) -> int:
    """Bits of the sensor that gives values up to ``brightest``, one of :data:`SENSOR_BITS`."""
    return next(bits for bits in SENSOR_BITS if brightest < 1 << bits or bits == SENSOR_BITS[-1])


class ImageDecoder:
    """Decodes a topic's pictures; those of 16 bits are scaled by the range that their sensor uses.

    Cameras of 10 or 12 bits put their values into the lower bits of 16 (mono16, bayer_rggb16), and the message does not
    tell how many there are. The range is known from training, or learnt: it is the smallest of 8, 10, 12, 14 and 16
    bits that holds all values so far.

    Args:
        bits: range that is known; None: to be learnt.
        widens: brighter values widen the range; else they are cut off.
        inform: called once with the range that is learnt.
        warn: called once when values exceed a range.

    Attributes:
        bits: range in use; None before the first picture of 16 bits.
    """

    def __init__(
        self,
        bits: int | None = None,
        *,
        widens: bool = True,
        inform: Report = lambda text: None,
        warn: Report = lambda text: None,
    ) -> None:
        self.bits = bits
        self._widens, self._inform, self._warn = widens, inform, warn
        self._has_warned = False

    def __call__(self, msg: Any) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB, see :func:`vmloc_ros.core.messages.decode_image`, which gives the errors, too."""
        return decode_image(msg, self._narrow)

    def _narrow(self, pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
        if self.bits == SENSOR_BITS[-1]:
            return upper_byte(pixels)
        brightest = int(pixels.max())
        if self.bits is None:
            self.bits = bits_of(brightest)
            self._inform(f"pictures of 16 bits have values up to {brightest}: they are read as of {self.bits} bits")
        elif brightest >= 1 << self.bits:
            return self._too_bright(pixels, brightest, self.bits)
        return (pixels >> (self.bits - 8)).astype(np.uint8)

    def _too_bright(self, pixels: NDArray[np.uint16], brightest: int, bits: int) -> NDArray[np.uint8]:
        action = f"read as of {bits_of(brightest)} bits from now on, darker than before" if self._widens else "cut off"
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"pictures have values up to {brightest}, more than the {bits} bits so far: they are {action}")
        if not self._widens:
            return (np.minimum(pixels, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8)
        self.bits = bits_of(brightest)
        return (pixels >> (self.bits - 8)).astype(np.uint8)


class DepthDecoder:
    """Decodes a topic's depth images in the unit that is given, remembered, or REP 118's.

    Args:
        unit_m: metres per unit; None: not given.
        remembered: metres per unit in training by :func:`unit_name`; used for images of the same kind.
        remedy: what to set to the right unit, such as ``parameter depth_unit_m``.
        inform: called with the unit that is used.
        warn: called once when depth is implausible in that unit.

    Attributes:
        units_m: metres per unit that was used, by :func:`unit_name`.
    """

    def __init__(
        self,
        unit_m: float | None = None,
        remembered: dict[str, float] | None = None,
        *,
        remedy: str = "the unit",
        inform: Report = lambda text: None,
        warn: Report = lambda text: None,
    ) -> None:
        self._unit_m, self._remembered, self._remedy = unit_m, remembered or {}, remedy
        self._inform, self._warn = inform, warn
        self._implausible = 0
        self.units_m: dict[str, float] = {}

    def __call__(self, msg: Any) -> NDArray[np.float32]:
        """``(H, W)`` float32 metres, 0 = none, see :func:`vmloc_ros.core.messages.decode_depth` and its errors."""
        values = depth_values(msg)
        unit_m = self._unit_of(values.dtype)
        depth_m = depth_metres(values, unit_m)
        if 0 <= self._implausible < _IMPLAUSIBLE_RUN:
            self._check(depth_m, unit_m)
        return depth_m

    def _unit_of(self, dtype: np.dtype[Any]) -> float:
        name = unit_name(dtype)
        if name not in self.units_m:
            convention = convention_m(dtype)
            self.units_m[name] = unit_m = self._unit_m or self._remembered.get(name, convention)
            source = f"by {self._remedy}" if self._unit_m else "as in training" if name in self._remembered else ""
            self._inform(
                f"depth of {name} values is read in units of {unit_m:g} m ({source or 'REP 118'}); set {self._remedy} "
                "where the camera has another unit"
            )
        return self.units_m[name]

    def _check(self, depth_m: NDArray[np.float32], unit_m: float) -> None:
        sample = depth_m[::_SAMPLE_STEP, ::_SAMPLE_STEP]
        measured = sample[sample > 0]
        if not measured.size:
            return
        median_m, (nearest_m, farthest_m) = float(np.median(measured)), _PLAUSIBLE_DEPTH_M
        self._implausible = 0 if nearest_m <= median_m <= farthest_m else self._implausible + 1
        if self._implausible == _IMPLAUSIBLE_RUN:
            self._warn(
                f"the median depth is {median_m:g} m in units of {unit_m:g} m, which no depth camera measures: set "
                f"{self._remedy} to the camera's metres per unit, such as 0.001 for millimetres"
            )


def unit_name(dtype: np.dtype[Any]) -> str:
    """Kind of depth values: ``float`` or ``integer``, which have different units."""
    return "float" if dtype.kind == "f" else "integer"
