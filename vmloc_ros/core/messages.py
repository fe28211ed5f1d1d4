# SPDX-License-Identifier: Apache-2.0
"""Decoding of ROS messages, those of rclpy and of the rosbags library alike.

Nothing here imports ROS. ``data`` may be any object with a buffer: array.array, bytes, memoryview, numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.compressed_images import rgb_from_compressed
from vmloc_ros.core.depth_images import depth_from_compressed, depth_from_raw, depth_metres
from vmloc_ros.core.encodings import Narrow, rgb_from_raw, upper_byte
from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import PointCloud
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.point_times import PointTimes, time_fields

# sensor_msgs/PointField datatypes.
_FIELD_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_INTENSITY_NAMES = ("intensity", "i", "reflectivity")
_BYTES = (1, 2)  # datatypes; eight of them are how Luminar sends a 64-bit integer


def stamp_ns(header: Any) -> int:
    """Nanoseconds of a ``std_msgs/Header``'s stamp."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def decode_image(msg: Any, narrow: Narrow = upper_byte) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB of a ``sensor_msgs/Image`` or ``CompressedImage`` (JPEG, PNG, WebP, TIFF, BMP).

    The array of an ``rgb8`` image is a view of the message's data: treat it as read-only.

    Args:
        narrow: brings values of 16 bits to 8. One message does not tell how many bits its sensor has, so without it
            they are taken to use all; :class:`vmloc_ros.core.image_decoders.ImageDecoder` learns it.

    Raises:
        MessageError: unsupported encoding, or data that do not fit it.
    """
    if hasattr(msg, "encoding"):
        return rgb_from_raw(msg, narrow)
    if hasattr(msg, "format"):
        return rgb_from_compressed(msg.data, msg.format, narrow)
    raise MessageError(f"expected sensor_msgs/Image or CompressedImage, got {type(msg).__name__}")


def decode_depth(msg: Any) -> NDArray[np.float32]:
    """``(H, W)`` float32 metres, 0 = none, of a ``sensor_msgs/Image`` or ``CompressedImage``.

    Integers are millimetres with 0 for "none", floats metres with NaN (REP 118). Other marks of invalid depth, such as
    the 65535 of 7-Scenes, are the publisher's to remove: 65.535 m is a measurement.

    Raises:
        MessageError: unsupported encoding, or data that do not fit it.
    """
    return depth_metres(depth_values(msg))


def depth_values(msg: Any) -> NDArray[Any]:
    """Depth ``(H, W)`` of a ``sensor_msgs/Image`` or ``CompressedImage`` in the publisher's unit.

    Raises:
        MessageError: unsupported encoding, or data that do not fit it.
    """
    if hasattr(msg, "encoding"):
        return depth_from_raw(msg)
    if hasattr(msg, "format"):
        return depth_from_compressed(msg.data, msg.format)
    raise MessageError(f"expected sensor_msgs/Image or CompressedImage for depth, got {type(msg).__name__}")


def decode_point_cloud(msg: Any, times: PointTimes | None = None) -> PointCloud:
    """Points of a ``sensor_msgs/PointCloud2`` of any field layout, byte order and padding, row by row.

    Intensity comes from the first of the fields ``intensity``, ``i``, ``reflectivity``; for times see
    :mod:`vmloc_ros.core.point_times`. A cloud without points may lack all fields.

    Args:
        msg: the message.
        times: reads the points' times, knowing the scans before; None decides by this scan alone.

    Raises:
        MessageError: x, y or z is missing, a field is malformed, or the data are too short.
    """
    points, unreadable = _structured_points(msg)
    xyz_m = np.empty((*points.shape, 3), np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is "no return"
        for axis, name in enumerate("xyz"):
            xyz_m[..., axis] = points[name]
    return PointCloud(
        xyz_m=xyz_m.reshape(-1, 3),
        intensity=_flat(points, _INTENSITY_NAMES),
        time_s=(PointTimes() if times is None else times).seconds(points, stamp_ns(msg.header), unreadable),
    )


def observe_point_times(msg: Any, times: PointTimes) -> None:
    """Show the points' times of a cloud to ``times``; errors as of :func:`decode_point_cloud`."""
    points, unreadable = _structured_points(msg)
    times.observe(points, stamp_ns(msg.header), unreadable)


