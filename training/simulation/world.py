# SPDX-License-Identifier: Apache-2.0
"""The street that every traversal of one ``world_seed`` shares: houses, trees, furniture, ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation import street
from training.simulation.buildings import BuildingMaker, Plot
from training.simulation.furniture import CAR_COLOURS, FurnitureMaker, placed
from training.simulation.ground import ZEBRA_LENGTH_M, Ground
from training.simulation.mesh import Mesh, MeshBuilder
from training.simulation.styles import GROUND, Style
from training.simulation.textures import Noise

Array = NDArray[np.float64]

_SLOT_M = 6.2
_PARKED_LATERAL_M = 4.45
_WORLD_STREAM = 0x57
_GROUND_HALF_M = 160.0
_CHAMFER_M = 10.0
_KIND_SHARES = [0.50, 0.18, 0.09, 0.06, 0.06, 0.06, 0.05]


@dataclass(frozen=True, slots=True)
class ParkingSlot:
    """A place beside the road; ``toggled`` ones may be full or empty in a given traversal."""

    xy_m: tuple[float, float]
    heading_rad: float
    toggled: bool


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What stays the same between traversals.

    Attributes:
        mesh: all fixed geometry, the ground's two faces included, in the ``map`` frame.
        styles: the styles that its faces refer to; traversals append theirs.
        slots: the parking slots (the cars of untoggled ones are part of ``mesh``).
        lamps_m: ``(L, 3)`` places of the street lamps' light.
    """

    mesh: Mesh
    styles: tuple[Style, ...]
    slots: tuple[ParkingSlot, ...]
    lamps_m: Array
    noise: Noise
    ground: Ground


def build_world(world_seed: int) -> World:
    """The world of a seed; equal seeds give equal worlds."""
    rng = np.random.default_rng([world_seed, _WORLD_STREAM])
    styles, builder = [Style(GROUND, (0.3, 0.3, 0.3), roughness=0.0)], MeshBuilder()
    builder.polygon(np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * _GROUND_HALF_M, 0)
    noise = Noise(rng)
    zebras_m = tuple(float(rng.uniform(start + 4, end - 4)) for start, end in street.STRAIGHTS_M)
    ground = Ground(rng, noise, zebras_m)
    _line_with_houses(builder, styles, rng)
    slots, lamps_m = _furnish(builder, styles, rng, zebras_m)
    return World(builder.build(), tuple(styles), slots, lamps_m, noise, ground)


def _line_with_houses(builder: MeshBuilder, styles: list[Style], rng: np.random.Generator) -> None:
    maker = BuildingMaker(builder, styles, rng)
    greens = FurnitureMaker(builder, styles, rng)
    reach = street.CORNER_RADIUS_M + street.FACADE_DISTANCE_M
    outer = np.array([street.STRAIGHT_X_M / 2 + reach, street.STRAIGHT_Y_M / 2 + reach])
    inner = outer - 2 * street.FACADE_DISTANCE_M
    for start, end in _clockwise(outer, chamfered=(1, 3)):
        _fill(maker, greens, rng, start, end, depth_m=(7.0, 10.0), gap_share=0.35)
    for start, end in _clockwise(outer + 17.0, chamfered=()):  # seen through the gaps and above the roofs
        _fill(maker, greens, rng, start, end, depth_m=(8.0, 10.0), gap_share=0.5)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * inner
    for i in (0, 2):
        _fill(maker, greens, rng, corners[i], corners[i + 1], depth_m=(6.0, 7.0), gap_share=0.25)
    for i in (1, 3):  # between the corner houses
        start, end = corners[i], corners[(i + 1) % 4]
        clear = 7.8 * (end - start) / np.linalg.norm(end - start)
        _fill(maker, greens, rng, start + clear, end - clear, depth_m=(5.0, 6.0), gap_share=0.0)
    for corner in (0, 2):  # little squares where the outer corners are not built over
        point, heading = street.point_at(street.STRAIGHTS_M[(1, 2, 3, 0)[corner]][0] - 7.0, -11.5)
        for turn in rng.uniform(0, 2 * np.pi, 3):
            greens.tree(point + 2.6 * np.array([np.cos(turn), np.sin(turn)]))
        greens.post_box(point, float(heading))
        greens.hedge(street.point_at(street.STRAIGHTS_M[corner][1] + 4.0, -9.0)[0], float(heading), 3.5, 1.0)


