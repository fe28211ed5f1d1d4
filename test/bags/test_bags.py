# SPDX-License-Identifier: Apache-2.0
"""Bags: what is written is read back by the library's own reader; nothing half-written; clear errors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vmloc_ros.bags import files as bags
from vmloc_ros.bags import messages
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import PinholeCamera, PointCloud
from vmloc_ros.core.geometry import Pose

POSE_TYPE = "geometry_msgs/msg/PoseStamped"
POSE = Pose(np.array([1.0, -2.0, 3.5]), np.array([0.5, -0.5, 0.5, 0.5]))
STAMP_NS = 1_717_000_000_123_456_789


def pose_message(stamp_ns: int = STAMP_NS) -> Any:
    return messages.pose_stamped_message(stamp_ns, "map", POSE)


def write_poses(path: Path, count: int = 3, **options: Any) -> None:
    with bags.BagWriter(path, **options) as bag:
        for i in range(count):
            bag.write("/pose", pose_message(STAMP_NS + i), STAMP_NS + i)


def written_and_read(tmp_path: Path, topic: str, message: Any) -> Any:
    """The message after a trip through a bag, decoded with the definitions of another ROS distribution."""
    with bags.BagWriter(tmp_path / "trip", overwrite=True) as bag:
        bag.write(topic, message, STAMP_NS)
    with Reader(tmp_path / "trip") as reader:
        [(connection, stamp_ns, data)] = list(reader.messages())
    assert (connection.topic, stamp_ns) == (topic, STAMP_NS)
    return get_typestore(Stores.ROS2_HUMBLE).deserialize_cdr(data, connection.msgtype)


def names_beside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


# --- messages ---


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([("rgb8", "u1", 3), ("bgr8", "u1", 3), ("mono8", "u1", 1), ("mono16", "u2", 1)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 2**31 * 10**9 - 1),
    st.data(),
)
def test_image_message_holds_every_pixel_and_the_stamp(kind, height, width, stamp_ns, data):
    encoding, dtype, channels = kind
    shape = (height, width, 3) if channels == 3 else (height, width)
    array = data.draw(hnp.arrays(dtype, shape))
    message = messages.image_message(stamp_ns, "cam", array, encoding)
    assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp_ns
    assert (message.height, message.width, message.encoding, message.is_bigendian) == (
        height,
        width,
        encoding,
        0,
    )
    assert message.step == width * channels * np.dtype(dtype).itemsize
    assert message.data.tobytes() == array.astype(f"<{dtype}").tobytes()


@pytest.mark.parametrize(("encoding", "dtype"), [("16UC1", np.uint16), ("32FC1", np.float32)])
def test_depth_images_survive_a_bag(tmp_path, encoding, dtype):
    depth = np.arange(12).reshape(3, 4).astype(dtype)[:, ::-1]  # not contiguous
    read = written_and_read(tmp_path, "/depth", messages.image_message(STAMP_NS, "cam", depth, encoding))
    np.testing.assert_array_equal(read.data.view(dtype).reshape(3, 4), depth)
    assert read.header.frame_id == "cam"


@pytest.mark.parametrize(
    ("array", "encoding", "text"),
    [
        (np.zeros((2, 2, 3), np.float32), "rgb8", r"rgb8 needs \(H, W, 3\) uint8, got \(2, 2, 3\) float32"),
        (np.zeros((2, 2), np.uint8), "rgb8", r"rgb8 needs \(H, W, 3\)"),
        (np.zeros((2, 2, 1), np.uint16), "16UC1", r"16UC1 needs \(H, W\) uint16"),
        (np.zeros(4, np.uint8), "mono8", r"mono8 needs \(H, W\)"),
        (np.zeros((2, 2, 3), np.uint8), "hsv8", "cannot write encoding 'hsv8'"),
    ],
)
def test_image_of_the_wrong_kind_is_rejected(array, encoding, text):
    with pytest.raises(MessageError, match=text):
        messages.image_message(0, "cam", array, encoding)


@pytest.mark.parametrize("stamp_ns", [-1, 2**31 * 10**9])
def test_stamp_that_no_message_can_hold_is_rejected(stamp_ns):
    with pytest.raises(MessageError, match=f"stamp {stamp_ns} ns"):
        pose_message(stamp_ns)


def test_camera_info_holds_the_intrinsics(tmp_path):
    camera = PinholeCamera(320, 240, 160.5, 161.5, 159.5, 119.25)
    read = written_and_read(tmp_path, "/info", messages.camera_info_message(STAMP_NS, "cam", camera))
    assert (read.width, read.height, read.distortion_model) == (320, 240, "plumb_bob")
    assert read.k.tolist() == [160.5, 0, 159.5, 0, 161.5, 119.25, 0, 0, 1]
    assert read.p.reshape(3, 4)[:, :3].ravel().tolist() == read.k.tolist()
    assert read.d.tolist() == [0] * 5


def test_point_cloud_has_the_layout_of_lidar_drivers(tmp_path):
    xyz = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    cloud = PointCloud(xyz, np.array([7, 8], np.float32), np.array([-0.05, 0.05], np.float32))
    ring = np.array([3, 31], np.uint16)
    read = written_and_read(tmp_path, "/points", messages.point_cloud_message(STAMP_NS, "lidar", cloud, ring))
    assert [(f.name, f.offset, f.datatype, f.count) for f in read.fields] == [
        ("x", 0, 7, 1),
        ("y", 4, 7, 1),
        ("z", 8, 7, 1),
        ("intensity", 12, 7, 1),
        ("ring", 16, 4, 1),
        ("time", 18, 7, 1),
    ]
    assert (read.width, read.height, read.point_step, read.row_step) == (2, 1, 22, 44)
    assert (read.is_dense, read.is_bigendian) == (True, False)
    points = [struct.unpack_from("<ffffHf", read.data, 22 * i) for i in range(2)]
    np.testing.assert_allclose(points, [(1, 2, 3, 7, 3, -0.05), (4, 5, 6, 8, 31, 0.05)], rtol=1e-6)


def test_point_cloud_without_extras_is_xyz_and_marked_as_not_dense(tmp_path):
    cloud = PointCloud(np.array([[1, 2, 3], [np.nan, 5, 6]], np.float32))
    read = written_and_read(tmp_path, "/points", messages.point_cloud_message(STAMP_NS, "lidar", cloud))
    assert [f.name for f in read.fields] == ["x", "y", "z"]
    assert (read.point_step, read.is_dense) == (12, False)


def test_empty_point_cloud_survives_a_bag(tmp_path):
    cloud = PointCloud(np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
    read = written_and_read(tmp_path, "/points", messages.point_cloud_message(STAMP_NS, "lidar", cloud))
    assert (read.width, read.row_step, len(read.data)) == (0, 0, 0)


def test_point_cloud_with_a_field_of_another_length_is_rejected():
    cloud = PointCloud(np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    with pytest.raises(MessageError, match="'intensity' has 3 values for 2 points"):
        messages.point_cloud_message(0, "lidar", cloud)


def test_poses_odometry_and_transforms_reorder_quaternions(tmp_path):
    def check(position: Any, orientation: Any) -> None:
        assert (position.x, position.y, position.z) == (1.0, -2.0, 3.5)
        assert (orientation.w, orientation.x, orientation.y, orientation.z) == (0.5, -0.5, 0.5, 0.5)

    stamped = written_and_read(tmp_path, "/pose", pose_message())
    assert stamped.header.frame_id == "map"
    check(stamped.pose.position, stamped.pose.orientation)

    covariance = np.arange(36.0).reshape(6, 6)
    message = messages.odometry_message(STAMP_NS, "odom", "base", POSE, [1, 2, 3], [4, 5, 6], covariance)
    odometry = written_and_read(tmp_path, "/odom", message)
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base")
    check(odometry.pose.pose.position, odometry.pose.pose.orientation)
    assert odometry.pose.covariance.tolist() == list(range(36))
    assert not odometry.twist.covariance.any()
    twist = odometry.twist.twist
    assert (twist.linear.x, twist.linear.z, twist.angular.x, twist.angular.z) == (1, 3, 4, 6)

    tree = written_and_read(
        tmp_path, "/tf_static", messages.tf_message([("base", "cam", POSE, 7), ("a", "b", POSE, 8)])
    )
    first, second = tree.transforms
    assert (first.header.frame_id, first.child_frame_id, first.header.stamp.nanosec) == ("base", "cam", 7)
    assert (second.header.frame_id, second.child_frame_id) == ("a", "b")
    check(first.transform.translation, first.transform.rotation)


# --- writing ---


def test_metadata_lists_the_topics_and_definitions_and_qos_are_stored(tmp_path):
    with bags.BagWriter(tmp_path / "deep" / "trip") as bag:
        bag.write("/tf_static", messages.tf_message([("a", "b", POSE, 1)]), 5)
        bag.write("/pose", pose_message(), 9)
    metadata = yaml.safe_load((tmp_path / "deep" / "trip" / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    assert information["storage_identifier"] == "mcap"
    assert information["relative_file_paths"] == ["trip.mcap"]
    assert information["message_count"] == 2
    assert (tmp_path / "deep" / "trip" / "trip.mcap").read_bytes()[:8] == b"\x89MCAP0\r\n"
    with Reader(tmp_path / "deep" / "trip") as reader:
        connections = {connection.topic: connection for connection in reader.connections}
    assert "geometry_msgs/Quaternion orientation" in connections["/pose"].msgdef.data.replace("/msg/", "/")
    durability = {topic: c.ext.offered_qos_profiles[0].durability for topic, c in connections.items()}
    assert durability == {"/tf_static": QosDurability.TRANSIENT_LOCAL, "/pose": QosDurability.VOLATILE}
    assert connections["/pose"].ext.offered_qos_profiles[0].reliability == QosReliability.RELIABLE


@pytest.mark.parametrize("error", [ValueError("mid-drive"), KeyboardInterrupt()])
def test_nothing_is_left_when_writing_fails(tmp_path, error):
    def fail() -> None:
        with bags.BagWriter(tmp_path / "trip") as bag:
            bag.write("/pose", pose_message(), 1)
            assert not (tmp_path / "trip").exists()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_failing_to_overwrite_keeps_the_old_bag(tmp_path):
    write_poses(tmp_path / "trip", count=3)

    def fail() -> None:
        with bags.BagWriter(tmp_path / "trip", overwrite=True) as bag:
            bag.write("/pose", pose_message(), 1)
            raise ValueError("mid-drive")

    with pytest.raises(ValueError, match="mid-drive"):
        fail()
    with bags.open_bag(tmp_path / "trip") as reader:
        assert reader.message_count == 3
    assert names_beside(tmp_path / "trip") == ["trip"]


def test_an_existing_bag_is_overwritten_only_on_request(tmp_path):
    write_poses(tmp_path / "trip", count=3)
    with pytest.raises(DataError, match=r"trip exists already"):
        bags.BagWriter(tmp_path / "trip")
    write_poses(tmp_path / "trip", count=1, overwrite=True)
    with bags.open_bag(tmp_path / "trip") as reader:
        assert reader.message_count == 1
    assert names_beside(tmp_path / "trip") == ["trip"]


def test_a_folder_that_is_not_a_bag_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(DataError, match="not a bag folder"):
        bags.BagWriter(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


def test_a_bag_that_appeared_meanwhile_is_not_replaced(tmp_path):
    def race() -> None:
        with bags.BagWriter(tmp_path / "trip") as bag:
            bag.write("/pose", pose_message(), 1)
            write_poses(tmp_path / "trip", count=2)

    with pytest.raises(DataError, match="exists already"):
        race()
    with bags.open_bag(tmp_path / "trip") as reader:
        assert reader.message_count == 2
    assert names_beside(tmp_path / "trip") == ["trip"]


def test_a_path_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(DataError, match=r"cannot write bag .*file/trip"),
        bags.BagWriter(tmp_path / "file" / "trip"),
    ):
        pass


def test_one_topic_has_one_type(tmp_path):
    transforms = messages.tf_message([("a", "b", POSE, 1)])
    with bags.BagWriter(tmp_path / "trip") as bag:
        bag.write("/pose", pose_message(), 1)
        with pytest.raises(DataError, match=r"topic /pose of .* has type geometry_msgs/msg/PoseStamped"):
            bag.write("/pose", transforms, 2)


def test_raw_messages_of_foreign_types_need_their_definitions(tmp_path):
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg("float32 litres", "tea_msgs/msg/Pot"))
    raw = bytes(store.serialize_cdr(store.types["tea_msgs/msg/Pot"](litres=1.5), "tea_msgs/msg/Pot"))
    with (
        bags.BagWriter(tmp_path / "rejected") as bag,
        pytest.raises(DataError, match="no definition of type tea_msgs/msg/Pot"),
    ):
        bag.write_raw("/pot", "tea_msgs/msg/Pot", raw, 1)
    with bags.BagWriter(tmp_path / "known", message_types=store) as bag:
        bag.write_raw("/pot", "tea_msgs/msg/Pot", raw, 1)
        bag.write("/pose", pose_message(), 2)
    with bags.open_bag(tmp_path / "known") as reader:
        found = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    assert found[0].litres == 1.5
    assert found[1].pose.position.z == 3.5


# --- reading ---


def write_sqlite(path: Path) -> None:
    store = messages.typestore()
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/pose", POSE_TYPE, typestore=store)
        for i in range(3):
            writer.write(connection, STAMP_NS + i, store.serialize_cdr(pose_message(STAMP_NS + i), POSE_TYPE))


def write_ros1(path: Path) -> None:
    store = get_typestore(Stores.ROS1_NOETIC)
    header = store.types["std_msgs/msg/Header"]
    time = store.types["builtin_interfaces/msg/Time"]
    position = store.types["geometry_msgs/msg/Point"](1.0, -2.0, 3.5)
    orientation = store.types["geometry_msgs/msg/Quaternion"](-0.5, 0.5, 0.5, 0.5)
    pose = store.types["geometry_msgs/msg/Pose"](position, orientation)
    with Writer1(path) as writer:
        connection = writer.add_connection("/pose", POSE_TYPE, typestore=store)
        for i in range(3):
            stamp = time(*divmod(STAMP_NS + i, 10**9))
            message = store.types[POSE_TYPE](header(i, stamp, "map"), pose)
            writer.write(connection, STAMP_NS + i, store.serialize_ros1(message, POSE_TYPE))


@pytest.mark.parametrize("kind", ["mcap folder", "mcap file", "sqlite folder", "sqlite file", "ROS 1 file"])
def test_every_kind_of_bag_reads_alike(tmp_path, kind):
    if kind == "ROS 1 file":
        path = tmp_path / "trip.bag"
        write_ros1(path)
    else:
        (write_poses if kind.startswith("mcap") else write_sqlite)(tmp_path / "trip")
        path = tmp_path / "trip"
        if kind.endswith("file"):
            [path] = [entry for entry in path.iterdir() if entry.suffix in (".mcap", ".db3")]
    with bags.open_bag(path) as reader:
        read = [(c.topic, stamp, reader.deserialize(data, c.msgtype)) for c, stamp, data in reader.messages()]
    assert [(topic, stamp) for topic, stamp, _ in read] == [("/pose", STAMP_NS + i) for i in range(3)]
    assert [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for _, _, m in read] == [STAMP_NS + i for i in range(3)]
    assert {m.pose.position.z for _, _, m in read} == {3.5}


def opened(path: Path) -> int:
    with bags.open_bag(path) as reader:
        return sum(1 for c, _, data in reader.messages() if reader.deserialize(data, c.msgtype))


def test_missing_bag_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        opened(tmp_path / "nowhere")


def test_folder_without_metadata_is_no_bag(tmp_path):
    with pytest.raises(DataError, match=r"is not a rosbag2 folder: it has no metadata.yaml"):
        opened(tmp_path)


def test_bag_without_messages_is_empty(tmp_path):
    write_poses(tmp_path / "trip", count=0)
    with pytest.raises(DataError, match=r"trip is empty"):
        opened(tmp_path / "trip")


@pytest.mark.parametrize("name", ["notes.txt", "notes.mcap", "notes.db3", "notes.bag"])
def test_file_of_another_kind_is_no_bag(tmp_path, name):
    (tmp_path / name).write_text("shopping: milk, bread, candles and a very long list of other things\n" * 20)
    with pytest.raises(DataError, match=rf"cannot read bag .*{name}: [^\n]+$"):
        opened(tmp_path / name)


@pytest.mark.parametrize("text", ["", "just text", "a: [", "rosbag2_bagfile_information: {version: 99}"])
def test_broken_metadata_is_reported(tmp_path, text):
    write_poses(tmp_path / "trip")
    (tmp_path / "trip" / "metadata.yaml").write_text(text)
    with pytest.raises(DataError, match=r"cannot read bag .*trip: [^\n]+$"):
        opened(tmp_path / "trip")


def test_metadata_naming_a_lost_file_is_reported(tmp_path):
    write_poses(tmp_path / "trip")
    (tmp_path / "trip" / "trip.mcap").unlink()
    with pytest.raises(DataError, match=r"missing.*trip\.mcap"):
        opened(tmp_path / "trip")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("recordings")
    write_poses(folder / "a", count=20)
    write_sqlite(folder / "b")
    return {".mcap": (folder / "a" / "a.mcap").read_bytes(), ".db3": (folder / "b" / "b.db3").read_bytes()}


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from([".mcap", ".db3"]), share=st.floats(0, 0.999))
def test_truncated_recording_is_a_data_error(recordings, tmp_path_factory, suffix, share):
    path = tmp_path_factory.mktemp("cut") / f"cut{suffix}"
    whole = recordings[suffix]
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.(mcap|db3)"):
        opened(path)


@settings(max_examples=80, deadline=None)
@given(suffix=st.sampled_from([".mcap", ".db3"]), damage=st.data())
def test_damaged_recording_is_read_or_a_data_error_in_one_line(recordings, tmp_path_factory, suffix, damage):
    path = tmp_path_factory.mktemp("bad") / f"bad{suffix}"
    broken = bytearray(recordings[suffix])
    for place in damage.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=8)):
        broken[place] = damage.draw(st.integers(0, 255))
    path.write_bytes(broken)
    outcome: int | str
    try:
        outcome = opened(path)
    except DataError as error:
        outcome = str(error)
    assert isinstance(outcome, int) or ("bad" in outcome and "\n" not in outcome)


def test_exceptions_of_the_caller_pass_unchanged(tmp_path):
    write_poses(tmp_path / "trip")

    def use() -> None:
        with bags.open_bag(tmp_path / "trip") as reader:
            for _ in reader.messages():
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        use()
