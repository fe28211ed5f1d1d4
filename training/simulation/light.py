# SPDX-License-Identifier: Apache-2.0
"""Weather, hour and camera settings of a traversal: an ordinary day, dusk or night."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.textures import F32

DAY_CLOUD = (0.86, 0.87, 0.89)


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """Light of one traversal, and the camera's response; colours are linear RGB ``(3,)``.

    A surface that faces a light of irradiance 1 and reflects all of it has radiance 1.
    """

    sun_direction: F32  # unit, towards the sun
    sun: F32  # irradiance of what faces it
    ambient: F32
    zenith: F32
    horizon: F32
    clouds: float  # share of the sky
    cloud: F32  # their colour
    cloud_shift: float
    haze_per_m: float
    exposure: float
    white_balance: F32
    noise: float  # standard deviation of the image noise at full brightness, of 1
    street_lamps: float = 0.0  # irradiance 1 m below one
    headlamps: float = 0.0  # irradiance 1 m before our own

    @staticmethod
    def draw(rng: np.random.Generator, kind: str = "day") -> Light:
        """A plausible light of one of the :data:`LIGHTS`."""
        return LIGHTS[kind](rng)


def _day(rng: np.random.Generator) -> Light:
    """Low warm sun or high white sun, clear or overcast."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(18, 62))
    clouds = float(rng.uniform(0.05, 0.95))
    warmth = float(np.clip(1.2 - elevation, 0, 1))
    strength = 2.9 * (1 - 0.8 * max(clouds - 0.35, 0) / 0.6)
    overcast = np.array([0.62, 0.64, 0.67])
    blue = np.array([0.20, 0.36, 0.68]) * rng.uniform(0.8, 1.2)
    grey = float(np.clip((clouds - 0.4) / 0.5, 0, 1))
    zenith = blue + (overcast - blue) * grey
    horizon = np.array([0.70, 0.76, 0.84]) * (1 - 0.15 * warmth * np.array([0, 0.5, 1.5]))
    ambient = 0.42 + 0.35 * zenith
    light = strength * np.array([1.0, 0.95 - 0.12 * warmth, 0.88 - 0.32 * warmth])
    horizontal = light.mean() * np.sin(elevation) + ambient.mean()  # what an exposure meter sees
    return Light(
        _direction(azimuth, elevation),
        light.astype(np.float32),
        ambient.astype(np.float32),
        zenith.astype(np.float32),
        horizon.astype(np.float32),
        clouds,
        np.array(DAY_CLOUD, np.float32),
        float(rng.uniform(0, 40)),
        float(rng.choice([0.0008, 0.002, 0.006])),
        float(rng.uniform(0.85, 1.25) * 1.25 / horizontal**0.8),
        rng.uniform(0.93, 1.07, 3).astype(np.float32),
        float(rng.uniform(0.005, 0.014)),
    )


def _dusk(rng: np.random.Generator) -> Light:
    """The sun 2 to 7 degrees high and orange, nearly all of the street in shadow under a dim blue sky."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(2, 7))
    zenith = np.array([0.07, 0.10, 0.20]) * rng.uniform(0.7, 1.3)
    ambient = 0.03 + 0.5 * zenith
    return Light(
        _direction(azimuth, elevation),
        (rng.uniform(0.6, 1.2) * np.array([1.0, 0.50, 0.18])).astype(np.float32),
        ambient.astype(np.float32),
        zenith.astype(np.float32),
        np.array([0.40, 0.25, 0.17], np.float32),
        float(rng.uniform(0.05, 0.6)),
        np.array([0.30, 0.20, 0.18], np.float32),
        float(rng.uniform(0, 40)),
        float(rng.choice([0.0008, 0.002, 0.006])),
        float(rng.uniform(2.0, 3.0)),
        rng.uniform(0.93, 1.07, 3).astype(np.float32),
        float(rng.uniform(0.015, 0.03)),
    )


def _night(rng: np.random.Generator) -> Light:
    """No sun: the glow of a town, street lamps and our own dipped headlamps, and a camera at the end of its gain.

    Illuminances of some 20 lx below a street lamp, 5 lx at 40 m before the car and less than 1 lx elsewhere, in units
    of 20 lx. Lit windows, other cars' lamps and the blur of long exposures are not simulated.
    """
    glow = np.array([0.020, 0.018, 0.017]) * rng.uniform(0.5, 1.5)
    return Light(
        np.array([0, 0, 1], np.float32),
        np.zeros(3, np.float32),
        glow.astype(np.float32),
        (0.3 * glow).astype(np.float32),
        (0.8 * glow).astype(np.float32),
        float(rng.uniform(0.05, 0.95)),
        glow.astype(np.float32),
        float(rng.uniform(0, 40)),
        float(rng.choice([0.0008, 0.002, 0.006])),
        float(rng.uniform(1.5, 2.5)),
        rng.uniform(0.93, 1.07, 3).astype(np.float32),
        float(rng.uniform(0.03, 0.06)),
        street_lamps=float(rng.uniform(20, 35)),
        headlamps=float(rng.uniform(250, 400)),
    )


LIGHTS: dict[str, Callable[[np.random.Generator], Light]] = {"day": _day, "dusk": _dusk, "night": _night}


def _direction(azimuth: float, elevation: float) -> NDArray[np.float32]:
    horizontal = np.cos(elevation)
    return np.array([np.cos(azimuth) * horizontal, np.sin(azimuth) * horizontal, np.sin(elevation)], np.float32)
