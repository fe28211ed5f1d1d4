# SPDX-License-Identifier: Apache-2.0
"""Bags on disk: an all-or-nothing rosbag2 writer, builders of its messages, and a reader with clear errors.

Everything goes through the ``rosbags`` library: no ROS installation is needed, and the bags open in ``ros2 bag``
and Foxglove (message definitions and QoS profiles are stored).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rosbags.highlevel import AnyReader
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose

LATCHED_TOPICS = ("/tf_static",)
_INT32_LIMIT = 2**31
_UNLIMITED = QosTime(9223372036, 854775807)

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
    """The message definitions that written bags carry (ROS 2 Jazzy)."""
    return get_typestore(Stores.ROS2_JAZZY)


class BagWriter:
    """Write a rosbag2 folder (MCAP) that appears under its name only when it is complete.

    A context manager: messages go to a temporary folder beside ``path``, which is renamed on a clean exit and
    removed when the body raises.

    Args:
        path: the bag's folder; missing parents are made.
        overwrite: replace an existing bag (never a folder that is not a bag).
        message_types: definitions for ``write_raw`` of types that ROS 2 Jazzy does not have, for instance the
            ``typestore`` of the reader that the messages come from.

    Raises:
        DataError: ``path`` exists and may not be replaced, cannot be made, or a message has an unknown type.
    """

    def __init__(self, path: Path | str, overwrite: bool = False, message_types: Typestore | None = None) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._message_types = message_types
        self._connections: dict[str, Connection] = {}
        self._check_target()

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if not self._overwrite:
            raise DataError(f"{self.path} exists already; choose another name or ask to overwrite it")
        if not (self.path / "metadata.yaml").is_file():
            raise DataError(f"{self.path} exists and is not a bag folder; it is not overwritten, choose another name")

    def __enter__(self) -> BagWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._workspace = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise DataError(f"cannot write a bag at {self.path}: {error.strerror}") from error
        # The library names the storage file after its folder, so the folder already has its final name inside.
        self._writer = Writer(
            self._workspace / self.path.name, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._writer.abort()
                return
            self._writer.close()
            self._check_target()
            if self.path.exists():
                self.path.rename(self._workspace / "replaced")
            self._writer.path.rename(self.path)
        finally:
            shutil.rmtree(self._workspace, ignore_errors=True)

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Write a message (a dataclass of :func:`typestore`) received at ``stamp_ns``."""
        type_name = message.__msgtype__
        self.write_raw(topic, type_name, typestore().serialize_cdr(message, type_name), stamp_ns)

    def write_raw(self, topic: str, type_name: str, cdr_bytes: bytes | memoryview, stamp_ns: int) -> None:
        """Write a serialized message of type ``package/msg/Name`` received at ``stamp_ns``."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._connect(topic, type_name)
        if connection.msgtype != type_name:
            raise DataError(f"topic {topic} of {self.path} has type {connection.msgtype}, got a {type_name}")
        self._writer.write(connection, int(stamp_ns), cdr_bytes)

    def _connect(self, topic: str, type_name: str) -> Connection:
        for store in (self._message_types, typestore()):
            if store is not None and type_name in store.fielddefs:
                return self._writer.add_connection(
                    topic, type_name, typestore=store, offered_qos_profiles=[_offered_qos(topic)]
                )
        raise DataError(f"topic {topic}: no definition of type {type_name} is known, so it cannot be recorded")


def _offered_qos(topic: str) -> Qos:
    latched = topic in LATCHED_TOPICS
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _UNLIMITED,
        _UNLIMITED,
        QosLiveliness.AUTOMATIC,
        _UNLIMITED,
        False,
    )


@contextmanager
def open_bag(path: Path | str) -> Iterator[AnyReader]:
    """Open a rosbag2 folder, a bare ``.mcap`` or ``.db3`` file, or a ROS 1 ``.bag`` for reading.

    Raises:
        DataError: the path is missing, not a bag, damaged (also when that shows only while reading) or empty.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"bag {path} does not exist")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise DataError(f"{path} is not a rosbag2 folder: it has no metadata.yaml (was the recording cut off?)")
    try:
        reader = AnyReader([path], default_typestore=typestore())
        reader.open()
    except Exception as error:  # the library lets struct, sqlite and YAML errors of damaged files through
        raise DataError(f"cannot read bag {path}: {_one_line(error)}") from error
    try:
        if reader.message_count == 0:
            raise DataError(f"bag {path} is empty: it holds no messages")
        yield reader
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("rosbags", "apsw", "lz4", "zstd", "backports", "compression"):
            raise DataError(f"bag {path} is damaged: {_one_line(error)}") from error
        raise
    finally:
        reader.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        MessageError: the encoding is not one of rgb8, bgr8, mono8, mono16, 16UC1, 32FC1, or the array does not
            have its type and shape.
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
    """A sensor_msgs/CameraInfo of an undistorted camera (plumb_bob with zero coefficients)."""
    k = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], np.float64)
    return _make(
        "sensor_msgs/msg/CameraInfo",
        header=_header(stamp_ns, frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=_make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def point_cloud_message(
    stamp_ns: int, frame_id: str, cloud: PointCloud, ring: NDArray[np.uint16] | None = None
) -> Any:
    """A sensor_msgs/PointCloud2: x, y, z and what the cloud has of intensity, ``ring`` and time.

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
    offsets = points.dtype.fields or {}
    return _make(
        "sensor_msgs/msg/PointCloud2",
        header=_header(stamp_ns, frame_id),
        height=1,
        width=len(points),
        fields=[
            _make(
                "sensor_msgs/msg/PointField",
                name=name,
                offset=offsets[name][1],
                datatype=_POINT_FIELD_TYPES[kind],
                count=1,
            )
            for name, kind, _ in present
        ],
        is_bigendian=False,
        point_step=points.itemsize,
        row_step=points.nbytes,
        data=points.view(np.uint8),
        is_dense=bool(np.isfinite(xyz).all()),
    )


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
    """A nav_msgs/Odometry; the twist is expressed in the child frame, covariances are ``(6, 6)`` (default zero)."""
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
