# SPDX-License-Identifier: Apache-2.0
"""Pose hypotheses from minimal sets of correspondences: three points, or three rays of one camera.

Sets are drawn with the same random numbers in every frame, so that a frame's hypotheses do not depend on the batch's
other frames. Nothing here is differentiable.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.core.models.dense.correspondences import Correspondences

_OVERSAMPLING = 16  # triples drawn for every triple that is kept
_CONSISTENT = 12.0  # sum of squared, normalised differences of a triple's sides that noise explains
_WIDEST_COSINE = float(np.cos(np.deg2rad(85)))  # rays farther from the mean ray are not passed to OpenCV


def draw(c: Correspondences, among: Tensor, sets: int, seed: int) -> Tensor:
    """Draw triples of cells, those with a small sigma more often.

    The probability is proportional to ``1 / (sigma^2 + s^2)``, where s is the geometric mean of the frame's sigma: s
    limits how often an over-confident cell is drawn.

    Args:
        among: ``(B, M)`` bool, the cells to draw from.

    Returns:
        Indices ``(B, sets, 3)``; zeros in frames without such cells.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(sets * 3, generator=generator, dtype=torch.float64).to(among.device)
    logarithm = torch.where(among, torch.log(c.std_m.double()), 0.0)
    typical = torch.exp(logarithm.sum(dim=1, keepdim=True) / among.sum(dim=1, keepdim=True).clamp_min(1))
    weight = torch.where(among, 1 / (c.std_m.double() ** 2 + typical**2), 0.0)
    cumulative = weight.cumsum(dim=1)
    wanted = uniform * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, wanted.contiguous(), right=True).clamp_max(among.shape[1] - 1)
    return index.view(len(among), sets, 3)


