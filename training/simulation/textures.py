# SPDX-License-Identifier: Apache-2.0
"""Procedural surfaces at hit points, box filtered over the pixel's footprint so that they do not alias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.styles import BRICK, FACADE, FOLIAGE, GROUND, ROOF, SIDING, STONE, TIMBER, StyleTable

F32 = NDArray[np.float32]

_TEXEL_M = 0.08
_SIZE = 512
_LEVELS = 6
# Joints of the wall patterns: horizontal distance, vertical distance, width (m), share of the line colour.
_JOINTS = {
    BRICK: (0.40, 0.16, 0.03, 0.75),
    STONE: (1.30, 0.65, 0.05, 0.9),
    SIDING: (0.0, 0.28, 0.06, 0.8),
    TIMBER: (1.6, 1.45, 0.18, 1.0),
}


class Noise:
    """Tileable 1/f noise of unit variance, prefiltered for six footprints, and a table of uniform numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        frequency = np.hypot(np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE)[None])
        spectrum = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE))) / np.maximum(frequency, 1 / 128) ** 0.9
        spectrum[0, 0] = 0
        scale = np.fft.irfft2(spectrum).std()
        blurs = [np.exp(-0.5 * (2 * np.pi * frequency * 0.35 * (2**level - 1)) ** 2) for level in range(_LEVELS)]
        self._levels = np.stack([np.fft.irfft2(spectrum * blur) / scale for blur in blurs]).astype(np.float32).ravel()
        self._uniform = rng.uniform(0, 1, 4096).astype(np.float32)

    def sample(self, u_m: F32, v_m: F32, footprint_m: F32) -> F32:
        """Noise at texture coordinates, averaged over ``footprint_m``."""
        level = np.clip(np.log2(np.maximum(footprint_m, 1e-3) / _TEXEL_M) + 0.5, 0, _LEVELS - 1).astype(np.int64)
        column = np.floor(u_m / _TEXEL_M).astype(np.int64) & (_SIZE - 1)
        row = np.floor(v_m / _TEXEL_M).astype(np.int64) & (_SIZE - 1)
        return self._levels[(level * _SIZE + row) * _SIZE + column]

    def uniform(self, *cells: F32) -> F32:
        """A fixed number in [0, 1) for every combination of whole-numbered cells."""
        index = np.zeros(cells[0].shape, np.int64)
        for cell, factor in zip(cells, (7, 269, 1597), strict=False):
            index += cell.astype(np.int64) * factor
        return self._uniform[index & 4095]


def band(x: F32, low: F32 | float, high: F32 | float, footprint: F32) -> F32:
    """Share of ``[x - footprint/2, x + footprint/2]`` that lies within ``[low, high]``."""
    half = footprint / 2
    return np.clip((np.minimum(x + half, high) - np.maximum(x - half, low)) / footprint, 0, 1)


def stripes(x: F32, period: F32 | float, width: F32 | float, footprint: F32) -> F32:
    """Share of the footprint covered by stripes ``[k period, k period + width]``."""

    def integral(position: F32) -> F32:
        cell = np.floor(position / period)
        return cell * width + np.minimum(position - cell * period, width)

    return np.clip((integral(x + footprint / 2) - integral(x - footprint / 2)) / footprint, 0, 1)


