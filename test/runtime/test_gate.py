# SPDX-License-Identifier: Apache-2.0
"""Which frames are localized and which estimates are published."""

from __future__ import annotations

import numpy as np
import pytest

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.runtime.gate import Gate
from vmloc_ros.runtime.lost_detector import LostDetector


def gate(allow_degraded: bool) -> Gate:
    return Gate(("image", "lidar"), allow_degraded, LostDetector(0.2, 0.0))


def estimate(confidence: float, dropped_sensors: tuple[str, ...] = ()) -> Estimate:
    return Estimate(0, Pose.identity(), np.eye(6), ("image",), confidence=confidence, dropped_sensors=dropped_sensors)


@pytest.mark.parametrize(
    ("allow_degraded", "present", "reason"),
    [
        (True, ("image",), None),
        (False, ("image", "lidar"), None),
        (False, ("image",), "frame without lidar, and allow_degraded is false"),
        (False, (), "frame without image and lidar, and allow_degraded is false"),
    ],
)
def test_a_frame_without_an_input_is_held_back_where_all_are_required(allow_degraded, present, reason) -> None:
    assert gate(allow_degraded).check_frame(present) == reason


def test_an_estimate_without_a_dropped_sensor_is_held_back_where_all_are_required() -> None:
    degraded = estimate(0.9, ("lidar",))
    assert gate(True).check_estimate(degraded) is None
    assert gate(False).check_estimate(degraded) == "lidar unlike the training data, and allow_degraded is false"


def test_a_degraded_estimate_changes_nothing_about_being_lost() -> None:
    strict = gate(False)
    assert strict.check_estimate(estimate(0.1)) == "confidence 0.1 below 0.2 for 0.0 s"
    assert strict.check_estimate(estimate(0.9, ("lidar",)))
    assert strict.is_lost
    assert strict.check_estimate(estimate(0.9)) is None
    assert not strict.is_lost
    strict.check_estimate(estimate(0.1))
    strict.reset()
    assert not strict.is_lost
