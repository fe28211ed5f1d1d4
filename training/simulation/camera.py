# SPDX-License-Identifier: Apache-2.0
"""The simulated camera: ray cast, lit by sun and sky with shadows, developed to 8-bit sRGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.scene import Scene
from training.simulation.textures import F32, Noise, Textures
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose

_SHADOW_OFFSET_M = 0.01
_SKY_BRIGHTNESS = 1.7  # of the sky, to the share of it that walls receive


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """Weather, hour and camera settings of one traversal; colours are linear RGB ``(3,)``."""

    sun_direction: F32  # unit, towards the sun
    sun: F32
    ambient: F32
    zenith: F32
    horizon: F32
    clouds: float  # share of the sky
    cloud_shift: float
    haze_per_m: float
    exposure: float
    white_balance: F32
    noise: float  # standard deviation of the image noise at full brightness, of 1

    @staticmethod
    def draw(rng: np.random.Generator) -> Light:
        """A plausible day: low warm sun or high white sun, clear or overcast."""
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
            np.array(
                [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)],
                np.float32,
            ),
            light.astype(np.float32),
            ambient.astype(np.float32),
            zenith.astype(np.float32),
            horizon.astype(np.float32),
            clouds,
            float(rng.uniform(0, 40)),
            float(rng.choice([0.0008, 0.002, 0.006])),
            float(rng.uniform(0.85, 1.25) * 1.25 / horizontal**0.8),
            rng.uniform(0.93, 1.07, 3).astype(np.float32),
            float(rng.uniform(0.005, 0.014)),
        )


class CameraRenderer:
    """Images of a scene through an ideal pinhole; pixel centres lie at whole coordinates (as in OpenCV).

    Args:
        intrinsics: the camera.
        textures: surfaces of the scene's styles.
        noise: the world's noise, for the clouds.
        light: the traversal's light.
    """

    def __init__(self, intrinsics: PinholeCamera, textures: Textures, noise: Noise, light: Light) -> None:
        self.intrinsics = intrinsics
        self._textures, self._noise, self._light = textures, noise, light
        column, row = np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height))
        rays = np.stack(
            [
                (column.ravel() - intrinsics.cx) / intrinsics.fx,
                (row.ravel() - intrinsics.cy) / intrinsics.fy,
                np.ones(column.size),
            ],
            -1,
        )
        norm = np.linalg.norm(rays, axis=1, keepdims=True)
        self._rays = (rays / norm).astype(np.float32)  # optical frame, unit
        self._pixel_width = (1 / (intrinsics.fx * norm[:, 0])).astype(np.float32)  # at 1 m, along the ray
        off_axis = np.sum((rays[:, :2] * intrinsics.fx / intrinsics.width) ** 2, axis=1)
        self._vignette = (1 - 0.28 * off_axis).astype(np.float32)[:, None]

    def render(self, scene: Scene, map_from_camera: Pose, rng: np.random.Generator) -> NDArray[np.uint8]:
        """An ``(H, W, 3)`` RGB image from the optical frame's pose; ``rng`` draws the sensor noise."""
        directions = self._rays @ map_from_camera.rotation.T.astype(np.float32)
        origin = map_from_camera.position_m.astype(np.float32)
        hits = scene.cast(np.tile(origin, (len(directions), 1)), directions)
        radiance = np.empty((len(directions), 3), np.float32)
        missed, seen = np.flatnonzero(hits.face < 0), np.flatnonzero(hits.face >= 0)
        radiance[missed] = self._sky(directions[missed])
        radiance[seen] = self._surfaces(
            scene, origin, directions[seen], hits.distance_m[seen], hits.face[seen], self._pixel_width[seen]
        )
        return self._develop(radiance, rng)

    def _surfaces(
        self, scene: Scene, origin: F32, directions: F32, distance: F32, face: NDArray[np.int64], pixel: F32
    ) -> F32:
        """Radiance ``(N, 3)`` of hit surfaces: sun with cast shadows, sky light, haze."""
        light = self._light
        points = origin + directions * distance[:, None]
        surface = scene.surface_points(points, directions, face, distance * pixel)
        albedo, _ = self._textures.evaluate(surface)
        normals = scene.normals[face]
        facing = -np.sign(np.einsum("ni,ni->n", normals, directions))  # surfaces are seen from both sides
        sunny = np.maximum((normals @ light.sun_direction) * facing, 0)
        lit = np.flatnonzero(sunny > 0)
        towards_sun = np.tile(light.sun_direction, (len(lit), 1))
        shadow = scene.occluded(points[lit] + normals[lit] * (facing[lit, None] * _SHADOW_OFFSET_M), towards_sun)
        sunny[lit[shadow]] = 0
        # Sky light falls from above; what leaves the pavement fills in from below. Low corners are darker.
        skyward = 0.72 + 0.28 * normals[:, 2] * facing
        nook = 1 - 0.35 * np.exp(-np.maximum(points[:, 2], 0) / 0.6) * (1 - np.abs(normals[:, 2]))
        colour = albedo * (light.sun * sunny[:, None] + light.ambient * (skyward * nook)[:, None])
        clear = np.exp(-distance * light.haze_per_m)[:, None]
        return colour * clear + light.horizon * (1 - clear)

    def _sky(self, directions: F32) -> F32:
        light = self._light
        up = np.maximum(directions[:, 2], 0.02)
        colour = light.horizon + (light.zenith - light.horizon) * np.sqrt(up)[:, None]
        sun_glow = np.maximum(directions @ light.sun_direction, 0)
        x, y = directions[:, 0] / (up + 0.15) * 5.0, directions[:, 1] / (up + 0.15) * 5.0
        footprint = np.full(len(up), 0.3, np.float32)
        billow = self._noise.sample(x + np.float32(light.cloud_shift), y, footprint)
        cover = np.clip((billow - 1.6 + 3.2 * light.clouds) * 0.55, 0, 1) * np.clip(up * 6, 0, 1)
        cloud = np.array([0.86, 0.87, 0.89], np.float32) * (0.88 + 0.1 * np.clip(-billow, -1, 1))[:, None]
        colour = colour + (cloud - colour) * (cover * 0.85)[:, None]
        return _SKY_BRIGHTNESS * colour + light.sun * (0.12 * sun_glow**24)[:, None]

    def _develop(self, radiance: F32, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Exposure, white balance, vignette, a soft shoulder, noise and the sRGB curve (a power of 1/2.2)."""
        light = self._light
        exposed = radiance * self._vignette * (light.exposure * light.white_balance)
        tone = exposed * (1 + exposed / 6.0) / (1 + exposed)
        grain = rng.standard_normal(tone.shape, np.float32) * light.noise
        signal = np.maximum(tone, 0) ** np.float32(1 / 2.2) + grain
        height, width = self.intrinsics.height, self.intrinsics.width
        return (np.clip(signal, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)
