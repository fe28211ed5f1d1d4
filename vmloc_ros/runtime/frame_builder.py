# SPDX-License-Identifier: Apache-2.0
"""Builds the frame that the localizer takes from a bundle of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import (
    decode_camera_info,
    decode_depth,
    decode_image,
    decode_point_cloud,
    has_returns,
)
from vmloc_ros.core.point_times import TIMES, PointTimes
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.runtime.extrinsics import Extrinsics

_DECODERS: dict[str, Callable[[Any], Any]] = {
    IMAGE: decode_image,
    DEPTH: decode_depth,
}


class FrameBuilder:
    """Decodes bundles of messages into frames.

    Args:
        reject: called with the reason for each message that a frame goes without because it cannot be decoded.
        warn: called once with a text for what else should be known about the messages.
        inform: called once with a text for what was decided about how to read them.
        lidar_topic: for messages.

    Attributes:
        camera_info: the latest CameraInfo message, set as they arrive.
    """

    def __init__(
        self,
        extrinsics: Extrinsics,
        reject: Callable[[str], None],
        warn: Callable[[str], object] = lambda text: None,
        inform: Callable[[str], object] = lambda text: None,
        lidar_topic: str = "the lidar",
    ) -> None:
        self.camera_info: Any = None
        self._warn = warn
        self._readings: Mapping[str, Any] = {}
        self._times = PointTimes(lidar_topic, inform=inform, warn=warn)
        self._decoders = {**_DECODERS, LIDAR: self._decode_cloud}
        self._camera_frame: str | None = None  # of the latest image, for clouds that come without one
        self._extrinsics, self._reject = extrinsics, reject

    def use_readings(self, readings: Mapping[str, Any]) -> None:
        """Read messages as the training did, from its record in the checkpoint's header under ``inputs``."""
        self._readings = readings
        if TIMES in readings:
            self._times.expect(readings[TIMES])

    def build(self, bundle: Bundle[Any]) -> Frame:
        """Decode a bundle; the frame goes without messages that cannot be decoded, except the leading one.

        Raises:
            MessageError: the message that gave the bundle its stamp cannot be decoded.
        """
        decoded: dict[str, Any] = {}
        for name, (stamp_ns, message) in bundle.messages.items():
            try:
                decoded[name] = self._decoders[name](message)
                if name == LIDAR:
                    decoded[name] = decoded[name].delayed((stamp_ns - bundle.stamp_ns) * 1e-9)
            except MessageError as error:
                if stamp_ns == bundle.stamp_ns and not decoded:
                    raise MessageError(f"{name}: {error}") from error
                self._reject(f"{name}: {error}")
        return Frame(
            stamp_ns=bundle.stamp_ns,
            image=decoded.get(IMAGE),
            depth_m=decoded.get(DEPTH),
            cloud=decoded.get(LIDAR),
            camera=self._camera(),
            camera_from_lidar=self._camera_from_lidar(bundle),
        )

    def _decode_cloud(self, message: Any) -> PointCloud:
        if not has_returns(message):
            raise MessageError("the scan is empty: it has no points, or only NaN and zeros")
        return decode_point_cloud(message, self._times)

    def _camera(self) -> PinholeCamera | None:
        return None if self.camera_info is None else decode_camera_info(self.camera_info)

    def _camera_from_lidar(self, bundle: Bundle[Any]) -> Pose | None:
        if IMAGE in bundle.messages:
            self._camera_frame = bundle.messages[IMAGE][1].header.frame_id
        elif self._camera_frame is None and self.camera_info is not None:
            self._camera_frame = self.camera_info.header.frame_id
        if LIDAR not in bundle.messages or self._camera_frame is None:
            return None
        return self._extrinsics.camera_from_lidar(self._camera_frame, bundle.messages[LIDAR][1].header.frame_id)
