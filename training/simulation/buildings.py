# SPDX-License-Identifier: Apache-2.0
"""Houses: a textured body with bays, balconies, steps, cornices and roofs as real geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.simulation.mesh import MeshBuilder
from training.simulation.styles import (
    BRICK,
    FACADE,
    PLAIN,
    PLASTER,
    ROOF,
    SIDING,
    STONE,
    TIMBER,
    Colour,
    Style,
)

Array = NDArray[np.float64]

# Wall pattern, wall colour, joint colour, lidar reflectivity.
_WALLS: list[tuple[int, Colour, Colour, float]] = [
    (BRICK, (0.56, 0.29, 0.22), (0.70, 0.66, 0.60), 0.35),
    (BRICK, (0.66, 0.50, 0.36), (0.45, 0.38, 0.32), 0.42),
    (BRICK, (0.40, 0.27, 0.25), (0.28, 0.22, 0.21), 0.26),
    (BRICK, (0.78, 0.74, 0.68), (0.55, 0.52, 0.48), 0.55),
    (PLASTER, (0.86, 0.78, 0.56), (0.7, 0.6, 0.4), 0.60),
    (PLASTER, (0.80, 0.56, 0.46), (0.6, 0.4, 0.3), 0.48),
    (PLASTER, (0.88, 0.87, 0.83), (0.6, 0.6, 0.6), 0.72),
    (PLASTER, (0.56, 0.66, 0.72), (0.4, 0.5, 0.5), 0.45),
    (PLASTER, (0.62, 0.70, 0.55), (0.4, 0.5, 0.4), 0.47),
    (PLASTER, (0.74, 0.36, 0.30), (0.5, 0.2, 0.2), 0.36),
    (STONE, (0.72, 0.68, 0.60), (0.42, 0.40, 0.36), 0.50),
    (STONE, (0.52, 0.53, 0.55), (0.30, 0.30, 0.32), 0.33),
    (SIDING, (0.42, 0.52, 0.62), (0.26, 0.33, 0.40), 0.40),
    (SIDING, (0.82, 0.80, 0.70), (0.56, 0.54, 0.48), 0.58),
    (TIMBER, (0.90, 0.86, 0.76), (0.30, 0.19, 0.13), 0.62),
]
_ACCENTS: list[Colour] = [
    (0.92, 0.92, 0.90),
    (0.16, 0.30, 0.24),
    (0.68, 0.16, 0.14),
    (0.13, 0.22, 0.42),
    (0.88, 0.66, 0.16),
    (0.28, 0.18, 0.12),
    (0.12, 0.48, 0.52),
    (0.20, 0.20, 0.22),
]
_ROOFS: list[Colour] = [(0.50, 0.24, 0.18), (0.28, 0.28, 0.32), (0.40, 0.30, 0.26), (0.20, 0.26, 0.26)]


@dataclass(frozen=True, slots=True)
class Plot:
    """Where a house stands: its front's left corner seen from the street, and two unit directions ``(2,)``.

    ``along`` runs from left to right as seen from the street, ``inward`` away from the street.
    """

    corner: Array
    along: Array
    inward: Array

    def at(self, across_m: float, depth_m: float) -> Array:
        """A ground point ``(2,)``: ``across_m`` along the front, ``depth_m`` behind it (negative: before)."""
        return self.corner + self.along * across_m + self.inward * depth_m

    def quad(self, across_m: tuple[float, float], depth_m: tuple[float, float], z_m: float) -> Array:
        """A level rectangle ``(4, 3)``, counter-clockwise from above, starting at its front left corner."""
        (left, right), (front, back) = across_m, depth_m
        corners = [self.at(left, front), self.at(right, front), self.at(right, back), self.at(left, back)]
        return np.array([(*corner, z_m) for corner in corners])


def _raised(ring_m: Array, height_m: float) -> Array:
    return ring_m + np.array([0.0, 0.0, height_m])


class BuildingMaker:
    """Draws houses from ``rng`` into a mesh, no two neighbours in the same wall.

    Args:
        mesh: receives the geometry.
        styles: receives the surface styles.
        rng: the world's generator.
    """

    def __init__(self, mesh: MeshBuilder, styles: list[Style], rng: np.random.Generator) -> None:
        self._mesh, self._styles, self._rng = mesh, styles, rng
        self._walls: list[int] = []

    def _style(self, style: Style) -> int:
        self._styles.append(style)
        return len(self._styles) - 1

    def _next_wall(self) -> tuple[int, Colour, Colour, float]:
        if not self._walls:
            self._walls = list(self._rng.permutation(len(_WALLS)))
        pattern, colour, line, reflectivity = _WALLS[self._walls.pop()]
        tint = self._rng.uniform(0.90, 1.08, 3)
        red, green, blue = np.clip(np.array(colour) * tint, 0, 0.95)
        return pattern, (float(red), float(green), float(blue)), line, reflectivity

    def house(self, plot: Plot, width_m: float, depth_m: float) -> None:
        """A house filling ``width_m`` of the plot's front."""
        facade = self._facade(width_m)
        height = facade.ground_height + facade.floors * facade.floor_height + float(self._rng.uniform(0.5, 1.2))
        front = self._style(facade)
        # Side and back walls: the same wall with few windows, or a blank gable.
        side = self._style(replace(facade, columns=2, margin=2.0, pitch=3.0, shop=-1, width=depth_m, variant=17))
        blank = self._style(replace(facade, columns=0, floors=0, shop=-1, width=depth_m))
        left, right = (side if self._rng.uniform() < 0.5 else blank for _ in range(2))
        base = plot.quad((0, width_m), (0, depth_m), 0.0)
        top = _raised(base, height)
        roof = self._style(Style(ROOF, _ROOFS[self._rng.integers(len(_ROOFS))], reflectivity=0.3, roughness=0.15))
        self._mesh.block(base, top, (front, right, side, left), roof)
        self._cover(plot, width_m, depth_m, height, roof, blank)
        self._decorate(plot, width_m, height, facade)

    def _facade(self, width_m: float) -> Style:
        rng = self._rng
        pattern, colour, line, reflectivity = self._next_wall()
        pitch = float(rng.choice([1.6, 2.0, 2.5, 3.2]))
        columns = max(1, int((width_m - 0.8) / pitch))
        floor_height = float(rng.uniform(2.6, 3.5))
        shop = int(rng.uniform() < 0.4)
        return Style(
            FACADE,
            colour,
            reflectivity=reflectivity,
            roughness=float(rng.uniform(0.05, 0.14)),
            line_colour=line,
            accent=_ACCENTS[rng.integers(len(_ACCENTS))],
            pattern=pattern,
            columns=columns,
            floors=int(rng.integers(1, 5)),
            pitch=pitch,
            margin=(width_m - columns * pitch) / 2,
            ground_height=3.6 if shop else float(rng.uniform(3.0, 3.6)),
            floor_height=floor_height,
            window_width=pitch * float(rng.uniform(0.38, 0.72)),
            window_height=float(rng.uniform(1.1, floor_height - 1.0)),
            sill=float(rng.uniform(0.5, 0.85)),
            width=width_m,
            shop=shop,
            door=float(rng.uniform(1.2, width_m - 1.2)),
            variant=int(rng.integers(1, 4000)),
        )

    def _cover(self, plot: Plot, width: float, depth: float, height: float, roof: int, gable: int) -> None:
        kind = self._rng.choice(["flat", "eaves", "gable", "eaves"])
        rise = float(self._rng.uniform(1.8, 3.5))
        if kind == "flat":
            parapet = self._style(Style(PLAIN, (0.62, 0.60, 0.57), reflectivity=0.45))
            low = plot.quad((-0.05, width + 0.05), (-0.22, 0.3), height - 0.35)
            self._mesh.block(low, _raised(low, 0.75), parapet, parapet, parapet)
        elif kind == "eaves":  # ridge along the street
            a, b, c, d = plot.quad((0, width), (-0.35, depth + 0.35), height)
            ridge_left, ridge_right = (a + d) / 2 + [0, 0, rise], (b + c) / 2 + [0, 0, rise]
            self._mesh.polygon([a, b, ridge_right, ridge_left], roof)
            self._mesh.polygon([c, d, ridge_left, ridge_right], roof)
            self._mesh.polygon([b, c, ridge_right], gable)
            self._mesh.polygon([d, a, ridge_left], gable)
        else:  # the gable faces the street
            a, b, c, d = plot.quad((-0.2, width + 0.2), (0, depth), height)
            ridge_front, ridge_back = (a + b) / 2 + [0, 0, rise + 1], (c + d) / 2 + [0, 0, rise + 1]
            self._mesh.polygon([b, c, ridge_back, ridge_front], roof)
            self._mesh.polygon([d, a, ridge_front, ridge_back], roof)
            self._mesh.polygon([a, b, ridge_front], gable)
            self._mesh.polygon([c, d, ridge_back], gable)
        if self._rng.uniform() < 0.6:
            brick = self._style(Style(FACADE, (0.45, 0.27, 0.22), reflectivity=0.3, pattern=BRICK))
            across, back = self._rng.uniform(1, width - 1), self._rng.uniform(1, 3)
            yaw = float(np.arctan2(plot.along[1], plot.along[0]))
            self._mesh.box(plot.at(across, back), yaw, (0.9, 0.7, rise + 1.6), height, brick)

    def _decorate(self, plot: Plot, width: float, height: float, facade: Style) -> None:
        rng = self._rng
        stone = self._style(Style(PLAIN, (0.58, 0.56, 0.52), reflectivity=0.45))
        if not facade.shop:
            steps = plot.quad((facade.door - 0.9, facade.door + 0.9), (-0.55, 0.1), 0.0)
            self._mesh.block(steps, _raised(steps, 0.22), stone, stone)
        for ledge in np.flatnonzero(rng.uniform(size=facade.floors) < 0.35):  # string courses
            z = facade.ground_height + ledge * facade.floor_height
            low = plot.quad((0, width), (-0.14, 0), z - 0.1)
            self._mesh.block(low, _raised(low, 0.22), stone, stone, stone)
        choice = rng.uniform()
        if choice < 0.38:
            self._balconies(plot, facade)
        elif choice < 0.72 and width > 7 and height > 6.5:
            self._bay(plot, width, facade)
        if facade.shop and rng.uniform() < 0.6:
            self._awning(plot, width, facade.accent)

    def _balconies(self, plot: Plot, facade: Style) -> None:
        rail = self._style(Style(PLAIN, facade.accent, reflectivity=0.5, roughness=0.05))
        wanted = self._rng.uniform(size=(facade.columns, facade.floors)) < 0.5
        for column, floor in zip(*np.nonzero(wanted), strict=True):
            middle = facade.margin + (column + 0.5) * facade.pitch
            half = facade.pitch * 0.46
            low = plot.quad((middle - half, middle + half), (-0.85, 0), 0.0)
            low[:, 2] = facade.ground_height + floor * facade.floor_height - 0.1
            self._mesh.block(low, _raised(low, 0.95), rail, rail, rail)

    def _bay(self, plot: Plot, width: float, facade: Style) -> None:
        """A bay with slanted cheeks, one storey up, over most of the height."""
        span = float(self._rng.uniform(2.4, 3.4))
        left = float(self._rng.uniform(0.6, width - span - 0.6))
        floors = max(1, facade.floors - int(self._rng.integers(0, 2)))
        bay = replace(
            facade,
            colour=facade.accent if self._rng.uniform() < 0.5 else facade.colour,
            columns=1,
            pitch=span - 1.0,
            margin=0.0,
            window_width=(span - 1.0) * 0.75,
            ground_height=0.0,
            floors=floors,
            shop=-1,
        )
        front, cheek = self._style(bay), self._style(replace(bay, columns=0))
        back = plot.quad((left, left + span), (-1.0, 0.1), facade.ground_height)
        inner = plot.quad((left + 0.5, left + span - 0.5), (-1.0, 0.1), facade.ground_height)
        low = np.array([inner[0], inner[1], back[2], back[3]])
        top = _raised(low, floors * facade.floor_height)
        self._mesh.block(low, top, (front, cheek, cheek, cheek), cheek, cheek)

    def _awning(self, plot: Plot, width: float, accent: Colour) -> None:
        cloth = self._style(Style(PLAIN, tuple(0.25 + 0.7 * c for c in accent), reflectivity=0.7))  # type: ignore[arg-type]
        left, right = 0.5, width - 0.5
        top = [(*plot.at(right, 0), 3.5), (*plot.at(left, 0), 3.5)]
        self._mesh.polygon([(*plot.at(left, -1.2), 2.75), (*plot.at(right, -1.2), 2.75), *top], cloth)
