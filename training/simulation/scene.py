# SPDX-License-Identifier: Apache-2.0
"""Everything that a ray can hit at one instant: embree scenes for fixed and for moving geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

from training.simulation.mesh import Mesh, concatenate
from training.simulation.textures import Hits

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RayHits:
    """First hits of N rays; ``distance_m`` is infinite and ``face`` is -1 where there is none."""

    distance_m: F32
    face: NDArray[np.int64]


def _embree(vertices_m: NDArray[np.float64], faces: NDArray[np.int64]) -> EmbreeScene:
    scene = EmbreeScene()
    TriangleMesh(scene, vertices_m.astype(np.float32), faces.astype(np.int32))
    return scene


def _hits(scene: EmbreeScene, origins_m: F32, directions: F32) -> RayHits:
    found = scene.run(origins_m, directions, output=True)
    face, distance = found["primID"], found["tfar"]
    distance[face < 0] = np.inf
    return RayHits(distance, face.astype(np.int64))


class Scene:
    """Fixed geometry plus movers that are placed anew for every instant.

    Args:
        fixed: the geometry that stays.
        movers: one mesh per mover, at the origin.
    """

    def __init__(self, fixed: Mesh, movers: list[Mesh]) -> None:
        self._fixed_scene = _embree(fixed.vertices_m, fixed.faces)
        self._fixed_count = len(fixed.faces)
        self._moving_scene: EmbreeScene | None = None
        self._movers = concatenate(movers) if movers else None
        self._mover_of_vertex = np.repeat(np.arange(len(movers)), [len(mesh.vertices_m) for mesh in movers])
        self._mover_of_face = np.repeat(np.arange(len(movers)), [len(mesh.faces) for mesh in movers])
        everything = concatenate([fixed, *movers])
        self.styles = everything.styles
        self.normals = everything.normals.astype(np.float32)
        self._axes = np.ascontiguousarray(everything.axes.transpose(1, 0, 2), dtype=np.float32)  # (2, F, 3)
        self._offsets = np.ascontiguousarray(everything.offsets_m.T, dtype=np.float32)  # (2, F)
        self._mover_normals = everything.normals[self._fixed_count :]

    def place_movers(self, rotations: NDArray[np.float64], positions_m: NDArray[np.float64]) -> None:
        """Put the movers at ``(M, 3, 3)`` rotations and ``(M, 3)`` positions."""
        if self._movers is None:
            return
        movers, of_vertex, of_face = self._movers, self._mover_of_vertex, self._mover_of_face
        vertices = np.einsum("nij,nj->ni", rotations[of_vertex], movers.vertices_m) + positions_m[of_vertex]
        self._moving_scene = _embree(vertices, movers.faces)
        axes = np.einsum("nij,nkj->kni", rotations[of_face], movers.axes)
        tail = slice(self._fixed_count, None)
        self.normals[tail] = np.einsum("nij,nj->ni", rotations[of_face], self._mover_normals)
        self._axes[:, tail] = axes
        self._offsets[:, tail] = movers.offsets_m.T - np.einsum("kni,ni->kn", axes, positions_m[of_face])

    def cast(self, origins_m: F32, directions: F32) -> RayHits:
        """First hits of rays from ``(N, 3)`` origins along ``(N, 3)`` unit directions."""
        return self.cast_movers(origins_m, directions, self.cast_fixed(origins_m, directions))

    def cast_fixed(self, origins_m: F32, directions: F32) -> RayHits:
        """First hits on the fixed geometry alone."""
        return _hits(self._fixed_scene, origins_m, directions)

    def cast_movers(self, origins_m: F32, directions: F32, fixed: RayHits) -> RayHits:
        """Hits on ``fixed`` or on a mover where one is nearer."""
        if self._moving_scene is None:
            return fixed
        moving = _hits(self._moving_scene, origins_m, directions)
        nearer = moving.distance_m < fixed.distance_m
        return RayHits(
            np.where(nearer, moving.distance_m, fixed.distance_m),
            np.where(nearer, moving.face + self._fixed_count, fixed.face),
        )

    def occluded(self, origins_m: F32, directions: F32) -> NDArray[np.bool_]:
        """Whether anything lies along each ray ``(N,)``."""
        blocked = self._fixed_scene.run(origins_m, directions, query="OCCLUDED") >= 0
        if self._moving_scene is not None:
            blocked |= self._moving_scene.run(origins_m, directions, query="OCCLUDED") >= 0
        return np.asarray(blocked)

    def surface_points(self, points_m: F32, directions: F32, face: NDArray[np.int64], width_m: F32) -> Hits:
        """Texture coordinates of hits and the extent there of beams that are ``width_m`` wide."""
        slant = np.einsum("ni,ni->n", self.normals[face], directions)
        slant = np.where(np.abs(slant) < 0.02, np.float32(0.02), slant)
        coordinates, extents = [], []
        for i in range(2):
            axis = self._axes[i][face]
            coordinates.append(np.einsum("ni,ni->n", axis, points_m) + self._offsets[i][face])
            along = np.einsum("ni,ni->n", axis, directions) / slant
            extents.append(np.sqrt(1 + along * along) * width_m)
        return Hits(self.styles[face], *coordinates, *extents, *np.ascontiguousarray(points_m.T))
