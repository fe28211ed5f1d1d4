# SPDX-License-Identifier: Apache-2.0
"""The simulated spinning lidar: every column of a revolution is cast from where the sensor then is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.simulation.scene import RayHits, Scene
from training.simulation.textures import F32, Textures
from training.simulation.traffic import Traffic
from training.simulation.trajectory import Trajectory
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Pose

BEAMS, COLUMNS = 32, 720  # BEAMS is the default
ELEVATION_DEG = (-20.0, 12.0)
MIN_RANGE_M, MAX_RANGE_M = 1.0, 80.0
RANGE_NOISE_M = 0.02
_BEAM_DIVERGENCE = 0.003
_MOVER_STEPS = 5  # within a revolution; a car moves under 15 cm in each
_RANDOM_DROPOUT = 0.01


class SpinningLidar:
    """Scans of a traversal's scene.

    A scan's stamp is the MIDDLE of its revolution, when the beams point straight ahead: unlike with the start
    or the end, a reader that ignores the points' times is wrong by half a revolution at most, and least where
    the vehicle goes. Columns run counter-clockwise from the rear.

    Args:
        base_from_lidar: where the sensor is mounted.
        textures: surfaces of the scene's styles, for the reflectivity.
        period_s: time of one revolution.
        beams: evenly spread over ``ELEVATION_DEG``.
    """

    def __init__(self, base_from_lidar: Pose, textures: Textures, period_s: float, beams: int = BEAMS) -> None:
        self._mount, self._textures, self._beams = base_from_lidar, textures, beams
        self.period_s = period_s
        self._column_time_s = ((np.arange(COLUMNS) + 0.5) / COLUMNS - 0.5) * period_s
        azimuth = ((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 - 1) * np.pi
        elevation = np.radians(np.linspace(*ELEVATION_DEG, beams))
        self._rays = np.stack(  # (COLUMNS, beams, 3), lidar frame, unit
            [
                np.cos(azimuth)[:, None] * np.cos(elevation),
                np.sin(azimuth)[:, None] * np.cos(elevation),
                np.broadcast_to(np.sin(elevation), (COLUMNS, beams)),
            ],
            -1,
        )

    def scan(
        self, traffic: Traffic, trajectory: Trajectory, time_s: float, rng: np.random.Generator
    ) -> tuple[PointCloud, NDArray[np.uint16]]:
        """The revolution centred on a time: returns, in the lidar frame at their own times, and beams."""
        position, rotation = trajectory.at(time_s + self._column_time_s)
        origins = np.repeat(position + rotation @ self._mount.position_m, self._beams, axis=0).astype(np.float32)
        rotation = rotation @ self._mount.rotation
        rays = np.einsum("cij,cbj->cbi", rotation, self._rays).reshape(-1, 3).astype(np.float32)
        hits = self._cast(traffic, time_s, origins, rays)
        distance = hits.distance_m
        intensity = self._intensity(traffic.scene, origins, rays, hits)
        measured = distance + rng.normal(0, RANGE_NOISE_M, distance.shape)
        seen = rng.uniform(size=distance.shape) < _return_probability(distance, intensity)
        intensity = np.clip(intensity + rng.normal(0, 1.5, distance.shape), 0, 255)
        index = np.flatnonzero(seen & (distance > MIN_RANGE_M) & (measured < MAX_RANGE_M))
        xyz = self._rays.reshape(-1, 3)[index] * measured[index, None]
        column_time = self._column_time_s[index // self._beams]
        cloud = PointCloud(xyz.astype(np.float32), intensity[index].astype(np.float32), column_time.astype(np.float32))
        return cloud, (index % self._beams).astype(np.uint16)

    def _cast(self, traffic: Traffic, time_s: float, origins: F32, rays: F32) -> RayHits:
        """First hits of all rays; what moves is where it is during each part of the revolution."""
        fixed = traffic.scene.cast_fixed(origins, rays)
        distance, face = fixed.distance_m.copy(), fixed.face.copy()
        for columns in np.array_split(np.arange(COLUMNS), _MOVER_STEPS):
            traffic.place(time_s + float(self._column_time_s[columns].mean()))
            part = slice(columns[0] * self._beams, (columns[-1] + 1) * self._beams)
            still = RayHits(distance[part], face[part])
            moved = traffic.scene.cast_movers(origins[part], rays[part], still)
            distance[part], face[part] = moved.distance_m, moved.face
        return RayHits(distance, face)

    def _intensity(self, scene: Scene, origins: F32, rays: F32, hits: RayHits) -> F32:
        """Reflectivity as drivers give it (0 to 255), with some of incidence and range left in it."""
        intensity = np.zeros(len(rays), np.float32)
        hit = np.flatnonzero(hits.distance_m < MAX_RANGE_M)
        face, distance, ray = hits.face[hit], hits.distance_m[hit], rays[hit]
        points = origins[hit] + ray * distance[:, None]
        surface = scene.surface_points(points, ray, face, distance * np.float32(_BEAM_DIVERGENCE))
        _, reflectivity = self._textures.evaluate(surface)
        incidence = np.abs(np.einsum("ni,ni->n", scene.normals[face], ray))
        intensity[hit] = 255 * reflectivity * (0.35 + 0.65 * incidence) * np.exp(-distance / 90)
        return intensity


def _return_probability(distance_m: F32, intensity: F32) -> F32:
    """Falls where little light comes back: dark, slanted or mirroring surfaces far away."""
    signal = intensity * np.exp(-distance_m / 60)
    return np.where(np.isfinite(distance_m), (1 - _RANDOM_DROPOUT) * (1 - np.exp(-signal / 2.2)), 0)
