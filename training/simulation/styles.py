# SPDX-License-Identifier: Apache-2.0
"""Surface styles: what a face is made of. The world and its traversals fill one table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

PLAIN, FACADE, ROOF, FOLIAGE, GROUND = range(5)
PLASTER, BRICK, STONE, SIDING, TIMBER = range(5)

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """One surface style; lengths in metres, colours in sRGB (0 to 1).

    Attributes:
        kind: PLAIN, FACADE, ROOF, FOLIAGE or GROUND.
        colour, line_colour, accent: of the surface; of its joints and beams; of doors, signs and frames.
        reflectivity: diffuse reflectivity for the lidar, 0 to 1.
        roughness: strength of the surface's noise.
        pattern: PLASTER, BRICK, STONE, SIDING or TIMBER.
        columns, floors: number of windows across and of storeys with windows above the ground floor.
        pitch, margin: distance between window columns and from the left edge to the first column's cell.
        ground_height, floor_height: heights of the ground floor and of every other storey.
        window_width, window_height, sill: of each window; ``sill`` is above its floor.
        width: of the whole facade.
        shop: 1 for a shop window with a sign, 0 for a door, -1 for a blank ground floor.
        door: position of the door along the facade.
        variant: chooses curtains, letters and stains.
    """

    kind: int
    colour: Colour
    reflectivity: float = 0.4
    roughness: float = 0.08
    line_colour: Colour = (0.5, 0.5, 0.5)
    accent: Colour = (0.9, 0.9, 0.9)
    pattern: int = PLASTER
    columns: int = 0
    floors: int = 0
    pitch: float = 1.0
    margin: float = 0.0
    ground_height: float = 0.0
    floor_height: float = 3.0
    window_width: float = 1.0
    window_height: float = 1.5
    sill: float = 0.9
    width: float = 10.0
    shop: int = -1
    door: float = 0.0
    variant: int = 0


class StyleTable:
    """Styles as one float32 array per field, to be gathered per pixel; colours become linear."""

    def __init__(self, styles: Sequence[Style]) -> None:
        self._columns: dict[str, NDArray[np.float32]] = {}
        for field in fields(Style):
            values = np.array([getattr(style, field.name) for style in styles], np.float32)
            self._columns[field.name] = values**2.2 if values.ndim == 2 else values

    def gather(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values ``(N,)`` or colours ``(N, 3)`` of the field for ``(N,)`` table rows."""
        return self._columns[name][rows]
