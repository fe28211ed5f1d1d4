# SPDX-License-Identifier: Apache-2.0
"""Bags on disk: a reader whose errors name the bag and what helps, and the writer.

Both use the ``rosbags`` library: no ROS installation is needed. What the library cannot read, since it was cut off or
has a write-ahead log, is read message by message by :mod:`vmloc_ros.bags.stored_reader`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from vmloc_ros.bags.messages import typestore
from vmloc_ros.bags.sqlite_file import has_hot_journal, missing_pages, sqlite_log_times
from vmloc_ros.bags.stored_reader import StoredReader, storage_files, write_ahead_logs
from vmloc_ros.bags.writing import LATCHED_TOPICS, BagWriter
from vmloc_ros.bags.zstd import ZSTD_MAGIC, decompress
from vmloc_ros.core.errors import DataError

__all__ = ["LATCHED_TOPICS", "BagReader", "BagWriter", "bag_files", "is_unfinished", "open_bag", "types_of"]

logger = logging.getLogger(__name__)


class BagReader(AnyReader):
    """A ``rosbags`` reader of one bag whose errors while reading are DataErrors that name the bag.

    Args:
        path: the bag.
        allow_truncated: where damage shows while reading, end there with a warning instead of an error.
        stored: reads the bag's files in place of the library.
    """

    def __init__(self, path: Path, allow_truncated: bool = False, stored: StoredReader | None = None) -> None:
        self._allow_truncated, self._stored = allow_truncated, stored
        if stored is None:
            super().__init__([path], default_typestore=typestore())
            return
        self.paths, self.is2, self.stack = [path], True, None
        self.connections, self.readers = [], [stored]
        self.default_typestore, self.typestore = typestore(), get_typestore(Stores.EMPTY)

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        """Connections, log times (ns) and serialized messages in time order; see ``AnyReader.messages``."""
        count = 0
        try:
            for connection, logged_ns, data in super().messages(connections, start, stop):
                count += 1
                # The library unpacks messages by what metadata.yaml says, which a bare file does not have.
                yield connection, logged_ns, decompress(data) if data[:4] == ZSTD_MAGIC else data
        except Exception as error:  # struct, sqlite, decompression: damage shows in many ways
            if not self._allow_truncated:
                raise DataError(
                    f"bag {self.paths[0]} is damaged: {_one_line(error)}; --allow-truncated uses what is before that"
                ) from error
            _warn_once(f"bag {self.paths[0]} is damaged after {count} messages, which are used: {_one_line(error)}")

    def deserialize(self, rawdata: bytes, typ: str) -> object:
        """The message of serialized bytes; see ``AnyReader.deserialize``."""
        try:
            return super().deserialize(rawdata, typ)
        except Exception as error:
            raise DataError(f"bag {self.paths[0]} holds a damaged {typ}: {_one_line(error)}") from error

    def log_times(self, connections: Collection[Connection]) -> NDArray[np.int64]:
        """``(N,)`` log times (ns) of the connections' messages, sorted; of whole bags without reading the messages."""
        if self._stored is not None:
            return self._stored.log_times(connections)
        expected = sum(connection.msgcount for connection in connections)
        with suppress(Exception):  # then the long way
            found = _indexed_log_times(self.paths[0], {(c.topic, c.msgtype) for c in connections})
            if len(found) == expected:
                return np.sort(found)
        return np.sort(np.array([logged_ns for _, logged_ns, _ in self.messages(connections)], np.int64))


def types_of(reader: AnyReader, topic: str) -> dict[str, int]:
    """Number of messages by type that a topic has, most first; a topic without any message has its declared types.

    Usually it is one; a driver that was restarted with other settings, or a stray publisher, make it two.
    """
    counts: dict[str, int] = {}
    for connection in reader.topics[topic].connections:
        counts[connection.msgtype] = counts.get(connection.msgtype, 0) + connection.msgcount
    used = {kind: count for kind, count in counts.items() if count} or counts
    return dict(sorted(used.items(), key=lambda item: -item[1]))