def _clockwise(half_m: Array, chamfered: tuple[int, ...]) -> list[tuple[Array, Array]]:
    """Sides of a rectangle seen from inside, left to right, with some corners cut off."""
    corners = np.array([[1, -1], [-1, -1], [-1, 1], [1, 1]]) * half_m
    points: list[Array] = []
    for i, corner in enumerate(corners):
        if i in chamfered:
            for neighbour in (corners[i - 1], corners[(i + 1) % 4]):
                points.append(corner + _CHAMFER_M * (neighbour - corner) / np.linalg.norm(neighbour - corner))
        else:
            points.append(corner)
    return list(zip(points, points[1:] + points[:1], strict=True))


def _fill(
    maker: BuildingMaker,
    greens: FurnitureMaker,
    rng: np.random.Generator,
    start: Array,
    end: Array,
    depth_m: tuple[float, float],
    gap_share: float,
) -> None:
    """Houses of 6 to 14 m, some gaps, now and then a garden, on the left of a line (seen from its right)."""
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    inward = np.array([-along[1], along[0]])
    place = 0.0
    while length - place > 3.0:
        rest = length - place
        width = float(rng.uniform(6, 14))
        if rest - width < 6.5:
            width = rest if rest <= 14 else rest / 2
        setback = float(rng.choice([0.0, 0.25, 0.5, 1.0]))
        plot = Plot(start + along * place + inward * setback, along, inward)
        if rng.uniform() < 0.08 and width > 6:
            _garden(greens, rng, plot, width)
        else:
            maker.house(plot, width, float(rng.uniform(*depth_m)) - setback)
        place += width + (float(rng.uniform(1.8, 3.6)) if rng.uniform() < gap_share else 0.0)


def _garden(greens: FurnitureMaker, rng: np.random.Generator, plot: Plot, width_m: float) -> None:
    heading = float(np.arctan2(plot.along[1], plot.along[0]))
    greens.hedge(plot.at(width_m / 2, 0.6), heading, width_m - 1.2, float(rng.uniform(0.9, 1.7)))
    for across in np.arange(1.5, width_m - 1.0, 2.8):
        greens.tree(plot.at(float(across), float(rng.uniform(2.0, 4.5))))


def _furnish(
    builder: MeshBuilder, styles: list[Style], rng: np.random.Generator, zebras_m: tuple[float, ...]
) -> tuple[tuple[ParkingSlot, ...], Array]:
    maker = FurnitureMaker(builder, styles, rng)
    slots: list[ParkingSlot] = []
    lamps_m: list[Array] = []
    for side in (-1.0, 1.0):
        for s in np.arange(2.0, street.LENGTH_M - 3.0, _SLOT_M) + rng.uniform(-0.4, 0.4):
            straight = any(start + 1.5 < s < end - 1.5 for start, end in street.STRAIGHTS_M)
            kind = rng.choice(["car", "tree", "lamp", "hedge", "bins", "box", "free"], p=_KIND_SHARES)
            if any(abs(s - zebra) < ZEBRA_LENGTH_M / 2 + 2.8 for zebra in zebras_m):
                kind = rng.choice(["lamp", "box", "free"])
            elif side > 0 and not straight and kind in ("car", "hedge"):
                kind = "free"  # too tight inside the corners
            lateral = side * float(rng.uniform(5.3, 6.1))
            point, heading = street.point_at(s, lateral)
            if kind == "car":
                slots.append(_park(builder, maker, rng, float(s), side))
            elif kind == "tree":
                maker.tree(point)
            elif kind == "lamp":
                lamps_m.append(maker.lamp(street.point_at(s, side * 4.1)[0], float(heading), side))
            elif kind == "hedge":
                maker.hedge(point, float(heading), 2.5, float(rng.uniform(0.5, 1.0)))
            elif kind == "bins":
                maker.bins(point, float(heading))
            elif kind == "box":
                maker.post_box(point, float(heading))
    return tuple(slots), np.array(lamps_m).reshape(-1, 3)


def _park(builder: MeshBuilder, maker: FurnitureMaker, rng: np.random.Generator, s: float, side: float) -> ParkingSlot:
    point, heading = street.point_at(s, side * (_PARKED_LATERAL_M + rng.uniform(-0.08, 0.12)))
    facing = float(heading) + (np.pi if side > 0 else 0.0) + float(rng.uniform(-0.03, 0.03))
    slot = ParkingSlot((float(point[0]), float(point[1])), facing, bool(rng.uniform() < 0.3))
    car = maker.car(CAR_COLOURS[rng.integers(len(CAR_COLOURS))], int(rng.integers(4)))
    if not slot.toggled:
        builder.add(placed(car, point, facing))
    return slot
