# SPDX-License-Identifier: Apache-2.0
"""The sensors' mounting, from parameters or TF, compared with that in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.geometry import Pose, rotation_angle_deg
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.transform_tree import TransformLookup

_BASE_FROM_BODY, _CAMERA_FROM_LIDAR = "base_from_body", "camera_from_lidar"
_ALLOWED_M, _ALLOWED_DEG = 0.05, 2.0


class Extrinsics:
    """The two static transforms that localization needs; parameters come before TF.

    Args:
        base_from_body: given by parameter, or None.
        camera_from_lidar: given by parameter, or None.
        trained: transforms in training by name, as far as the checkpoint stores them.
        warn: called once with a text when a transform differs from training by more than 5 cm or 2 degrees.
    """

    def __init__(
        self,
        lookup: TransformLookup,
        base_from_body: Pose | None,
        camera_from_lidar: Pose | None,
        trained: Mapping[str, Pose] = {},
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._lookup = lookup
        self._given = {_BASE_FROM_BODY: base_from_body, _CAMERA_FROM_LIDAR: camera_from_lidar}
        self._warn = warn
        self.compare_with(trained)

    def compare_with(self, trained: Mapping[str, Pose]) -> None:
        """Compare with these transforms of training from now on."""
        self._trained = trained
        self._mismatches: dict[str, str] = {}
        for name, pose in self._given.items():
            self._compare(name, pose)

    @property
    def problems(self) -> list[str]:
        """Descriptions of the transforms that differ from training, and of TF's publishers that cannot be heard."""
        return [*self._mismatches.values(), *filter(None, [self._lookup.problem])]

    @property
    def hint(self) -> str:
        """What to append to the text of a missing transform; may be empty."""
        return self._lookup.hint

    def base_from_body(self, base_frame: str, body_frame: str) -> Pose | None:
        """``base_from_body``, or None while unknown."""
        if frame_name(base_frame) == frame_name(body_frame):
            return Pose.identity()
        return self._find(_BASE_FROM_BODY, base_frame, body_frame)

    def camera_from_lidar(self, camera_frame: str, lidar_frame: str) -> Pose | None:
        """``camera_from_lidar``, or None while unknown."""
        return self._find(_CAMERA_FROM_LIDAR, camera_frame, lidar_frame)

    def close(self) -> None:
        self._lookup.close()

    def _find(self, name: str, target: str, source: str) -> Pose | None:
        if (given := self._given[name]) is not None:
            return given
        pose = self._lookup.find(target, source)
        self._compare(name, pose)
        return pose

    def _compare(self, name: str, pose: Pose | None) -> None:
        trained = self._trained.get(name)
        if trained is None or pose is None:
            return
        distance_m = float(np.linalg.norm(pose.position_m - trained.position_m))
        angle_deg = float(rotation_angle_deg(pose.quaternion_wxyz, trained.quaternion_wxyz))
        if distance_m <= _ALLOWED_M and angle_deg <= _ALLOWED_DEG:
            self._mismatches.pop(name, None)
            return
        is_known = name in self._mismatches
        self._mismatches[name] = (
            f"{name} differs by {distance_m:.2f} m and {angle_deg:.1f} deg from that in training: correct the "
            "extrinsics or the mounting, or train with these"
        )
        if not is_known:
            self._warn(self._mismatches[name])


def trained_extrinsics(training: Mapping[str, Any]) -> dict[str, Pose]:
    """Transforms in training by name, from a checkpoint's training record under ``extrinsics``.

    That part is ``{name: {"position_m": [x, y, z], "quaternion_wxyz": [w, x, y, z]}}`` with the names
    ``base_from_body`` and ``camera_from_lidar``.

    Raises:
        CheckpointError: the record is malformed.
    """
    record = training.get("extrinsics", {})
    try:
        return {
            name: Pose(np.array(entry["position_m"]), np.array(entry["quaternion_wxyz"]))
            for name, entry in record.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's record of extrinsics is malformed ({error!r}): {record}") from error