@contextmanager
def open_bag(path: Path | str, allow_truncated: bool = False) -> Iterator[BagReader]:
    """Open a rosbag2 folder, a bare ``.mcap`` or ``.db3`` file, or a ROS 1 ``.bag`` for reading.

    Bags without message definitions (sqlite3 before Iron) are read with those of ROS 2 Jazzy. A write-ahead log beside
    a ``.db3`` file that was not merged is read with it. Nothing beside the bag is written.

    Args:
        allow_truncated: read what is there of a recording that was cut off, with a warning that says how much.

    Raises:
        DataError: the path is missing, not a bag, damaged (also when that shows only while reading) or empty; or it
            was cut off, and that is not allowed.
    """
    reader = _open(Path(path), allow_truncated)
    try:
        if reader.message_count == 0:
            raise DataError(f"bag {path} is empty: it holds no messages")
        yield reader
    finally:
        reader.close()


def is_unfinished(path: Path) -> bool:
    """Whether a folder looks like a rosbag2 recording that was cut off: storage files NAME_N, and no metadata.yaml."""
    if not path.is_dir() or (path / "metadata.yaml").is_file():
        return False
    name = path.resolve().name
    return any(file.name.startswith(f"{name}_") and file.name[len(name) + 1].isdigit() for file in storage_files(path))


def bag_files(path: Path) -> list[Path]:
    """The files that a bag consists of."""
    return list(path.iterdir()) if path.is_dir() else [path, *write_ahead_logs([path])]


def _open(path: Path, allow_truncated: bool) -> BagReader:
    if not path.exists():
        raise DataError(f"bag {path} does not exist")
    if path.name.endswith(".bag.active"):
        raise DataError(f"{path} is a ROS 1 recording that was cut off; repair it with: rosbag reindex {path}")
    files = storage_files(path) if path.is_dir() else [path]
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        if not files:
            raise DataError(f"{path} is not a rosbag2 folder: it has no metadata.yaml (was the recording cut off?)")
        return _open_truncated(path, files, "it has no metadata.yaml, which is written last", allow_truncated)
    if not allow_truncated:
        _refuse_hot_journals(files)
    if logs := write_ahead_logs(files):
        return _open_with_logs(path, files, logs, allow_truncated)
    if lacking := "; ".join(filter(None, (missing_pages(file) for file in files if file.suffix == ".db3"))):
        return _open_truncated(path, files, lacking, allow_truncated)
    try:
        reader = BagReader(path, allow_truncated)
        reader.open()
    except Exception as error:  # struct, sqlite and YAML errors of damaged files come through as they are
        return _open_truncated(path, files, _one_line(error), allow_truncated, error)
    _check_counts(reader)
    return reader


def _open_with_logs(path: Path, files: list[Path], logs: list[Path], allow_truncated: bool) -> BagReader:
    names = ", ".join(log.name for log in logs)
    try:
        stored = StoredReader(files, skip_damaged=allow_truncated)
    except Exception as error:
        raise DataError(
            f"cannot read bag {path}: its write-ahead log {names} was not merged, and cannot be read: "
            f"{_one_line(error)}; merge it on a copy: sqlite3 {files[0]} 'PRAGMA wal_checkpoint(TRUNCATE)'"
        ) from error
    if stored.problems:
        stored.close()
        return _open_truncated(path, files, next(iter(stored.problems.values())), allow_truncated)
    _inform_once(f"{path}: the write-ahead log {names}, which was not merged, is read, too")
    return _opened(path, stored, allow_truncated)


