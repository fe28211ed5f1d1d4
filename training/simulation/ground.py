# SPDX-License-Identifier: Apache-2.0
"""The ground's surface: asphalt with markings, repairs and manholes, kerbs, pavements and yards."""

from __future__ import annotations

import numpy as np

from training.simulation import street
from training.simulation.textures import F32, Hits, Noise, Surface, band, mix, stripes

_CELL_M = 5.0
_CELLS = int(street.LENGTH_M / _CELL_M)
ZEBRA_LENGTH_M = 3.0
_ASPHALT = np.array([0.105, 0.105, 0.11], np.float32)
_PAINT = np.array([0.72, 0.72, 0.70], np.float32)


class Ground:
    """Callable surface of the ground plane; its features are drawn once from ``rng``.

    Args:
        rng: draws the features.
        noise: the world's noise.
        zebras_m: centres of the pedestrian crossings along the street, as ``s``.
    """

    def __init__(self, rng: np.random.Generator, noise: Noise, zebras_m: tuple[float, ...]) -> None:
        self._noise = noise
        self._zebras_m = zebras_m
        self._cover = np.stack(  # one manhole or nothing per cell: s within cell, lateral, radius
            [
                rng.uniform(1, 4, _CELLS),
                rng.uniform(-2.8, 2.8, _CELLS),
                np.where(rng.uniform(size=_CELLS) < 0.45, 0.42, -1.0),
            ],
            -1,
        ).astype(np.float32)
        self._patch = np.stack(  # one repair per cell: s, lateral, half length, half width, brightness
            [
                rng.uniform(1, 4, _CELLS),
                rng.uniform(-2.5, 2.5, _CELLS),
                rng.uniform(0.4, 2.2, _CELLS),
                rng.uniform(0.3, 1.1, _CELLS),
                rng.choice([-0.45, -0.3, 0.0, 0.0, 0.35, 0.55], _CELLS),
            ],
            -1,
        ).astype(np.float32)
        tones = np.array([[0.30, 0.29, 0.28], [0.26, 0.20, 0.17], [0.36, 0.34, 0.29], [0.22, 0.23, 0.25]])
        self._paving = tones[rng.integers(0, 4, (_CELLS // 3 + 1, 2))].astype(np.float32)
        self._slab_m = rng.choice([0.4, 0.6, 1.0], (_CELLS // 3 + 1, 2)).astype(np.float32)

    def __call__(self, hits: Hits) -> Surface:
        """Albedo ``(N, 3)`` and lidar reflectivity ``(N,)`` at ground points."""
        s, lateral = street.project(hits.x, hits.y)
        # u and v are world x and y here; the footprint along the street follows its direction only roughly.
        footprint = np.sqrt(hits.footprint_u * hits.footprint_v)
        road = band(np.abs(lateral), -1.0, street.ROAD_HALF_WIDTH_M, footprint)
        yard = np.abs(lateral) > street.FACADE_DISTANCE_M + 1.0
        grain = np.maximum(1 + 0.16 * self._noise.sample(hits.x * 1.5, hits.y * 1.5, footprint), 0.3)
        albedo, reflectivity = np.zeros((len(s), 3), np.float32), np.zeros(len(s), np.float32)
        for share, paint in ((road, self._road), ((1 - road) * ~yard, self._pavement)):
            index = np.flatnonzero(share > 0)
            colour, mirror = paint(s[index], lateral[index], footprint[index])
            albedo[index] += colour * (share * grain)[index, None]
            reflectivity[index] += mirror * share[index]
        index = np.flatnonzero(yard)
        albedo[index], reflectivity[index] = self._yard(hits[index], footprint[index])
        return albedo, reflectivity

    def _yard(self, hits: Hits, footprint: F32) -> Surface:
        grass = self._noise.sample(hits.x, hits.y, footprint)
        green = np.array([0.10, 0.16, 0.055], np.float32)
        earth = np.array([0.20, 0.17, 0.12], np.float32)
        share = np.clip(0.35 + 0.35 * grass, 0, 1)
        tone = np.maximum(1 + 0.25 * grass, 0.3)[:, None]
        return mix(np.tile(green, (len(share), 1)), earth, share) * tone, 0.25 + 0.1 * share

    def _pavement(self, s: F32, lateral: F32, footprint: F32) -> Surface:
        section = np.clip((s / (3 * _CELL_M)).astype(np.int64), 0, len(self._paving) - 1)
        side = (lateral > 0).astype(np.int64)
        slab = self._slab_m[section, side]
        joint = np.maximum(stripes(s, slab, 0.04, footprint), stripes(lateral, slab, 0.04, footprint))
        colour = self._paving[section, side] * (1 - 0.45 * joint)[:, None]
        kerb = band(np.abs(lateral), 3.5, 3.75, footprint)
        return mix(colour, np.array([0.42, 0.42, 0.40], np.float32), kerb), 0.3 + 0.1 * kerb

    def _road(self, s: F32, lateral: F32, footprint: F32) -> Surface:
        cell = np.clip((s / _CELL_M).astype(np.int64), 0, _CELLS - 1)
        along = s - cell * np.float32(_CELL_M)
        repair = self._patch[cell].T
        repaired = band(along, repair[0] - repair[2], repair[0] + repair[2], footprint)
        repaired = repaired * band(lateral, repair[1] - repair[3], repair[1] + repair[3], footprint)
        worn = 0.16 * np.exp(-((np.abs(np.abs(lateral) - 1.75) - 0.75) ** 2) / 0.12)  # polished wheel tracks
        colour = _ASPHALT * (1 + repair[4] * repaired + worn)[:, None]
        paint = self._markings(s, lateral, footprint)
        colour = mix(colour, _PAINT, paint)
        cover = self._cover[cell].T
        distance = np.hypot(along - cover[0], lateral - cover[1])
        lid = band(distance, np.float32(-1), cover[2], footprint) * (cover[2] > 0)
        rim = band(distance, cover[2] * 0.8, cover[2], footprint) * (cover[2] > 0)
        colour = mix(
            mix(colour, np.array([0.05, 0.05, 0.05], np.float32), lid),
            np.array([0.2, 0.19, 0.18], np.float32),
            rim,
        )
        return colour, 0.12 + 0.6 * paint + 0.12 * lid

    def _markings(self, s: F32, lateral: F32, footprint: F32) -> F32:
        centre = band(lateral, -0.07, 0.07, footprint) * stripes(s, 5.0, 2.5, footprint)
        edge = band(np.abs(lateral), 3.15, 3.27, footprint)
        paint = np.maximum(centre, edge) * 0.8
        for zebra_m in self._zebras_m:
            half = ZEBRA_LENGTH_M / 2
            zone = band(s, zebra_m - half, zebra_m + half, footprint)
            bars = stripes(lateral + 0.25, 1.0, 0.5, footprint)
            stop = band(s, zebra_m - half - 1.4, zebra_m - half - 1.0, footprint) * (lateral < 0)
            paint = np.maximum(paint * (1 - zone), np.maximum(zone * bars, stop))
        return paint
