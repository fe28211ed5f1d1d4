# SPDX-License-Identifier: Apache-2.0
"""Builders of the messages that bags hold: dataclasses of the ``rosbags`` library (ROS 2 Jazzy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose

_INT32_LIMIT = 2**31

# encoding -> (numpy type, channels); names as in sensor_msgs/image_encodings.hpp
_ENCODINGS: dict[str, tuple[type[np.generic], int]] = {
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "16UC1": (np.uint16, 1),
    "32FC1": (np.float32, 1),
}
_POINT_FIELD_TYPES = {"u2": 4, "f4": 7}  # sensor_msgs/PointField: UINT16, FLOAT32


@cache
def typestore() -> Typestore:
    """The message definitions that written bags carry."""
    return get_typestore(Stores.ROS2_JAZZY)


def _make(type_name: str, **fields: Any) -> Any:
    return typestore().types[type_name](**fields)


def _stamp(stamp_ns: int) -> Any:
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    if not 0 <= seconds < _INT32_LIMIT:
        raise MessageError(f"stamp {stamp_ns} ns does not fit builtin_interfaces/Time (0 to 2^31 s)")
    return _make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)


def _header(stamp_ns: int, frame_id: str) -> Any:
    return _make("std_msgs/msg/Header", stamp=_stamp(stamp_ns), frame_id=frame_id)


def image_message(stamp_ns: int, frame_id: str, array: NDArray[Any], encoding: str) -> Any:
    """A sensor_msgs/Image of an ``(H, W, 3)`` or ``(H, W)`` array.

    Raises:
        MessageError: the encoding is not one of rgb8, bgr8, mono8, mono16, 16UC1, 32FC1, or the array does
            not have its type and shape.
    """
    if encoding not in _ENCODINGS:
        raise MessageError(f"cannot write encoding {encoding!r}; known are {', '.join(_ENCODINGS)}")
    dtype, channels = _ENCODINGS[encoding]
    expected_shape = (*array.shape[:2], 3) if channels == 3 else array.shape[:2]
    if array.dtype != dtype or array.shape != expected_shape or array.ndim < 2:
        shape = "(H, W, 3)" if channels == 3 else "(H, W)"
        raise MessageError(f"{encoding} needs {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}")
    data = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return _make(
        "sensor_msgs/msg/Image",
        header=_header(stamp_ns, frame_id),
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=array.shape[1] * channels * data.itemsize,
        data=data.reshape(-1).view(np.uint8),
    )


def camera_info_message(stamp_ns: int, frame_id: str, camera: PinholeCamera) -> Any:
    """A sensor_msgs/CameraInfo; of an undistorted camera it is plumb_bob with zero coefficients."""
    distortion, plain = camera.distortion, camera.undistorted
    k, p = (np.array([[x.fx, 0, x.cx], [0, x.fy, x.cy], [0, 0, 1]], np.float64) for x in (camera, plain))
    rotation = None if distortion is None else distortion.rotation
    return _make(
        "sensor_msgs/msg/CameraInfo",
        header=_header(stamp_ns, frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob" if distortion is None else distortion.model,
        d=np.zeros(5) if distortion is None else np.array(distortion.coefficients, np.float64),
        k=k.ravel(),
        r=np.eye(3).ravel() if rotation is None else np.array(rotation, np.float64),
        p=np.hstack([p, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=_make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def point_cloud_message(stamp_ns: int, frame_id: str, cloud: PointCloud, ring: NDArray[np.uint16] | None = None) -> Any:
    """A sensor_msgs/PointCloud2 with x, y, z and, as far as given, intensity, ``ring`` and time.

    The layout is that of common lidar drivers: packed, float32 x y z intensity, uint16 ring, float32 time.

    Raises:
        MessageError: a field's length differs from the number of points.
    """
    xyz = np.asarray(cloud.xyz_m)
    columns: list[tuple[str, str, NDArray[Any] | None]] = [
        ("x", "f4", xyz[:, 0]),
        ("y", "f4", xyz[:, 1]),
        ("z", "f4", xyz[:, 2]),
        ("intensity", "f4", cloud.intensity),
        ("ring", "u2", ring),
        ("time", "f4", cloud.time_s),
    ]
    present = [(name, kind, values) for name, kind, values in columns if values is not None]
    points = np.empty(len(xyz), dtype=[(name, f"<{kind}") for name, kind, _ in present])
    for name, _, values in present:
        if len(values) != len(xyz):
            raise MessageError(f"field {name!r} has {len(values)} values for {len(xyz)} points")
        points[name] = values
    return _make(
        "sensor_msgs/msg/PointCloud2",
        header=_header(stamp_ns, frame_id),
        height=1,
        width=len(points),
        fields=[_point_field(name, points.dtype.fields[name][1], kind) for name, kind, _ in present],
        is_bigendian=False,
        point_step=points.itemsize,
        row_step=points.nbytes,
        data=points.view(np.uint8),
        is_dense=bool(np.isfinite(xyz).all()),
    )


def _point_field(name: str, offset: int, kind: str) -> Any:
    return _make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=_POINT_FIELD_TYPES[kind], count=1)


def _vector(xyz: ArrayLike) -> Any:
    x, y, z = (float(value) for value in np.asarray(xyz))
    return _make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _quaternion(pose: Pose) -> Any:
    w, x, y, z = (float(value) for value in pose.quaternion_wxyz)
    return _make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _pose(pose: Pose) -> Any:
    x, y, z = (float(value) for value in pose.position_m)
    point = _make("geometry_msgs/msg/Point", x=x, y=y, z=z)
    return _make("geometry_msgs/msg/Pose", position=point, orientation=_quaternion(pose))


def pose_stamped_message(stamp_ns: int, frame_id: str, frame_from_body: Pose) -> Any:
    """A geometry_msgs/PoseStamped: the body's pose in ``frame_id``."""
    header = _header(stamp_ns, frame_id)
    return _make("geometry_msgs/msg/PoseStamped", header=header, pose=_pose(frame_from_body))


