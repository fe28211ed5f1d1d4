# SPDX-License-Identifier: Apache-2.0
"""Input and output of a localizer: sensor frame and estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.geometry import Pose

IMAGE, DEPTH, LIDAR = "image", "depth", "lidar"
MODALITIES = (IMAGE, DEPTH, LIDAR)


DistortionModel = Literal["plumb_bob", "rational_polynomial", "equidistant"]


@dataclass(frozen=True, slots=True)
class Distortion:
    """What a lens does to a picture, and the pinhole camera whose picture is left when that is undone.

    Attributes:
        model: of REP-104 and OpenCV: ``plumb_bob`` and ``rational_polynomial`` are functions of the tangent of the
            angle to the optical axis, ``equidistant`` (fisheye lenses) of the angle.
        coefficients: of the model, in its order.
        focal_px: focal lengths x, y of the pinhole camera.
        centre_px: its principal point x, y.
        rotation: row-major, pinhole camera's frame from the lens's, as of stereo pairs; None is the identity.
    """

    model: DistortionModel
    coefficients: tuple[float, ...]
    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    rotation: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class PinholeCamera:
    """Intrinsics of a camera, in pixels; the optical frame is x right, y down, z forward (REP-103).

    Attributes:
        distortion: of a raw picture; None where the picture is that of a pinhole camera.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: Distortion | None = None

    @property
    def undistorted(self) -> PinholeCamera:
        """The pinhole camera of the picture whose distortion has been undone, of the same size."""
        if self.distortion is None:
            return self
        (fx, fy), (cx, cy) = self.distortion.focal_px, self.distortion.centre_px
        return PinholeCamera(self.width, self.height, fx, fy, cx, cy)


@dataclass(frozen=True, slots=True, eq=False)
class PointCloud:
    """A lidar scan in the lidar's own frame.

    Attributes:
        xyz_m: ``(N, 3)`` float32; NaN, infinite and all-zero rows are "no return".
        intensity: ``(N,)`` float32 in the sensor's unit, or None.
        time_s: ``(N,)`` float32 seconds relative to the frame's stamp, or None.
    """

    xyz_m: NDArray[np.float32]
    intensity: NDArray[np.float32] | None = None
    time_s: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.xyz_m)

    def delayed(self, delay_s: float) -> PointCloud:
        """The cloud with times relative to a frame's stamp that is ``delay_s`` before the scan's own."""
        if delay_s == 0:
            return self
        time_s = np.zeros(len(self), np.float32) if self.time_s is None else self.time_s
        return replace(self, time_s=time_s + np.float32(delay_s))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One synchronized observation; a modality that is absent is None.

    Attributes:
        stamp_ns: the image's stamp (the lidar's or depth's without an image), nanoseconds.
        image: ``(H, W, 3)`` uint8 RGB.
        depth_m: ``(H, W)`` float32 metres; 0 is "no measurement" (never NaN).
        cloud: the lidar scan nearest to ``stamp_ns``.
        camera: intrinsics of ``image`` at its own size; None where they are unknown or do not fit the picture.
        camera_from_lidar: extrinsics, optical frame from lidar frame; needed by pinhole projection only.
        depth_is_rectified: ``depth_m`` is what the camera sees without its distortion, also where ``image`` is raw.
    """

    stamp_ns: int
    image: NDArray[np.uint8] | None = None
    depth_m: NDArray[np.float32] | None = None
    cloud: PointCloud | None = None
    camera: PinholeCamera | None = None
    camera_from_lidar: Pose | None = None
    depth_is_rectified: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities present, in the order of :data:`MODALITIES`."""
        present = (self.image is not None, self.depth_m is not None, self.cloud is not None)
        return tuple(name for name, here in zip(MODALITIES, present, strict=True) if here)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A frame with its true pose: what a training source yields."""

    frame: Frame
    map_from_body: Pose


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Pose of the robot at a frame's stamp, with covariance.

    Attributes:
        stamp_ns: stamp of the frame.
        map_from_body: pose of the checkpoint's body frame in its map frame.
        covariance: ``(6, 6)`` float64, order (x, y, z, rot_x, rot_y, rot_z), metres and radians, rotation about
            the fixed map axes (geometry_msgs/PoseWithCovariance); positive definite.
        modalities: the modalities that the estimate uses.
        posterior_std: for systems with a posterior, its standard deviation, averaged over the latent dimensions: of
            the ``joint`` posterior and of each modality's expert; the prior's is 1.
        confidence: p-value in [0, 1] under the null distribution of held-out frames (see
            :mod:`vmloc_ros.core.confidence`): the share of in-distribution frames with outlier scores at least as
            large, so that a limit of 0.05 rejects 5 % of these. 0 for a lost frame; None where the checkpoint has no
            null distribution. It is not the probability that the estimate is right.
        dropped_sensors: sensors that delivered data which the estimate does not use, since their features are outliers
            among held-out frames: a covered lens, night.
    """

    stamp_ns: int
    map_from_body: Pose
    covariance: NDArray[np.float64]
    modalities: tuple[str, ...]
    posterior_std: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    dropped_sensors: tuple[str, ...] = ()
