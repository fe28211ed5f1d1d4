# SPDX-License-Identifier: Apache-2.0
"""Publishes images of the model's input, while they have subscribers; imports torch."""

from __future__ import annotations

import math
import time
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image

from vmloc_ros.core.errors import VmlocError
from vmloc_ros.core.frame import IMAGE, Frame
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.ros.packages import rgb_message
from vmloc_ros.runtime.debug_images import Picture, overlay_picture, range_modality, range_picture

_LOG_PERIOD_S = 5.0


class DebugImages:
    """``~/range_image`` and ``~/overlay``, drawn only for subscribers and no faster than a given rate.

    Args:
        rate_hz: highest rate, in steady time.

    Attributes:
        rate_hz: may be changed from another thread.
    """

    def __init__(self, node: Node, preprocess: PreprocessConfig, rate_hz: float) -> None:
        self._node, self._preprocessor = node, Preprocessor(preprocess)
        self.rate_hz, self._latest_s = rate_hz, -math.inf
        # Reliable, as RViz and rqt request by default; a slow viewer gets the newest image only.
        self._range_image = node.create_publisher(Image, "~/range_image", 1)
        self._overlay = node.create_publisher(Image, "~/overlay", 1)

    def publish(self, bundle: Bundle[Any], frame: Frame) -> None:
        """Draw a decoded bundle for subscribers if one is due; log what cannot be drawn."""
        now_s = time.monotonic()
        if now_s < self._latest_s + 1 / self.rate_hz:
            return
        draws = {self._range_image: self._draw_range, self._overlay: self._draw_overlay}
        watched = [publisher for publisher in draws if publisher.get_subscription_count()]
        if not watched:
            return
        self._latest_s = now_s
        for publisher in watched:
            try:
                drawn = draws[publisher](frame)
            except VmlocError as error:
                self._node.get_logger().warning(
                    f"no {publisher.topic_name}: {error}", throttle_duration_sec=_LOG_PERIOD_S
                )
                continue
            if drawn is not None:
                modality, picture = drawn
                publisher.publish(rgb_message(bundle.messages[modality][1].header, picture))

    def use(self, preprocess: PreprocessConfig) -> None:
        """Draw the input of another model from now on."""
        self._preprocessor = Preprocessor(preprocess)

    def close(self) -> None:
        for publisher in (self._range_image, self._overlay):
            self._node.destroy_publisher(publisher)

    def _draw_range(self, frame: Frame) -> tuple[str, Picture] | None:
        modality, picture = range_modality(frame, self._preprocessor), range_picture(frame, self._preprocessor)
        return None if modality is None or picture is None else (modality, picture)

    def _draw_overlay(self, frame: Frame) -> tuple[str, Picture] | None:
        picture = overlay_picture(frame, self._preprocessor.config.lidar_range_m)
        return None if picture is None else (IMAGE, picture)
