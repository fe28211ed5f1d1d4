# SPDX-License-Identifier: Apache-2.0
"""What differs between traversals besides light: parked cars, moving cars, people on foot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation import street
from training.simulation.furniture import CAR_COLOURS, FurnitureMaker, placed
from training.simulation.mesh import Mesh, MeshBuilder, yaw_matrix
from training.simulation.scene import Scene
from training.simulation.styles import Style
from training.simulation.trajectory import Trajectory
from training.simulation.world import World

Array = NDArray[np.float64]

_ONCOMING_LATERAL_M = 2.35
_SAME_WAY_LATERAL_M = -1.5
# The widest vehicle is 2 m, our own is taken as 1.8 m: farther left than this it could touch oncoming cars.
_ONCOMING_LIMIT_M = 0.35


@dataclass(frozen=True, slots=True, eq=False)
class Mover:
    """A moving object: its mesh at the origin, and where it is along and across the street at a time."""

    mesh: Mesh
    distance_m: Callable[[float], float]
    lateral_m: float
    forward: bool  # in our driving direction


class Traffic:
    """The traversal's own objects; ``scene`` holds them together with the world.

    Args:
        world: the shared street.
        trajectory: our own drive, which nothing here crosses.
        rng: the traversal's generator for objects.

    Attributes:
        scene: casts rays; call :meth:`place` first.
        styles: the world's styles and those of the added objects.
    """

    def __init__(self, world: World, trajectory: Trajectory, rng: np.random.Generator) -> None:
        self.styles: list[Style] = list(world.styles)
        parked = MeshBuilder()
        parked.add(world.mesh)
        maker = FurnitureMaker(parked, self.styles, rng)
        for slot in world.slots:
            if slot.toggled and rng.uniform() < 0.5:
                parked.add(placed(_any_car(maker, rng), np.array(slot.xy_m), slot.heading_rad))
        self._movers = [*_cars(maker, trajectory, rng), *_walkers(maker, rng)]
        self.scene = Scene(parked.build(), [mover.mesh for mover in self._movers])

    def place(self, time_s: float) -> None:
        """Move everything to where it is at a time."""
        distance = np.array([mover.distance_m(time_s) for mover in self._movers])
        point, heading = street.point_at(distance, np.array([mover.lateral_m for mover in self._movers]))
        heading = heading + np.array([0.0 if mover.forward else np.pi for mover in self._movers])
        rotations = np.array([yaw_matrix(angle) for angle in heading])
        self.scene.place_movers(rotations, np.column_stack([point, np.zeros(len(point))]))

    def footprints(self, time_s: float) -> list[Array]:
        """Ground corners ``(4, 2)`` of every mover's bounding rectangle at a time."""
        result = []
        for mover in self._movers:
            point, heading = street.point_at(mover.distance_m(time_s), mover.lateral_m)
            low, high = mover.mesh.vertices_m.min(0)[:2], mover.mesh.vertices_m.max(0)[:2]
            box = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
            turn = yaw_matrix(float(heading) + (0.0 if mover.forward else np.pi))[:2, :2]
            result.append(box @ turn.T + point)
        return result


def _any_car(maker: FurnitureMaker, rng: np.random.Generator) -> Mesh:
    return maker.car(CAR_COLOURS[rng.integers(len(CAR_COLOURS))], int(rng.integers(4)))


def _cars(maker: FurnitureMaker, trajectory: Trajectory, rng: np.random.Generator) -> list[Mover]:
    movers = []
    for chance, (nearest, farthest) in ((0.45, (11.0, 24.0)), (0.45, (-20.0, -9.0))):  # ahead, behind
        if rng.uniform() < chance:
            gap, sway = rng.uniform(nearest, farthest), rng.uniform(0, 2 * np.pi)
            movers.append(Mover(_any_car(maker, rng), _keeping(trajectory, gap, sway), _SAME_WAY_LATERAL_M, True))
    if trajectory.max_lateral_m <= _ONCOMING_LIMIT_M:
        speed, start = rng.uniform(4.0, 7.0), rng.uniform(0, street.LENGTH_M)
        for place in start + np.cumsum(rng.uniform(20, 45, int(rng.integers(1, 5)))):
            movers.append(Mover(_any_car(maker, rng), _steady(place, -speed), _ONCOMING_LATERAL_M, False))
    return movers


def _walkers(maker: FurnitureMaker, rng: np.random.Generator) -> list[Mover]:
    movers = []
    for _ in range(int(rng.integers(6, 15))):
        pace = float(rng.uniform(0.9, 1.6) * rng.choice([-1, 1]))
        lateral = float(rng.uniform(5.2, 6.4) * rng.choice([-1, 1]))
        movers.append(Mover(maker.pedestrian(), _steady(rng.uniform(0, street.LENGTH_M), pace), lateral, pace > 0))
    return movers


def _steady(start_m: float, speed_m_s: float) -> Callable[[float], float]:
    return lambda time_s: start_m + speed_m_s * time_s


def _keeping(trajectory: Trajectory, gap_m: float, phase: float) -> Callable[[float], float]:
    """Drives as we do, at a distance that breathes by 1.5 m."""
    return lambda time_s: float(trajectory.distance(time_s)) + gap_m + 1.5 * np.sin(0.4 * time_s + phase)
