# SPDX-License-Identifier: Apache-2.0
"""Which frames of a recording are looked at: stretches spread over all of it, where it turns; jumps; places seen twice.

Stretches, because clocks show in how motion changes from frame to frame. Reading them takes as long for an hour as for
a minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from training.check.pose_curve import PoseCurve

Array = NDArray[np.float64]

STEP_S = 0.09  # frames nearer in time than this add little
_STRETCH_S = 2.4
_ROUND_TRIP_S, _ROUND_TRIP_M = 10.0, 2.0  # a place is seen again after so long, and so long a way
_SAME_VIEW_RAD = float(np.radians(30.0))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of frames in a row: from ``first`` to before ``end``."""

    first: int
    end: int


def stretches_of(curve: PoseCurve, frames: int) -> list[Stretch]:
    """Stretches that hold about so many frames :data:`STEP_S` apart: one in each equal part, where it turns the most.

    Args:
        curve: the recording's poses, one for each frame.
        frames: how many to look at.
    """
    times = curve.times_s
    if len(times) < 3:
        return [Stretch(0, len(times))] if len(times) else []
    count = max(1, round(frames * STEP_S / _STRETCH_S))
    if (times[-1] - times[0]) <= 1.2 * count * _STRETCH_S:
        ends = np.searchsorted(times, np.arange(times[0], times[-1] + _STRETCH_S, _STRETCH_S))
    else:
        ends = np.linspace(0, len(times), count + 1).astype(int)
    restlessness = _restlessness(curve)
    return [_best(times, restlessness, first, end) for first, end in pairwise(ends) if end > first]


def _restlessness(curve: PoseCurve) -> Array:
    """``(N,)`` by how much the rate of rotation changes from each frame to the next."""
    rates = np.nan_to_num(curve.speeds()[1]).clip(max=3.0)
    return np.concatenate([[0.0], np.abs(np.diff(rates, prepend=rates[:1]))])


def _best(times: Array, restlessness: Array, first: int, end: int) -> Stretch:
    """The window of a part in which the rate of rotation changes the most."""
    if times[end - 1] - times[first] <= _STRETCH_S:
        return Stretch(first, end)
    sums = np.concatenate([[0.0], np.cumsum(restlessness)])
    starts = np.arange(first, end)
    stops = np.minimum(np.searchsorted(times, times[starts] + _STRETCH_S), end)
    starts, stops = starts[stops < end], stops[stops < end]
    if not len(starts):
        return Stretch(first, end)
    best = int((sums[stops] - sums[starts]).argmax())
    return Stretch(int(starts[best]), int(stops[best]))


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where and when all frames of several recordings were taken.

    Attributes:
        recordings: ``(N,)`` number of the recording.
        rows: ``(N,)`` row in it.
        times_s: ``(N,)`` in it.
        travelled_m: ``(N,)`` way travelled in it until then.
        positions_m: ``(N, 3)``
        quaternions_wxyz: ``(N, 4)`` of the body.
    """

    recordings: NDArray[np.int64]
    rows: NDArray[np.int64]
    times_s: Array
    travelled_m: Array
    positions_m: Array
    quaternions_wxyz: Array

    @staticmethod
    def of(curves: Sequence[PoseCurve]) -> Places:
        steps = [np.linalg.norm(np.diff(c.positions_m, axis=0, prepend=c.positions_m[:1]), axis=1) for c in curves]
        return Places(
            np.repeat(np.arange(len(curves)), [len(c.times_s) for c in curves]),
            np.concatenate([np.arange(len(c.times_s)) for c in curves]),
            np.concatenate([c.times_s for c in curves]),
            np.concatenate([np.cumsum(step) for step in steps]),
            np.concatenate([c.positions_m for c in curves]),
            np.concatenate([c.quaternions_wxyz for c in curves]),
        )

    def seen_again(self, reach_m: float, any_heading: bool) -> Iterator[tuple[int, int, float]]:
        """Each place ``i`` that has been passed at another time, the most alike ``j``, and how alike: 0 is the same
        view.

        Args:
            reach_m: farther apart is another view.
            any_heading: the sensors see all around.
        """
        tree = cKDTree(self.positions_m)
        for i, position in enumerate(self.positions_m):
            near = np.asarray(tree.query_ball_point(position, reach_m))
            cosines = np.abs(self.quaternions_wxyz[near] @ self.quaternions_wxyz[i]).clip(max=1.0)
            turned = np.zeros(len(near)) if any_heading else 2 * np.arccos(cosines) / _SAME_VIEW_RAD
            other = self.recordings[near] != self.recordings[i]
            later = np.abs(self.times_s[near] - self.times_s[i]) > _ROUND_TRIP_S
            moved = np.abs(self.travelled_m[near] - self.travelled_m[i]) > _ROUND_TRIP_M
            (fitting,) = np.nonzero((turned <= 1) & (other | (later & moved)))
            if len(fitting):
                apart = np.linalg.norm(self.positions_m[near[fitting]] - position, axis=1) / reach_m + turned[fitting]
                yield i, int(near[fitting[apart.argmin()]]), float(apart.min())

    def thinned(self, most: int) -> Places:
        """At most so many of the places, evenly spread."""
        step = -(-len(self.rows) // most)
        return Places(*(getattr(self, column.name)[::step] for column in fields(self)))

    def spread_out(self, values: NDArray[np.bool_], recording: int, count: int) -> NDArray[np.bool_]:
        """Values ``(N,)`` of places as ``(count,)`` of all rows of a recording: each has that of the place before."""
        own = self.recordings == recording
        if not own.any():
            return np.zeros(count, bool)
        before = np.searchsorted(self.rows[own], np.arange(count), side="right") - 1
        return values[own][before.clip(0)]
