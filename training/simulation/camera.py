# SPDX-License-Identifier: Apache-2.0
"""The simulated camera: ray cast, lit by sun, sky and lamps with shadows, developed to 8-bit sRGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.simulation.light import Light
from training.simulation.scene import Scene
from training.simulation.textures import F32, Noise, Textures
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose

_SHADOW_OFFSET_M = 0.01
_SKY_BRIGHTNESS = 1.7  # of the sky, to the share of it that walls receive
_LAMP_COLOUR = np.array([1.0, 0.76, 0.46], np.float32)
_LAMP_REACH_M = 25.0
_HEADLAMP_COLOUR = np.array([1.0, 0.97, 0.90], np.float32)
_HEADLAMP_M = np.array([0.0, 0.85, 1.2], np.float32)  # in the optical frame, of the two the middle
_BEAM_WIDTH_RAD = 0.45
_CUT_OFF_RAD = 0.01  # of dipped beams, below the horizon
_BEAM_HEIGHT_RAD = 0.05  # farther below they fade, or the road at the car's feet would outshine all
_STRAY = 0.04  # share of the beam that goes above


class CameraRenderer:
    """Images of a scene through an ideal pinhole; pixel centres lie at whole coordinates (as in OpenCV).

    Args:
        intrinsics: the camera.
        textures: surfaces of the scene's styles.
        noise: the world's noise, for the clouds.
        light: the traversal's light.
        lamps_m: ``(L, 3)`` places of street lamps, in the map.
    """

    def __init__(
        self,
        intrinsics: PinholeCamera,
        textures: Textures,
        noise: Noise,
        light: Light,
        lamps_m: NDArray[np.float64] | None = None,
    ) -> None:
        self.intrinsics = intrinsics
        self._textures, self._noise, self._light = textures, noise, light
        self._lamps_m = np.zeros((0, 3), np.float32) if lamps_m is None else lamps_m.astype(np.float32)
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
            scene, map_from_camera, directions[seen], hits.distance_m[seen], hits.face[seen], self._pixel_width[seen]
        )
        return self._develop(radiance, rng)

    def _surfaces(
        self, scene: Scene, camera: Pose, directions: F32, distance: F32, face: NDArray[np.int64], pixel: F32
    ) -> F32:
        """Radiance ``(N, 3)`` of hit surfaces: sun and lamps with cast shadows, sky light, haze."""
        light, origin = self._light, camera.position_m.astype(np.float32)
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
        irradiance = light.sun * sunny[:, None] + light.ambient * (skyward * nook)[:, None]
        if light.street_lamps:
            irradiance += self._street_lamps(scene, points, normals * facing[:, None])
        if light.headlamps:
            irradiance += self._headlamps(camera, points, normals * facing[:, None])
        colour = albedo * irradiance
        clear = np.exp(-distance * light.haze_per_m)[:, None]
        return colour * clear + light.horizon * (1 - clear)

    def _street_lamps(self, scene: Scene, points: F32, normals: F32) -> F32:
        """Irradiance ``(N, 3)``; a lamp sends light down, by the cosine."""
        total = np.zeros(len(points), np.float32)
        for lamp in self._lamps_m:
            towards, distance = _unit(lamp - points)
            amount = np.maximum(towards[:, 2], 0) * np.maximum(np.einsum("ni,ni->n", normals, towards), 0)
            lit = np.flatnonzero((amount > 0) & (distance < _LAMP_REACH_M))
            first_m = scene.cast(np.tile(lamp, (len(lit), 1)), -towards[lit]).distance_m
            lit = lit[first_m > distance[lit] - _SHADOW_OFFSET_M]
            total[lit] += amount[lit] / np.maximum(distance[lit], 1) ** 2
        return self._light.street_lamps * total[:, None] * _LAMP_COLOUR

    def _headlamps(self, camera: Pose, points: F32, normals: F32) -> F32:
        """Irradiance ``(N, 3)``, without shadows: what the camera sees beside them is a hand's breadth wide."""
        rotation = camera.rotation.astype(np.float32)
        lamp = camera.position_m.astype(np.float32) + rotation @ _HEADLAMP_M
        towards, distance = _unit(lamp - points)
        right, down, ahead = (-towards @ rotation).T
        aside, below = np.arctan2(right, ahead), np.arcsin(np.clip(down, -1, 1))
        dipped = _STRAY + (1 - _STRAY) * np.clip((below - _CUT_OFF_RAD) / _CUT_OFF_RAD + 0.5, 0, 1)
        dipped = dipped / (1 + (np.maximum(below, 0) / _BEAM_HEIGHT_RAD) ** 2)
        beam = np.exp(-0.5 * (aside / _BEAM_WIDTH_RAD) ** 2) * dipped * (ahead > 0)
        amount = beam * np.maximum(np.einsum("ni,ni->n", normals, towards), 0) / np.maximum(distance, 1) ** 2
        return np.asarray(self._light.headlamps * amount[:, None] * _HEADLAMP_COLOUR, np.float32)

    def _sky(self, directions: F32) -> F32:
        light = self._light
        up = np.maximum(directions[:, 2], 0.02)
        colour = light.horizon + (light.zenith - light.horizon) * np.sqrt(up)[:, None]
        sun_glow = np.maximum(directions @ light.sun_direction, 0)
        x, y = directions[:, 0] / (up + 0.15) * 5.0, directions[:, 1] / (up + 0.15) * 5.0
        footprint = np.full(len(up), 0.3, np.float32)
        billow = self._noise.sample(x + np.float32(light.cloud_shift), y, footprint)
        cover = np.clip((billow - 1.6 + 3.2 * light.clouds) * 0.55, 0, 1) * np.clip(up * 6, 0, 1)
        cloud = light.cloud * (0.88 + 0.1 * np.clip(-billow, -1, 1))[:, None]
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


def _unit(vectors: F32) -> tuple[F32, F32]:
    """Directions ``(N, 3)`` and lengths ``(N,)``."""
    length = np.linalg.norm(vectors, axis=1)
    return vectors / np.maximum(length, 1e-6)[:, None], length
