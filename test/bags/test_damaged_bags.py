# SPDX-License-Identifier: Apache-2.0
"""Recordings that were cut off or not completed: all that is there is read, or an error says what is missing."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from vmloc_ros.bags.files import is_unfinished, open_bag, types_of
from vmloc_ros.bags.messages import image_message, pose_stamped_message, typestore
from vmloc_ros.bags.sqlite_file import SqliteFile
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose

START_NS = 1_700_000_000_000_000_000
COUNT = 60
POSE = Pose(np.array([1.0, -2.0, 3.5]), np.array([0.5, -0.5, 0.5, 0.5]))
Row = tuple[str, int, bytes]


def rows(count: int = COUNT) -> list[Row]:
    """A pose of 100 bytes and a picture of 45 KB of noise in turn, 0.1 s apart, as topic, log time and bytes."""
    noise = np.random.default_rng(0)
    found = []
    for i in range(count):
        stamp_ns = START_NS + i * 100_000_000
        pixels = noise.integers(0, 256, (100, 150, 3), np.uint8)
        message = image_message(stamp_ns, "cam", pixels, "rgb8") if i % 2 else pose_stamped_message(stamp_ns, "m", POSE)
        topic = "/image" if i % 2 else "/pose"
        found.append((topic, stamp_ns, bytes(typestore().serialize_cdr(message, message.__msgtype__))))
    return found


ROWS = rows()
TYPES = {"/image": "sensor_msgs/msg/Image", "/pose": "geometry_msgs/msg/PoseStamped"}


def write(
    path: Path,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    mode: CompressionMode = CompressionMode.NONE,
    of: CompressionFormat = CompressionFormat.ZSTD,
) -> Path:
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(mode, of)
    with writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=typestore()) for topic, kind in TYPES.items()
        }
        for topic, stamp_ns, data in ROWS:
            writer.write(connections[topic], stamp_ns, data)
    return path


def read(path: Path, allow_truncated: bool = False) -> list[Row]:
    with open_bag(path, allow_truncated) as reader:
        found = [(c.topic, logged_ns, bytes(data)) for c, logged_ns, data in reader.messages()]
        assert reader.message_count >= len(found)
        if not allow_truncated:
            assert reader.message_count == len(found)
        for connection, _, data in reader.messages():
            reader.deserialize(data, connection.msgtype)
    return found


def storage_of(bag: Path) -> Path:
    [file] = [file for file in bag.iterdir() if file.name != "metadata.yaml"]
    return file


def cut(file: Path, share: float, zeros: int = 0) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))] + bytes(zeros))


WHOLE = {
    "mcap": (StoragePlugin.MCAP, CompressionMode.NONE),
    "mcap_zstd": (StoragePlugin.MCAP, CompressionMode.STORAGE),
    "mcap_messages": (StoragePlugin.MCAP, CompressionMode.MESSAGE),
    "mcap_file": (StoragePlugin.MCAP, CompressionMode.FILE),
    "db3": (StoragePlugin.SQLITE3, CompressionMode.NONE),
    "db3_messages": (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / name, *kind) for name, kind in WHOLE.items()}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(bag, tmp_path / name)) for name, bag in whole.items()}


# --- cut off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mcap", "mcap_zstd", "mcap_messages", "mcap_file"])
@pytest.mark.parametrize("has_metadata", [True, False])
def test_an_mcap_that_was_cut_off_gives_its_first_messages_only_where_that_is_allowed(
    name: str, has_metadata: bool, copy: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    bag = copy[name]
    cut(storage_of(bag), 0.7)
    if not has_metadata:
        (bag / "metadata.yaml").unlink()
    found = read(bag, allow_truncated=True)
    assert 30 < len(found) < 45
    assert found == ROWS[: len(found)]
    assert f"it is cut off after {len(found)} messages, {(len(found) - 1) / 10:.1f} s" in caplog.text
    with pytest.raises(
        DataError, match=rf"cut off after {len(found)} messages, .* s; repair it with `.*mcap recover .*tr"
    ):
        read(bag)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["mcap", "mcap_zstd", "mcap_messages", "db3", "db3_messages"]),
    share=st.floats(0, 0.999),
    zeros=st.integers(0, 100_000),
)
def test_what_is_read_of_a_cut_off_file_is_its_beginning(
    whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str, share: float, zeros: int
) -> None:
    """The pages of a database are not quite in the order of its messages: the first ones move when the tree grows."""
    file = storage_of(whole[name])
    path = tmp_path_factory.mktemp("cut") / f"cut{file.suffix}"
    shutil.copy(file, path)
    cut(path, share, zeros if file.suffix == ".mcap" else 0)
    if share < (0.1 if file.suffix == ".mcap" else 0.4):  # maybe not a single message
        with suppress(DataError):
            read(path, allow_truncated=True)
        return
    found = read(path, allow_truncated=True)
    if file.suffix == ".mcap":
        assert found == ROWS[: len(found)]
    assert set(found) <= set(ROWS)
    assert found == sorted(found, key=lambda row: row[1])
    # Zeros may give a compressed chunk its length; by its checksum it is then left out whole.
    if name != "mcap_zstd" or not zeros:
        assert len(found) >= share * COUNT - 8
    with pytest.raises(DataError, match=r"repair it with `(mcap recover|sqlite3 .*\.recover)"):
        read(path)


def test_a_recording_without_metadata_names_the_command_that_writes_them(copy: dict[str, Path]) -> None:
    for name in ("mcap", "db3"):
        (copy[name] / "metadata.yaml").unlink()
        with pytest.raises(
            DataError, match=rf"holds {COUNT} messages, 5.9 s; repair it with `ros2 bag reindex .*{name}`"
        ):
            read(copy[name])
        assert read(copy[name], allow_truncated=True) == ROWS


def test_split_files_are_read_in_the_order_of_their_numbers(copy: dict[str, Path], tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    for number, (first, last) in enumerate([(0, 2), (2, 3), *((i, i + 1) for i in range(3, 12))]):
        part = tmp_path / f"part{number}"
        with Writer(part, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            for topic, kind in TYPES.items():
                connection = writer.add_connection(topic, kind, typestore=typestore())
                for own, stamp_ns, data in ROWS[first:last]:
                    if own == topic:
                        writer.write(connection, stamp_ns, data)
        shutil.copy(storage_of(part), drive / f"drive_{number}.mcap")
    assert is_unfinished(drive)
    assert [row[1] for row in read(drive, allow_truncated=True)] == [row[1] for row in ROWS[:12]]
    assert not is_unfinished(copy["mcap"])


def test_damage_within_a_file_ends_the_reading_there_with_a_warning(
    copy: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = storage_of(copy["mcap_zstd"])
    content = bytearray(file.read_bytes())
    second_chunk = content.index(b"\x28\xb5\x2f\xfd", content.index(b"\x28\xb5\x2f\xfd") + 1_000_000)
    content[second_chunk : second_chunk + 9] = bytes(9)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: .*; --allow-truncated uses what is before that"):
        read(copy["mcap_zstd"])
    found = read(copy["mcap_zstd"], allow_truncated=True)
    assert found == ROWS[: len(found)]
    assert 0 < len(found) < COUNT
    assert f"is damaged after {len(found)} messages" in caplog.text


def test_metadata_that_count_more_messages_than_the_files_hold_are_told(
    copy: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(storage_of(copy["db3"]))) as database:
        database.execute("DELETE FROM messages WHERE id > 40")
        database.commit()
    with open_bag(copy["db3"]) as reader:
        assert sum(1 for _ in reader.messages()) == 40
    assert "counts 60 messages, but its files hold 40; was a write-ahead log (-wal) not copied" in caplog.text


@pytest.mark.parametrize("name", ["drive.bag.active", "drive.bag"])
def test_a_ros1_recording_that_was_cut_off_names_the_command_that_repairs_it(name: str, tmp_path: Path) -> None:
    header = b"index_pos=" + bytes(8), b"conn_count=" + bytes(4), b"chunk_count=" + bytes(4), b"op=\x03"
    fields = b"".join(len(field).to_bytes(4, "little") + field for field in header)
    record = len(fields).to_bytes(4, "little") + fields + (0).to_bytes(4, "little")
    (tmp_path / name).write_bytes(b"#ROSBAG V2.0\n" + record)
    for allow_truncated in (False, True):
        with pytest.raises(DataError, match=rf"repair it with: rosbag reindex .*{name}"):
            read(tmp_path / name, allow_truncated)


# --- write-ahead logs --------------------------------------------------------------------------------------------


def log_of(bag: Path, merged: int, committed: int = COUNT) -> None:
    """Bring a database into the state of a recorder that lost its power: the last rows are in the log alone."""
    file = storage_of(bag)
    work = bag.parent / "work.db3"
    shutil.copy(file, work)
    with closing(sqlite3.connect(work)) as database:
        kept = database.execute("SELECT * FROM messages ORDER BY id").fetchall()
        database.execute("DELETE FROM messages")
        database.commit()
        database.execute("VACUUM")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
        for number, row in enumerate(kept):
            if number == merged:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", row)
            if number < committed:
                database.commit()
        database.execute("PRAGMA cache_spill=ON")
        shutil.copy(work, file)
        shutil.copy(f"{work}-wal", f"{file}-wal")


def listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["db3", "db3_messages"])
@pytest.mark.parametrize("merged", [0, 1, 30, 59])
def test_messages_in_a_write_ahead_log_are_read_and_nothing_is_written(
    name: str, merged: int, copy: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    bag = copy[name]
    log_of(bag, merged)
    before = listing(bag)
    file = bag / f"{name}.db3"
    with caplog.at_level(logging.INFO):
        assert read(bag) == ROWS
        assert read(file) == ROWS
    assert listing(bag) == before
    assert f"{name}.db3-wal, which was not merged, is read, too" in caplog.text
    file.with_name(f"{file.name}-wal").unlink()
    if merged:
        assert len(read(file)) == merged


def test_rows_that_were_not_committed_are_not_read(copy: dict[str, Path]) -> None:
    log_of(copy["db3"], 10, committed=50)
    assert read(copy["db3"]) == ROWS[:50]


@settings(max_examples=10, deadline=None)
@given(merged=st.integers(1, COUNT - 1), share=st.floats(0.05, 1))
def test_a_log_that_is_torn_counts_up_to_its_last_whole_commit_as_in_sqlite(
    whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, merged: int, share: float
) -> None:
    bag = tmp_path_factory.mktemp("torn") / "db3"
    shutil.copytree(whole["db3"], bag)
    log_of(bag, merged)
    log = bag / "db3.db3-wal"
    cut(log, share)
    with closing(SqliteFile(bag / "db3.db3")) as file:
        ours = len(file.logged_ns)
    with closing(sqlite3.connect(bag / "db3.db3")) as database:  # it may write now
        theirs = database.execute("SELECT count(*) FROM messages").fetchone()[0]
    assert merged <= ours == theirs <= COUNT


def test_a_log_that_cannot_be_read_is_named_with_the_remedy(copy: dict[str, Path]) -> None:
    bag = copy["db3"]
    log_of(bag, 30)
    (bag / "db3.db3-wal").write_bytes(b"no log" * 100)
    with pytest.raises(DataError, match=r"db3\.db3-wal was not merged.*sqlite3 .*db3\.db3 'PRAGMA wal_checkpoint"):
        read(bag)


def test_a_change_that_was_not_completed_is_named_with_the_remedy(copy: dict[str, Path]) -> None:
    (copy["db3"] / "db3.db3-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(500))
    with pytest.raises(DataError, match=r"db3\.db3-journal beside it says that a change was not completed"):
        read(copy["db3"])
    assert read(copy["db3"], allow_truncated=True) == ROWS
    (copy["db3"] / "db3.db3-journal").write_bytes(bytes(508))  # what journal_mode=PERSIST leaves
    assert read(copy["db3"]) == ROWS


# --- what a reader knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("state", ["whole", "no metadata"])
def test_log_times_are_those_of_the_messages(name: str, state: str, copy: dict[str, Path]) -> None:
    if state != "whole":
        (copy[name] / "metadata.yaml").unlink()
    with open_bag(copy[name], allow_truncated=True) as reader:
        for topics in (["/pose"], ["/image"], ["/pose", "/image"]):
            chosen = [connection for connection in reader.connections if connection.topic in topics]
            expected = sorted(logged_ns for _, logged_ns, _ in reader.messages(chosen))
            assert reader.log_times(chosen).tolist() == expected


def test_a_topic_of_two_types_has_both_with_their_numbers(tmp_path: Path) -> None:
    kinds = [("sensor_msgs/msg/Image", 2), ("sensor_msgs/msg/CompressedImage", 5), ("std_msgs/msg/String", 0)]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for kind, count in kinds:
            connection = writer.add_connection("/image", kind, typestore=typestore())
            for i in range(count):
                writer.write(connection, i, b"\0\1\0\0")
    with open_bag(tmp_path / "bag") as reader:
        assert list(types_of(reader, "/image").items()) == [
            ("sensor_msgs/msg/CompressedImage", 5),
            ("sensor_msgs/msg/Image", 2),
        ]