def has_returns(msg: Any) -> bool:
    """Whether a ``sensor_msgs/PointCloud2`` has a point that is neither NaN, nor infinite, nor all zero.

    Raises:
        MessageError: see :func:`decode_point_cloud`.
    """
    points, _ = _structured_points(msg)
    some = points[:: max(len(points) // 8, 1), :: max(points.shape[1] // 256, 1)]  # nearly always enough
    return _has_returns(some) or (some.size < points.size and _has_returns(points))


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


def _structured_points(msg: Any) -> tuple[NDArray[Any], str]:
    """View ``(height, width)`` of a cloud's data as a structured array of the fields that are used here.

    Also what is wrong with a field for times that is not among them.
    """
    height, width = int(msg.height), int(msg.width)
    point_step, row_step = int(msg.point_step), int(msg.row_step)
    if height * width == 0 or (point_step == 0 and not len(msg.data)):
        return np.empty((0, 0), _empty_dtype(msg.fields)), ""
    dtype, unreadable = _point_dtype(msg.fields, point_step, bool(msg.is_bigendian))
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
    return np.ndarray((height, width), dtype, data, strides=(row_step, point_step)), unreadable


def _empty_dtype(fields: Any) -> np.dtype[Any]:
    """Of a cloud without points, whose fields may be missing or malformed."""
    names = tuple(str(field.name) for field in fields)
    others = [name for name in (*_INTENSITY_NAMES, *_flattened(time_fields(names))) if name in names]
    return np.dtype([(name, np.float32) for name in ("x", "y", "z", *others)])


def _point_dtype(fields: Any, point_step: int, is_bigendian: bool) -> tuple[np.dtype[Any], str]:
    by_name = {str(field.name): field for field in fields}
    missing = [name for name in "xyz" if name not in by_name]
    if missing:
        present = ", ".join(by_name) or "none"
        raise MessageError(f"point cloud lacks field {', '.join(missing)}; its fields: {present}")
    order, unreadable = ">" if is_bigendian else "<", ""
    wanted = {name: "" for name in ("x", "y", "z", *_INTENSITY_NAMES) if name in by_name}
    for name in wanted:
        wanted[name] = _format(by_name[name], point_step, order)
    for name in _flattened(time_fields(tuple(by_name))):
        try:  # a scan can do without times
            wanted[name] = _format(by_name[name], point_step, order, bytes_are_integers=True)
        except MessageError as error:
            unreadable = str(error)
    offsets = [by_name[name].offset for name in wanted]
    names, formats = list(wanted), list(wanted.values())
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": point_step}), unreadable


def _flattened(pairs: tuple[tuple[str, ...], ...]) -> list[str]:
    return [name for names in pairs for name in names]


def _format(field: Any, point_step: int, order: str, bytes_are_integers: bool = False) -> str:
    """Numpy's format of a field. Raises MessageError: it is malformed."""
    kind = _FIELD_TYPES.get(field.datatype)
    if bytes_are_integers and field.datatype in _BYTES and field.count == 8:
        kind = "u8"
    elif kind is None or field.count > 1:
        raise MessageError(
            f"point cloud field {field.name!r} has datatype {field.datatype}, count {field.count}; "
            "expected datatype 1 to 8 and count 1"
        )
    end = field.offset + np.dtype(kind).itemsize
    if end > point_step:
        raise MessageError(f"point cloud field {field.name!r} ends at byte {end} of a {point_step}-byte point")
    return order + kind


def _has_returns(points: NDArray[Any]) -> bool:
    is_zero = True
    is_finite = np.ones(points.shape, bool)
    for name in "xyz":
        is_finite &= np.isfinite(points[name])
        is_zero = is_zero & (points[name] == 0)
    return bool(np.any(is_finite & ~is_zero))


def _flat(points: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32] | None:
    name = next((name for name in names if name in (points.dtype.names or ())), None)
    return None if name is None else points[name].astype(np.float32).reshape(-1)
