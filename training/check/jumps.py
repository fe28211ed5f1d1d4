# SPDX-License-Identifier: Apache-2.0
"""Jumps of recorded poses: steps that neither the steps around them nor the sensors confirm.

The poses alone only raise a suspicion, as a robot may start, brake or hit something. What a lidar, depth camera or
camera measured over the same step decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.check.findings import NOTICEABLE, Finding, Level, Loss, level_of
from training.check.motions import Motion
from training.check.pose_curve import GAP_S, PoseCurve
from training.check.sampling import Stretch
from training.sources.base import Source
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.geometry import (
    Pose,
    interpolate_poses,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_exp,
    quaternion_multiply,
    rotation_vector_from_quaternion,
)

Array = NDArray[np.float64]

_WIDTHS = (1, 2, 3, 5, 8)  # frames over which a jump may be spread: poses of a low rate are interpolated
_LONGEST_S = 0.25
_OUTLYING = 8.0  # robust standard deviations of the differences between neighbouring steps
_USUAL_M_S2, _USUAL_RAD_S2 = 3.0, 3.0  # what robots do when they start and brake
_WIDER = 0.9  # the same jump is found with several widths; the narrowest says the most
_MOST = 6
_IMPOSSIBLE_M_S2 = 30.0  # three times gravity
_IMPOSSIBLE_RAD_S2 = 100.0
_CONFIRMED = 0.5  # share of the jump that the sensors did not see


@dataclass(frozen=True, slots=True, eq=False)
class Suspect:
    """A step that may be a jump: from the pose in ``row`` to the one ``width`` rows later.

    Attributes:
        loss: how far the step is from the steps around it.
        expected: the step ``body_from_later_body`` that those let expect.
        seconds: how long it took.
    """

    row: int
    width: int
    loss: Loss
    expected: Pose
    seconds: float

    @property
    def rows(self) -> Stretch:
        """Rows to look at."""
        return Stretch(max(self.row - 1, 0), self.row + self.width + 2)


def suspects(curve: PoseCurve) -> list[Suspect]:
    """The worst steps of the poses, in the order of time."""
    found: list[Suspect] = []
    for width in _WIDTHS:
        found += _suspects_of(curve, width)
    found.sort(key=_badness, reverse=True)
    kept: list[Suspect] = []
    for suspect in found:
        apart = [
            suspect.row > other.row + 2 * other.width or other.row > suspect.row + 2 * suspect.width for other in kept
        ]
        if all(apart) and len(kept) < _MOST:
            kept.append(suspect)
    return sorted(kept, key=lambda s: s.row)


def _badness(suspect: Suspect) -> float:
    loss = suspect.loss.metres / NOTICEABLE.metres + suspect.loss.radians / NOTICEABLE.radians
    return loss * _WIDER ** _WIDTHS.index(suspect.width)


def _suspects_of(curve: PoseCurve, width: int) -> list[Suspect]:
    times, found = curve.times_s, []
    steps = np.diff(times)
    if not len(steps) or (width > 1 and width * float(np.median(steps)) > _LONGEST_S):
        return []
    first = np.arange(len(times) - width)
    seconds = times[first + width] - times[first]
    shifts, turns = _steps(curve, width)
    rates = np.concatenate([shifts, turns], axis=1) / seconds[:, None].clip(1e-6)
    rows = np.arange(width, len(first) - width)
    widest = np.maximum(seconds[rows], np.maximum(seconds[rows - width], seconds[rows + width]))
    rows = rows[widest < min(GAP_S, 2 * _LONGEST_S)]
    if len(rows) < 8:
        return []
    around = np.stack([rates[rows - width], rates[rows + width]])
    apart = np.abs(rates[rows] - around) * seconds[rows][:, None]
    metres, radians = np.linalg.norm(apart[..., :3], axis=2), np.linalg.norm(apart[..., 3:], axis=2)
    nearer = np.argmin(metres / NOTICEABLE.metres + radians / NOTICEABLE.radians, axis=0)
    metres, radians = metres.min(axis=0), radians.min(axis=0)
    square = seconds[rows] ** 2
    far = metres > np.maximum(_OUTLYING * 1.4826 * np.median(metres), NOTICEABLE.metres).clip(_USUAL_M_S2 * square)
    least_turn = np.maximum(_OUTLYING * 1.4826 * np.median(radians), 2 * NOTICEABLE.radians)
    turned = radians > least_turn.clip(_USUAL_RAD_S2 * square)
    for place in np.flatnonzero(far | turned):
        row = int(rows[place])
        expected = rates[row - width if nearer[place] == 0 else row + width] * seconds[row]
        pose = Pose(expected[:3], quaternion_exp(expected[3:] / 2))
        loss = Loss(float(metres[place]), float(radians[place]))
        found.append(Suspect(row, width, loss, pose, float(seconds[row])))
    return found


def _steps(curve: PoseCurve, width: int) -> tuple[Array, Array]:
    """Shift and turn ``(N - width, 3)`` of the body over so many rows, in its own axes."""
    p, q = curve.positions_m, curve.quaternions_wxyz
    shifts = np.einsum("nji,nj->ni", matrix_from_quaternion(q[:-width]), p[width:] - p[:-width])
    turns = rotation_vector_from_quaternion(quaternion_multiply(quaternion_conjugate(q[:-width]), q[width:]))
    return shifts, turns


def without_jumps(poses: Sequence[Pose], jumps: Sequence[Suspect]) -> list[Pose]:
    """The poses with every suspected step replaced by the expected one; what follows moves along."""
    repaired, moved = [], Pose.identity()
    by_row = {jump.row: jump for jump in jumps}
    smooth: dict[int, Pose] = {}
    for row, pose in enumerate(poses):
        here = smooth.pop(row, None) or moved @ pose
        repaired.append(here)
        if (jump := by_row.get(row)) is not None and row + jump.width < len(poses):
            vector = rotation_vector_from_quaternion(jump.expected.quaternion_wxyz)
            for step in range(1, jump.width + 1):
                share = step / jump.width
                part = Pose(jump.expected.position_m * share, quaternion_exp(vector * share / 2))
                smooth[row + step] = here @ part
            moved = smooth[row + jump.width] @ poses[row + jump.width].inverse()
    return repaired


def jump_findings(
    jumps: Sequence[Suspect],
    probes: Mapping[str, Sequence[Motion]],
    first_probe: int,
    source: Source,
    late_s: Mapping[str, float],
) -> list[Finding]:
    """Jumps that the sensors confirm, or that no robot can make.

    Args:
        probes: motions that sensors measured around the suspects, by sensor.
        first_probe: number of the first suspect's stretch.
        late_s: by sensor, by how much its stamps are late.
    """
    found = []
    poses, stamps_ns = source.poses(), source.stamps_ns()
    for number, jump in enumerate(jumps, start=first_probe):
        own = {name: [m for m in motions if m.stretch == number] for name, motions in probes.items()}
        verdict = _verdict(jump, own, source, late_s)
        if verdict is None:
            continue
        level, witness = verdict
        time_s = (stamps_ns[jump.row] - stamps_ns[0]) * 1e-9
        position = poses[jump.row].position_m
        text = (
            f"the poses jump by {jump.loss} within {jump.seconds:.2f} s, {time_s:.2f} s after the first frame; "
            f"{witness}"
        )
        remedy = (
            "take poses of a finished map (SLAM after loop closure and optimization, played back), not those that SLAM "
            "corrects while it runs; or cut the recording there"
        )
        values = {
            "time_s": time_s,
            "stamp_ns": str(stamps_ns[jump.row]),
            "jump_m": jump.loss.metres,
            "jump_deg": float(np.degrees(jump.loss.radians)),
            "x_m": float(position[0]),
            "y_m": float(position[1]),
            "z_m": float(position[2]),
        }
        found.append(Finding(level, "pose jumps", text, remedy, values, source.name))
    if not found:
        checked = f"; {len(jumps)} abrupt steps are real motion, as the sensors saw it" if jumps else ""
        found.append(Finding("ok", "pose jumps", f"none{checked}", "", {"suspects": len(jumps)}, source.name))
    return found


def _verdict(
    jump: Suspect, probes: Mapping[str, Sequence[Motion]], source: Source, late_s: Mapping[str, float]
) -> tuple[Level, str] | None:
    """Level and witness; None where it is no jump."""
    for sensor, motions in probes.items():
        missed = _missed(motions, source, source.mounts.get(sensor, Pose.identity()), late_s.get(sensor, 0.0))
        if missed is None:
            continue
        if sensor == IMAGE:
            if jump.loss.radians <= 2 * NOTICEABLE.radians:
                continue  # pictures do not know how far the camera moved
            confirmed = missed.radians > _CONFIRMED * jump.loss.radians
        else:
            confirmed = (
                missed.metres > _CONFIRMED * jump.loss.metres > 0 and missed.metres > NOTICEABLE.metres
            ) or missed.radians > max(_CONFIRMED * jump.loss.radians, NOTICEABLE.radians)
        if not confirmed:
            return None
        return level_of(jump.loss), f"the {sensor} saw no such motion (poses and {sensor} differ by {missed})"
    possible = (
        jump.loss.metres < _IMPOSSIBLE_M_S2 * jump.seconds**2
        and jump.loss.radians < _IMPOSSIBLE_RAD_S2 * jump.seconds**2
    )
    if possible:
        return None
    return level_of(jump.loss), "no robot moves like this"


def _missed(motions: Sequence[Motion], source: Source, mount: Pose, late_s: float) -> Loss | None:
    """How far the poses' and the sensor's motions are apart, summed over the motions around a step."""
    shift, turn, count = np.zeros(3), np.zeros(3), 0
    poses, stamps = source.poses(), np.asarray(source.stamps_ns(), np.int64)
    for motion in motions:
        times = [stamps[0] + round((t - late_s) * 1e9) for t in (motion.first_s, motion.second_s)]
        low, high = np.searchsorted(stamps, times[0]) - 1, np.searchsorted(stamps, times[1]) + 1
        window = slice(max(int(low), 0), int(high) + 1)
        first, second = interpolate_poses(stamps[window], poses[window], times)
        if first is None or second is None:
            continue
        step = (first @ mount).inverse() @ (second @ mount)
        shift += step.position_m - motion.shift_m
        turn += rotation_vector_from_quaternion(step.quaternion_wxyz) - motion.turn_rad
        count += 1
    return Loss(float(np.linalg.norm(shift)), float(np.linalg.norm(turn))) if count else None
