# SPDX-License-Identifier: Apache-2.0
"""Frames from bundles of messages, with and without messages that cannot be decoded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bag_builders import MS, T0, poses, source, write_bag
from helpers import random_frame

pytest.importorskip("rclpy", reason="rclpy is not installed")

from vmloc_ros.bags.messages import camera_info_message, image_message, point_cloud_message
from vmloc_ros.core.cameras import PictureCamera
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import Distortion
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
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
    builder.take_camera_info(camera_info_message(1, "camera", camera))
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


def test_a_leading_message_that_cannot_be_decoded_is_an_error(builder, messages):
    messages["image"][1].encoding = "nonsense"
    with pytest.raises(MessageError, match=r"image: .*nonsense"):
        builder.build(Bundle(5, 0, messages))


def test_a_scan_without_an_image_is_a_frame_at_its_own_stamp(builder, messages):
    frame = builder.build(Bundle(7, 0, {"lidar": messages["lidar"]}))
    assert (frame.stamp_ns, frame.modalities, frame.camera_from_lidar) == (7, ("lidar",), None)


def test_an_uncalibrated_camera_does_not_silence_the_lidar(builder, messages, rejected):
    blank = camera_info_message(1, "camera", random_frame(3).camera)
    blank.k[:], blank.p[:] = 0, np.nan
    builder.take_camera_info(blank)
    frame = builder.build(Bundle(5, 0, messages))
    assert (frame.modalities, frame.camera, rejected) == (("image", "lidar"), None, [])


def test_a_rectified_topic_has_p_and_a_raw_one_k_and_distortion(messages):
    plain = random_frame(3).camera
    lens = Distortion("plumb_bob", (-0.2, 0.1, 0.0, 0.0), (45.0, 45.0), (plain.cx, plain.cy))
    camera = replace(plain, distortion=lens)
    for topic, expected in {"/camera/image_raw": camera, "/camera/image_rect": camera.undistorted}.items():
        told = []
        pictures = PictureCamera(topic, "auto", told.append, told.append)
        builder = FrameBuilder(Extrinsics(None, None, CAMERA_FROM_LIDAR), told.append, told.append, pictures)
        builder.take_camera_info(camera_info_message(1, "camera", camera))
        assert builder.build(Bundle(5, 0, messages)).camera == expected
        assert len(told) == 1


@pytest.mark.parametrize("topic", ["/camera/image_raw", "/camera/image_rect"])
@pytest.mark.parametrize("model", ["plumb_bob", "equidistant", None])
def test_training_and_robot_prepare_the_same_from_the_same_messages(tmp_path, topic, model):
    """Raw and rectified pictures with CameraInfo of twice their size, the first of which is not calibrated."""
    frames = [replace(random_frame(i, (40, 60)), stamp_ns=T0 + i * 100 * MS) for i in range(3)]
    plain = random_frame(3, (80, 120)).camera
    lens = model and Distortion(model, (-0.05, 0.02, 0.001, -0.002), (52.0, 51.0), (plain.cx - 2, plain.cy))
    infos = [camera_info_message(frame.stamp_ns, "camera", replace(plain, distortion=lens)) for frame in frames]
    infos[0].k[:], infos[0].p[:] = 0, 0
    pictures = [image_message(frame.stamp_ns, "camera", frame.image, "rgb8") for frame in frames]
    labelled = [(topic, x, frame.stamp_ns) for x, frame in zip(pictures, frames, strict=True)]
    path = write_bag(tmp_path / "bag", labelled, poses(), [("/camera/camera_info", x, T0) for x in infos])
    trained = [sample.frame for sample in source(path, ("image",))]

    camera = PictureCamera(topic, "auto", lambda text: None, lambda text: None)
    builder = FrameBuilder(Extrinsics(None, None, None), pytest.fail, pytest.fail, camera)
    for info in infos:
        builder.take_camera_info(info)
    preprocessor = Preprocessor(PreprocessConfig(("image",), 32).for_system(needs_geometry=True))
    for seen, message in zip(trained, pictures, strict=True):
        driven = builder.build(Bundle(seen.stamp_ns, 0, {"image": (seen.stamp_ns, message)}))
        assert driven.camera == seen.camera
        assert (seen.camera.distortion is not None) == (model is not None and topic.endswith("raw"))
        assert torch.equal(preprocessor.prepare(driven)["image"], preprocessor.prepare(seen)["image"])
        assert torch.equal(preprocessor.intrinsics(driven), preprocessor.intrinsics(seen))
