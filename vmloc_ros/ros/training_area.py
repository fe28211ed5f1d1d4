# SPDX-License-Identifier: Apache-2.0
"""Publishes the area in which the checkpoint was trained; must not import torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from vmloc_ros.core.training_area import TrainingArea
from vmloc_ros.ros.packages import cloud_message
from vmloc_ros.runtime.map_frame import MapFrame

_LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TrainingAreaCloud:
    """``~/training_area``: the centre of each map cell with training poses, also for late subscribers."""

    def __init__(self, node: Node, frame: MapFrame) -> None:
        self._node, self._frame = node, frame
        self._publisher = node.create_publisher(PointCloud2, "~/training_area", _LATCHED_QOS)

    def publish(self, training: Mapping[str, Any]) -> None:
        """Publish the area of a checkpoint's training record; no points if it stores none.

        Raises:
            CheckpointError: the record is malformed; nothing is published.
        """
        area = TrainingArea.from_training(training)
        points_m = np.empty((0, 3)) if area is None else area.centres_m - self._frame.origin_m
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._frame.name)
        self._publisher.publish(cloud_message(header, points_m.astype(np.float32)))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
