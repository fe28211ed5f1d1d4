# SPDX-License-Identifier: Apache-2.0
"""Which estimates are withheld, and the reported time of being lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import position_std_m
from vmloc_ros.runtime.lost_detector import LostDetector

S = 1_000_000_000


def estimate(stamp_s: float, confidence: float | None = None, variances=(0.01, 0.01, 0.01)) -> Estimate:
    covariance = np.diag([*variances, 1.0, 1.0, 1.0])
    return Estimate(round(stamp_s * S), Pose.identity(), covariance, ("image",), confidence=confidence)


def test_nothing_passes_before_the_first_confident_estimate_and_each_confident_one_ends_being_lost():
    detector = LostDetector(0.2, 0.0)
    confidences = [0.0, 0.19, 0.2, 0.1, 1.0, 0.3]
    passed = [detector.check(estimate(i, confidence)) is None for i, confidence in enumerate(confidences)]
    assert passed == [False, False, True, False, True, True]
    assert not detector.is_lost


def test_the_reason_names_value_limit_and_time_since_the_first_withheld_estimate():
    detector = LostDetector(0.2, 0.0)
    assert detector.check(estimate(10.0, 0.5)) is None
    assert detector.check(estimate(10.5, 0.1)) == "confidence 0.1 below 0.2 for 0.0 s"
    assert detector.check(estimate(14.7, 0.031)) == "confidence 0.031 below 0.2 for 4.2 s"
    assert detector.is_lost
    assert detector.check(estimate(15.0, 0.9)) is None
    assert detector.check(estimate(16.0, 0.0)) == "confidence 0 below 0.2 for 0.0 s"


def test_time_starts_anew_after_a_reset_and_when_stamps_jump_back():
    detector = LostDetector(0.2, 0.0)
    detector.check(estimate(10.0, 0.1))
    assert detector.check(estimate(3.0, 0.1)).endswith("for 0.0 s")
    assert detector.check(estimate(5.0, 0.1)).endswith("for 2.0 s")
    detector.reset()
    assert not detector.is_lost
    assert detector.check(estimate(9.0, 0.1)).endswith("for 0.0 s")


def test_estimates_without_a_confidence_pass_and_a_confidence_of_nan_does_not():
    detector = LostDetector(0.2, 0.0)
    assert detector.check(estimate(0, None)) is None
    assert detector.check(estimate(0, math.nan)) == "confidence nan below 0.2 for 0.0 s"
    assert LostDetector(0.0, 0.0).check(estimate(0, 0.0)) is None


def test_an_estimate_with_a_large_position_std_in_any_direction_is_withheld():
    detector = LostDetector(0.0, 0.5)
    assert detector.check(estimate(0, None, (0.24, 0.01, 0.01))) is None
    assert detector.check(estimate(1, 1.0, (0.01, 0.36, 0.01))) == "position std 0.6 m above 0.5 m for 0.0 s"
    assert detector.check(estimate(2, None, (0.01, math.nan, 0.01))) == "position std nan m above 0.5 m for 1.0 s"
    assert LostDetector(0.0, 0.0).check(estimate(0, None, (1e6, 1e6, 1e6))) is None


def test_the_worst_direction_may_be_oblique():
    turn = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()
    covariance = np.diag([9.0, 9.0, 9.0, 1.0, 1.0, 1.0])
    covariance[:3, :3] = turn @ np.diag([0.04, 4.0, 0.09]) @ turn.T
    assert position_std_m(covariance) == pytest.approx(2.0)
