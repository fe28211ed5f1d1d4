# SPDX-License-Identifier: Apache-2.0
"""Conversion between poses and the vectors that a network regresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.core.geometry import (
    Pose,
    canonical_quaternion,
    quaternion_conjugate,
    quaternion_exp,
    quaternion_log,
    quaternion_multiply,
)


@dataclass(frozen=True, slots=True)
class PoseCodec:
    """Centres, scales and rotates poses so that regression targets are small and continuous.

    ``vector[:3] = (position - origin_m) / scale_m``; ``vector[3:] = log(reference^-1 * q)``. Positions stay float64
    until they are centred (UTM coordinates do not fit float32). The logarithm (VMLoc Eq. 12) jumps where the rotation
    from its reference is 180 degrees; the reference is chosen so that the training poses stay away from there.

    Attributes:
        origin_m: mean training position, metres.
        scale_m: root-mean-square distance per axis from it, metres; one for all axes, so metres stay comparable.
        reference_wxyz: orientation whose logarithm is zero.
    """

    origin_m: tuple[float, float, float]
    scale_m: float
    reference_wxyz: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if not (np.isfinite([*self.origin_m, *self.reference_wxyz]).all() and 0 < self.scale_m < np.inf):
            raise ValueError(f"pose origin, scale and reference must be finite and the scale positive: {self}")
        canonical_quaternion(self.reference_wxyz)  # raises for one of zero norm

    @staticmethod
    def fit(poses: Sequence[Pose]) -> PoseCodec:
        """Constants of the training poses. Raises ValueError when there are none."""
        if not poses:
            raise ValueError("cannot fit a pose codec to no poses")
        positions = np.stack([pose.position_m for pose in poses])
        origin = positions.mean(axis=0)
        spread = float(np.sqrt(((positions - origin) ** 2).sum(axis=1).mean() / 3))
        # Without motion the scale is 1 m. The spread is then not exactly 0: UTM coordinates are rounded.
        scale = spread if spread > 1e-6 else 1.0
        reference = _reference(np.stack([pose.quaternion_wxyz for pose in poses]))
        return PoseCodec(tuple(origin.tolist()), scale, tuple(reference.tolist()))

    def encode(self, poses: Sequence[Pose]) -> NDArray[np.float32]:
        """N poses to ``(N, 6)`` float32 vectors."""
        positions = np.stack([pose.position_m for pose in poses]) - np.asarray(self.origin_m)
        quaternions = np.stack([pose.quaternion_wxyz for pose in poses])
        logs = quaternion_log(quaternion_multiply(quaternion_conjugate(self.reference_wxyz), quaternions))
        return np.concatenate([positions / self.scale_m, logs], axis=1).astype(np.float32)

    def decode(self, vectors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(..., 6)`` vectors to positions ``(..., 3)`` in metres and quaternions ``(..., 4)``."""
        values = np.asarray(vectors, np.float64)
        positions = values[..., :3] * self.scale_m + np.asarray(self.origin_m)
        return positions, canonical_quaternion(
            quaternion_multiply(self.reference_wxyz, quaternion_exp(values[..., 3:]))
        )


def _reference(quaternions: NDArray[np.float64], candidates: int = 256) -> NDArray[np.float64]:
    """The training orientation that leaves the fewest others near 180 degrees from it."""
    chosen = quaternions[np.linspace(0, len(quaternions) - 1, min(candidates, len(quaternions))).astype(int)]
    cosines = np.abs(chosen @ quaternions.T)  # |cos(half angle)|; 0 is the jump
    crowding = np.exp(-((cosines / 0.1) ** 2)).mean(axis=1)
    # Ties (a small scene has no orientation near any jump) go to the most central orientation.
    return np.asarray(chosen[np.lexsort((-cosines.mean(axis=1), np.round(crowding, 6)))[0]])
