# SPDX-License-Identifier: Apache-2.0
"""Quaternions, SE(3) and pose interpolation in float64 numpy.

Conventions, stated once for the whole package:

* Frames are right-handed (REP-103). ``a_from_b`` maps coordinates in ``b`` to coordinates in ``a``.
* Quaternions are Hamilton, unit, ordered ``(w, x, y, z)`` and kept in the hemisphere ``w >= 0``.
  ROS messages order them ``(x, y, z, w)``; only the message code reorders.
* ``log`` of a unit quaternion is the half-angle axis vector of VMLoc Eq. 12: ``v / |v| * acos(w)``.

All functions broadcast over leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def canonical_quaternion(quaternion_wxyz: ArrayLike) -> Array:
    """Normalise ``(..., 4)`` quaternions and bring them to ``w >= 0``.

    Raises:
        ValueError: a quaternion is not finite or has zero norm.
    """
    quaternion = np.asarray(quaternion_wxyz, dtype=np.float64)
    norm = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    if not np.all(np.isfinite(norm)) or np.any(norm < 1e-12):
        raise ValueError(f"not a rotation: quaternion {quaternion.tolist()} has norm {norm.ravel().tolist()}")
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion) / norm


def quaternion_multiply(left_wxyz: ArrayLike, right_wxyz: ArrayLike) -> Array:
    """Hamilton product ``left * right`` of ``(..., 4)`` quaternions."""
    left, right = np.asarray(left_wxyz, np.float64), np.asarray(right_wxyz, np.float64)
    lw, lv, rw, rv = left[..., :1], left[..., 1:], right[..., :1], right[..., 1:]
    w = lw * rw - np.sum(lv * rv, axis=-1, keepdims=True)
    return np.concatenate([w, lw * rv + rw * lv + np.cross(lv, rv)], axis=-1)


def quaternion_conjugate(quaternion_wxyz: ArrayLike) -> Array:
    """Conjugate (the inverse, for unit quaternions) of ``(..., 4)`` quaternions."""
    return np.asarray(quaternion_wxyz, np.float64) * np.array([1.0, -1.0, -1.0, -1.0])


def quaternion_log(quaternion_wxyz: ArrayLike) -> Array:
    """Half-angle axis vector ``(..., 3)`` of ``(..., 4)`` unit quaternions (VMLoc Eq. 12).

    The norm lies in ``[0, pi/2]``. ``atan2`` keeps full precision where ``acos`` loses it (small angles).
    """
    quaternion = canonical_quaternion(quaternion_wxyz)
    vector = quaternion[..., 1:]
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    half_angle = np.arctan2(sine, quaternion[..., :1])
    return vector * np.where(sine > 1e-12, half_angle / np.maximum(sine, 1e-12), 1.0)


def quaternion_exp(log_quaternion: ArrayLike) -> Array:
    """Unit quaternions ``(..., 4)`` of half-angle axis vectors ``(..., 3)``; inverse of :func:`quaternion_log`."""
    vector = np.asarray(log_quaternion, np.float64)
    half_angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): finite and exact at zero.
    return canonical_quaternion(np.concatenate([np.cos(half_angle), vector * np.sinc(half_angle / np.pi)], axis=-1))


def matrix_from_quaternion(quaternion_wxyz: ArrayLike) -> Array:
    """Rotation matrices ``(..., 3, 3)`` of ``(..., 4)`` quaternions."""
    w, x, y, z = np.moveaxis(canonical_quaternion(quaternion_wxyz), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_matrix(rotation: ArrayLike) -> Array:
    """Quaternions ``(..., 4)`` nearest to ``(..., 3, 3)`` rotation matrices (Bar-Itzhack's eigenvector method).

    Raises:
        ValueError: a matrix is not finite, or farther than 1e-2 from every rotation (a reflection, a scale).
    """
    r = np.asarray(rotation, np.float64)
    identity_error = np.abs(r @ np.swapaxes(r, -1, -2) - np.eye(3)).max() if np.all(np.isfinite(r)) else np.inf
    if identity_error > 1e-2 or np.any(np.linalg.det(r) < 0):
        raise ValueError(f"not a rotation matrix: {r.tolist()}")
    k = np.empty((*r.shape[:-2], 4, 4))
    k[..., 0, 0] = np.trace(r, axis1=-2, axis2=-1)
    k[..., 1:, 1:] = r + np.swapaxes(r, -1, -2) - k[..., 0, 0][..., None, None] * np.eye(3)
    k[..., 0, 1] = k[..., 1, 0] = r[..., 2, 1] - r[..., 1, 2]
    k[..., 0, 2] = k[..., 2, 0] = r[..., 0, 2] - r[..., 2, 0]
    k[..., 0, 3] = k[..., 3, 0] = r[..., 1, 0] - r[..., 0, 1]
    return canonical_quaternion(np.linalg.eigh(k)[1][..., -1])


def rotation_angle_deg(first_wxyz: ArrayLike, second_wxyz: ArrayLike) -> Array:
    """Angle in degrees between orientations, ``2 acos |<q1, q2>|``, computed without its loss of precision."""
    relative = quaternion_multiply(quaternion_conjugate(first_wxyz), second_wxyz)
    return np.degrees(2 * np.arctan2(np.linalg.norm(relative[..., 1:], axis=-1), np.abs(relative[..., 0])))


def rotation_vector_from_quaternion(quaternion_wxyz: ArrayLike) -> Array:
    """Rotation vectors ``(..., 3)`` in radians (full angle: twice :func:`quaternion_log`)."""
    return 2.0 * quaternion_log(quaternion_wxyz)


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """A rigid transform ``a_from_b``: ``x_a = R x_b + t``.

    Attributes:
        position_m: ``(3,)`` float64, metres.
        quaternion_wxyz: ``(4,)`` float64, unit, ``w >= 0``.

    Raises:
        ValueError: a component is not finite or the quaternion has no direction.
    """

    position_m: Array
    quaternion_wxyz: Array

    def __post_init__(self) -> None:
        position = np.array(self.position_m, dtype=np.float64)
        if position.shape != (3,) or not np.all(np.isfinite(position)):
            raise ValueError(f"position must be 3 finite numbers, got {self.position_m}")
        object.__setattr__(self, "position_m", position)
        object.__setattr__(self, "quaternion_wxyz", canonical_quaternion(self.quaternion_wxyz))

    @staticmethod
    def identity() -> Pose:
        return Pose(np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))

    @staticmethod
    def from_matrix(matrix: ArrayLike) -> Pose:
        """From a ``(4, 4)`` homogeneous matrix. Raises ValueError when it is not a rigid transform."""
        matrix = np.asarray(matrix, np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"a rigid transform is a 4x4 matrix, got shape {matrix.shape}")
        return Pose(matrix[:3, 3], quaternion_from_matrix(matrix[:3, :3]))

    @staticmethod
    def from_xyz_rpy(xyz_m: ArrayLike, rpy_rad: ArrayLike) -> Pose:
        """From a position and fixed-axis roll, pitch, yaw (REP-103; the order of URDF and tf2)."""
        half = np.asarray(rpy_rad, np.float64)[:, None] * np.eye(3) / 2
        roll, pitch, yaw = quaternion_exp(half)
        return Pose(np.asarray(xyz_m), quaternion_multiply(yaw, quaternion_multiply(pitch, roll)))

    @property
    def rotation(self) -> Array:
        """Rotation matrix ``(3, 3)``."""
        return matrix_from_quaternion(self.quaternion_wxyz)

    @property
    def matrix(self) -> Array:
        """Homogeneous matrix ``(4, 4)``."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.position_m
        return matrix

    def inverse(self) -> Pose:
        conjugate = quaternion_conjugate(self.quaternion_wxyz)
        return Pose(-matrix_from_quaternion(conjugate) @ self.position_m, conjugate)

    def __matmul__(self, other: Pose) -> Pose:
        """Composition: ``a_from_b @ b_from_c`` is ``a_from_c``."""
        return Pose(
            self.rotation @ other.position_m + self.position_m,
            quaternion_multiply(self.quaternion_wxyz, other.quaternion_wxyz),
        )

    def transform(self, points: ArrayLike) -> Array:
        """Map ``(..., 3)`` points from ``b`` to ``a``."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.position_m


def interpolate_poses(stamps_ns: ArrayLike, poses: list[Pose], query_ns: ArrayLike) -> list[Pose | None]:
    """Poses at ``query_ns`` by linear position and shortest-arc spherical orientation between neighbours.

    Args:
        stamps_ns: ``(N,)`` strictly increasing int64 nanoseconds; not modified.
        poses: N poses.
        query_ns: ``(M,)`` int64 nanoseconds, any order.

    Returns:
        M poses; ``None`` where a query lies outside ``[stamps_ns[0], stamps_ns[-1]]`` (never extrapolated).

    Raises:
        ValueError: lengths differ or stamps do not increase.
    """
    stamps = np.asarray(stamps_ns, np.int64)
    if len(stamps) != len(poses):
        raise ValueError(f"{len(stamps)} stamps for {len(poses)} poses")
    if np.any(np.diff(stamps) <= 0):
        raise ValueError("pose stamps must increase strictly")
    result: list[Pose | None] = []
    for query in np.asarray(query_ns, np.int64):
        right = int(np.searchsorted(stamps, query))
        if right < len(stamps) and stamps[right] == query:
            result.append(poses[right])
        elif right == 0 or right == len(stamps):
            result.append(None)
        else:
            left = right - 1
            fraction = float(query - stamps[left]) / float(stamps[right] - stamps[left])
            result.append(_between(poses[left], poses[right], fraction))
    return result


def _between(first: Pose, second: Pose, fraction: float) -> Pose:
    relative = quaternion_multiply(quaternion_conjugate(first.quaternion_wxyz), second.quaternion_wxyz)
    step = quaternion_exp(fraction * quaternion_log(relative))
    return Pose(
        (1 - fraction) * first.position_m + fraction * second.position_m,
        quaternion_multiply(first.quaternion_wxyz, step),
    )
