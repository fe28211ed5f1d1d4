# SPDX-License-Identifier: Apache-2.0
"""From an estimate of the checkpoint's body frame to the published pose of the base."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import moved_covariance, position_std_m
from vmloc_ros.node.resources import Resources
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.smoother import Smoother


class PosePublication:
    """Transforms estimates to the base and the map frame, smooths and publishes them.

    Attributes:
        smoother: None where poses are published as estimated.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources, self._outputs = resources, resources.outputs
        self._latest_ns: int | None = None
        self.smoother: Smoother | None = None
        self.use(resources.config)

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters, from any thread."""
        odometry = self._resources.odometry
        if not config.smoothing or odometry is None:
            self.smoother = None
        elif self.smoother is None:
            self.smoother = Smoother(self._resources.node, config, odometry)
        else:
            self.smoother.use(config)

    def follow(self, stamp_ns: int) -> None:
        """Note the stamp of an estimate, published or not; one that goes back starts all outputs anew."""
        # The synchronizer releases frames in order of stamps, except after a jump back in time.
        if self._latest_ns is not None and stamp_ns <= self._latest_ns:
            self.reset("stamps have jumped back")
            self._resources.forget_motion()  # else tf2 would complain of every transform from now on, also our own
        self._latest_ns = stamp_ns

    def publish(self, estimate: Estimate, body_frame: str, arrival_ns: int) -> str:
        """Publish the pose of the base at the estimate's stamp and return a description of it.

        Args:
            body_frame: the frame whose pose was estimated.
            arrival_ns: steady time at which the frame's leading message came.

        Raises:
            DataError: the transform to the base is unknown, or smoothing lacks odometry.
            ModelError: a number is not finite or a variance not positive.
        """
        base_frame, map_frame = self._resources.base_frame, self._resources.map_frame
        map_from_base, covariance = self._base_pose(estimate, body_frame)
        map_from_base = map_frame.from_checkpoint(map_from_base)
        if (smoother := self.smoother) is not None:
            filtered = smoother.smooth(estimate.stamp_ns, map_from_base, covariance, arrival_ns)
            map_from_base, covariance = filtered.map_from_base, filtered.covariance
        self._outputs.publish(estimate.stamp_ns, map_from_base, covariance)
        return f"{base_frame} in {map_frame.name}: {_describe(map_from_base, covariance, estimate)}"

    def suspend(self) -> None:
        """Publish nothing until the next pose, not even repeated transforms."""
        self._outputs.suspend()

    def restart_smoothing(self, reason: str) -> None:
        """Start the filter anew at the next pose."""
        if (smoother := self.smoother) is not None:
            smoother.reset(reason)

    def reset(self, reason: str) -> None:
        """Forget the poses so far: path, transforms and the filter's state."""
        self._latest_ns = None
        self.restart_smoothing(reason)
        self._outputs.reset()

    def _base_pose(self, estimate: Estimate, body_frame: str) -> tuple[Pose, NDArray[np.float64]]:
        """Pose of the base in the checkpoint's frame and its covariance ``(6, 6)`` about that frame's axes."""
        base_frame = self._resources.base_frame
        base_from_body = self._resources.extrinsics.base_from_body(base_frame, body_frame)
        if base_from_body is None:
            raise DataError(
                f"no transform from {body_frame} to {base_frame}: publish it on /tf_static, or set parameter "
                f"base_from_body, or base_frame:={body_frame}{self._resources.extrinsics.hint}"
            )
        map_from_base = estimate.map_from_body @ base_from_body.inverse()
        offset_m = map_from_base.position_m - estimate.map_from_body.position_m
        return map_from_base, moved_covariance(estimate.covariance, offset_m)


def _describe(map_from_base: Pose, covariance: NDArray[np.float64], estimate: Estimate) -> str:
    """A pose in words: position in metres, attitude in degrees, uncertainty, sensors and stamp."""
    x, y, z = map_from_base.position_m
    rotation = map_from_base.rotation
    roll, pitch, yaw = np.degrees(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            np.arcsin(np.clip(-rotation[2, 0], -1, 1)),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )
    confidence = "" if estimate.confidence is None else f", confidence {estimate.confidence:.2g}"
    return (
        f"x {x:.3f} y {y:.3f} z {z:.3f} m, roll {roll:.1f} pitch {pitch:.1f} yaw {yaw:.1f} deg, "
        f"position std {position_std_m(covariance):.2g} m{confidence}, by {' and '.join(estimate.modalities)} at "
        f"{estimate.stamp_ns * 1e-9:.3f} s"
    )
