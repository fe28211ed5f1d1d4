# SPDX-License-Identifier: Apache-2.0
"""Optional packages are used where they are installed, and replaced where not."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_image, decode_point_cloud
from vmloc_ros.ros.packages import OPTIONAL, cloud_message, missing_packages, pose_from_xyz_rpy, rgb_message
from vmloc_ros.ros.parameters import pose_of

HEADER = Header(frame_id="map")
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
POINTS_M = np.random.default_rng(1).normal(0, 50, (9, 3)).astype(np.float32)
XYZ_RPY = (1.0, -2.0, 0.5, 0.1, -0.2, 2.0)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch):
    """A function that installs a mock; without it each package is absent, also on a distribution."""

    def install(name: str, module: object) -> None:
        monkeypatch.setitem(sys.modules, name, module)

    for name in (*OPTIONAL, "sensor_msgs_py.point_cloud2"):
        install(name, None)
    return install


def test_without_the_packages_messages_contain_the_same_data() -> None:
    image, cloud = rgb_message(HEADER, PICTURE), cloud_message(HEADER, POINTS_M)
    assert image.header == cloud.header == HEADER
    np.testing.assert_array_equal(decode_image(image), PICTURE)
    np.testing.assert_array_equal(decode_point_cloud(cloud).xyz_m, POINTS_M)
    assert (cloud.width, cloud.row_step) == (9, 108)
    assert cloud_message(HEADER, POINTS_M[:0]).width == 0


def test_cv_bridge_builds_debug_images_unless_it_fails(packages) -> None:
    def bridge(convert):
        packages("cv_bridge", SimpleNamespace(CvBridge=lambda: SimpleNamespace(cv2_to_imgmsg=convert)))

    bridge(lambda picture, encoding, header: Image(header=header, encoding=f"{encoding} by cv_bridge"))
    assert rgb_message(HEADER, PICTURE).encoding == "rgb8 by cv_bridge"

    def built_for_another_numpy(*_: object) -> Image:
        raise ImportError("numpy.core.multiarray failed to import")

    bridge(built_for_another_numpy)
    np.testing.assert_array_equal(decode_image(rgb_message(HEADER, PICTURE)), PICTURE)


def test_sensor_msgs_py_builds_clouds_that_have_points(packages) -> None:
    def create(header: Header, points: np.ndarray) -> PointCloud2:
        assert len(points), "memoryview: cannot cast view with zeros in shape or strides"
        return PointCloud2(header=header, width=1000 + len(points))

    packages("sensor_msgs_py.point_cloud2", SimpleNamespace(create_cloud_xyz32=create))
    assert cloud_message(HEADER, POINTS_M).width == 1009
    assert cloud_message(HEADER, POINTS_M[:0]).width == 0


def test_tf_transformations_converts_the_extrinsics_of_parameters(packages) -> None:
    calls = []

    def quaternion_from_euler(*rpy: float) -> list[float]:
        calls.append(rpy)
        return [0.0, 0.6, 0.0, 0.8]  # x y z w

    packages("tf_transformations", SimpleNamespace(quaternion_from_euler=quaternion_from_euler))
    pose = pose_of(XYZ_RPY)
    assert calls == [(0.1, -0.2, 2.0)]
    np.testing.assert_allclose(pose.position_m, XYZ_RPY[:3])
    np.testing.assert_allclose(pose.quaternion_wxyz, [0.8, 0.0, 0.6, 0.0])
    packages("tf_transformations", None)
    expected = Pose.from_xyz_rpy(XYZ_RPY[:3], XYZ_RPY[3:])
    np.testing.assert_array_equal(pose_from_xyz_rpy(XYZ_RPY).quaternion_wxyz, expected.quaternion_wxyz)


def test_missing_packages_are_named_with_the_consequence(packages, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    assert missing_packages() == OPTIONAL
    packages("cv_bridge", ModuleType("cv_bridge"))
    (tmp_path / "tf_transformations.py").write_text("raise AttributeError('module numpy has no attribute float')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tf_transformations")
    assert set(missing_packages()) == {"bond", "sensor_msgs_py", "tf2_ros", "tf_transformations"}