def mix(first: F32, second: F32, share: F32) -> F32:
    """``(N, 3)`` colours (or ``(N,)`` values) between first and second."""
    weight = share[:, None] if np.ndim(first) == 2 or np.ndim(second) == 2 else share
    return first + (second - first) * weight


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Surface points: style rows, texture coordinates, their footprints, and positions (metres)."""

    rows: NDArray[np.int64]  # (N,)
    u: F32
    v: F32
    footprint_u: F32
    footprint_v: F32
    x: F32
    y: F32
    z: F32

    def __getitem__(self, index: NDArray[np.int64]) -> Hits:
        return Hits(*(getattr(self, name)[index] for name in self.__slots__))


Surface = tuple[F32, F32]  # albedo (N, 3) linear, lidar reflectivity (N,)
Painter = Callable[[Hits], Surface]


class Textures:
    """Evaluates the surface of every kind of style; ``ground`` evaluates GROUND."""

    def __init__(self, table: StyleTable, noise: Noise, ground: Painter) -> None:
        self._table, self._noise, self._ground = table, noise, ground

    def evaluate(self, hits: Hits) -> Surface:
        """Albedo ``(N, 3)`` and lidar reflectivity ``(N,)`` of the hit points."""
        on_ground = self._table.gather("kind", hits.rows) == GROUND
        albedo = np.empty((len(on_ground), 3), np.float32)
        reflectivity = np.empty(len(on_ground), np.float32)
        for index, paint in (
            (np.flatnonzero(on_ground), self._ground),
            (np.flatnonzero(~on_ground), self._built),
        ):
            if len(index):
                albedo[index], reflectivity[index] = paint(hits[index])
        return albedo, reflectivity

    def _built(self, hits: Hits) -> Surface:
        albedo = self._table.gather("colour", hits.rows)
        reflectivity = self._table.gather("reflectivity", hits.rows)
        footprint = np.maximum(hits.footprint_u, hits.footprint_v)
        shift = self._table.gather("variant", hits.rows) * 7.3
        roughness = self._table.gather("roughness", hits.rows)
        grain = self._noise.sample(hits.u + shift, hits.v + shift, footprint) * roughness
        albedo = albedo * np.maximum(1 + grain, 0.1)[:, None]
        kinds = self._table.gather("kind", hits.rows)
        for kind, paint in ((FACADE, self._facade), (ROOF, self._roof), (FOLIAGE, self._foliage)):
            index = np.flatnonzero(kinds == kind)
            if len(index):
                albedo[index], reflectivity[index] = paint(hits[index], albedo[index], reflectivity[index])
        return albedo, reflectivity

    def _roof(self, hits: Hits, albedo: F32, reflectivity: F32) -> Surface:
        rows = stripes(hits.v, 0.4, 0.08, hits.footprint_v)
        return albedo * (1 - 0.5 * rows)[:, None], reflectivity

    def _foliage(self, hits: Hits, albedo: F32, reflectivity: F32) -> Surface:
        leaves = self._noise.sample(hits.x * 1.7 + hits.z, hits.y * 1.7 - hits.z * 1.3, hits.footprint_u * 1.7)
        brightness = np.clip(1 + 0.45 * leaves, 0.25, 2.0)
        return albedo * brightness[:, None], reflectivity * np.clip(0.8 + 0.3 * leaves, 0.3, 1.2)

    def _facade(self, hits: Hits, albedo: F32, reflectivity: F32) -> Surface:
        albedo = self._joints(hits, albedo)
        # Dirt: darker above the pavement, and soft stains that differ from house to house.
        albedo = albedo * (1 - 0.25 * np.exp(-np.maximum(hits.v, 0) / 0.5))[:, None]
        albedo, reflectivity = self._windows(hits, albedo, reflectivity)
        return self._ground_floor(hits, albedo, reflectivity)

    def _joints(self, hits: Hits, albedo: F32) -> F32:
        pattern = self._table.gather("pattern", hits.rows)
        for kind, (across, up, width, strength) in _JOINTS.items():
            index = np.flatnonzero(pattern == kind)
            if not len(index):
                continue
            u, v = hits.u[index], hits.v[index]
            joint = stripes(v, up, width, hits.footprint_v[index])
            if across:
                stagger = np.floor(v / up) * (across / 2) if kind != TIMBER else 0.0
                joint = np.maximum(joint, stripes(u + stagger, across, width, hits.footprint_u[index]))
            line = self._table.gather("line_colour", hits.rows[index])
            albedo[index] = mix(albedo[index], line, joint * strength)
            if kind in (BRICK, STONE):  # single stones differ
                tone = self._noise.uniform(np.floor((u + stagger) / across), np.floor(v / up))
                fade = np.clip(1.2 - hits.footprint_u[index] / across, 0, 1)
                albedo[index] *= (1 + 0.35 * (tone - 0.5) * fade)[:, None]
        return albedo

    def _windows(self, hits: Hits, albedo: F32, reflectivity: F32) -> Surface:
        def get(name: str) -> F32:
            return self._table.gather(name, hits.rows)

        pitch, floor_height, columns = get("pitch"), get("floor_height"), get("columns")
        across, up = hits.u - get("margin"), hits.v - get("ground_height")
        column, floor = np.floor(across / pitch), np.floor(up / floor_height)
        inside = (column >= 0) & (column < columns) & (floor >= 0) & (floor < get("floors"))
        index = np.flatnonzero(inside)
        if not len(index):
            return albedo, reflectivity
        x = (across - (column + 0.5) * pitch)[index]
        y = (up - floor * floor_height - get("sill"))[index]
        half_width, height = get("window_width")[index] / 2, get("window_height")[index]
        fu, fv = hits.footprint_u[index], hits.footprint_v[index]
        frame = band(x, -half_width - 0.12, half_width + 0.12, fu) * band(y, np.float32(-0.16), height + 0.12, fv)
        bars = np.maximum(band(x, -0.04, 0.04, fu), band(y, height * 0.62, height * 0.62 + 0.07, fv))
        pane = band(x, -half_width, half_width, fu) * band(y, np.float32(0), height, fv)
        glass = pane * (1 - bars)
        # Where a pixel spans whole storeys or columns, only the mean of the facade is right.
        blur = np.clip(np.maximum(fu / pitch[index], fv / floor_height[index]) * 2 - 0.4, 0, 1)
        share = 2 * half_width * height / (pitch * floor_height)[index]
        glass, frame = glass + (share - glass) * blur, frame + (1.25 * share - frame) * blur
        lit = self._noise.uniform(column[index], floor[index], get("variant")[index])
        albedo[index] = mix(albedo[index], get("accent")[index], frame)
        albedo[index] = mix(albedo[index], _glass(lit, y / height), glass)
        reflectivity[index] = mix(mix(reflectivity[index], np.full_like(x, 0.6), frame), np.full_like(x, 0.06), glass)
        return albedo, reflectivity

    def _ground_floor(self, hits: Hits, albedo: F32, reflectivity: F32) -> Surface:
        index = np.flatnonzero(
            (hits.v < self._table.gather("ground_height", hits.rows)) & (self._table.gather("shop", hits.rows) >= 0)
        )
        if not len(index):
            return albedo, reflectivity
        hits = hits[index]
        width, shop = self._table.gather("width", hits.rows), self._table.gather("shop", hits.rows)
        door, accent = self._table.gather("door", hits.rows), self._table.gather("accent", hits.rows)
        fu, fv = hits.footprint_u, hits.footprint_v
        variant = self._table.gather("variant", hits.rows)
        leaf = band(hits.u, door - 0.6, door + 0.6, fu) * band(hits.v, np.float32(-1), np.float32(2.3), fv)
        surround = band(hits.u, door - 0.8, door + 0.8, fu) * band(hits.v, np.float32(-1), np.float32(2.5), fv)
        pane = band(hits.u, np.float32(0.5), width - 0.5, fu) * band(hits.v, np.float32(0.5), np.float32(2.45), fv)
        pane = pane * (1 - surround) * (1 - stripes(hits.u, 1.7, 0.12, fu)) * shop
        sign = (
            band(hits.u, np.float32(0.3), width - 0.3, fu) * band(hits.v, np.float32(2.6), np.float32(3.25), fv) * shop
        )
        lit = self._noise.uniform(np.floor(hits.u / 1.7), variant)
        colour = mix(albedo[index], accent, sign)
        colour = mix(colour, 0.9 - 0.8 * accent, sign * self._letters(hits, variant))
        colour = mix(colour, _glass(lit, hits.v / 2.5), pane)
        colour = mix(mix(colour, np.full_like(colour, 0.55), surround), accent * 0.5, leaf)
        albedo[index] = colour
        painted = mix(mix(reflectivity[index], np.full_like(fu, 0.85), sign), np.full_like(fu, 0.25), leaf)
        reflectivity[index] = mix(painted, np.full_like(fu, 0.06), pane)
        return albedo, reflectivity

    def _letters(self, hits: Hits, variant: F32) -> F32:
        """Marks of 8 cm that read as lettering, different for every shop."""
        column, row = np.floor(hits.u / 0.09), np.floor((hits.v - 2.7) / 0.11)
        mark = (self._noise.uniform(column, row, variant) > 0.45) & (row >= 0) & (row < 4) & (column % 5 != 0)
        word = self._noise.uniform(np.floor(hits.u / 1.35), variant) > 0.25
        fade = np.clip(1.5 - hits.footprint_u / 0.12, 0, 1)
        return (mark & word) * fade + 0.3 * (1 - fade)


def _glass(lit: F32, up: F32) -> F32:
    """Window panes ``(N, 3)``: dark, mirroring some sky towards the top; some have curtains or a light on."""
    dark = np.stack([0.03 + 0.10 * up, 0.04 + 0.13 * up, 0.06 + 0.17 * up], -1)
    curtain = np.array([0.45, 0.42, 0.36], np.float32) * (0.6 + 0.4 * lit)[:, None]
    return np.where((lit > 0.72)[:, None], curtain, dark * (0.5 + lit)[:, None]).astype(np.float32)
