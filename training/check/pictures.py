# SPDX-License-Identifier: Apache-2.0
"""Light and sharpness of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.check.findings import Finding

# A model sees pictures of this shortest side (the default of preprocess.shortest_side): finer detail is lost anyway.
_MODEL_SIDE = 256
_REBLUR_PX = 1.0  # of the second picture whose edges are compared
_DIFFERENCE_PX2 = 1 / 3  # the difference between a pixel's two neighbours is that of a picture blurred so much
_STRONGEST = 0.02  # share of the pixels whose edges are measured
_LEAST_GRADIENT = 4.0  # levels a pixel
_LIGHT = 64  # levels: a picture is dark when hardly a pixel is brighter
_CONTRAST = 24  # levels between dark and light: below, the sensor's noise of a level or two is a tenth of what is seen
_BLURRED_PX = 2.0  # standard deviation, at the model's size: half of what a cell of 8 pixels sees is smeared away
_MOST_BAD = 0.1  # of the pictures
_BRIGHT, _MOST_SATURATED = 252, 0.4


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture looks.

    Attributes:
        stamp_ns: its stamp.
        dark_level: 5th percentile of its grey levels, 0 to 255.
        light_level: 95th percentile.
        saturated: share of its pixels at the upper end.
        blur_px: standard deviation of its blur, in pixels of a picture whose shortest side is 256; NaN without edges.
    """

    stamp_ns: int
    dark_level: float
    light_level: float
    saturated: float
    blur_px: float

    @property
    def is_dark(self) -> bool:
        """Whether hardly anything in it is light."""
        return self.light_level < _LIGHT

    @property
    def is_flat(self) -> bool:
        """Whether light and dark hardly differ: fog, a cap on the lens, a wall."""
        return self.light_level - self.dark_level < _CONTRAST

    @property
    def is_blurred(self) -> bool:
        """Whether even its sharpest edges are smeared."""
        return self.blur_px > _BLURRED_PX

    @property
    def is_overexposed(self) -> bool:
        """Whether much of it is white."""
        return self.saturated > _MOST_SATURATED


def look_of(stamp_ns: int, grey: NDArray[np.uint8]) -> Look:
    """How a grey picture ``(H, W)`` looks."""
    dark, light = np.percentile(grey, [5, 95])
    scale = _MODEL_SIDE / min(grey.shape)
    saturated = float((grey >= _BRIGHT).mean())
    return Look(stamp_ns, float(dark), float(light), saturated, blur_of(grey) * scale)


def blur_of(grey: NDArray[np.uint8]) -> float:
    """Standard deviation in pixels of the blur of the picture's strongest edges; NaN where it has none.

    An edge that is blurred by s and once more by r keeps the share s / sqrt(s^2 + r^2) of its gradient, which gives s
    (Zhuo and Sim, "Defocus map estimation from a single image", 2011).
    """
    # Reduced noise: the gradient itself is that of a slightly blurred picture, which is taken off again.
    ahead = 0.7
    plain, again = (cv2.GaussianBlur(grey.astype(np.float32), (0, 0), s) for s in (ahead, np.hypot(ahead, _REBLUR_PX)))
    first, second = (
        np.hypot(cv2.Sobel(x, cv2.CV_32F, 1, 0), cv2.Sobel(x, cv2.CV_32F, 0, 1)) / 8 for x in (plain, again)
    )
    strong = max(float(np.quantile(first, 1 - _STRONGEST)), float(first.max()) / 2, _LEAST_GRADIENT)
    # Beside its middle an edge loses less by blurring: only middles count.
    middle = first >= 0.98 * cv2.dilate(first, np.ones((5, 5), np.uint8))
    chosen = middle & (first >= strong)
    if chosen.sum() < 20:
        return float("nan")
    ratio = float(np.median(first[chosen] / second[chosen].clip(1e-6)))
    square = _REBLUR_PX**2 / max(ratio**2 - 1, 1e-3) - ahead**2 - _DIFFERENCE_PX2
    return float(np.sqrt(max(square, 0.0)))


def picture_findings(looks: Sequence[Look], recording: str) -> list[Finding]:
    """What light and sharpness of a recording's pictures cost."""
    if not looks:
        return []
    count = len(looks)
    blur = np.array([look.blur_px for look in looks])
    values = {
        "pictures": count,
        "median_light_level": float(np.median([look.light_level for look in looks])),
        "median_dark_level": float(np.median([look.dark_level for look in looks])),
        "median_blur_px": float(np.nanmedian(blur)) if np.isfinite(blur).any() else float("nan"),
    }
    problems = [
        (
            "dark",
            [look.is_dark for look in looks],
            f"of 255 levels 95 % of the pixels are below {values['median_light_level']:.0f} (median picture)",
            "give more light or exposure (the driver's exposure and gain), or record by day; a model of dark pictures "
            "works in the dark alone",
        ),
        (
            "without contrast",
            [look.is_flat and not look.is_dark for look in looks],
            f"light and dark are less than {_CONTRAST} levels apart",
            "clean or uncover the lens, and do not drive close along blank walls",
        ),
        (
            "overexposed",
            [look.is_overexposed for look in looks],
            f"more than {_MOST_SATURATED:.0%} of their pixels are white",
            "let the driver expose automatically, or less",
        ),
        (
            "blurred",
            [look.is_blurred for look in looks],
            f"their sharpest edges are smeared over {values['median_blur_px']:.1f} pixels (standard deviation, "
            "median, of "
            f"a picture {_MODEL_SIDE} pixels high)",
            "focus the lens, shorten the exposure, or drive more slowly",
        ),
    ]
    found = []
    for name, bad, what, remedy in problems:
        share = float(np.mean(bad))
        values[f"share_{name.replace(' ', '_')}"] = share
        if share > _MOST_BAD:
            text = f"{share:.0%} of {count} pictures are {name}: {what}"
            found.append(Finding("warning", "pictures", text, remedy, values, recording))
    if found:
        return found
    text = f"light and sharp: levels {values['median_dark_level']:.0f} to {values['median_light_level']:.0f}, blur "
    text += f"{values['median_blur_px']:.1f} pixels (medians of {count})"
    return [Finding("ok", "pictures", text, "", values, recording)]
