# SPDX-License-Identifier: Apache-2.0
"""A reader of storage files by their messages alone: no ``metadata.yaml``, no summary, no sqlite."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection, ConnectionExtRosbag2, TopicInfo

from vmloc_ros.bags.mcap_file import McapFile
from vmloc_ros.bags.sqlite_file import SqliteFile, wal_of
from vmloc_ros.bags.stored import NO_DEFINITION, StoredMessages
from vmloc_ros.bags.zstd import ZSTD_MAGIC, decompress, decompressor
from vmloc_ros.core.errors import DataError

logger = logging.getLogger(__name__)

_KINDS = {".mcap": McapFile, ".db3": SqliteFile}


class StoredReader:
    """The messages of one storage file or several, in the way of the library's own readers.

    Args:
        files: storage files, in order.
        skip_damaged: leave out messages whose bytes are damaged, with a warning, instead of raising an error.

    Attributes:
        problems: what is wrong with a file that is not whole, by file.
        damaged: number of messages that were left out so far.

    Raises:
        DataError: a file is of another kind, or nothing of it can be read.
    """

    def __init__(self, files: Collection[Path], skip_damaged: bool) -> None:
        self._skip_damaged, self.damaged = skip_damaged, 0
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._files = [self._open(path) for path in files]
        self.problems = {path: file.problem for path, file in zip(files, self._files, strict=True) if file.problem}
        self.connections = [connection for connection, _, _ in self._declared()]

    @property
    def message_count(self) -> int:
        """Number of messages."""
        return sum(len(file.logged_ns) for file in self._files)

    @property
    def start_time(self) -> int:
        """Smallest log time, ns."""
        return min((int(file.logged_ns.min()) for file in self._files if len(file.logged_ns)), default=2**63 - 1)

    @property
    def end_time(self) -> int:
        """One more than the largest log time, ns."""
        return max((int(file.logged_ns.max()) + 1 for file in self._files if len(file.logged_ns)), default=0)

    @property
    def topics(self) -> dict[str, TopicInfo]:
        """By name; the type is None where there are several."""
        topics = {}
        for name, group in groupby(sorted(self.connections, key=lambda c: c.topic), key=lambda c: c.topic):
            found = list(group)
            types = {connection.msgtype for connection in found}
            kind, definition = (found[0].msgtype, found[0].msgdef) if len(types) == 1 else (None, NO_DEFINITION)
            topics[name] = TopicInfo(kind, definition, sum(connection.msgcount for connection in found), found)
        return topics

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Connections, log times and serialized messages, file by file, in order of log time."""
        wanted = {connection.id for connection in connections or self.connections}
        declared = list(self._declared())
        for file in self._files:
            by_channel = {channel: c for c, owner, channel in declared if owner is file and c.id in wanted}
            for index in _chosen(file, list(by_channel), start, stop):
                data = self._fetch(file, index)
                if data is not None:
                    yield by_channel[int(file.channel_of[index])], int(file.logged_ns[index]), data

    def log_times(self, connections: Collection[Connection]) -> NDArray[np.int64]:
        """``(N,)`` log times of the connections' messages, sorted."""
        wanted = {connection.id for connection in connections}
        times = [file.logged_ns[file.channel_of == channel] for c, file, channel in self._declared() if c.id in wanted]
        return np.sort(np.concatenate([np.empty(0, np.int64), *times]))

    def __enter__(self) -> StoredReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        if self._unpacked is not None:
            self._unpacked.cleanup()

    def _declared(self) -> Iterator[tuple[Connection, StoredMessages, int]]:
        """Each connection with its file and the number of its channel there."""
        number = 0
        for file in self._files:
            for channel, declared in file.channels.items():
                number += 1
                yield (
                    Connection(
                        number,
                        declared.topic,
                        declared.msgtype,
                        declared.definition,
                        "",
                        int((file.channel_of == channel).sum()),
                        ConnectionExtRosbag2(declared.serialization_format, list(declared.qos)),
                        self,
                    ),
                    file,
                    channel,
                )

    def _open(self, path: Path) -> StoredMessages:
        plain = path
        if path.suffix == ".zstd":
            self._unpacked = self._unpacked or tempfile.TemporaryDirectory()
            plain = Path(self._unpacked.name, path.stem)
            _unpack(path, plain)
        if plain.suffix not in _KINDS:
            raise DataError(f"{path} is no storage file (.mcap or .db3)")
        return _KINDS[plain.suffix](plain)

    def _fetch(self, file: StoredMessages, index: int) -> bytes | None:
        try:
            data = file.fetch(index)
            return decompress(data) if data[:4] == ZSTD_MAGIC else data
        except Exception:  # whatever the damage leads to
            if not self._skip_damaged:
                raise
        self.damaged += 1
        return None


def storage_files(folder: Path) -> list[Path]:
    """Storage files in a folder, in the order in which a recorder that splits its files numbers them."""
    found = [path for path in folder.iterdir() if {path.suffix, Path(path.stem).suffix} & set(_KINDS)]
    found = [path for path in found if path.suffix in _KINDS or path.suffix == ".zstd"]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def write_ahead_logs(files: Collection[Path]) -> list[Path]:
    """Write-ahead logs of sqlite files that may hold messages."""
    logs = [wal_of(path) for path in files if path.suffix == ".db3"]
    return [log for log in logs if log.is_file() and log.stat().st_size]


def _chosen(file: StoredMessages, channels: list[int], start: int | None, stop: int | None) -> list[int]:
    """Messages by log time, those of one time as they were written."""
    chosen = np.isin(file.channel_of, channels)
    if start is not None:
        chosen &= file.logged_ns >= start
    if stop is not None:
        chosen &= file.logged_ns < stop
    places = np.flatnonzero(chosen)
    return places[np.argsort(file.logged_ns[places], kind="stable")].tolist()


def _unpack(path: Path, plain: Path) -> None:
    """Unpack a compressed file as far as it goes."""
    unpacker = decompressor()
    with path.open("rb") as packed, plain.open("wb") as out:
        while not unpacker.eof and (part := packed.read(1 << 20)):
            out.write(unpacker.decompress(part))
    shutil.copystat(path, plain)
