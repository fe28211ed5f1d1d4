# SPDX-License-Identifier: Apache-2.0
"""Builds the frame that the localizer takes from a bundle of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmloc_ros.core.cameras import PictureCamera, is_rectified
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.image_decoders import DepthDecoder, ImageDecoder
from vmloc_ros.core.messages import decode_point_cloud, has_returns
from vmloc_ros.core.point_times import TIMES, PointTimes
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.runtime.extrinsics import Extrinsics


class FrameBuilder:
    """Decodes bundles of messages into frames.

    Args:
        reject: called with the reason for each message that a frame goes without because it cannot be decoded.
        warn: called once with a text for what else should be known about the messages.
        inform: called once with a text for what was decided about how to read them.
        camera: of the images, or of depth where there are none; None: it has their usual topic, and tells nothing.
        lidar_topic: for messages.
        depth_topic: its name tells whether depth is rectified.
        depth_unit_m: metres per unit of depth images; 0: as in training, or REP 118's.
    """

    def __init__(
        self,
        extrinsics: Extrinsics,
        reject: Callable[[str], None],
        warn: Callable[[str], object] = lambda text: None,
        inform: Callable[[str], object] = lambda text: None,
        camera: PictureCamera | None = None,
        lidar_topic: str = "the lidar",
        depth_topic: str = "",
        depth_unit_m: float = 0.0,
    ) -> None:
        self._warn, self._inform, self._depth_unit_m = warn, inform, depth_unit_m
        self._times = PointTimes(lidar_topic, inform=inform, warn=warn)
        self.use_readings({})
        self._camera = camera or PictureCamera("image_raw", "auto", lambda text: None, lambda text: None)
        self._camera_frame: str | None = None  # of the latest image, for clouds that come without one
        self._extrinsics, self._reject = extrinsics, reject
        self._depth_is_rectified = is_rectified(depth_topic)

    def take_camera_info(self, message: Any) -> None:
        """Take in a CameraInfo message; the latest valid one counts."""
        self._camera.take(message)
        if self._camera_frame is None:
            self._camera_frame = message.header.frame_id

    def use_readings(self, readings: Mapping[str, Any]) -> None:
        """Read messages as the training did, from its record in the checkpoint's header under ``inputs``."""
        self._readings = readings
        self._decoders = self._new_decoders()
        if TIMES in readings:
            self._times.expect(readings[TIMES])

    def build(self, bundle: Bundle[Any]) -> Frame:
        """Decode a bundle; the frame goes without messages that cannot be decoded, also without the leading one.

        Raises:
            MessageError: none of the messages can be decoded.
        """
        decoded: dict[str, Any] = {}
        problems: list[str] = []
        for name, (stamp_ns, message) in bundle.messages.items():
            try:
                decoded[name] = self._decoders[name](message)
                if name == LIDAR:
                    decoded[name] = decoded[name].delayed((stamp_ns - bundle.stamp_ns) * 1e-9)
            except MessageError as error:
                problems.append(f"{name}: {error}")
        if not decoded:
            raise MessageError("; ".join(problems))
        for problem in problems:
            self._reject(problem)
        picture = decoded.get(IMAGE, decoded.get(DEPTH))
        return Frame(
            stamp_ns=bundle.stamp_ns,
            image=decoded.get(IMAGE),
            depth_m=decoded.get(DEPTH),
            cloud=decoded.get(LIDAR),
            camera=self._camera.of(None if picture is None else picture.shape),
            camera_from_lidar=self._camera_from_lidar(bundle),
            depth_is_rectified=self._depth_is_rectified,
        )

    def _new_decoders(self) -> dict[str, Callable[[Any], Any]]:
        image = ImageDecoder(self._readings.get("image_bits"), inform=self._inform, warn=self._warn)
        depth = DepthDecoder(
            self._depth_unit_m or None,
            self._readings.get("depth_units_m"),
            remedy="parameter depth_unit_m",
            inform=self._inform,
            warn=self._warn,
        )
        return {IMAGE: image, DEPTH: depth, LIDAR: self._decode_cloud}

    def _decode_cloud(self, message: Any) -> PointCloud:
        if not has_returns(message):
            raise MessageError("the scan is empty: it has no points, or only NaN and zeros")
        return decode_point_cloud(message, self._times)

    def _camera_from_lidar(self, bundle: Bundle[Any]) -> Pose | None:
        if IMAGE in bundle.messages:
            self._camera_frame = bundle.messages[IMAGE][1].header.frame_id
        if LIDAR not in bundle.messages or self._camera_frame is None:
            return None
        return self._extrinsics.camera_from_lidar(self._camera_frame, bundle.messages[LIDAR][1].header.frame_id)
