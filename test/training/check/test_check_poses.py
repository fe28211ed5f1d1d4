# SPDX-License-Identifier: Apache-2.0
"""Jumps, drift and coverage of poses, for walks whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest
from test_check_measurements import room_scan

from helpers import ListSource
from training.check.findings import Loss
from training.check.jumps import jump_findings, suspects, without_jumps
from training.check.motions import Motion
from training.check.observing import Scan
from training.check.pose_curve import PoseCurve
from training.check.registration import surface_of
from training.check.revisits import agreement_finding, coverage_finding, spread
from training.check.sampling import Places, stretches_of
from vmloc_ros.core.frame import Frame, Sample
from vmloc_ros.core.geometry import Pose, rotation_vector_from_quaternion

MOUNT = Pose.from_xyz_rpy([0.2, 0.0, 1.0], [0.0, 0.1, 0.3])


def walk(count: int = 200, step_s: float = 0.1) -> list[Pose]:
    """A circle of 6 m radius at 1 m/s."""
    angles = np.arange(count) * step_s / 6
    return [Pose.from_xyz_rpy([6 * np.sin(a), 6 - 6 * np.cos(a), 0], [0, 0, a]) for a in angles]


def curve_of(poses: list[Pose], step_s: float = 0.1) -> PoseCurve:
    return PoseCurve(step_s * np.arange(len(poses)), poses)


def source_of(poses: list[Pose], step_s: float = 0.1) -> ListSource:
    samples = [Sample(Frame(round(1e18 + 1e9 * step_s * i)), pose) for i, pose in enumerate(poses)]
    return ListSource(samples, "walk", mounts={"lidar": MOUNT})


def moved(poses: list[Pose], row: int, by: Pose) -> list[Pose]:
    """The poses, from a row on displaced in the map."""
    return [by @ pose if i >= row else pose for i, pose in enumerate(poses)]


def seen_by_lidar(poses: list[Pose], first: int, last: int, number: int) -> list[Motion]:
    """Motions between poses, as an exact lidar measures them."""
    found = []
    for row in range(first, last):
        step = (poses[row] @ MOUNT).inverse() @ (poses[row + 1] @ MOUNT)
        turn = rotation_vector_from_quaternion(step.quaternion_wxyz)
        found.append(Motion(0.1 * row, 0.1 * (row + 1), step.position_m, turn, np.eye(6), number))
    return found


JUMP = Pose.from_xyz_rpy([0.6, -0.8, 0.0], [0, 0, 0.05])


def test_a_jump_that_the_lidar_did_not_see_is_an_error() -> None:
    true = walk()
    poses = moved(true, 90, JUMP)
    [jump] = suspects(curve_of(poses))
    assert (jump.row, jump.width) == (89, 1)
    probes = {"lidar": seen_by_lidar(true, jump.rows.first, jump.rows.end - 1, 7)}
    [finding] = jump_findings([jump], probes, 7, source_of(poses), {})
    assert finding.level == "error"
    assert "the lidar saw no such motion" in finding.text
    assert finding.values["time_s"] == pytest.approx(8.9)
    # At row 90 the position moves by the jump, and by the turn about the map's origin.
    expected = np.linalg.norm(poses[90].position_m - true[90].position_m)
    assert finding.values["jump_m"] == pytest.approx(expected, abs=0.01)
    assert finding.values["jump_deg"] == pytest.approx(np.degrees(0.05), abs=0.05)


def test_a_jerk_that_the_lidar_saw_is_no_jump() -> None:
    poses = moved(walk(), 90, JUMP)
    [jump] = suspects(curve_of(poses))
    probes = {"lidar": seen_by_lidar(poses, jump.rows.first, jump.rows.end - 1, 0)}
    [finding] = jump_findings([jump], probes, 0, source_of(poses), {})
    assert finding.level == "ok"
    assert "1 abrupt steps are real motion" in finding.text


def test_without_sensors_only_what_is_impossible_is_a_jump() -> None:
    """1 m within 0.1 s is ten times gravity; 6 cm may be a bump."""
    for metres, level in ((1.0, "error"), (0.06, "ok")):
        poses = moved(walk(), 90, Pose.from_xyz_rpy([metres, 0, 0], [0, 0, 0]))
        jumps = suspects(curve_of(poses))
        assert len(jumps) == 1
        assert jump_findings(jumps, {}, 0, source_of(poses), {})[0].level == level


def test_a_jump_of_slow_poses_is_found_in_fast_frames() -> None:
    """Poses at 10 Hz, interpolated at frames of 30 Hz: the jump takes three frames."""
    true = walk(300, 1 / 30)
    poses = [
        Pose(pose.position_m + min(max((row - 150) / 3, 0), 1) * np.array([0.8, 0.6, 0]), pose.quaternion_wxyz)
        for row, pose in enumerate(true)
    ]
    [jump] = suspects(curve_of(poses, 1 / 30))
    assert jump.row <= 150 < 153 <= jump.row + jump.width
    assert jump.loss.metres == pytest.approx(1.0, abs=0.05)
    smooth = without_jumps(poses, [jump])
    ends = smooth[0].inverse() @ smooth[-1], true[0].inverse() @ true[-1]
    assert np.linalg.norm(ends[0].position_m - ends[1].position_m) < 0.05


def test_smooth_walks_starts_and_noise_are_no_jumps() -> None:
    assert suspects(curve_of(walk())) == []
    rng = np.random.default_rng(0)
    noisy = [Pose(pose.position_m + rng.normal(0, 0.02, 3), pose.quaternion_wxyz) for pose in walk()]
    assert suspects(curve_of(noisy)) == []
    distances = np.cumsum(np.clip(np.arange(100) - 50, 0, 10) * 0.02)  # stands, then drives
    assert suspects(curve_of([Pose.from_xyz_rpy([x, 0, 0], [0, 0, 0]) for x in distances])) == []


def again_of(places: Places, reach_m: float = 0.5) -> np.ndarray:
    again = np.zeros(len(places.rows), bool)
    again[[i for i, _, _ in places.seen_again(reach_m, False)]] = True
    return again


def test_one_round_is_seen_once_and_two_rounds_are_seen_twice() -> None:
    once, twice = (Places.of([curve_of(walk(count))]) for count in (300, 760))  # a round takes 377 frames
    finding = coverage_finding(once, again_of(once), ["walk"], 0.5)
    assert finding.level == "warning"
    assert finding.values["seen_once_m"] == pytest.approx(29.9, abs=0.1)
    assert "the longest from x y z = 0.0 0.0 0.0" in finding.text
    assert coverage_finding(twice, again_of(twice), ["walk"], 0.5).level == "ok"


def test_two_recordings_of_one_way_show_it_twice_but_not_when_driven_backwards() -> None:
    poses = walk(250)
    backwards = [pose @ Pose.from_xyz_rpy([0, 0, 0], [0, 0, np.pi]) for pose in reversed(poses)]
    same = Places.of([curve_of(poses), curve_of(poses)])
    assert again_of(same).all()
    other = Places.of([curve_of(poses), curve_of(backwards)])
    assert not again_of(other).any()
    assert len(list(other.seen_again(0.5, any_heading=True))) == 500


def test_standing_still_is_not_coming_back() -> None:
    places = Places.of([curve_of([Pose.identity()] * 300)])
    assert not again_of(places).any()


def rooms_seen(offset: Pose, shuffled: bool = False) -> tuple[list, Places, list, list]:
    """Two recordings through a room, the second one's poses displaced; scans of six places in each."""
    poses = [Pose.from_xyz_rpy([0.8 * i - 4, 0.3 * i - 1, 0.0], [0, 0, 0.02 * i]) for i in range(12)]
    curves = [PoseCurve(np.arange(12) * 0.5, p) for p in (poses, [offset @ pose for pose in poses])]
    rows = range(1, 11, 2)
    scans = [
        {
            row: Scan(0.5 * row, surface_of(_scan(poses[row], 20 * seed + row, shuffled and seed == 1)), poses[row])
            for row in rows
        }
        for seed in range(2)
    ]
    return [(row, 12 + row) for row in rows], Places.of(curves), scans, curves