def from_points(c: Correspondences, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Poses that align three measured points with their predicted map coordinates.

    Many random triples are drawn. Those are kept whose sides have the same length in the map as in the body frame and
    which are wide compared with their sigma. The rotation aligns axes attached to the two triangles. It is exact for
    congruent triangles and an initial value for others, and much faster than a batched singular value decomposition.

    Returns:
        Rotations ``(B, count, 3, 3)`` map from body, translations ``(B, count, 3)``, and ``(B, count)`` bool: False
        where there is no such pose, whose values are then the identity.
    """
    index = draw(c, c.ranged, count * _OVERSAMPLING, seed)
    flat = index.flatten(1)
    std = c.std_m.gather(1, flat).view(index.shape)
    gather = flat.unsqueeze(-1).expand(-1, -1, 3)
    body = c.points_m.gather(1, gather).view(*index.shape, 3)
    placed = c.map_points_m.gather(1, gather).view(*index.shape, 3)

    variance = std**2
    side, placed_side = body.roll(-1, 2) - body, placed.roll(-1, 2) - placed
    length = side.norm(dim=-1)
    mismatch = (placed_side.norm(dim=-1) - length) ** 2 / (variance + variance.roll(-1, 2))
    height = torch.linalg.cross(side[:, :, 0], side[:, :, 1]).norm(dim=-1) / length.amax(dim=-1).clamp_min(1e-9)
    tilt = variance.sum(dim=-1) / height.square().clamp_min(1e-12)  # approximate variance of the rotation, rad^2
    proper = (height > 1e-3 * length.amax(dim=-1)) & (length.amin(dim=-1) > 0) & (c.ranged.sum(1, keepdim=True) >= 3)
    doubt = (mismatch.sum(dim=-1) - _CONSISTENT).clamp_min(0) + 10 * tilt
    doubt, best = torch.where(proper, doubt, torch.inf).topk(count, dim=1, largest=False)

    chosen = best[..., None, None].expand(-1, -1, 3, 3)
    body, placed = body.gather(1, chosen), placed.gather(1, chosen)
    rotation = _axes(placed) @ _axes(body).transpose(-1, -2)
    translation = placed.mean(dim=2) - (rotation @ body.mean(dim=2).unsqueeze(-1)).squeeze(-1)
    return _or_identity(rotation, translation, torch.isfinite(doubt))


def _axes(triangle: Tensor) -> Tensor:
    """Right-handed orthonormal axes, as columns ``(..., 3, 3)``, of triangles ``(..., 3 corners, 3)``."""
    first = torch.nn.functional.normalize(triangle[..., 1, :] - triangle[..., 0, :], dim=-1)
    normal = torch.linalg.cross(first, triangle[..., 2, :] - triangle[..., 0, :])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    return torch.stack([first, torch.linalg.cross(normal, first), normal], dim=-1)


def _or_identity(rotation: Tensor, translation: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Three collinear points define no axes: the product is then not a rotation.
    found = found & (torch.linalg.det(rotation.double()) > 0.5) & torch.isfinite(translation).all(dim=-1)
    identity = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    rotation = torch.where(found[..., None, None], rotation, identity)
    return rotation, torch.where(found.unsqueeze(-1), translation, 0.0), found


def from_rays(c: Correspondences, count: int, seed: int, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Poses from three rays and their predicted map coordinates: up to four solutions a triple (OpenCV's AP3P).

    The rays of a triple must share their centre. In a frame with several cameras, the one with most rays is used.

    Args:
        wanted: ``(B,)`` bool, frames to make hypotheses for.

    Returns:
        As :func:`from_points`, with ``4 * count`` hypotheses.
    """
    batch, device = len(wanted), wanted.device
    rotations = np.tile(np.eye(3), (batch, 4 * count, 1, 1))
    translations, found = np.zeros((batch, 4 * count, 3)), np.zeros((batch, 4 * count), dtype=bool)
    rows = torch.nonzero(wanted).flatten()
    frames = c.at(rows).on(torch.device("cpu"))
    usable, centres, bases = _cameras(frames)
    index = draw(frames, usable, count, seed).numpy()
    enough = (usable.sum(dim=1) >= 4).numpy()
    map_points, rays = frames.map_points_m.double().numpy(), frames.rays.double().numpy()
    for place, row in enumerate(rows.tolist()):
        if enough[place]:
            poses = _perspective(map_points[place], rays[place] @ bases[place].T, index[place])
            number = len(poses)
            body_from_map = bases[place].T @ poses
            body_from_map[:, :, 3] += centres[place]
            rotation = body_from_map[:, :, :3].transpose(0, 2, 1)
            rotations[row, :number] = rotation
            translations[row, :number] = -(rotation @ body_from_map[:, :, 3:])[:, :, 0]
            found[row, :number] = True
    return (
        torch.from_numpy(rotations).to(device, c.rays.dtype),
        torch.from_numpy(translations).to(device, c.rays.dtype),
        torch.from_numpy(found).to(device),
    )


def _cameras(c: Correspondences) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """The camera with most rays in each frame.

    Args:
        c: correspondences on the CPU.

    Returns:
        Which cells ``(B, M)`` are rays of it, its centre ``(B, 3)`` in the body frame, and a rotation ``(B, 3, 3)``
        from the body into axes whose z points along the mean ray.
    """
    rays = c.valid & ~c.ranged
    centres = np.zeros((len(rays), 3))
    same = torch.zeros_like(rays)
    for row in range(len(rays)):
        own = c.points_m[row][rays[row]]
        if len(own):
            different, counts = torch.unique(own, dim=0, return_counts=True)
            centre = different[counts.argmax()]
            centres[row] = centre.numpy()
            same[row] = rays[row] & (c.points_m[row] == centre).all(dim=-1)
    ahead = torch.where(same.unsqueeze(-1), c.rays, 0.0).double().sum(dim=1)
    bases = np.stack([_axes_along(direction) for direction in ahead.numpy()]) if len(rays) else np.zeros((0, 3, 3))
    depth = (c.rays.double() @ torch.from_numpy(bases[:, 2]).unsqueeze(-1)).squeeze(-1)
    return same & (depth > _WIDEST_COSINE), centres, bases


def _axes_along(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation ``(3, 3)`` into axes whose z points along a direction; the identity for a zero vector."""
    length = np.linalg.norm(direction)
    if length < 1e-9:
        return np.eye(3)
    ahead = direction / length
    side = np.cross(ahead, np.eye(3)[np.argmin(np.abs(ahead))])
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(ahead, side), ahead])


def _perspective(
    map_points: NDArray[np.float64], rays: NDArray[np.float64], triples: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Poses ``(N, 3, 4)``, camera from map, of triples ``(T, 3)`` of cells whose rays have positive z."""
    poses: list[NDArray[np.float64]] = []
    for triple in triples:
        if len(set(triple.tolist())) < 3:
            continue
        pixels = rays[triple, :2] / rays[triple, 2:]
        _, turns, moves = cv2.solveP3P(map_points[triple], pixels, np.eye(3), None, flags=cv2.SOLVEPNP_AP3P)
        for turn, move in zip(turns, moves, strict=True):
            poses.append(np.hstack([cv2.Rodrigues(turn)[0], move]))
    found = np.stack(poses) if poses else np.zeros((0, 3, 4))
    return found[np.isfinite(found).all(axis=(1, 2))]
