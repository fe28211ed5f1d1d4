# SPDX-License-Identifier: Apache-2.0
"""Things in the street: cars, people, trees, lamps, hedges, bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.simulation.mesh import Mesh, MeshBuilder, yaw_matrix
from training.simulation.styles import FOLIAGE, PLAIN, Colour, Style

Array = NDArray[np.float64]

CAR_COLOURS: list[Colour] = [
    (0.75, 0.76, 0.78),
    (0.10, 0.10, 0.12),
    (0.62, 0.10, 0.10),
    (0.12, 0.24, 0.50),
    (0.86, 0.86, 0.84),
    (0.36, 0.38, 0.40),
    (0.20, 0.38, 0.26),
    (0.82, 0.62, 0.14),
]
# length, width, body height, cabin: start, length, height (share of the length; metres)
_CAR_SHAPES = [
    (4.1, 1.75, 0.62, 0.12, 0.66, 0.62),  # hatchback
    (4.6, 1.80, 0.60, 0.22, 0.52, 0.56),  # saloon
    (4.9, 1.95, 0.95, 0.03, 0.84, 0.95),  # van
    (4.4, 1.85, 0.75, 0.06, 0.70, 0.70),  # off-roader
]


class FurnitureMaker:
    """Draws street furniture into a mesh; keeps the styles that it needs in ``styles``.

    Args:
        mesh: receives the geometry (:meth:`car` and :meth:`pedestrian` return theirs instead).
        styles: receives the surface styles.
        rng: decides shapes and colours.
    """

    def __init__(self, mesh: MeshBuilder, styles: list[Style], rng: np.random.Generator) -> None:
        self._mesh, self._styles, self._rng = mesh, styles, rng

    def _style(self, colour: Colour, reflectivity: float, kind: int = PLAIN, roughness: float = 0.05) -> int:
        variant = int(self._rng.integers(1, 4000))
        self._styles.append(Style(kind, colour, reflectivity=reflectivity, roughness=roughness, variant=variant))
        return len(self._styles) - 1

    def tree(self, xy_m: Array) -> None:
        rng = self._rng
        trunk = self._style((0.36, 0.28, 0.21), 0.25, roughness=0.2)
        green = (
            float(rng.uniform(0.26, 0.46)),
            float(rng.uniform(0.40, 0.54)),
            float(rng.uniform(0.16, 0.26)),
        )
        leaves = self._style(green, 0.45, FOLIAGE, 0.1)
        clear, radius = float(rng.uniform(2.4, 3.4)), float(rng.uniform(1.1, 1.9))
        self._mesh.cylinder(xy_m, float(rng.uniform(0.12, 0.22)), 0, clear + radius, trunk)
        self._mesh.blob((*xy_m, clear + radius), (radius, radius, radius * 1.15), 0.2, leaves, rng)
        offset = rng.uniform(-0.6, 0.6, 2) * radius
        top = clear + radius * 1.9
        self._mesh.blob((*(xy_m + offset), top), np.full(3, radius * 0.7), 0.2, leaves, rng)

    def lamp(self, xy_m: Array, heading_rad: float, side: float) -> Array:
        """A street lamp; returns the place ``(3,)`` just below it."""
        metal = self._style((0.24, 0.26, 0.27), 0.5)
        glass = self._style((0.93, 0.92, 0.85), 0.8)
        height = float(self._rng.uniform(4.8, 6.2))
        self._mesh.cylinder(xy_m, 0.09, 0, height, metal)
        towards_road = -side * np.array([-np.sin(heading_rad), np.cos(heading_rad)])
        self._mesh.box(xy_m + towards_road * 0.6, heading_rad, (0.12, 1.3, 0.1), height, metal)
        self._mesh.box(xy_m + towards_road * 1.1, heading_rad, (0.3, 0.6, 0.14), height - 0.1, glass)
        return np.array([*(xy_m + towards_road * 1.1), height - 0.15])

    def hedge(self, xy_m: Array, heading_rad: float, length_m: float, height_m: float) -> None:
        leaves = self._style((0.22, 0.38, 0.18), 0.4, FOLIAGE, 0.15)
        self._mesh.box(xy_m, heading_rad, (length_m, 0.8, height_m), 0, leaves, inset_m=0.1)

    def bins(self, xy_m: Array, heading_rad: float) -> None:
        along = np.array([np.cos(heading_rad), np.sin(heading_rad)])
        for place in range(int(self._rng.integers(1, 4))):
            colour = CAR_COLOURS[self._rng.integers(len(CAR_COLOURS))]
            style = self._style(colour, float(self._rng.uniform(0.2, 0.6)))
            self._mesh.box(xy_m + along * 0.75 * place, heading_rad, (0.6, 0.7, 1.1), 0, style, inset_m=-0.04)

    def post_box(self, xy_m: Array, heading_rad: float) -> None:
        """A coloured pillar with a board: an advertising column, a post box, a transformer cabinet."""
        rng = self._rng
        size = [(0.5, 0.5, 1.3), (1.4, 0.6, 1.5), (1.2, 0.2, 2.3), (0.9, 0.9, 2.6)][rng.integers(4)]
        colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))]
        self._mesh.box(xy_m, heading_rad, size, 0, self._style(colour, float(rng.uniform(0.3, 0.9)), roughness=0.25))

    def car(self, colour: Colour, shape: int) -> Mesh:
        """A car on the ground at the origin, facing +x; ``shape`` counts through the known ones."""
        length, width, body, start, cabin_length, cabin = _CAR_SHAPES[shape % len(_CAR_SHAPES)]
        paint = self._style(colour, 0.15 + 0.6 * max(colour), roughness=0.02)
        glass = self._style((0.12, 0.15, 0.18), 0.08, roughness=0.02)
        tyre = self._style((0.07, 0.07, 0.07), 0.06)
        lights = self._style((0.95, 0.93, 0.82), 0.9), self._style((0.72, 0.05, 0.05), 0.9)
        mesh = MeshBuilder()
        mesh.box((0, 0), 0, (length, width, body), 0.28, paint, inset_m=0.06)
        middle = -length / 2 + (start + cabin_length / 2) * length
        mesh.box((middle, 0), 0, (cabin_length * length, width - 0.14, cabin), 0.28 + body, glass, paint, 0.18)
        for x in (-0.31 * length, 0.31 * length):
            for y in (-width / 2 + 0.05, width / 2 - 0.05):
                mesh.box((x, y), 0, (0.62, 0.16, 0.56), 0.0, tyre, inset_m=0.0)
        for end, light in zip((length / 2 - 0.03, -length / 2 + 0.03), lights, strict=True):
            for y in (-width * 0.36, width * 0.36):
                mesh.box((end, y), 0, (0.08, 0.32, 0.16), 0.28 + body * 0.6, light)
        return mesh.build()

    def pedestrian(self) -> Mesh:
        """A walker at the origin, facing +x."""
        rng = self._rng
        coat = self._style(CAR_COLOURS[rng.integers(len(CAR_COLOURS))], float(rng.uniform(0.2, 0.7)))
        legs, skin = self._style((0.16, 0.17, 0.22), 0.2), self._style((0.80, 0.62, 0.52), 0.5)
        scale = float(rng.uniform(0.88, 1.06))
        mesh = MeshBuilder()
        for step, y in ((0.12, -0.1), (-0.12, 0.1)):
            mesh.box((step, y), 0, (0.2, 0.15, 0.85 * scale), 0, legs)
        mesh.box((0, 0), 0, (0.28, 0.48, 0.62 * scale), 0.83 * scale, coat, inset_m=0.03)
        mesh.box((0, 0), 0, (0.2, 0.18, 0.25 * scale), 1.47 * scale, skin)
        return mesh.build()


def placed(mesh: Mesh, xy_m: Array, heading_rad: float) -> Mesh:
    """The mesh moved from the origin to a ground point and heading."""
    return mesh.moved(yaw_matrix(heading_rad), (*xy_m, 0.0))
