# SPDX-License-Identifier: Apache-2.0
"""Filtering poses with odometry: closed forms, Monte Carlo consistency, outliers, resets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from helpers import yaw_pose
from training.evaluation.consistency import map_errors, nees
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.geometry import Pose, quaternion_exp, quaternion_multiply, rotation_angle_deg
from vmloc_ros.core.uncertainty import moved_covariance
from vmloc_ros.runtime.odometry_filter import FilterConfig, FilteredPose, OdometryFilter, UpdateResult, Verdict

MS = 1_000_000
SECOND = 1_000 * MS
CONFIG = FilterConfig()
INDEPENDENT = replace(CONFIG, correlation_m=1e-3, correlation_s=1e-3)  # fixes a step apart have uncorrelated errors
COVARIANCE = np.diag(np.square([0.5, 0.4, 0.1, 0.01, 0.01, 0.03]))
UTM = Pose.from_xyz_rpy([600_123.4, 5_700_456.7, 12.3], [0.01, -0.02, 2.5])


def disturbed(pose: Pose, noise: np.ndarray) -> Pose:
    """A pose moved by ``noise`` (6,) and turned about the fixed axes."""
    return Pose(pose.position_m + noise[:3], quaternion_multiply(quaternion_exp(noise[3:] / 2), pose.quaternion_wxyz))


def straight_drive(count: int, step_m: float = 0.5, seed: int = 0) -> list[tuple[int, Pose, Pose]]:
    """Stamps, odometry and fixes with white noise at 10 Hz on a straight line; odom is map."""
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal(np.zeros(6), COVARIANCE / 4, size=count, method="cholesky")
    poses = [yaw_pose(step_m * i) for i in range(count)]
    return [((i + 1) * 100 * MS, pose, disturbed(pose, noise[i])) for i, pose in enumerate(poses)]


def feed(smoother: OdometryFilter, drive: list[tuple[int, Pose, Pose]]) -> list[UpdateResult]:
    return [smoother.correct(*row, COVARIANCE) for row in drive]


def verdicts(results: list[UpdateResult]) -> list[Verdict]:
    return [result.verdict for result in results]


def assert_same(first: FilteredPose, second: FilteredPose, atol: float = 1e-9) -> None:
    assert first.stamp_ns == second.stamp_ns
    np.testing.assert_allclose(first.map_from_base.position_m, second.map_from_base.position_m, rtol=0, atol=atol)
    angle = rotation_angle_deg(first.map_from_base.quaternion_wxyz, second.map_from_base.quaternion_wxyz)
    assert angle <= np.degrees(atol)
    np.testing.assert_allclose(first.covariance, second.covariance, rtol=1e-6, atol=atol)


# Estimation


def test_on_a_line_the_filter_is_the_scalar_kalman_filter():
    """Closed form: the direction of travel is independent of the other states."""
    drive = straight_drive(30)
    offset_m, variance = drive[0][2].position_m[0] - drive[0][1].position_m[0], COVARIANCE[0, 0]
    results = feed(OdometryFilter(CONFIG), drive)
    correlation = np.exp(-0.5 / CONFIG.correlation_m - 0.1 / CONFIG.correlation_s)
    noise = COVARIANCE[0, 0] * (1 + correlation) / (1 - correlation)
    for (_, odom, fix), result in zip(drive[1:], results[1:], strict=True):
        variance += CONFIG.drift_m_per_sqrt_m**2 * 0.5 + CONFIG.drift_m_per_sqrt_s**2 * 0.1
        gain = variance / (variance + noise)
        offset_m += gain * (fix.position_m[0] - odom.position_m[0] - offset_m)
        variance *= 1 - gain
        assert result.filtered.map_from_base.position_m[0] - odom.position_m[0] == pytest.approx(offset_m, abs=0.01)
        assert result.filtered.covariance[0, 0] == pytest.approx(variance, rel=0.01)
    assert verdicts(results) == [Verdict.STARTED, *[Verdict.ACCEPTED] * 29]


def test_a_heading_error_moves_the_base_sideways_as_it_drives():
    smoother = OdometryFilter(FilterConfig(0.0, 0.0, 0.0, 0.0, 0.0))
    smoother.correct(SECOND, UTM, yaw_pose(3.0, yaw_deg=30.0), COVARIANCE)
    filtered = smoother.predict(3 * SECOND, UTM @ yaw_pose(20.0))
    direction = np.array([np.cos(np.radians(30)), np.sin(np.radians(30)), 0.0])
    np.testing.assert_allclose(filtered.map_from_base.position_m, [3, 0, 0] + 20 * direction, atol=1e-6)
    np.testing.assert_allclose(filtered.covariance, moved_covariance(COVARIANCE, 20 * direction), rtol=1e-5, atol=1e-8)


def random_walk(rng: np.random.Generator, config: FilterConfig, origin: Pose, count: int, is_correlated: bool):
    """True poses, odometry with the filter's drift, and fixes with errors of their covariance."""
    truth, odom = Pose(rng.normal(0, 50, 3), rng.normal(size=4)), origin
    factor, common = np.linalg.cholesky(COVARIANCE), rng.normal(size=6)
    for i in range(count):
        yield (i + 1) * 200 * MS, truth, odom, disturbed(truth, factor @ common)
        step = Pose.from_xyz_rpy([rng.uniform(0, 2), 0, 0], rng.normal(0, [0.01, 0.01, 0.15]))
        metres, radians = (
            np.linalg.norm(step.position_m),
            np.radians(rotation_angle_deg([1, 0, 0, 0], step.quaternion_wxyz)),
        )
        position = config.drift_m_per_sqrt_m**2 * metres + config.drift_m_per_sqrt_s**2 * 0.2
        attitude = config.drift_rad_per_sqrt_m**2 * metres + config.drift_rad_per_sqrt_s**2 * 0.2
        attitude += config.drift_rad_per_sqrt_rad**2 * radians
        truth = truth @ step
        odom = odom @ disturbed(step, rng.normal(0, np.sqrt([*[position] * 3, *[attitude] * 3])))
        kept = np.exp(-metres / config.correlation_m - 0.2 / config.correlation_s) if is_correlated else 0.0
        common = kept * common + np.sqrt(1 - kept**2) * rng.normal(size=6)