def _open_truncated(
    path: Path, files: list[Path], reason: str, allow_truncated: bool, error: Exception | None = None
) -> BagReader:
    """Read what is there of a bag that the library cannot read, or say how much it is."""
    try:
        stored = StoredReader(files, skip_damaged=True)
    except Exception:  # nothing to be read at all
        raise DataError(f"cannot read bag {path}: {reason}{_ros1_hint(path, reason)}") from error
    if stored.message_count == 0:
        stored.close()
        raise DataError(f"cannot read bag {path}: {reason}") from error
    problems = [problem for problem in stored.problems.values() if problem != reason]
    text = f"{'; '.join([reason, *problems])}; {_amount(stored)}"
    if path.is_file() and not stored.problems:
        _inform_once(f"{path} is read without its index: {reason}")
    elif allow_truncated:
        _warn_once(f"bag {path} is cut off or damaged, and what is there is used: {text}")
    else:
        stored.close()
        raise DataError(
            f"cannot read bag {path}: {text}; repair it with `{_remedy(path, stored)}`, or use what is there with "
            "--allow-truncated (source.allow_truncated=true)"
        ) from error
    return _opened(path, stored, allow_truncated)


def _opened(path: Path, stored: StoredReader, allow_truncated: bool) -> BagReader:
    try:
        reader = BagReader(path, allow_truncated, stored)
        reader.open()
    except Exception as error:
        stored.close()
        raise DataError(f"cannot read bag {path}: {_one_line(error)}") from error
    return reader


def _amount(stored: StoredReader) -> str:
    """How much there is of a bag, as text; what was logged at 0, before the clock was known, does not count."""
    times = stored.log_times(stored.connections)
    times = times[times > 0]
    span_s = (times[-1] - times[0]) * 1e-9 if len(times) else 0.0
    cut = "it is cut off after" if stored.problems else "it holds"
    return f"{cut} {stored.message_count} messages, {span_s:.1f} s"


def _remedy(path: Path, stored: StoredReader) -> str:
    """A command that makes a whole bag of it."""
    file = next(iter(stored.problems), None)
    if file is None:
        return f"ros2 bag reindex {path}"
    unpack, plain = (f"zstd -dc {file} > {file.stem}; ", file.stem) if file.suffix == ".zstd" else ("", str(file))
    if plain.endswith(".mcap"):
        return f"{unpack}mcap recover {plain} -o REPAIRED.mcap"
    return f"{unpack}sqlite3 {plain} .recover | sqlite3 REPAIRED.db3"


def _ros1_hint(path: Path, reason: str) -> str:
    return f"; repair it with: rosbag reindex {path}" if path.suffix == ".bag" and "index" in reason.lower() else ""


def _refuse_hot_journals(files: list[Path]) -> None:
    for file in files:
        if file.suffix == ".db3" and has_hot_journal(file):
            raise DataError(
                f"cannot read {file}: {file.name}-journal beside it says that a change was not completed; complete "
                f"it, on a copy of both files, with: sqlite3 {file} 'PRAGMA integrity_check'; or use what is there "
                "with --allow-truncated (source.allow_truncated=true)"
            )


def _check_counts(reader: BagReader) -> None:
    """Warn where the files of a folder hold less than its metadata.yaml says."""
    storage = getattr(reader.readers[0], "storage", None)
    found = sum(file.metadata.message_count for file in getattr(storage, "storages", []))
    if found and found < reader.message_count:
        _warn_once(
            f"bag {reader.paths[0]}: its metadata.yaml counts {reader.message_count} messages, but its files hold "
            f"{found}; was a write-ahead log (-wal) not copied with them?"
        )


def _indexed_log_times(path: Path, topics: set[tuple[str, str]]) -> NDArray[np.int64]:
    """Log times of topics and types, from indices; any error where there are none."""
    files = storage_files(path) if path.is_dir() else [path]
    if all(file.suffix == ".db3" for file in files):
        return np.concatenate([sqlite_log_times(file, topics) for file in files])
    with StoredReader(files, skip_damaged=False) as stored:
        return stored.log_times([c for c in stored.connections if (c.topic, c.msgtype) in topics])


@cache
def _warn_once(text: str) -> None:
    """A bag is opened many times in a training; what is wrong with it is said once."""
    logger.warning("%s", text)


@cache
def _inform_once(text: str) -> None:
    logger.info("%s", text)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