def odometry_message(
    stamp_ns: int,
    frame_id: str,
    child_frame_id: str,
    frame_from_child: Pose,
    linear_m_s: ArrayLike = (0.0, 0.0, 0.0),
    angular_rad_s: ArrayLike = (0.0, 0.0, 0.0),
    pose_covariance: ArrayLike | None = None,
    twist_covariance: ArrayLike | None = None,
) -> Any:
    """A nav_msgs/Odometry; the twist is in the child frame, covariances are ``(6, 6)`` (default zero)."""
    zero = np.zeros((6, 6))
    pose = _make(
        "geometry_msgs/msg/PoseWithCovariance",
        pose=_pose(frame_from_child),
        covariance=np.array(zero if pose_covariance is None else pose_covariance, np.float64).ravel(),
    )
    twist = _make(
        "geometry_msgs/msg/TwistWithCovariance",
        twist=_make("geometry_msgs/msg/Twist", linear=_vector(linear_m_s), angular=_vector(angular_rad_s)),
        covariance=np.array(zero if twist_covariance is None else twist_covariance, np.float64).ravel(),
    )
    return _make(
        "nav_msgs/msg/Odometry",
        header=_header(stamp_ns, frame_id),
        child_frame_id=child_frame_id,
        pose=pose,
        twist=twist,
    )


def transform_message(stamp_ns: int, parent: str, child: str, parent_from_child: Pose) -> Any:
    """A geometry_msgs/TransformStamped: coordinates in ``child`` to coordinates in ``parent``."""
    transform = _make(
        "geometry_msgs/msg/Transform",
        translation=_vector(parent_from_child.position_m),
        rotation=_quaternion(parent_from_child),
    )
    return _make(
        "geometry_msgs/msg/TransformStamped",
        header=_header(stamp_ns, parent),
        child_frame_id=child,
        transform=transform,
    )


def tf_message(transforms: list[tuple[str, str, Pose, int]]) -> Any:
    """A tf2_msgs/TFMessage of ``(parent, child, parent_from_child, stamp_ns)`` entries."""
    return _make(
        "tf2_msgs/msg/TFMessage",
        transforms=[transform_message(stamp, parent, child, pose) for parent, child, pose, stamp in transforms],
    )
