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
from vmloc_ros.core.frame import Distortion, PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_point_cloud
from vmloc_ros.core.point_times import PointTimes
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


def emptied(message):
    message.fields.clear()
    message.point_step = message.row_step = message.width = 0
    message.data = np.zeros(0, np.uint8)
    return message


def test_an_empty_scan_is_a_missing_one(builder, messages, rejected):
    emptied(messages["lidar"][1])
    assert builder.build(Bundle(5, 0, messages)).modalities == ("image",)
    assert rejected == ["lidar: the scan is empty: it has no points, or only NaN and zeros"]
    with pytest.raises(MessageError, match="lidar: the scan is empty"):
        builder.build(Bundle(7, 0, {"lidar": messages["lidar"]}))


def timed_scans(times_s, count=8):
    stamps = [1_700_000_000_000_000_000 + i * 100_000_000 for i in range(count)]
    cloud = PointCloud(np.ones((len(times_s), 3), np.float32), time_s=times_s)
    return [Bundle(t, 0, {"lidar": (t, point_cloud_message(t, "lidar", cloud))}) for t in stamps]


def test_what_was_decided_about_points_times_is_said_once():
    said = []
    builder = FrameBuilder(Extrinsics(None, None, None), pytest.fail, pytest.fail, said.append, lidar_topic="/points")
    times_s = np.linspace(0, 0.1, 300, dtype=np.float32)
    for bundle in timed_scans(1e6 * times_s):
        np.testing.assert_allclose(builder.build(bundle).cloud.time_s, times_s, atol=1e-6)
    (text,) = said
    assert text.startswith("points' times of /points: field 'time', float32, us since the header's stamp; a sweep")


@pytest.mark.parametrize("trained", [True, False])
def test_scans_with_times_where_training_had_none_or_the_reverse_are_warned_of_once(trained):
    times_s = np.linspace(0, 0.1, 300, dtype=np.float32)
    record = PointTimes()
    for bundle in timed_scans(times_s, 1 if trained else 0):
        decode_point_cloud(bundle.messages["lidar"][1], record)
    warnings = []
    builder = FrameBuilder(Extrinsics(None, None, None), pytest.fail, warnings.append)
    builder.use_readings({"lidar_times": record.record})
    for bundle in timed_scans(None if trained else times_s, 3) if not trained else timed_scans(np.zeros(300), 8):
        builder.build(bundle)
    assert [text for text in warnings if "in training" in text] == [warnings[-1]]
    assert "poses in motion may be worse" in warnings[-1]


def test_scans_with_times_of_another_unit_than_in_training_are_not_warned_of():
    times_s = np.linspace(0, 0.1, 300, dtype=np.float32)
    record = PointTimes()
    decode_point_cloud(timed_scans(times_s, 1)[0].messages["lidar"][1], record)
    builder = FrameBuilder(Extrinsics(None, None, None), pytest.fail, pytest.fail)
    builder.use_readings({"lidar_times": record.record})
    for bundle in timed_scans(1e3 * times_s):
        assert builder.build(bundle).cloud.time_s is not None


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
        builder = FrameBuilder(Extrinsics(None, None, CAMERA_FROM_LIDAR), told.append, told.append, camera=pictures)
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
    builder = FrameBuilder(Extrinsics(None, None, None), pytest.fail, pytest.fail, camera=camera)
    for info in infos:
        builder.take_camera_info(info)
    preprocessor = Preprocessor(PreprocessConfig(("image",), 32).for_system(needs_geometry=True))
    for seen, message in zip(trained, pictures, strict=True):
        driven = builder.build(Bundle(seen.stamp_ns, 0, {"image": (seen.stamp_ns, message)}))
        assert driven.camera == seen.camera
        assert (seen.camera.distortion is not None) == (model is not None and topic.endswith("raw"))
        assert torch.equal(preprocessor.prepare(driven)["image"], preprocessor.prepare(seen)["image"])
        assert torch.equal(preprocessor.intrinsics(driven), preprocessor.intrinsics(seen))
