# SPDX-License-Identifier: Apache-2.0
"""Every way to store a recording gives the same frames: ROS 1, sqlite3, MCAP, each compressed or not."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from bag_builders import CAMERA, MS, T0, Message, calibration, clouds, images, poses, source, true_pose, write_bag
from training.sources.rosbag.headers import read_header
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import image_message, tf_message, typestore
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample

Write = Callable[[Path, Iterable[Message]], None]


@cache
def ros1_store() -> Typestore:
    store = get_typestore(Stores.ROS1_NOETIC)
    for kind in ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage"):
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", kind))
    return store


def to_ros1(message: Any, kind: str) -> Any:
    """The ROS 1 message with the same content: its headers count, and CameraInfo writes its matrices in capitals."""
    store, values = ros1_store(), {}
    for name, (_, detail) in store.fielddefs[kind][1]:
        value = 7 if name == "seq" else getattr(message, name, None)
        value = getattr(message, name.lower()) if value is None else value
        if isinstance(value, list):
            values[name] = [to_ros1(item, item.__msgtype__) for item in value]
        else:
            values[name] = to_ros1(value, detail) if hasattr(value, "__msgtype__") else value
    return store.types[kind](**values)


def write_ros1(
    path: Path,
    messages: Iterable[Message],
    compression: Writer1.CompressionFormat | None = None,
    tf_kind: str = "tf2_msgs/msg/TFMessage",
) -> None:
    writer = Writer1(path)
    if compression is not None:
        writer.set_compression(compression)
    with writer:
        connections: dict[str, Any] = {}
        for topic, message, stamp in messages:
            kind = tf_kind if "tf" in topic else message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ros1_store())
            writer.write(connections[topic], stamp, ros1_store().serialize_ros1(to_ros1(message, kind), kind))


def write_ros2(
    path: Path,
    messages: Iterable[Message],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode = CompressionMode.NONE,
    little_endian: bool = True,
) -> None:
    writer = Writer(path, version=8, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, message, stamp in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore())
            data = typestore().serialize_cdr(message, kind, little_endian=little_endian)
            writer.write(connections[topic], stamp, data)


STORAGES: dict[str, Write] = {
    "ros1.bag": write_ros1,
    "bz2.bag": partial(write_ros1, compression=Writer1.CompressionFormat.BZ2),
    "lz4.bag": partial(write_ros1, compression=Writer1.CompressionFormat.LZ4),
    "old_tf.bag": partial(write_ros1, tf_kind="tf/msg/tfMessage"),
    "sqlite": partial(write_ros2, plugin=StoragePlugin.SQLITE3),
    "sqlite_file_zstd": partial(write_ros2, plugin=StoragePlugin.SQLITE3, compression=CompressionMode.FILE),
    "sqlite_message_zstd": partial(write_ros2, plugin=StoragePlugin.SQLITE3, compression=CompressionMode.MESSAGE),
    "mcap_file_zstd": partial(write_ros2, compression=CompressionMode.FILE),
    "mcap_message_zstd": partial(write_ros2, compression=CompressionMode.MESSAGE),
    "mcap_chunk_zstd": partial(write_ros2, compression=CompressionMode.STORAGE),
    "mcap_big_endian": partial(write_ros2, little_endian=False),
}


def recording() -> list[Message]:
    streams = [*images(), *clouds(), *poses(), *calibration()]
    return sorted(streams, key=lambda entry: entry[2])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return list(source(write_bag(tmp_path_factory.mktemp("mcap") / "bag", recording())))


@pytest.mark.parametrize("storage", STORAGES)
def test_frames_poses_and_calibration_do_not_depend_on_the_storage(
    storage: str, tmp_path: Path, expected: list[Sample]
) -> None:
    STORAGES[storage](tmp_path / storage, recording())
    opened = source(tmp_path / storage)
    assert (len(opened), opened.map_frame, opened.report["paired"]) == (10, "map", 10)
    for ours, theirs in zip(opened, expected, strict=True):
        assert ours.frame.stamp_ns == theirs.frame.stamp_ns
        np.testing.assert_array_equal(ours.frame.image, theirs.frame.image)
        np.testing.assert_array_equal(ours.frame.cloud.xyz_m, theirs.frame.cloud.xyz_m)
        np.testing.assert_array_equal(ours.map_from_body.matrix, theirs.map_from_body.matrix)
        assert ours.frame.camera == theirs.frame.camera == CAMERA
        np.testing.assert_array_equal(ours.frame.camera_from_lidar.matrix, theirs.frame.camera_from_lidar.matrix)
    assert len(expected) == 10


@pytest.mark.parametrize("kind", ["tf2_msgs/msg/TFMessage", "tf/msg/tfMessage"])
def test_transforms_of_ros1_serve_as_poses_despite_leading_slashes(kind: str, tmp_path: Path) -> None:
    stamps = [T0 + i * 50 * MS for i in range(-1, 30)]
    transforms = [("/tf", tf_message([("/map", "/base_link", true_pose(t), t)]), t) for t in stamps]
    messages = sorted([*images(), *transforms], key=lambda entry: entry[2])
    write_ros1(tmp_path / "drive.bag", messages, tf_kind=kind)
    opened = source(tmp_path / "drive.bag", ("image",))
    assert (opened.map_frame, opened.body_frame, len(opened)) == ("map", "base_link", 10)
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        np.testing.assert_allclose(pose.matrix, true_pose(stamp).matrix, atol=1e-9)


@pytest.mark.parametrize("storage", ["ros1.bag", "bz2.bag", "sqlite", "sqlite_file_zstd", "mcap_chunk_zstd"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.95])
def test_a_truncated_recording_is_rejected_by_its_name_in_one_line(storage: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / storage
    STORAGES[storage](path, recording())
    [file] = [path] if path.is_file() else [child for child in path.iterdir() if child.name != "metadata.yaml"]
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(DataError, match=storage) as caught:
        list(source(path))
    assert "\n" not in str(caught.value)


# --- stamps from bytes -------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.integers(-(2**31), 2**31 - 1),
    nanoseconds=st.integers(0, 2**32 - 1),
    frame_id=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    little_endian=st.booleans(),
)
def test_a_header_read_from_bytes_is_that_of_the_whole_message(
    seconds: int, nanoseconds: int, frame_id: str, little_endian: bool
) -> None:
    message = image_message(T0, frame_id, np.zeros((1, 2, 3), np.uint8), "rgb8")
    kind = message.__msgtype__
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
    expected = seconds * 10**9 + nanoseconds, frame_id
    cdr = bytes(typestore().serialize_cdr(message, kind, little_endian=little_endian))
    whole: Any = typestore().deserialize_cdr(cdr, kind)
    assert (whole.header.stamp.sec * 10**9 + whole.header.stamp.nanosec, whole.header.frame_id) == expected
    assert read_header(cdr, is_ros2=True) == expected
    ros1 = bytes(ros1_store().serialize_ros1(to_ros1(message, kind), kind))
    whole = ros1_store().deserialize_ros1(ros1, kind)
    assert (whole.header.stamp.sec * 10**9 + whole.header.stamp.nanosec, whole.header.frame_id) == expected
    assert read_header(ros1, is_ros2=False) == expected


def test_opening_reads_no_further_into_images_than_their_headers_except_the_first_ten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images of nothing but a header open like whole ones, and are missing, named, when their pixels are wanted."""
    stamp_ns = T0 + 1005 * MS
    header = struct.pack("<4sIII4s", b"\0\1\0\0", stamp_ns // 10**9, stamp_ns % 10**9, 4, b"cam\0")
    with BagWriter(tmp_path / "bag") as bag:
        for topic, message, stamp in [*poses(), *images()]:
            bag.write(topic, message, stamp)
        bag.write_raw("/camera/image_raw", "sensor_msgs/msg/Image", header, stamp_ns)
    opened = source(tmp_path / "bag", ("image",))
    assert opened.stamps_ns()[-1] == stamp_ns
    assert caplog.text == ""
    assert [sample.frame.stamp_ns for sample in opened] == opened.stamps_ns()[:-1]
    assert re.search(rf"bag: /camera/image_raw: at {stamp_ns} ns: .* damaged sensor_msgs/msg/I", caplog.text)


def test_frames_that_are_not_used_are_not_decoded(tmp_path: Path) -> None:
    broken = images()
    for i in (1, 2, 4):
        broken[i][1].encoding = "sepia"
    path = write_bag(tmp_path / "bag", broken, poses())
    assert [int(sample.frame.image[0, 0, 0]) for sample in source(path, ("image",), stride=3)] == [0, 3, 6, 9]


def test_a_definition_without_a_header_is_rejected(tmp_path: Path) -> None:
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg("uint32 height\nuint32 width", "sensor_msgs/msg/Image"))
    kind = "sensor_msgs/msg/Image"
    with BagWriter(tmp_path / "bag", message_types=store) as bag:
        for topic, message, stamp in poses():
            bag.write(topic, message, stamp)
        bag.write_raw("/image", kind, bytes(store.serialize_cdr(store.types[kind](height=1, width=2), kind)), T0)
    with pytest.raises(DataError, match=r"definition of sensor_msgs/msg/Image \(/image\) does not begin with a header"):
        source(tmp_path / "bag", ("image",))
