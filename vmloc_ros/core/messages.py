# SPDX-License-Identifier: Apache-2.0
"""Decoding of ROS messages, those of rclpy and of the rosbags library alike.

Nothing here imports ROS. ``data`` may be any object with a buffer: array.array, bytes, memoryview, numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.encodings import depth_from_compressed, depth_from_raw, rgb_from_compressed, rgb_from_raw
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Pose

# sensor_msgs/PointField datatypes.
_FIELD_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_INTENSITY_NAMES = ("intensity", "i", "reflectivity")
_TIME_NAMES = ("t", "time", "timestamp", "time_stamp", "offset_time")
# Larger values are absolute stamps: no scan lasts this long, and no robot's clock is set before 1973.
_ABSOLUTE_SECONDS = 1e8
_ABSOLUTE_NANOSECONDS = 1e17


def stamp_ns(header: Any) -> int:
    """Nanoseconds of a ``std_msgs/Header``'s stamp."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def decode_image(msg: Any) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a ``sensor_msgs/Image`` or ``CompressedImage`` (JPEG, PNG).

    The array of an ``rgb8`` image is a view of the message's data: treat it as read-only.

    Raises:
        MessageError: unsupported encoding, or data that do not fit it.
    """
    if hasattr(msg, "encoding"):
        return rgb_from_raw(msg)
    if hasattr(msg, "format"):
        return rgb_from_compressed(msg.data, msg.format)
    raise MessageError(f"expected sensor_msgs/Image or CompressedImage, got {type(msg).__name__}")


def decode_depth(msg: Any) -> NDArray[np.float32]:
    """``(H, W)`` float32 metres, 0 = none, of a ``sensor_msgs/Image`` or ``CompressedImage``.

    16UC1 and mono16 are millimetres with 0 for "none", 32FC1 metres with NaN (REP 118). Other marks of
    invalid depth, such as the 65535 of 7-Scenes, are the publisher's to remove: 65.535 m is a measurement.

    Raises:
        MessageError: unsupported encoding, or data that do not fit it.
    """
    if hasattr(msg, "encoding"):
        return depth_from_raw(msg)
    if hasattr(msg, "format"):
        return depth_from_compressed(msg.data, msg.format)
    raise MessageError(f"expected sensor_msgs/Image or CompressedImage for depth, got {type(msg).__name__}")


def decode_point_cloud(msg: Any) -> PointCloud:
    """Points of a ``sensor_msgs/PointCloud2`` of any field layout, byte order and padding, row by row.

    Intensity comes from the first of the fields ``intensity``, ``i``, ``reflectivity``; time from the first
    of ``t``, ``time``, ``timestamp``, ``time_stamp``, ``offset_time``. Integer times are nanoseconds, floats
    are seconds, both since the header's stamp; absolute float stamps (seconds, or nanoseconds as Livox has
    it) are made relative to it.

    Raises:
        MessageError: x, y or z is missing, a field is malformed, or the data are too short.
    """
    points = _structured_points(msg)
    xyz_m = np.empty((*points.shape, 3), np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is "no return"
        for axis, name in enumerate("xyz"):
            xyz_m[..., axis] = points[name]
    return PointCloud(
        xyz_m=xyz_m.reshape(-1, 3),
        intensity=_flat(points, _INTENSITY_NAMES),
        time_s=_relative_time(points, msg.header),
    )


def decode_pose(msg: Any) -> Pose:
    """Pose of a geometry_msgs Pose or Transform, Stamped and WithCovariance ones too, or a nav_msgs/Odometry.

    Raises:
        MessageError: another type, a number that is not finite, or a zero quaternion.
    """
    inner = msg
    while (wrapped := getattr(inner, "pose", None) or getattr(inner, "transform", None)) is not None:
        inner = wrapped
    if hasattr(inner, "position") and hasattr(inner, "orientation"):
        position, orientation = inner.position, inner.orientation
    elif hasattr(inner, "translation") and hasattr(inner, "rotation"):
        position, orientation = inner.translation, inner.rotation
    else:
        raise MessageError(f"expected a pose, transform or odometry message, got {type(msg).__name__}")
    try:
        return Pose(
            np.array([position.x, position.y, position.z]),
            np.array([orientation.w, orientation.x, orientation.y, orientation.z]),
        )
    except ValueError as error:
        raise MessageError(f"invalid pose in {type(msg).__name__}: {error}") from error


def _structured_points(msg: Any) -> NDArray[Any]:
    """View ``(height, width)`` of a cloud's data as a structured array of the fields that are used here."""
    height, width = int(msg.height), int(msg.width)
    point_step, row_step = int(msg.point_step), int(msg.row_step)
    dtype = _point_dtype(msg.fields, point_step, bool(msg.is_bigendian))
    if height * width == 0:
        return np.empty((0, 0), dtype)
    if height == 1:
        row_step = width * point_step  # some drivers leave it 0
    if row_step < width * point_step:
        raise MessageError(
            f"point cloud has row_step {row_step}, expected at least {width * point_step} "
            f"for {width} points of {point_step} bytes"
        )
    data = np.frombuffer(msg.data, np.uint8)
    needed = (height - 1) * row_step + width * point_step
    if data.size < needed:
        size = f"{width} x {height}"
        raise MessageError(f"point cloud of {size} points: expected {needed} bytes, got {data.size}")
    return np.ndarray((height, width), dtype, data, strides=(row_step, point_step))


def _point_dtype(fields: Any, point_step: int, is_bigendian: bool) -> np.dtype[Any]:
    by_name = {str(field.name): field for field in fields}
    missing = [name for name in "xyz" if name not in by_name]
    if missing:
        present = ", ".join(by_name) or "none"
        raise MessageError(f"point cloud lacks field {', '.join(missing)}; its fields: {present}")
    wanted = [name for name in ("x", "y", "z", *_INTENSITY_NAMES, *_TIME_NAMES) if name in by_name]
    formats = []
    for name in wanted:
        field = by_name[name]
        if field.datatype not in _FIELD_TYPES or field.count > 1:
            raise MessageError(
                f"point cloud field {name!r} has datatype {field.datatype}, count {field.count}; "
                "expected datatype 1 to 8 and count 1"
            )
        formats.append((">" if is_bigendian else "<") + _FIELD_TYPES[field.datatype])
        end = field.offset + np.dtype(formats[-1]).itemsize
        if end > point_step:
            raise MessageError(f"point cloud field {name!r} ends at byte {end} of a {point_step}-byte point")
    offsets = [by_name[name].offset for name in wanted]
    return np.dtype({"names": wanted, "formats": formats, "offsets": offsets, "itemsize": point_step})


def _flat(points: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32] | None:
    name = next((name for name in names if name in (points.dtype.names or ())), None)
    return None if name is None else points[name].astype(np.float32).reshape(-1)


def _relative_time(points: NDArray[Any], header: Any) -> NDArray[np.float32] | None:
    name = next((name for name in _TIME_NAMES if name in (points.dtype.names or ())), None)
    if name is None:
        return None
    time: NDArray[np.float64] = points[name].astype(np.float64).reshape(-1)
    if points[name].dtype.kind in "iu":
        return (time * 1e-9).astype(np.float32)
    latest = time[np.isfinite(time)].max(initial=0.0)
    if latest > _ABSOLUTE_NANOSECONDS:
        time = (time - stamp_ns(header)) * 1e-9
    elif latest > _ABSOLUTE_SECONDS:
        time = time - stamp_ns(header) * 1e-9
    return time.astype(np.float32)
