# SPDX-License-Identifier: Apache-2.0
"""Logarithm and exponential of quaternions for networks: batched, differentiable, finite everywhere.

The conventions are those of :mod:`vmloc_ros.core.geometry`: ``(w, x, y, z)``, hemisphere ``w >= 0``, half-angle axis
vectors (VMLoc Eq. 12).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
