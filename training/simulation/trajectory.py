# SPDX-License-Identifier: Apache-2.0
"""How one traversal drives: an exact pose for every time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.simulation import street
from vmloc_ros.core.geometry import Pose, quaternion_from_matrix

Array = NDArray[np.float64]

MIN_SPEED_M_S, MAX_SPEED_M_S = 3.0, 7.0
_WANDER_M = 0.5
_GRID_M = 0.01
_WHEELBASE_M = 2.4


@dataclass(frozen=True, slots=True, eq=False)
class Waves:
    """A sum of sinusoids: smooth, bounded by the sum of its amplitudes, and defined everywhere."""

    amplitudes: Array
    frequencies: Array  # radians per unit of the argument
    phases: Array

    @staticmethod
    def draw(rng: np.random.Generator, bound: float, periods: tuple[float, float], count: int = 3) -> Waves:
        """``count`` sinusoids with periods within the given range, never exceeding ``bound``."""
        shares = rng.uniform(0.3, 1.0, count)
        frequencies = 2 * np.pi / rng.uniform(*periods, count)
        return Waves(bound * shares / shares.sum(), frequencies, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, argument: ArrayLike) -> Array:
        angle = np.asarray(argument, np.float64)[..., None] * self.frequencies + self.phases
        return np.asarray((np.sin(angle) * self.amplitudes).sum(-1))


class Trajectory:
    """Poses of ``base_link`` in ``map`` from time 0 to ``duration_s``, counter-clockwise around the street.

    Args:
        rng: draws the start, the lane, the speeds and the vehicle's sway.
        laps: length of the drive in rounds of the street.
    """

    def __init__(self, rng: np.random.Generator, laps: float) -> None:
        self.mean_lateral_m = float(rng.uniform(-1.85, 0.6))
        self.max_lateral_m = self.mean_lateral_m + _WANDER_M
        self._lateral = Waves.draw(rng, _WANDER_M, (25.0, 70.0))
        start_m = rng.uniform(0, street.LENGTH_M)
        self._s_grid_m = start_m + np.arange(0, laps * street.LENGTH_M + _GRID_M, _GRID_M)
        speed = self._draw_speed(rng)
        steps_s = _GRID_M * 2 / (speed[1:] + speed[:-1])
        self._t_grid_s = np.concatenate([[0.0], np.cumsum(steps_s)])
        degree = np.pi / 180
        self._yaw_sway = Waves.draw(rng, 0.7 * degree, (1.5, 6.0))
        self._pitch_sway = Waves.draw(rng, 0.5 * degree, (0.5, 1.8))
        self._roll_sway = Waves.draw(rng, 0.5 * degree, (0.6, 2.2))
        self._heave = Waves.draw(rng, 0.015, (0.5, 1.5))

    def _draw_speed(self, rng: np.random.Generator) -> Array:
        """Speed at every grid point: cruising, slower in the corners, and a few hesitations."""
        s = self._s_grid_m
        cruise = rng.uniform(5.4, 6.8) * (1 + Waves.draw(rng, 0.12, (20.0, 60.0))(s))
        bend = np.zeros_like(s)
        for start, end in street.STRAIGHTS_M:
            middle, half = (start + end) / 2, (end - start) / 2
            away = np.abs((s - middle + street.LENGTH_M / 2) % street.LENGTH_M - street.LENGTH_M / 2)
            bend = np.maximum(bend, 1 / (1 + np.exp((away - half) / 1.5)))
        speed = cruise * (0.68 + 0.32 * bend)
        for centre in rng.uniform(s[0], s[-1], 1 + int((s[-1] - s[0]) / 60)):
            speed = speed * (1 - rng.uniform(0.15, 0.45) * np.exp(-(((s - centre) / 6.0) ** 2)))
        return np.clip(speed, MIN_SPEED_M_S, MAX_SPEED_M_S)

    @property
    def duration_s(self) -> float:
        return float(self._t_grid_s[-1])

    def distance(self, time_s: ArrayLike) -> Array:
        """Centre-line coordinate ``s`` at the times; grows over laps."""
        return np.interp(np.asarray(time_s, np.float64), self._t_grid_s, self._s_grid_m)

    def at(self, time_s: ArrayLike) -> tuple[Array, Array]:
        """Positions ``(N, 3)`` and rotations ``(N, 3, 3)`` of base_link in map at ``(N,)`` times."""
        time = np.asarray(time_s, np.float64)
        s = self.distance(time)
        behind, ahead = self._track(s - _WHEELBASE_M / 2), self._track(s + _WHEELBASE_M / 2)
        yaw = np.arctan2(*(ahead - behind).T[::-1]) + self._yaw_sway(time)
        position = np.column_stack([self._track(s), self._heave(time)])
        return position, _rotation(self._roll_sway(time), self._pitch_sway(time), yaw)

    def _track(self, s_m: Array) -> Array:
        return street.point_at(s_m, self.mean_lateral_m + self._lateral(s_m))[0]

    def pose(self, time_s: float) -> Pose:
        """map_from_base at one time."""
        position, rotation = self.at([time_s])
        return Pose(position[0], quaternion_from_matrix(rotation[0]))


def _rotation(roll: Array, pitch: Array, yaw: Array) -> Array:
    """Rotations ``(N, 3, 3)`` of fixed-axis roll, pitch, yaw."""
    cr, sr, cp, sp, cy, sy = (f(angle) for angle in (roll, pitch, yaw) for f in (np.cos, np.sin))
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
