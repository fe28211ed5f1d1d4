# SPDX-License-Identifier: Apache-2.0
"""What a check says, and how serious it is.

Both limits are in terms of what the localizer would lose, so that one scale serves clocks, poses and mounts: a clock
that is off by 5 ms costs 3 cm at 6 m/s and nothing at a walk. :data:`NOTICEABLE` is twice the 95th percentile of a good
map's errors (0.015 m and 0.15 deg in the demo): what costs less drowns in them. What costs more than :data:`HARMFUL`
makes a frame wrong by the finest of the usual limits of localization (0.25 m, 2 deg). And nothing is reported that is
not significant: three standard deviations of its own estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")

SIGNIFICANT = 3.0  # standard deviations


@dataclass(frozen=True, slots=True)
class Loss:
    """An error of a pose: metres and radians."""

    metres: float
    radians: float

    def exceeds(self, other: Loss) -> bool:
        """Whether it is larger in position or in rotation."""
        return self.metres > other.metres or self.radians > other.radians

    def __str__(self) -> str:
        metres = f"{self.metres:.2f}" if self.metres >= 0.1 else f"{self.metres:.3f}"
        degrees = np.degrees(self.radians)
        return f"{metres} m and {degrees:.1f} deg" if degrees >= 1 else f"{metres} m and {degrees:.2f} deg"


NOTICEABLE = Loss(0.03, float(np.radians(0.3)))
HARMFUL = Loss(0.25, float(np.radians(2.0)))


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``ok``: checked and in order; ``note``: could not be checked, or worth knowing; ``warning``: costs
            accuracy;
            ``error``: a model that is trained on this will be wrong.
        topic: what was checked, a word or two.
        text: what was found, with numbers.
        remedy: what to do about it; empty where there is nothing to do.
        values: the numbers, for programs; names carry units.
        recording: whose finding it is; empty: of all recordings together.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""
    values: Mapping[str, float | str] = field(default_factory=dict)
    recording: str = ""


def level_of(loss: Loss) -> Level:
    """How serious a loss is that is known to be there."""
    if loss.exceeds(HARMFUL):
        return "error"
    return "warning" if loss.exceeds(NOTICEABLE) else "ok"
