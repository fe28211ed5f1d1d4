# SPDX-License-Identifier: Apache-2.0
"""How far a training has come, for the saved state and for the eye."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from training.objectives.registry import Terms

_SHORT = {"effective_samples": "ess"}


@dataclass(slots=True)
class Progress:
    """With weights and optimizer all that a training depends on, for every draw is seeded anew.

    Attributes:
        epoch: finished ones.
        step: finished ones of the epoch that is under way.
        best: score of the best checkpoint.
        stale: validations since then.
        sums: of the epoch's terms so far.
    """

    epoch: int = 0
    step: int = 0
    best: float = math.inf
    stale: int = 0
    sums: Terms = field(default_factory=dict)


def postfix(epoch: int, terms: Mapping[str, float], metrics: Mapping[str, float] | None = None) -> dict[str, str]:
    """What the bar shows, in few characters."""
    short = {_SHORT.get(name, name).replace("variance_", "var_"): value for name, value in terms.items()}
    shown = {"epoch": str(epoch), **{name: f"{value:.3g}" for name, value in short.items()}}
    if metrics:
        shown["val"] = f"{metrics['median_position_m']:.2f} m {metrics['median_rotation_deg']:.1f} deg"
    return shown
