# SPDX-License-Identifier: Apache-2.0
"""What is seen more than once, and whether the poses then put it at the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.check.findings import NOTICEABLE, SIGNIFICANT, Finding, Loss, level_of
from training.check.observing import Scan
from training.check.pose_curve import PoseCurve
from training.check.registration import Registered, register, share_on
from training.check.sampling import Places
from vmloc_ros.core.geometry import Pose, quaternion_from_matrix, rotation_vector_from_quaternion

Array = NDArray[np.float64]

PAIRS = 16  # of scans of one place that are compared
_REACH_SHARE = 0.25  # of what is typically seen: from farther away the view is another
_LEAST_REACH_M, _USUAL_RANGE_M = 0.25, 4.0
_ENOUGH, _HALF = 0.8, 0.5
_FARTHEST = Loss(1.0, 0.2)  # from where the poses put it, a scan that is registered is registered by chance
_LEAST_SHARE = 0.4  # of the share of points that lie on planes from one scan to the next
_FEWEST_PAIRS = 4


def reach_of(range_m: float | None) -> float:
    """How far apart two views of one place may be, metres."""
    return max(_LEAST_REACH_M, _REACH_SHARE * (range_m or _USUAL_RANGE_M))


def spread(pairs: Sequence[tuple[int, int, float]], count: int) -> list[tuple[int, int]]:
    """So many pairs of places: the most alike of each equal part, none twice the other way round.

    Args:
        pairs: see :meth:`Places.seen_again`.
    """
    unique = list({(min(i, j), max(i, j)): apart for i, j, apart in pairs}.items())
    parts = [part for part in np.array_split(np.arange(len(unique)), count) if len(part)]
    return [min((unique[number] for number in part), key=lambda one: one[1])[0] for part in parts]


def coverage_finding(places: Places, again: NDArray[np.bool_], names: Sequence[str], reach_m: float) -> Finding:
    """Which share of the frames shows a place that is seen at another time, too.

    Args:
        again: ``(N,)`` bool: the place is seen again.
        names: of the recordings.
    """
    share = float(again.mean())
    steps = np.linalg.norm(np.diff(places.positions_m, axis=0, prepend=places.positions_m[:1]), axis=1)
    steps[np.flatnonzero(np.diff(places.recordings, prepend=-1))] = 0.0
    once_m = float(steps[~again].sum())
    values = {"share_seen_again": share, "seen_once_m": once_m, "total_m": float(steps.sum()), "reach_m": reach_m}
    text = f"{share:.0%} of {len(again)} frames show a place that is seen at another time too (within {reach_m:.1f} m)"
    if share >= _ENOUGH:
        return Finding("ok", "revisits", text, "", values)
    first, end = _longest(~again, places.recordings)
    start, stop = places.positions_m[first], places.positions_m[end - 1]
    text += (
        f"; {once_m:.0f} of {steps.sum():.0f} m are driven once, the longest from x y z = {_text(start)} to "
        f"{_text(stop)} m "
        f"in {names[int(places.recordings[first])]}"
    )
    values |= {
        f"longest_{name}_{axis}_m": float(x)
        for name, p in (("from", start), ("to", stop))
        for axis, x in zip("xyz", p, strict=True)
    }
    remedy = (
        "drive there once more, at another time and with the same headings: what is seen once can be trained on, but "
        "neither held out to measure errors nor used to learn when to be unsure"
    )
    return Finding("note" if share >= _HALF else "warning", "revisits", text, remedy, values)


def _text(position: Array) -> str:
    return " ".join(f"{x:.1f}" for x in position)


def _longest(once: NDArray[np.bool_], recordings: NDArray[np.int64]) -> tuple[int, int]:
    """First and end of the longest run of rows of one recording."""
    keys = np.where(once, recordings + 1, 0)
    ends = np.concatenate([np.flatnonzero(np.diff(keys)) + 1, [len(keys)]])
    starts = np.concatenate([[0], ends[:-1]])
    lengths = np.where(keys[starts] > 0, ends - starts, 0)
    best = int(lengths.argmax())
    return int(starts[best]), int(ends[best])


def agreement_finding(
    pairs: Sequence[tuple[int, int]],
    places: Places,
    scans: Sequence[Mapping[int, Scan]],
    curves: Sequence[PoseCurve],
    mounts: Sequence[Pose],
    usual_share: float,
    usual: Loss,
) -> Finding | None:
    """Whether scans of one place at two times lie on each other by their poses; None without scans of such places.

    Args:
        pairs: of numbers of places.
        scans: by recording and row.
        curves: of the body, by recording.
        mounts: of the sensor that took the scans, by recording.
        usual_share: of a scan's points that lie on the planes of the one before it.
        usual: by how much poses and registered scans differ where poses do not drift.
    """
    apart, unmatched = [], 0
    for one, other in pairs:
        found = [_scan(number, places, scans, curves, mounts) for number in (one, other)]
        if found[0] is None or found[1] is None:
            continue
        (first, first_pose), (second, second_pose) = found
        start = first_pose.inverse() @ second_pose
        matched = register(first.surface, second.surface, start)
        before = share_on(first.surface, second.surface, start)
        if matched is None or matched.share <= before:
            # No place is better than where the poses put it.
            difference, share = (0.0, 0.0, 0.0), before
        else:
            difference, share = _difference(start, matched, usual), matched.share
        if share < _LEAST_SHARE * usual_share or Loss(*difference[:2]).exceeds(_FARTHEST):
            unmatched += 1
        else:
            apart.append(difference)
    count = len(apart) + unmatched
    if count < _FEWEST_PAIRS:
        return None
    values = {"pairs": count, "unmatched": unmatched}
    if unmatched > count / 2:
        text = (
            f"scans of {unmatched} of {count} places that the poses call the same do not match within "
            f"{_FARTHEST.metres:g} m and "
            f"{np.degrees(_FARTHEST.radians):.0f} deg"
        )
        remedy = (
            "are the recordings' poses in one map? A SLAM that starts anew begins a new one: localize later "
            "drives in the "
            "first one's map, or join the maps. Or do the poses drift by metres? Close loops"
        )
        return Finding("error", "poses at revisits", text, remedy, values)
    losses = np.array(apart)
    loss = Loss(*(float(x) for x in np.median(losses[:, :2], axis=0)))
    worst = Loss(*(float(x) for x in losses[:, :2].max(axis=0)))
    significant = float(np.median(losses[:, 2])) > SIGNIFICANT
    values |= {
        "median_m": loss.metres,
        "median_deg": float(np.degrees(loss.radians)),
        "worst_m": worst.metres,
        "worst_deg": float(np.degrees(worst.radians)),
    }
    text = f"scans of {count} places seen at two times lie {loss} apart (median; at worst {worst}) by their poses"
    level = level_of(loss) if significant else "ok"
    if level == "ok":
        return Finding("ok", "poses at revisits", text, "", values)
    remedy = (
        "the poses drift: close loops and optimize (SLAM offline over all recordings at once), or take poses "
        "that do not "
        "drift (motion capture, RTK); the model averages what the map contradicts"
    )
    return Finding(level, "poses at revisits", text, remedy, values)


def _scan(
    number: int,
    places: Places,
    scans: Sequence[Mapping[int, Scan]],
    curves: Sequence[PoseCurve],
    mounts: Sequence[Pose],
) -> tuple[Scan, Pose] | None:
    """A place's scan, and where the poses put it."""
    recording = int(places.recordings[number])
    scan = scans[recording].get(int(places.rows[number]))
    if scan is None:
        return None
    p, R, known = curves[recording].at([scan.time_s])
    if not known[0]:
        return None
    return scan, Pose(p[0], quaternion_from_matrix(R[0])) @ mounts[recording]


def _difference(start: Pose, matched: Registered, usual: Loss) -> tuple[float, float, float]:
    """Metres and radians between two poses, and how many standard deviations that is, in the directions seen."""
    # What the planes leave open stays where it was: only directions that they determine count.
    shift = matched.first_from_second.position_m - start.position_m
    turn = rotation_vector_from_quaternion((matched.first_from_second @ start.inverse()).quaternion_wxyz)
    vector = np.concatenate([shift, turn])
    least = Loss(max(usual.metres, NOTICEABLE.metres / 10), max(usual.radians, NOTICEABLE.radians / 10))
    covariance = matched.covariance + np.diag(np.repeat([least.metres, least.radians], 3) ** 2)
    size = float(np.sqrt(vector @ np.linalg.solve(covariance, vector) / 2))  # of shift and turn
    return float(np.linalg.norm(shift)), float(np.linalg.norm(turn)), size
