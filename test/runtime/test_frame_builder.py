# SPDX-License-Identifier: Apache-2.0
"""Frames from bundles of messages, with and without messages that cannot be decoded."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import random_frame

pytest.importorskip("rclpy", reason="rclpy is not installed")

from vmloc_ros.bags.messages import camera_info_message, image_message, point_cloud_message
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.runtime.extrinsics import Extrinsics
from vmloc_ros.runtime.frame_builder import FrameBuilder

CAMERA_FROM_LIDAR = Pose.from_xyz_rpy([0.0, -0.3, 0.1], [1.5, 0.0, 1.5])


@pytest.fixture
def messages():
    frame = random_frame(3)
    return {
        "image": (5, image_message(5, "camera", frame.image, "rgb8")),
        "lidar": (7, point_cloud_message(7, "lidar", frame.cloud)),
    }


@pytest.fixture
def rejected():
    return []


@pytest.fixture
def builder(rejected):
    return FrameBuilder(Extrinsics(None, None, CAMERA_FROM_LIDAR), rejected.append)


def test_a_frame_has_all_data_of_the_bundle_with_intrinsics_and_extrinsics(builder, messages, rejected):
    camera = random_frame(3).camera
    builder.camera_info = camera_info_message(1, "camera", camera)
    frame = builder.build(Bundle(5, 0, messages))
    np.testing.assert_array_equal(frame.image, random_frame(3).image)
    np.testing.assert_array_equal(frame.cloud.xyz_m, random_frame(3).cloud.xyz_m)
    assert (frame.stamp_ns, frame.camera, frame.camera_from_lidar) == (5, camera, CAMERA_FROM_LIDAR)
    assert rejected == []


def test_a_clouds_times_are_relative_to_the_frames_stamp(builder, messages):
    stamp_ns, cloud = 5_000_000_000, random_frame(3).cloud
    messages["image"] = (stamp_ns, messages["image"][1])
    messages["lidar"] = (stamp_ns + 30_000_000, messages["lidar"][1])
    frame = builder.build(Bundle(stamp_ns, 0, messages))
    np.testing.assert_allclose(frame.cloud.time_s, np.full(len(cloud), 0.03), atol=1e-7)
    alone = builder.build(Bundle(stamp_ns + 30_000_000, 0, {"lidar": messages["lidar"]}))
    assert alone.cloud.time_s is None


def test_a_message_that_cannot_be_decoded_is_skipped_and_reported(builder, messages, rejected):
    messages["lidar"][1].fields.clear()
    frame = builder.build(Bundle(5, 0, messages))
    assert frame.modalities == ("image",)
    (reason,) = rejected
    assert reason.startswith("lidar: point cloud lacks field x, y, z")


def test_an_image_that_cannot_be_decoded_is_a_missing_one_and_the_scan_answers_at_its_stamp(
    builder, messages, rejected
):
    messages["image"][1].encoding = "nonsense"
    stamp_ns = 5_000_000_000
    bundle = {"image": (stamp_ns, messages["image"][1]), "lidar": (stamp_ns + 30_000_000, messages["lidar"][1])}
    frame = builder.build(Bundle(stamp_ns, 0, bundle))
    assert (frame.stamp_ns, frame.modalities) == (stamp_ns, ("lidar",))
    assert frame.camera_from_lidar == CAMERA_FROM_LIDAR
    np.testing.assert_array_equal(frame.cloud.xyz_m, random_frame(3).cloud.xyz_m)
    np.testing.assert_allclose(frame.cloud.time_s, np.full(len(frame.cloud), 0.03), atol=1e-7)
    (reason,) = rejected
    assert reason.startswith("image: image encoding 'nonsense' is not supported; supported: rgb8")


def test_a_bundle_none_of_whose_messages_can_be_decoded_is_an_error(builder, messages, rejected):
    messages["image"][1].encoding = "nonsense"
    messages["lidar"][1].fields.clear()
    with pytest.raises(MessageError, match=r"image: .*nonsense.*; lidar: point cloud lacks field"):
        builder.build(Bundle(5, 0, messages))
    with pytest.raises(MessageError, match=r"image: .*nonsense"):
        builder.build(Bundle(5, 0, {"image": messages["image"]}))
    assert rejected == []


def test_pictures_of_sixteen_bits_are_scaled_as_in_training(messages, rejected):
    warnings = []
    builder = FrameBuilder(Extrinsics(None, None, None), rejected.append, warnings.append)
    builder.use_readings({"image_bits": 12})
    dark, bright = (image_message(5, "camera", np.full((4, 6), value, np.uint16), "mono16") for value in (160, 16000))

    def grey(message):
        return builder.build(Bundle(5, 0, {"image": (5, message)})).image[0, 0, 0]

    assert (grey(dark), warnings) == (10, [])
    assert grey(bright) == 16000 >> 6
    assert grey(dark) == 160 >> 6
    assert grey(bright) == 16000 >> 6
    (warning,) = warnings
    assert "up to 16000, more than the 12 bits so far: they are read as of 14 bits" in warning


@pytest.mark.parametrize(
    ("parameter", "readings", "expected"),
    [
        (0.0, {}, 5.0),
        (0.0, {"depth_units_m": {"integer": 0.0002}}, 1.0),
        (0.0, {"depth_units_m": {"float": 0.001}}, 5.0),
        (0.0001, {"depth_units_m": {"integer": 0.0002}}, 0.5),
    ],
)
def test_depth_has_the_parameters_unit_else_that_of_training_else_millimetres(parameter, readings, expected):
    told = []
    builder = FrameBuilder(Extrinsics(None, None, None), told.append, told.append, told.append, depth_unit_m=parameter)
    builder.use_readings(readings)
    message = image_message(5, "camera", np.full((4, 6), 5000, np.uint16), "16UC1")
    for _ in range(2):
        frame = builder.build(Bundle(5, 0, {"depth": (5, message)}))
        np.testing.assert_allclose(frame.depth_m, np.full((4, 6), expected), rtol=1e-6)
    (text,) = told
    assert "depth of integer values is read in units of" in text
    assert "parameter depth_unit_m" in text


def test_a_scan_without_an_image_is_a_frame_at_its_own_stamp(builder, messages):
    frame = builder.build(Bundle(7, 0, {"lidar": messages["lidar"]}))
    assert (frame.stamp_ns, frame.modalities, frame.camera_from_lidar) == (7, ("lidar",), None)
