# SPDX-License-Identifier: Apache-2.0
"""Optional packages of a ROS distribution, each behind a function with a substitute for machines without it."""

from __future__ import annotations

import array
import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

from vmloc_ros.core.errors import VmlocError
from vmloc_ros.core.geometry import Pose

# What the node does without each of them.
OPTIONAL = {
    "bond": "nav2_lifecycle_manager gets no heartbeats: its bond_timeout must be 0.0",
    "cv_bridge": "debug images are built without it",
    "sensor_msgs_py": "~/training_area is built without it",
    "tf2_ros": "extrinsics over moving joints are not found; the rest of TF is read without it",
    "tf_transformations": "roll pitch yaw parameters are read without it",
}


def optional_package(name: str) -> Any:
    """Import a package of :data:`OPTIONAL`; None if it is not installed, or was built for another numpy version."""
    try:
        return importlib.import_module(name)
    except Exception:  # packages built for another numpy raise all kinds
        return None


def missing_packages() -> dict[str, str]:
    """The entries of :data:`OPTIONAL` that cannot be imported."""
    return {name: text for name, text in OPTIONAL.items() if optional_package(name) is None}


def pose_from_xyz_rpy(numbers: Sequence[float]) -> Pose:
    """The pose ``x y z roll pitch yaw`` (metres, radians, as in URDF)."""
    xyz, rpy = numbers[:3], numbers[3:]
    if (package := optional_package("tf_transformations")) is None:
        return Pose.from_xyz_rpy(xyz, rpy)
    x, y, z, w = package.quaternion_from_euler(*rpy)
    return Pose(np.array(xyz, np.float64), np.array([w, x, y, z], np.float64))


def rgb_message(header: Header, picture: NDArray[np.uint8]) -> Image:
    """``sensor_msgs/Image`` of an ``(H, W, 3)`` RGB picture."""
    if (package := optional_package("cv_bridge")) is not None:
        with contextlib.suppress(Exception):  # built for another numpy, it imports but fails when called
            return package.CvBridge().cv2_to_imgmsg(picture, "rgb8", header)
    height, width, channels = picture.shape
    message = Image(header=header, height=height, width=width, encoding="rgb8", step=width * channels)
    message.data = array.array("B", picture.tobytes())
    return message


def cloud_message(header: Header, points_m: NDArray[np.float32]) -> PointCloud2:
    """``sensor_msgs/PointCloud2`` of ``(N, 3)`` points."""
    package = optional_package("sensor_msgs_py.point_cloud2")
    if package is not None and len(points_m):  # it fails on clouds without points
        return package.create_cloud_xyz32(header, points_m)
    fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(("x", "y", "z"))
    ]
    message = PointCloud2(header=header, height=1, width=len(points_m), fields=fields, point_step=12, is_dense=True)
    message.row_step = message.point_step * message.width
    message.data = array.array("B", np.ascontiguousarray(points_m, "<f4").tobytes())
    return message


class MissingPackageError(VmlocError):
    """A ROS message package is not installed for this Python."""


def message_class(type_name: str) -> Any:
    """The rclpy class of ``package/msg/Name``.

    Raises:
        MissingPackageError: the package is not installed, or has no such message.
    """
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise MissingPackageError(
            f"message type {type_name} is not available: install ROS package {package} "
            f"(apt: ros-$ROS_DISTRO-{package.replace('_', '-')}; without a distribution: scripts/setup.sh)"
        ) from error