def final_nees(config: FilterConfig, origin: Pose, runs: int, count: int, is_correlated: bool = False) -> np.ndarray:
    """NEES ``(runs,)`` of the last filtered pose of each of many simulated drives."""
    truths, filtered = [], []
    for seed in range(runs):
        smoother = OdometryFilter(config)
        for stamp_ns, truth, odom, fix in random_walk(
            np.random.default_rng(seed), CONFIG, origin, count, is_correlated
        ):
            result = smoother.correct(stamp_ns, odom, fix, COVARIANCE)
            last = truth
        truths.append(last)
        filtered.append(result.filtered)
    errors = map_errors(truths, [pose.map_from_base for pose in filtered])
    return nees(errors, np.stack([pose.covariance for pose in filtered]))


@pytest.mark.parametrize("origin", [Pose.identity(), UTM], ids=["near", "far from the odometry's origin"])
def test_covariance_is_consistent_for_independent_fixes(origin):
    """Monte Carlo: the sum of the NEES of 100 drives is chi-square distributed; p-value of the test 1e-4."""
    config = replace(INDEPENDENT, gate_probability=1 - 1e-9)  # the gate cuts off none of the noise
    values = final_nees(config, origin, runs=100, count=12)
    low, high = chi2.ppf([5e-5, 1 - 5e-5], 6 * len(values))
    assert low < values.sum() < high


def test_covariance_is_consistent_for_correlated_fixes():
    """Monte Carlo: mean NEES near 6, approximately; a filter that assumes independence is far above."""
    correlated = final_nees(CONFIG, Pose.identity(), runs=40, count=50, is_correlated=True).mean()
    naive = final_nees(INDEPENDENT, Pose.identity(), runs=20, count=50, is_correlated=True).mean()
    assert 3.5 < correlated < 8
    assert naive > 12


def test_repeated_equal_fixes_of_a_parked_robot_shrink_the_covariance_little():
    smoother = OdometryFilter(CONFIG)
    for i in range(1, 601):
        result = smoother.correct(i * 100 * MS, yaw_pose(3.0), yaw_pose(5.0), COVARIANCE)
    ratio = np.sqrt(np.diag(result.filtered.covariance) / np.diag(COVARIANCE))
    assert ratio.min() > 0.4
    assert ratio.max() < 2  # time adds uncertainty and the fixes bound it


def test_filtered_errors_are_smaller_than_those_of_the_fixes():
    drive = straight_drive(100)
    results = feed(OdometryFilter(CONFIG), drive)
    truth = [odom for _, odom, _ in drive]
    raw = map_errors(truth, [fix for _, _, fix in drive])[20:]
    filtered = map_errors(truth, [result.filtered.map_from_base for result in results])[20:]
    assert np.all(np.square(filtered).mean(axis=0) < 0.3 * np.square(raw).mean(axis=0))


# Frames


@pytest.mark.parametrize("origin", [yaw_pose(3.0, 4.0, 170.0), UTM], ids=["near", "far"])
def test_another_odometry_frame_changes_nothing(origin):
    smoother, moved = OdometryFilter(CONFIG), OdometryFilter(CONFIG)
    for stamp_ns, odom, fix in straight_drive(20):
        smoother.correct(stamp_ns, odom, fix, COVARIANCE)
        moved.correct(stamp_ns, origin @ odom, fix, COVARIANCE)
    later = odom @ yaw_pose(1.0, yaw_deg=20.0)
    assert_same(smoother.predict(3 * SECOND, later), moved.predict(3 * SECOND, origin @ later), atol=1e-6)


