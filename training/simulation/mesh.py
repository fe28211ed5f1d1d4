# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes whose faces carry a surface style and metric texture coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Faces with attributes.

    Attributes:
        vertices_m: ``(V, 3)`` float64.
        faces: ``(F, 3)`` int64.
        styles: ``(F,)`` int64 rows of the style table.
        axes: ``(F, 2, 3)`` float64 unit directions of the texture coordinates u and v.
        offsets_m: ``(F, 2)`` float64, so that ``uv = axes @ point + offsets_m`` in metres.
    """

    vertices_m: Array
    faces: NDArray[np.int64]
    styles: NDArray[np.int64]
    axes: Array
    offsets_m: Array

    @property
    def normals(self) -> Array:
        """Unit normals ``(F, 3)``."""
        a, b, c = np.moveaxis(self.vertices_m[self.faces], 1, 0)
        normal = np.cross(b - a, c - a)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def moved(self, rotation: Array, translation_m: ArrayLike) -> Mesh:
        """The mesh after ``x -> rotation @ x + translation``; its texture moves along."""
        axes = self.axes @ rotation.T
        return Mesh(
            self.vertices_m @ rotation.T + np.asarray(translation_m),
            self.faces,
            self.styles,
            axes,
            self.offsets_m - axes @ np.asarray(translation_m, np.float64),
        )


def concatenate(meshes: list[Mesh]) -> Mesh:
    """One mesh with the faces of all, in order."""
    starts = np.cumsum([0] + [len(mesh.vertices_m) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices_m for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.styles for mesh in meshes]),
        np.concatenate([mesh.axes for mesh in meshes]),
        np.concatenate([mesh.offsets_m for mesh in meshes]),
    )


def yaw_matrix(yaw_rad: float) -> Array:
    """Rotation ``(3, 3)`` about z."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


class MeshBuilder:
    """Collects primitives; :meth:`build` returns them as one :class:`Mesh`."""

    def __init__(self) -> None:
        self._parts: list[Mesh] = []

    def build(self) -> Mesh:
        return concatenate(self._parts)

    def add(self, mesh: Mesh) -> None:
        self._parts.append(mesh)

    def polygon(self, corners_m: ArrayLike, style: int) -> None:
        """A planar convex polygon, counter-clockwise from outside; u runs along its first edge."""
        corners = np.asarray(corners_m, np.float64)
        u = corners[1] - corners[0]
        u = u / np.linalg.norm(u)
        normal = np.cross(u, corners[-1] - corners[0])
        v = np.cross(normal / np.linalg.norm(normal), u)
        axes = np.stack([u, v])
        count = len(corners) - 2
        faces = np.array([[0, i + 1, i + 2] for i in range(count)])
        self._parts.append(
            Mesh(
                corners,
                faces,
                np.full(count, style),
                np.tile(axes, (count, 1, 1)),
                np.tile(-axes @ corners[0], (count, 1)),
            )
        )

    def block(
        self,
        bottom_m: ArrayLike,
        top_m: ArrayLike,
        side_styles: tuple[int, int, int, int] | int,
        top_style: int,
        bottom_style: int | None = None,
    ) -> None:
        """A body between two quadrilaterals ``(4, 3)``, both counter-clockwise seen from above.

        Side ``i`` spans corners ``i`` and ``i + 1``; its texture starts at corner ``i`` of the bottom.
        """
        bottom, top = np.asarray(bottom_m, np.float64), np.asarray(top_m, np.float64)
        styles = (side_styles,) * 4 if isinstance(side_styles, int) else side_styles
        for i, style in enumerate(styles):
            j = (i + 1) % 4
            self.polygon([bottom[i], bottom[j], top[j], top[i]], style)
        self.polygon(top, top_style)
        if bottom_style is not None:
            self.polygon(bottom[::-1], bottom_style)

    def box(
        self,
        centre_xy_m: ArrayLike,
        yaw_rad: float,
        size_m: tuple[float, float, float],
        z_m: float,
        style: int,
        top_style: int | None = None,
        inset_m: float = 0.0,
    ) -> None:
        """An upright closed box (a truncated pyramid with ``inset_m``) standing at height ``z_m``."""
        length, width, height = size_m
        base = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
        rotation = yaw_matrix(yaw_rad)[:2, :2]

        def ring(scale: tuple[float, float], z: float) -> Array:
            xy = (base * scale) @ rotation.T + np.asarray(centre_xy_m)
            return np.column_stack([xy, np.full(4, z)])

        shrunk = (length - 2 * inset_m, width - 2 * inset_m)
        top = style if top_style is None else top_style
        self.block(ring((length, width), z_m), ring(shrunk, z_m + height), style, top, style)

    def cylinder(self, centre_xy_m: ArrayLike, radius_m: float, z_m: float, height_m: float, style: int) -> None:
        """An upright six-sided prism without caps; u runs around it."""
        angles = np.arange(7) * np.pi / 3
        ring = np.column_stack([np.cos(angles), np.sin(angles)]) * radius_m + np.asarray(centre_xy_m)
        for a, b in pairwise(ring):
            self.polygon([(*a, z_m), (*b, z_m), (*b, z_m + height_m), (*a, z_m + height_m)], style)

    def blob(
        self, centre_m: ArrayLike, radii_m: ArrayLike, roughness: float, style: int, rng: np.random.Generator
    ) -> None:
        """A lumpy ellipsoid of 320 faces (a tree's crown, a bush)."""
        sphere = trimesh.creation.icosphere(subdivisions=2)
        lumps = 1.0 + roughness * rng.uniform(-1, 1, (len(sphere.vertices), 1))
        vertices = np.asarray(sphere.vertices) * lumps * np.asarray(radii_m) + np.asarray(centre_m)
        count = len(sphere.faces)
        axes = np.tile(np.array([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]]), (count, 1, 1))
        faces = np.asarray(sphere.faces, np.int64)
        self._parts.append(Mesh(vertices, faces, np.full(count, style), axes, np.zeros((count, 2))))
