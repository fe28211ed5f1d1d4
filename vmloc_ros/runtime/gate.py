# SPDX-License-Identifier: Apache-2.0
"""Decides which frames are localized and which estimates are published; pure Python, no ROS."""

from __future__ import annotations

from vmloc_ros.core.frame import Estimate
from vmloc_ros.runtime.lost_detector import LostDetector


class Gate:
    """Holds back degraded frames, degraded estimates and those of a lost robot.

    :meth:`check_frame` keeps no state and may be called from another thread than the rest.

    Args:
        modalities: the model's inputs in use.
        allow_degraded: accept frames that lack one of them, and estimates without a dropped sensor.
        lost_detector: withholds estimates that are not to be trusted.

    Attributes:
        allow_degraded: may be changed from another thread.
    """

    def __init__(self, modalities: tuple[str, ...], allow_degraded: bool, lost_detector: LostDetector) -> None:
        self._modalities, self.allow_degraded = modalities, allow_degraded
        self.lost_detector = lost_detector

    @property
    def is_lost(self) -> bool:
        """Whether the latest estimate that was compared with the limits was withheld."""
        return self.lost_detector.is_lost

    def check_frame(self, present: tuple[str, ...]) -> str | None:
        """The reason why a frame with these modalities must not be localized; None: it may."""
        missing = [name for name in self._modalities if name not in present]
        if self.allow_degraded or not missing:
            return None
        return f"frame without {' and '.join(missing)}, and allow_degraded is false"

    def check_estimate(self, estimate: Estimate) -> str | None:
        """The reason why an estimate must be withheld; None: it may be published."""
        if estimate.dropped_sensors and not self.allow_degraded:
            return f"{' and '.join(estimate.dropped_sensors)} unlike the training data, and allow_degraded is false"
        return self.lost_detector.check(estimate)

    def reset(self) -> None:
        """Be no longer lost."""
        self.lost_detector.reset()
