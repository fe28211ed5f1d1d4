# SPDX-License-Identifier: Apache-2.0
"""Our decoding and maths against the packages of a ROS distribution, each where it can be imported."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vmloc_ros.core import messages
from vmloc_ros.core.geometry import Pose, matrix_from_quaternion, quaternion_multiply, rotation_angle_deg


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed; a ROS distribution has it")


def random_rotations(count: int = 50) -> np.ndarray:
    """``(count, 4)`` unit quaternions (w, x, y, z)."""
    quaternions = np.random.default_rng(0).normal(size=(count, 4))
    return quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)


def image(pixels: np.ndarray, encoding: str, is_bigendian: int = 0) -> Any:
    data = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    return package("sensor_msgs.msg").Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=is_bigendian,
        step=data.shape[1],
        data=data.tobytes(),
    )


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels", "tolerance"),
    [
        ("rgb8", np.uint8, 3, 0),
        ("bgr8", np.uint8, 3, 0),
        ("rgba8", np.uint8, 4, 0),
        ("bgra8", np.uint8, 4, 0),
        ("mono8", np.uint8, 1, 0),
        ("mono16", np.uint16, 1, 1),  # cv_bridge divides by 257, we keep the upper byte
        ("rgb16", np.uint16, 3, 1),
        ("bgr16", np.uint16, 3, 1),
        ("rgba16", np.uint16, 4, 1),
        ("bgra16", np.uint16, 4, 1),
        ("bayer_rggb16", np.uint16, 1, 2),  # which debayers 16 bits, we 8
        ("bayer_bggr16", np.uint16, 1, 2),
        ("bayer_gbrg16", np.uint16, 1, 2),
        ("bayer_grbg16", np.uint16, 1, 2),
        ("bayer_rggb8", np.uint8, 1, 0),
        ("bayer_bggr8", np.uint8, 1, 0),
        ("bayer_gbrg8", np.uint8, 1, 0),
        ("bayer_grbg8", np.uint8, 1, 0),
        ("yuv422", np.uint8, 2, 0),
        ("yuv422_yuy2", np.uint8, 2, 0),
    ],
)
def test_images_equal_cv_bridge_s(encoding: str, dtype: Any, channels: int, tolerance: int) -> None:
    bridge = package("cv_bridge").CvBridge()
    limit = np.iinfo(dtype).max + 1
    pixels = np.random.default_rng(1).integers(0, limit, (12, 16, channels), dtype=dtype)
    message = image(pixels, encoding)
    expected = bridge.imgmsg_to_cv2(message, "rgb8")
    np.testing.assert_allclose(messages.decode_image(message).astype(int), expected, atol=tolerance)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_compressed_images_equal_cv_bridge_s(extension: str) -> None:
    bridge = package("cv_bridge").CvBridge()
    pixels = np.random.default_rng(2).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    message = bridge.cv2_to_compressed_imgmsg(pixels, extension)
    expected = bridge.compressed_imgmsg_to_cv2(message, "rgb8")
    np.testing.assert_array_equal(messages.decode_image(message), expected)


def test_clouds_equal_sensor_msgs_py_s() -> None:
    point_cloud2 = package("sensor_msgs_py.point_cloud2")
    sensor_msgs = package("sensor_msgs.msg")
    names, offsets = ["x", "y", "z", "intensity"], [0, 4, 8, 16]
    layout = {"names": names, "formats": ["<f4"] * 4, "offsets": offsets, "itemsize": 32}
    points = np.zeros(40, np.dtype(layout))
    for name in names:
        points[name] = np.random.default_rng(4).normal(0, 10, 40)
    points["x"][3] = np.nan
    message = sensor_msgs.PointCloud2(
        height=1,
        width=40,
        fields=[
            sensor_msgs.PointField(name=name, offset=offset, datatype=7, count=1)
            for name, offset in zip(names, offsets, strict=True)
        ],
        is_bigendian=False,
        point_step=32,
        row_step=1280,
        data=points.tobytes(),
    )
    expected = point_cloud2.read_points(message)
    cloud = messages.decode_point_cloud(message)
    np.testing.assert_array_equal(cloud.xyz_m, np.stack([expected[name] for name in "xyz"], axis=-1))
    np.testing.assert_array_equal(cloud.intensity, expected["intensity"])


def test_images_that_we_make_are_those_of_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    package("cv_bridge")
    ros_packages = package("vmloc_ros.ros.packages")
    header = package("std_msgs.msg").Header(frame_id="camera")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    theirs = ros_packages.rgb_message(header, picture)
    monkeypatch.setattr(ros_packages, "optional_package", lambda name: None)
    assert ros_packages.rgb_message(header, picture) == theirs


def test_clouds_that_we_make_are_those_of_sensor_msgs_py(monkeypatch: pytest.MonkeyPatch) -> None:
    point_cloud2 = package("sensor_msgs_py.point_cloud2")
    ros_packages = package("vmloc_ros.ros.packages")
    header = package("std_msgs.msg").Header(frame_id="map")
    points_m = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    theirs = ros_packages.cloud_message(header, points_m)
    monkeypatch.setattr(ros_packages, "optional_package", lambda name: None)
    ours = ros_packages.cloud_message(header, points_m)
    for message in (ours, theirs):
        read = point_cloud2.read_points_numpy(message, field_names=("x", "y", "z"))
        np.testing.assert_array_equal(read, points_m)
    for name in ("header", "height", "width", "fields", "is_bigendian", "point_step", "row_step", "data"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ros_packages.cloud_message(header, points_m[:0]).width == 0


def test_quaternions_equal_tf_transformations() -> None:
    tf = package("tf_transformations")
    rotations = random_rotations()
    for left, right in zip(rotations, rotations[::-1], strict=True):
        product = tf.quaternion_multiply(np.roll(left, -1), np.roll(right, -1))
        np.testing.assert_allclose(quaternion_multiply(left, right), np.roll(product, 1), atol=1e-12)
        matrix = tf.quaternion_matrix(np.roll(left, -1))[:3, :3]
        np.testing.assert_allclose(matrix_from_quaternion(left), matrix, atol=1e-12)


def test_roll_pitch_yaw_equals_tf_transformations() -> None:
    tf = package("tf_transformations")
    for roll, pitch, yaw in np.random.default_rng(5).uniform(-math.pi, math.pi, (50, 3)):
        ours = Pose.from_xyz_rpy([0, 0, 0], [roll, pitch, yaw]).quaternion_wxyz
        theirs = np.roll(tf.quaternion_from_euler(roll, pitch, yaw), 1)
        assert rotation_angle_deg(ours, theirs) < 1e-9


def test_composition_equals_tf2_s() -> None:
    tf2_geometry_msgs = package("tf2_geometry_msgs")
    geometry_msgs = package("geometry_msgs.msg")
    generator = np.random.default_rng(6)
    for left, right in random_rotations(20).reshape(10, 2, 4):
        map_from_odom, odom_from_base = (Pose(generator.normal(size=3), q) for q in (left, right))
        transform, pose = geometry_msgs.TransformStamped(), geometry_msgs.Pose()
        for pose_of, position, orientation in (
            (map_from_odom, transform.transform.translation, transform.transform.rotation),
            (odom_from_base, pose.position, pose.orientation),
        ):
            position.x, position.y, position.z = map(float, pose_of.position_m)
            orientation.w, orientation.x, orientation.y, orientation.z = map(float, pose_of.quaternion_wxyz)
        theirs = messages.decode_pose(tf2_geometry_msgs.do_transform_pose(pose, transform))
        np.testing.assert_allclose((map_from_odom @ odom_from_base).matrix, theirs.matrix, atol=1e-9)
