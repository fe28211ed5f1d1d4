# SPDX-License-Identifier: Apache-2.0
"""Extrinsics from parameters, tf2_ros where there is one (here a stand-in), /tf_static, or nowhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from tf2_msgs.msg import TFMessage

from vmloc_ros import ros_extrinsics
from vmloc_ros.core.bags import transform_message
from vmloc_ros.core.geometry import Pose
from vmloc_ros.ros_extrinsics import Extrinsics, listen_to_transforms
from vmloc_ros.ros_types import MissingPackageError

BASE_FROM_CAMERA = Pose.from_xyz_rpy([0.3, 0.0, 1.2], [-1.5, 0.0, -1.5])


def test_parameters_come_before_tf_and_equal_frames_need_neither():
    lookup = MagicMock()
    extrinsics = Extrinsics(lookup, BASE_FROM_CAMERA, None)
    assert extrinsics.base_from_body("base_link", "camera") is BASE_FROM_CAMERA
    np.testing.assert_array_equal(extrinsics.base_from_body("camera", "camera").matrix, np.eye(4))
    lookup.find.assert_not_called()
    assert extrinsics.camera_from_lidar("camera", "lidar") is lookup.find.return_value
    lookup.find.assert_called_once_with("camera", "lidar")


def test_tf2_ros_is_used_where_there_is_one(monkeypatch):
    class UnknownFrameError(Exception):
        pass

    def lookup_transform(target, source, time):
        if (target, source, time.nanoseconds) != ("base_link", "camera", 0):
            raise UnknownFrameError
        return transform_message(0, target, source, BASE_FROM_CAMERA)

    buffer = SimpleNamespace(lookup_transform=lookup_transform)
    tf2_ros = MagicMock(Buffer=lambda: buffer, TransformException=UnknownFrameError)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_ros)
    lookup = listen_to_transforms(MagicMock())
    found = lookup.find("base_link", "camera")
    np.testing.assert_allclose(found.matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
    assert lookup.find("base_link", "elsewhere") is None
    lookup.close()
    tf2_ros.TransformListener.return_value.unregister.assert_called_once_with()


def test_tf_static_serves_without_tf2_ros_and_invalid_transforms_are_ignored(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    node = MagicMock()
    lookup = listen_to_transforms(node)
    message_type, topic, callback, _ = node.create_subscription.call_args.args
    assert (message_type, topic) == (TFMessage, "/tf_static")
    zero = transform_message(0, "base_link", "broken", Pose.identity())
    zero.transform.rotation.w = 0.0
    good = transform_message(0, "base_link", "camera", BASE_FROM_CAMERA)
    callback(SimpleNamespace(transforms=[zero, good]))
    np.testing.assert_allclose(lookup.find("base_link", "camera").matrix, BASE_FROM_CAMERA.matrix, atol=1e-12)
    assert lookup.find("base_link", "broken") is None
    assert "broken" in node.get_logger().error.call_args.args[0]


def test_without_tf2_msgs_parameters_are_the_only_source(monkeypatch):
    def missing(type_name):
        raise MissingPackageError(f"message type {type_name} is not available")

    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    monkeypatch.setattr(ros_extrinsics, "message_class", missing)
    node = MagicMock()
    lookup = listen_to_transforms(node)
    assert lookup.find("base_link", "camera") is None
    assert "parameters only" in node.get_logger().warning.call_args.args[0]