def test_another_map_frame_only_transforms_the_trajectory():
    other_from_map = Pose(np.array([600_000.0, 5_700_000.0, 30.0]), np.array([0.3, -0.5, 0.2, 0.8]))
    turn = np.kron(np.eye(2), other_from_map.rotation)
    smoother, moved = OdometryFilter(CONFIG), OdometryFilter(CONFIG)
    for stamp_ns, odom, fix in straight_drive(20):
        here = smoother.correct(stamp_ns, odom, fix, COVARIANCE).filtered
        there = moved.correct(stamp_ns, odom, other_from_map @ fix, turn @ COVARIANCE @ turn.T).filtered
        expected = FilteredPose(stamp_ns, other_from_map @ here.map_from_base, turn @ here.covariance @ turn.T)
        assert_same(there, expected, atol=1e-6)


def test_headings_around_180_degrees_are_averaged_there():
    smoother = OdometryFilter(CONFIG)
    for i in range(1, 41):
        fix = yaw_pose(-0.5 * i, yaw_deg=179.5 if i % 2 else -179.5)
        result = smoother.correct(i * 100 * MS, yaw_pose(0.5 * i), fix, COVARIANCE)
    assert result.verdict is Verdict.ACCEPTED
    backwards = yaw_pose(0.0, yaw_deg=180.0).quaternion_wxyz
    assert rotation_angle_deg(result.filtered.map_from_base.quaternion_wxyz, backwards) < 0.4


# Late fixes


def test_a_late_fix_has_the_effect_of_one_in_time():
    in_time, late = OdometryFilter(CONFIG), OdometryFilter(CONFIG)
    drive = straight_drive(20)
    for number, row in enumerate(drive):
        in_time.correct(*row, COVARIANCE)
        late.predict(*drive[number][:2])
        if number >= 3:
            late.correct(*drive[number - 3], COVARIANCE)
    for row in drive[-3:]:
        late.correct(*row, COVARIANCE)
    now = (drive[-1][0] + 300 * MS, yaw_pose(11.0))
    assert_same(late.predict(*now), in_time.predict(*now))


@pytest.mark.parametrize("delay_ns", [0, 50 * MS])
def test_a_fix_that_is_not_newer_than_the_one_before_is_rejected(delay_ns):
    smoother, drive = OdometryFilter(CONFIG), straight_drive(5)
    before = feed(smoother, drive)[-1].filtered
    result = smoother.correct(drive[-1][0] - delay_ns, drive[-1][1], yaw_pose(2.3), COVARIANCE)
    assert (result.verdict, result.reason) == (Verdict.REJECTED, "not newer than the fix before")
    assert_same(smoother.predict(*drive[-1][:2]), before)


# Outliers


@pytest.mark.parametrize("probability", [0.95, 0.999])
def test_the_gate_is_the_chi_square_quantile(probability):
    for scale, verdict in ((1 - 1e-6, Verdict.ACCEPTED), (1 + 1e-6, Verdict.REJECTED)):
        smoother = OdometryFilter(replace(CONFIG, gate_probability=probability))
        smoother.correct(SECOND, yaw_pose(0.0), yaw_pose(0.0), COVARIANCE)
        variance = smoother.predict(2 * SECOND, yaw_pose(0.0)).covariance[0, 0] + COVARIANCE[0, 0]
        distance = scale * np.sqrt(chi2.ppf(probability, 6))
        result = smoother.correct(2 * SECOND, yaw_pose(0.0), yaw_pose(distance * np.sqrt(variance)), COVARIANCE)
        assert result.verdict is verdict
        assert result.distance == pytest.approx(distance)


def test_single_outliers_have_no_effect():
    clean, tested = OdometryFilter(CONFIG), OdometryFilter(CONFIG)
    rng = np.random.default_rng(0)
    for number, (stamp_ns, odom, fix) in enumerate(straight_drive(60)):
        clean.correct(stamp_ns, odom, fix, COVARIANCE)
        tested.correct(stamp_ns, odom, fix, COVARIANCE)
        if number % 3 == 2:
            outlier = disturbed(fix, rng.normal(0, [30, 30, 0, 0, 0, 2]))
            assert tested.correct(stamp_ns + 10 * MS, odom, outlier, COVARIANCE).verdict is Verdict.REJECTED
    assert_same(tested.predict(7 * SECOND, odom), clean.predict(7 * SECOND, odom))


