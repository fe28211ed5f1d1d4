# SPDX-License-Identifier: Apache-2.0
"""Clocks, mounts and scales recovered from motions whose every disturbance is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from training.check.clocks import Pace, clock_findings, mount_by_motion_findings
from training.check.motions import ANGLES, LAG, METRES, TURN, Motion, explain
from training.check.pose_curve import PoseCurve
from vmloc_ros.core.geometry import Pose, rotation_vector_from_quaternion

MOUNT = Pose.from_xyz_rpy([0.4, -0.1, 1.2], [-1.5, 0.1, -1.6])
SHIFT_STD_M, TURN_STD_RAD = 0.005, 0.001


def body_at(time_s: float) -> Pose:
    """A walk that turns about all axes, with periods of some seconds."""
    position = [1.2 * time_s, 0.8 * np.sin(0.7 * time_s), 0.1 * np.sin(1.9 * time_s)]
    turn = [0.05 * np.sin(2.3 * time_s), 0.08 * np.sin(1.7 * time_s + 1), 0.6 * np.sin(0.9 * time_s)]
    return Pose.from_xyz_rpy(position, turn)


def straight_at(time_s: float) -> Pose:
    return Pose.from_xyz_rpy([1.2 * time_s, 0.0, 0.0], [0.0, 0.0, 0.0])


def recorded(at=body_at, seconds: float = 30.0, scale: float = 1.0) -> PoseCurve:
    times = np.arange(0, seconds, 0.1)
    poses = [at(t) for t in times]
    return PoseCurve(times, [Pose(p.position_m * scale, p.quaternion_wxyz) for p in poses])


def motions(at=body_at, late_s: float = 0.0, turned: Pose | None = None, angles: float = 1.0) -> list[Motion]:
    """What a sensor measures at 10 Hz in stretches of two seconds, stamped late."""
    rng = np.random.default_rng(3)
    mount = MOUNT @ (turned or Pose.identity())
    covariance = np.diag([SHIFT_STD_M**2] * 3 + [TURN_STD_RAD**2] * 3)
    found = []
    for stretch, start in enumerate(np.arange(2.0, 28.0, 3.0)):
        for first in start + 0.1 * np.arange(20):
            step = (at(first) @ mount).inverse() @ (at(first + 0.1) @ mount)
            shift = step.position_m + rng.normal(0, SHIFT_STD_M, 3)
            turn = angles * rotation_vector_from_quaternion(step.quaternion_wxyz) + rng.normal(0, TURN_STD_RAD, 3)
            found.append(Motion(first + late_s, first + 0.1 + late_s, shift, turn, covariance, stretch))
    return found


@pytest.mark.parametrize("late_s", [0.03, -0.6])
@pytest.mark.parametrize("has_shift", [True, False])
def test_late_stamps_are_measured_within_their_uncertainty(late_s: float, has_shift: bool) -> None:
    found = explain(motions(late_s=late_s), recorded(), MOUNT, has_shift)
    assert found.values[LAG] == pytest.approx(-late_s, abs=4 * found.std[LAG])
    assert found.std[LAG] < 0.004
    assert found.explained > 0.98


@pytest.mark.slow
def test_the_uncertainty_is_that_of_repeated_estimates() -> None:
    curve, lags, stds = recorded(), [], []
    plain = motions()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noisy = [m._replace(turn_rad=m.turn_rad + rng.normal(0, 0.003, 3)) for m in plain]
        found = explain(noisy, curve, MOUNT, has_shift=False)
        lags.append(found.values[LAG])
        stds.append(found.std[LAG])
    # The standard deviation of six draws is itself known to some 30 %.
    assert 0.4 < np.std(lags, ddof=1) / np.mean(stds) < 1.6


def test_mount_scale_and_focal_length_are_told_apart_from_the_clock() -> None:
    turned = Pose.from_xyz_rpy([0, 0, 0], np.radians([0.6, -0.5, 0.7]))
    lidar = explain(motions(late_s=0.05, turned=turned), recorded(scale=1.04), MOUNT, has_shift=True)
    assert lidar.values[LAG] == pytest.approx(-0.05, abs=4 * lidar.std[LAG])
    expected = rotation_vector_from_quaternion(turned.quaternion_wxyz)
    np.testing.assert_array_less(np.abs(lidar.values[TURN] - expected), 4 * lidar.std[TURN])
    assert lidar.values[METRES] == pytest.approx(1 / 1.04, abs=4 * lidar.std[METRES])
    camera = explain(motions(angles=1.1), recorded(), MOUNT, has_shift=False)
    assert camera.values[ANGLES] == pytest.approx(1.1, abs=4 * camera.std[ANGLES])


def test_an_unknown_mount_is_found_before_the_clock() -> None:
    found = explain(motions(late_s=0.04), recorded(), None, has_shift=True)
    assert found.values[LAG] == pytest.approx(-0.04, abs=4 * found.std[LAG])
    assert found.explained > 0.98


def test_a_few_wrong_motions_do_not_matter() -> None:
    wrong = [m._replace(turn_rad=np.array([0.3, -0.2, 0.1])) if i % 9 == 0 else m for i, m in enumerate(motions())]
    found = explain(wrong, recorded(), MOUNT, has_shift=True)
    assert abs(found.values[LAG]) < 4 * found.std[LAG] < 0.02


def test_driving_straight_ahead_does_not_show_the_clock() -> None:
    curve = recorded(straight_at)
    found = {"image": explain(motions(straight_at), curve, MOUNT, has_shift=False)}
    [finding] = clock_findings(found, Pace.of(curve), "drive")
    assert finding.level == "note"
    assert "cannot be determined" in finding.text
    assert "turns quickly" in finding.remedy
    assert mount_by_motion_findings(found, 0.8, "drive") == []


def test_motion_of_another_robot_is_an_error() -> None:
    def other_at(time_s: float) -> Pose:
        return Pose.from_xyz_rpy([0, 0, 0], [0.3 * np.sin(3.1 * time_s), 0.3 * np.sin(2.1 * time_s), 0.0])

    curve = recorded()
    found = {"image": explain(motions(other_at), curve, MOUNT, has_shift=False)}
    [finding] = clock_findings(found, Pace.of(curve), "drive")
    assert finding.level == "error"
    assert "moves otherwise than the poses say" in finding.text


def test_how_serious_a_late_stamp_is_depends_on_the_speed() -> None:
    """3 cm and 0.3 deg are noticed, 0.25 m and 2 deg make poses wrong."""
    found = {"lidar": explain(motions(late_s=0.03), recorded(), MOUNT, has_shift=True)}
    levels = [
        clock_findings(found, pace, "")[0].level
        for pace in (Pace(0.1, 0.01), Pace(2, 0.1), Pace(0.1, 1.5), Pace(10, 0))
    ]
    assert levels == ["ok", "warning", "error", "error"]
    late = clock_findings(found, Pace(2, 0.1), "")[0]
    assert "late against the poses" in late.text
    assert "ms earlier" in late.remedy
    assert late.values["late_ms"] == pytest.approx(30, abs=3)


def test_sensors_are_compared_with_each_other() -> None:
    curve = recorded()
    found = {
        "image": explain(motions(late_s=0.05), curve, MOUNT, has_shift=False),
        "lidar": explain(motions(late_s=0.05), curve, MOUNT, has_shift=True),
    }
    *own, together = clock_findings(found, Pace(2.0, 0.5), "")
    assert [finding.level for finding in own] == ["warning", "warning"]
    assert (together.level, together.topic) == ("ok", "clocks of image and lidar")


def test_a_curve_leads_through_its_poses_and_over_no_gap() -> None:
    times = np.concatenate([np.arange(0, 3, 0.1), np.arange(6, 9, 0.1)])
    curve = PoseCurve(times, [body_at(t) for t in times])
    position, rotation, known = curve.at([0.55, 4.0, 8.05, 20.0])
    assert known.tolist() == [True, False, True, False]
    for row, time_s in ((0, 0.55), (2, 8.05)):
        true = body_at(time_s)
        np.testing.assert_allclose(position[row], true.position_m, atol=2e-4)
        assert Rotation.from_matrix(rotation[row] @ true.rotation.T).magnitude() < 2e-3
    speeds, rates = curve.speeds()
    assert np.isnan(speeds[29])
    assert np.isnan(rates[29])
    assert np.nanmax(speeds) < 1.5