def _scan(pose: Pose, seed: int, elsewhere: bool) -> np.ndarray:
    """Of the room, or of a smaller one that stands askew."""
    points = room_scan(pose, seed)
    return 0.4 * points @ Pose.from_xyz_rpy([0, 0, 0], [0.4, 0.3, 0.8]).rotation if elsewhere else points


@pytest.mark.parametrize(("offset_m", "level"), [(0.0, "ok"), (0.12, "warning"), (0.5, "error")])
def test_places_that_poses_put_elsewhere_the_second_time_show_drift(offset_m: float, level: str) -> None:
    offset = Pose.from_xyz_rpy([offset_m, 0, 0], [0, 0, 0])
    pairs, places, scans, curves = rooms_seen(offset)
    finding = agreement_finding(pairs, places, scans, curves, [Pose.identity()] * 2, 0.9, Loss(0.002, 0.001))
    assert finding.level == level
    assert finding.values["median_m"] == pytest.approx(offset_m, abs=0.01)


def test_recordings_in_different_maps_do_not_match() -> None:
    pairs, places, scans, curves = rooms_seen(Pose.identity(), shuffled=True)
    finding = agreement_finding(pairs, places, scans, curves, [Pose.identity()] * 2, 0.9, Loss(0.002, 0.001))
    assert finding.level == "error"
    assert "do not match" in finding.text
    assert "in one map" in finding.remedy
    assert agreement_finding(pairs[:2], places, scans, curves, [Pose.identity()] * 2, 0.9, Loss(0.002, 0.001)) is None


def test_stretches_are_spread_over_the_recording_where_it_turns() -> None:
    """Of each minute ten seconds are restless."""
    times = np.arange(0, 300, 0.1)
    yaw = np.where(times % 60 > 50, 0.2 * np.sin(4 * times), 0.0)
    curve = PoseCurve(times, [Pose.from_xyz_rpy([t, 0, 0], [0, 0, y]) for t, y in zip(times, yaw, strict=True)])
    found = stretches_of(curve, 130)
    assert len(found) == 5
    for number, stretch in enumerate(found):
        middle_s = times[(stretch.first + stretch.end) // 2]
        assert 60 * number + 48 < middle_s < 60 * number + 60
        assert times[stretch.end - 1] - times[stretch.first] == pytest.approx(2.4, abs=0.2)
    assert sum(s.end - s.first for s in stretches_of(curve_of(walk(60)), 240)) == 60


def test_pairs_are_spread_and_the_most_alike_are_taken_once() -> None:
    pairs = [(i, 100 + i, abs(i % 10 - 3) / 10) for i in range(50)]
    pairs += [(j, i, apart) for i, j, apart in pairs]
    assert spread(pairs, 5) == [(10 * i + 3, 10 * i + 103) for i in range(5)]
    assert len(spread(pairs[:3], 5)) == 3