@pytest.mark.parametrize("start", [0, 30], ids=["the first fix was an outlier", "the robot was carried away"])
def test_rejected_fixes_that_agree_take_over(start):
    smoother = OdometryFilter(CONFIG)
    elsewhere = yaw_pose(-40.0, 25.0, 120.0)
    drive = straight_drive(start + 20)
    if start == 0:
        smoother.correct(50 * MS, drive[0][1], elsewhere.inverse(), COVARIANCE)
    results = feed(smoother, drive[:start])
    results += feed(smoother, [(stamp_ns, odom, elsewhere @ fix) for stamp_ns, odom, fix in drive[start:]])
    wrong = CONFIG.restart_after - 1
    expected = [Verdict.REJECTED] * wrong + [Verdict.RESTARTED] + [Verdict.ACCEPTED] * (19 - wrong)
    assert verdicts(results[-20:]) == expected
    assert results[start + wrong].reason == "10 rejected fixes in a row agree with each other"
    truth = elsewhere @ drive[-1][1]
    assert np.linalg.norm(results[-1].filtered.map_from_base.position_m - truth.position_m) < 0.5


def test_rejected_fixes_that_disagree_never_take_over():
    smoother = OdometryFilter(CONFIG)
    feed(smoother, straight_drive(5))
    rng = np.random.default_rng(1)
    scattered = [
        smoother.correct(i * 100 * MS, yaw_pose(2.0), yaw_pose(*rng.uniform(50, 500, 2)), COVARIANCE)
        for i in range(6, 100)
    ]
    assert set(verdicts(scattered)) == {Verdict.REJECTED}


def test_an_accepted_fix_ends_the_row_of_rejected_ones():
    smoother = OdometryFilter(CONFIG)
    results = []
    for number, (stamp_ns, odom, fix) in enumerate(straight_drive(60)):
        is_good = number % CONFIG.restart_after == 0
        results.append(smoother.correct(stamp_ns, odom, fix if is_good else yaw_pose(90.0) @ fix, COVARIANCE))
    assert Verdict.RESTARTED not in verdicts(results)


# Odometry that jumps

JUMPS = {
    "the odometry's stamps went back by 7.0 s": (3 * SECOND, yaw_pose(5.0)),
    "the odometry jumped by 95.0 m within 0.10 s": (10_100 * MS, yaw_pose(100.0)),
    "the odometry turned by 90 deg within 0.10 s": (10_100 * MS, yaw_pose(5.0, yaw_deg=90.0)),
}


@pytest.mark.parametrize("reason", JUMPS)
@pytest.mark.parametrize("predicts", [False, True])
def test_a_jump_of_the_odometry_starts_anew_with_a_reason(reason, predicts):
    smoother = OdometryFilter(CONFIG)
    assert smoother.predict(SECOND, yaw_pose(0.0)) is None
    first = smoother.correct(10 * SECOND, yaw_pose(5.0), yaw_pose(8.0), COVARIANCE)
    assert (first.verdict, first.reason) == (Verdict.STARTED, "first fix")
    if predicts:
        assert smoother.predict(*JUMPS[reason]) is None
    result = smoother.correct(*JUMPS[reason], yaw_pose(-4.0), COVARIANCE)
    assert (result.verdict, result.reason) == (Verdict.STARTED, reason)
    np.testing.assert_allclose(result.filtered.covariance, COVARIANCE)


def test_fast_driving_over_jittering_stamps_is_no_jump():
    smoother = OdometryFilter(CONFIG)
    smoother.correct(SECOND, yaw_pose(0.0), yaw_pose(0.0), COVARIANCE)
    assert smoother.predict(SECOND + MS, yaw_pose(0.3, yaw_deg=3.0)) is not None
    assert smoother.predict(2 * SECOND, yaw_pose(50.0, yaw_deg=180.0)) is not None
    assert smoother.predict(SECOND - 20 * MS, yaw_pose(-0.5)) is not None


# Invalid arguments


@pytest.mark.parametrize(
    "covariance",
    [np.zeros((6, 6)), np.full((6, 6), np.nan), -COVARIANCE, np.eye(3)],
    ids=["zero", "nan", "minus", "3x3"],
)
def test_an_invalid_covariance_is_an_error(covariance):
    with pytest.raises(ValueError, match="6x6, finite and positive definite"):
        OdometryFilter(CONFIG).correct(0, yaw_pose(0.0), yaw_pose(0.0), covariance)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("drift_m_per_sqrt_m", -0.1, "finite and not negative"),
        ("drift_rad_per_sqrt_s", np.nan, "finite and not negative"),
        ("gate_probability", 1.0, "between 0 and 1"),
        ("correlation_m", 0.0, "finite and positive"),
        ("restart_after", 0, "finite and positive"),
        ("max_speed_m_s", np.inf, "finite and positive"),
    ],
)
def test_invalid_settings_are_an_error(name, value, expected):
    with pytest.raises(ConfigError, match=f"{name} of the odometry filter must be {expected}, got {value}"):
        replace(CONFIG, **{name: value})
