# SPDX-License-Identifier: Apache-2.0
"""Builds the frame that the localizer takes from a bundle of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmloc_ros.core.cameras import PictureCamera, is_rectified
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_depth, decode_image, decode_point_cloud
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.runtime.extrinsics import Extrinsics

_DECODERS: dict[str, Callable[[Any], Any]] = {
    IMAGE: decode_image,
    DEPTH: decode_depth,
    LIDAR: decode_point_cloud,
}


class FrameBuilder:
    """Decodes bundles of messages into frames.

    Args:
        reject: called with the reason for each message that a frame goes without because it cannot be decoded.
        warn: called once with a text for what else should be known about the messages.
        camera: of the images, or of depth where there are none; None: it has their usual topic, and tells nothing.
        depth_topic: its name tells whether depth is rectified.
    """

    def __init__(
        self,
        extrinsics: Extrinsics,
        reject: Callable[[str], None],
        warn: Callable[[str], object] = lambda text: None,
        camera: PictureCamera | None = None,
        depth_topic: str = "",
    ) -> None:
        self._warn = warn
        self._readings: Mapping[str, Any] = {}
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

    def build(self, bundle: Bundle[Any]) -> Frame:
        """Decode a bundle; the frame goes without messages that cannot be decoded, except the leading one.

        Raises:
            MessageError: the message that gave the bundle its stamp cannot be decoded.
        """
        decoded: dict[str, Any] = {}
        for name, (stamp_ns, message) in bundle.messages.items():
            try:
                decoded[name] = _DECODERS[name](message)
                if name == LIDAR:
                    decoded[name] = decoded[name].delayed((stamp_ns - bundle.stamp_ns) * 1e-9)
            except MessageError as error:
                if stamp_ns == bundle.stamp_ns and not decoded:
                    raise MessageError(f"{name}: {error}") from error
                self._reject(f"{name}: {error}")
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

    def _camera_from_lidar(self, bundle: Bundle[Any]) -> Pose | None:
        if IMAGE in bundle.messages:
            self._camera_frame = bundle.messages[IMAGE][1].header.frame_id
        if LIDAR not in bundle.messages or self._camera_frame is None:
            return None
        return self._extrinsics.camera_from_lidar(self._camera_frame, bundle.messages[LIDAR][1].header.frame_id)
