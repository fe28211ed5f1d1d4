# SPDX-License-Identifier: Apache-2.0
"""The first worker thread: from a bundle of messages to the model's input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from vmloc_ros.core.cameras import ImageKind, PictureCamera
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.node.resources import Resources
from vmloc_ros.ros.frame_errors import FrameErrors
from vmloc_ros.runtime.frame_builder import FrameBuilder
from vmloc_ros.runtime.gate import Gate

if TYPE_CHECKING:
    from vmloc_ros.core.models import ModelInput
    from vmloc_ros.runtime.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """A decoded bundle with the input of the model that was in use when it was prepared.

    Attributes:
        model: the only model that can use ``batch``.
        batch: None where the frame was rejected; it then serves for debug images alone.
    """

    bundle: Bundle[Any]
    frame: Frame
    model: ServedModel
    batch: ModelInput | None


class FramePreparation:
    """Decodes, projects and scales."""

    def __init__(self, resources: Resources, gate: Gate, errors: FrameErrors) -> None:
        self._resources, self._gate, self._errors = resources, gate, errors
        self._frames = FrameBuilder(
            resources.extrinsics,
            partial(errors.reject_message, "undecodable"),
            resources.node.get_logger().warning,
            resources.node.get_logger().info,
            _picture_camera(resources),
            lidar_topic=resources.config.cloud_topic,
            depth_topic=resources.config.depth_topic,
            depth_unit_m=resources.config.depth_unit_m,
        )
        self._model: ServedModel | None = None

    def take_camera_info(self, message: Any) -> None:
        """Store the latest CameraInfo."""
        self._frames.take_camera_info(message)

    def prepare(self, bundle: Bundle[Any]) -> PreparedFrame | None:
        """Prepare a bundle for the model in use; None if none of its messages can be decoded."""
        with self._errors.handled():
            model, batch = self._resources.model, None
            self._follow(model)
            frame = self._frames.build(bundle)
            if reason := self._gate.check_frame(model.localizer.usable(frame).modalities):
                self._errors.reject_frame("degraded", reason)
            else:
                with self._errors.handled():
                    batch = model.prepare(frame)
            return PreparedFrame(bundle, frame, model, batch)
        return None

    def _follow(self, model: ServedModel) -> None:
        """Read messages as in the training of the model in use."""
        if model is not self._model:
            self._model = model
            self._frames.use_readings(model.localizer.header.training.get("inputs", {}))


def _picture_camera(resources: Resources) -> PictureCamera:
    """The camera of the node's images, or of its depth where it takes no images; tells only what the model needs."""
    config, logger = resources.config, resources.node.get_logger()
    topic = config.image_topic if IMAGE in resources.modalities else config.depth_topic
    kind = cast(ImageKind, config.image_kind)
    if not resources.needs_camera_info:
        return PictureCamera(topic, kind, lambda text: logger.debug(text), lambda text: logger.debug(text))

    # Functions of their own: a logger of rclpy takes one severity from each line of code.
    def note(text: str) -> None:
        logger.info(text)

    def warn(text: str) -> None:
        logger.warning(text)

    return PictureCamera(topic, kind, note, warn)
