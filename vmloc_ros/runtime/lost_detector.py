# SPDX-License-Identifier: Apache-2.0
"""Decides which estimates are not to be trusted; pure Python, no ROS, no clock."""

from __future__ import annotations

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.uncertainty import position_std_m


class LostDetector:
    """Withholds estimates of low confidence or large covariance, and counts the time since the last trusted one.

    Each estimate is judged by itself, since it is made from its own frame alone: the first that passes ends being lost.
    Waiting for several in a row was tried: it withheld accurate estimates and no gross errors.

    Args:
        min_confidence: estimates of lower confidence are withheld; those without a confidence pass.
        max_position_std_m: estimates with a larger standard deviation of the position in any direction are withheld;
            0: no limit.

    Attributes:
        min_confidence, max_position_std_m: may be changed from another thread.
    """

    def __init__(self, min_confidence: float, max_position_std_m: float) -> None:
        self.min_confidence, self.max_position_std_m = min_confidence, max_position_std_m
        self._since_ns: int | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the latest estimate was withheld."""
        return self._since_ns is not None

    def check(self, estimate: Estimate) -> str | None:
        """Reason to withhold an estimate, with the time by stamps since the first one withheld; None: publish it."""
        reason = self._reason(estimate)
        if reason is None:
            self._since_ns = None
            return None
        if self._since_ns is None or estimate.stamp_ns < self._since_ns:  # or the clock has jumped back
            self._since_ns = estimate.stamp_ns
        return f"{reason} for {(estimate.stamp_ns - self._since_ns) * 1e-9:.1f} s"

    def reset(self) -> None:
        """Be no longer lost."""
        self._since_ns = None

    def _reason(self, estimate: Estimate) -> str | None:
        confidence = estimate.confidence
        if confidence is not None and not confidence >= self.min_confidence:  # also withholds NaN
            return f"confidence {confidence:.2g} below {self.min_confidence:g}"
        if self.max_position_std_m > 0:
            std_m = position_std_m(estimate.covariance)
            if not std_m <= self.max_position_std_m:
                return f"position std {std_m:.2g} m above {self.max_position_std_m:g} m"
        return None
