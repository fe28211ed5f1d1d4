# SPDX-License-Identifier: Apache-2.0
"""Rotations for networks: batched, differentiable, finite everywhere.

The conventions are those of :mod:`vmloc_ros.core.geometry`: ``(w, x, y, z)``, hemisphere ``w >= 0``, half-angle axis
vectors (VMLoc Eq. 12).

A network's output for a pose is the normalised position (3) and the rotation from the codec's reference, in one of two
representations, told apart by their width R:

``log_quaternion``  R = 3: the half-angle axis vector of VMLoc Eq. 12. It jumps at rotations of 180 degrees, where a
                    network, which is continuous, is wrong by up to 180 degrees.
``six_d``           R = 6: two vectors, orthonormalised to the rotation matrix's first two columns (Zhou et al. 2019).
                    It has no jump.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROTATION_WIDTHS = {"log_quaternion": 3, "six_d": 6}
"""R, numbers of a rotation in a network's output, by name of the representation."""


def pose_vectors(outputs: Tensor) -> Tensor:
    """The codec's pose vectors ``(..., 6)``, position and log-quaternion, of outputs ``(..., 3 + R)``."""
    if outputs.shape[-1] == 6:
        return outputs
    return torch.cat([outputs[..., :3], quaternion_log(matrix_quaternion(six_d_matrix(outputs[..., 3:])))], dim=-1)


def six_d_matrix(six_d: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of two vectors each, ``(..., 6)``, by Gram-Schmidt (Zhou et al. 2019, Eq. 15).

    The first vector gives the first column; the second, less its share along the first, the second. Parallel or zero
    vectors have no matrix of their own: the result is finite, but may not be a rotation.
    """
    first = torch.nn.functional.normalize(six_d[..., :3], dim=-1)
    second = six_d[..., 3:] - (first * six_d[..., 3:]).sum(dim=-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def matrix_quaternion(matrix: Tensor) -> Tensor:
    """Quaternions ``(..., 4)``, of any positive length and either sign, of rotation matrices ``(..., 3, 3)``.

    Of the four rows of ``4 q q^T``, each a multiple of q, it is the one of the largest component (Shepperd 1978).
    """
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    diagonal = [
        1 + m[0][0] + m[1][1] + m[2][2],
        1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2],
        1 - m[0][0] - m[1][1] + m[2][2],
    ]
    rows = torch.stack(
        [
            torch.stack([diagonal[0], wx, wy, wz], dim=-1),
            torch.stack([wx, diagonal[1], xy, xz], dim=-1),
            torch.stack([wy, xy, diagonal[2], yz], dim=-1),
            torch.stack([wz, xz, yz, diagonal[3]], dim=-1),
        ],
        dim=-2,
    )
    largest = torch.stack(diagonal, dim=-1).argmax(dim=-1)
    return rows.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)


def chord(first: Tensor, second: Tensor) -> Tensor:
    """``|A - B|_F / sqrt(8)`` ``(...)`` of rotation matrices ``(..., 3, 3)``: the sine of half the angle between them.

    For small angles it is the length of the half-angle axis vector (Eq. 12) of the rotation between them.
    """
    squared = (first - second).square().sum(dim=(-2, -1)) / 8
    return (squared + torch.finfo(squared.dtype).eps ** 2).sqrt()  # the root has no gradient at zero


def quaternion_log(quaternion_wxyz: Tensor) -> Tensor:
    """Half-angle axis vectors ``(..., 3)`` of ``(..., 4)`` quaternions (VMLoc Eq. 12), norm in ``[0, pi/2]``.

    The quaternion may have any length but zero. ``atan2`` keeps the precision that ``acos`` loses at small angles, and
    its gradient is finite at ``w = 1``.
    """
    canonical = _canonical(quaternion_wxyz)
    w, vector = canonical[..., :1], canonical[..., 1:]
    squared = vector.square().sum(dim=-1, keepdim=True)
    zero = _vanishes(squared)
    # where() outside and inside: the branch not taken must not divide by zero either, or NaN reaches the gradient.
    sine = torch.where(zero, 1.0, squared).sqrt()
    limit = torch.where(zero, w, 1.0).reciprocal()
    return vector * torch.where(zero, limit, torch.atan2(sine, w) / sine)


def quaternion_exp(log_quaternion: Tensor) -> Tensor:
    """Unit quaternions ``(..., 4)``, ``w >= 0``, of half-angle axis vectors ``(..., 3)``."""
    squared = log_quaternion.square().sum(dim=-1, keepdim=True)
    zero = _vanishes(squared)
    half_angle = torch.where(zero, 1.0, squared).sqrt()
    w = torch.where(zero, 1 - squared / 2, half_angle.cos())
    sinc = torch.where(zero, 1 - squared / 6, half_angle.sin() / half_angle)
    return _canonical(torch.cat([w, log_quaternion * sinc], dim=-1))


def quaternion_product(left_wxyz: Tensor, right_wxyz: Tensor) -> Tensor:
    """Hamilton product ``left * right`` of quaternions, both ``(..., 4)`` of the same shape."""
    lw, rw = left_wxyz[..., :1], right_wxyz[..., :1]
    lv, rv = left_wxyz[..., 1:], right_wxyz[..., 1:]
    w = lw * rw - (lv * rv).sum(dim=-1, keepdim=True)
    return torch.cat([w, lw * rv + rw * lv + torch.linalg.cross(lv, rv)], dim=-1)


def rotation_matrix(quaternion_wxyz: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of unit quaternions ``(..., 4)``."""
    w, x, y, z = quaternion_wxyz.unbind(dim=-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _canonical(quaternion_wxyz: Tensor) -> Tensor:
    """``q`` or ``-q``, which are the same rotation: the one with ``w >= 0``."""
    return torch.where(quaternion_wxyz[..., :1] < 0, -quaternion_wxyz, quaternion_wxyz)


def _vanishes(squared: Tensor) -> Tensor:
    """Whether a squared length is too small to divide by its root."""
    return squared < torch.finfo(squared.dtype).tiny
