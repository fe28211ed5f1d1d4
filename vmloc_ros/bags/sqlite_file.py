# SPDX-License-Identifier: Apache-2.0
"""Messages of a sqlite3 storage file, whole, cut off or with a write-ahead log, read from its pages.

The library opens such files as immutable, by which sqlite ignores a write-ahead log (``FILE-wal``) that was not merged:
the recording looks shorter than it is. Opening them as sqlite wants it writes a file beside them, or fails on a medium
that cannot be written; and sqlite refuses what is cut off. So the pages are read here, with those of the log in place
of the file's; nothing is written. Formats: https://sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4.
"""

from __future__ import annotations

import mmap
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2.metadata import parse_qos

from vmloc_ros.bags.stored import NO_DEFINITION, Channel, definition_of
from vmloc_ros.core.errors import DataError

MAGIC = b"SQLite format 3\0"
_INTERIOR, _LEAF = 0x05, 0x0D
_WAL_MAGICS = {0x377F0682: "<", 0x377F0683: ">"}  # byte order of the checksum's words
_JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_WAL_HEADER, _WAL_FRAME_HEADER = 32, 24
_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Column = int | str | bytes | None


class SqliteFile:
    """See :class:`vmloc_ros.bags.stored.StoredMessages`.

    Raises:
        DataError: the file is no sqlite3 database, or its write-ahead log cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self.channels: dict[int, Channel] = {}
        self._pages = _Pages(path)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def fetch(self, index: int) -> bytes:
        """See :class:`vmloc_ros.bags.stored.StoredMessages`."""
        data = _columns(self._pages.payload(*self._places[index])[1])[3]
        assert isinstance(data, bytes), "checked when the place was found"
        return data

    def close(self) -> None:
        """Close the file."""
        self._pages.close()

    def _read(self) -> None:
        claimed = int.from_bytes(self._pages[1][28:32], "big")
        if claimed > self._pages.count:
            self.problem = f"it has {self._pages.count} of {claimed} pages"
        rows: dict[int, tuple[int, int, int, int]] = {}  # by row id: topic, log time, page, cell
        topics: dict[int, list[Column]] = {}
        definitions: dict[str, list[Column]] = {}
        for page, cell in self._cells():
            try:
                row_id, payload = self._pages.payload(page, cell)
                columns = _columns(payload)
            except (ValueError, IndexError, struct.error):
                self.problem = self.problem or f"page {page} is damaged"
                continue
            match columns:
                case [None, int() as topic, int() as logged_ns, bytes()]:
                    rows[row_id] = (topic, logged_ns, page, cell)
                case [None, str() as name, str(), "cdr", *_] if name.startswith("/"):
                    topics[row_id] = columns
                case [None, str() as kind, "ros2msg" | "ros2idl", str(), *_]:
                    definitions[kind] = columns
        self._declare(topics, definitions)
        kept = np.array([(*rows[row], row) for row in sorted(rows) if rows[row][0] in self.channels], np.int64)
        kept = kept.reshape(-1, 5)
        self.channel_of, self.logged_ns = kept[:, 0], kept[:, 1]
        self._places: list[tuple[int, int]] = [(int(page), int(cell)) for page, cell in kept[:, 2:4]]

    def _declare(self, topics: dict[int, list[Column]], definitions: dict[str, list[Column]]) -> None:
        for number, (_, topic, msgtype, serialization, *more) in topics.items():
            known = definitions.get(str(msgtype))
            definition = definition_of(str(known[2]), str(known[3])) if known else NO_DEFINITION
            qos: Any = more[0] if more else ""
            self.channels[number] = Channel(
                str(topic), str(msgtype), definition, str(serialization), tuple(parse_qos(qos))
            )

    def _cells(self) -> Iterator[tuple[int, int]]:
        """Pages and offsets of all rows: down the trees of a whole file, else wherever a page holds rows."""
        try:
            cells = [cell for root in self._roots() for cell in self._below(root)]
        except (ValueError, IndexError, struct.error) as error:
            self.problem = self.problem or str(error)
            cells = [cell for page in self._pages.leaves() for cell in self._cells_of(page)]
        return iter(cells)

    def _roots(self) -> list[int]:
        """Root pages of the tables; sqlite's own list of tables is a table whose root is the first page."""
        roots = []
        for place in self._below(1):
            kind, _, _, root = _columns(self._pages.payload(*place)[1])[:4]
            if kind == "table" and isinstance(root, int):
                roots.append(root)
        return roots

    def _below(self, root: int) -> Iterator[tuple[int, int]]:
        """Rows of a table, in order."""
        waiting = [root]
        while waiting:
            number = waiting.pop()
            page, start = self._pages[number], _start(number)
            if page[start] == _LEAF:
                yield from self._cells_of(number)
            elif page[start] == _INTERIOR:
                children = [int.from_bytes(page[at : at + 4], "big") for at in _pointers(page, start, head=12)]
                children.append(int.from_bytes(page[start + 8 : start + 12], "big"))
                waiting += reversed(children)
            else:
                raise ValueError(f"page {number} is damaged")

    def _cells_of(self, number: int) -> list[tuple[int, int]]:
        return [(number, at) for at in _pointers(self._pages[number], _start(number), head=8)]


class _Pages:
    """The pages of a database, numbered from 1, those in its write-ahead log in place of the file's."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(100)
            if head[:16] != MAGIC or len(head) < 100:
                raise DataError(f"{path} is no sqlite3 database")
            size = int.from_bytes(head[16:18], "big")
            self.size = 65536 if size == 1 else size
            if self.size < 512 or self.size & (self.size - 1):
                raise DataError(f"{path} is no sqlite3 database: it has pages of {self.size} bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._usable = self.size - head[20]
        self._logged = _read_log(wal_of(path), self.size)
        self.count = max(len(self._map) // self.size, *self._logged, 0)

    def close(self) -> None:
        self._map.close()

    def __getitem__(self, number: int) -> bytes:
        if number in self._logged:
            return self._logged[number]
        page = self._map[(number - 1) * self.size : number * self.size] if number > 0 else b""
        if len(page) < self.size:
            raise ValueError(f"page {number} is missing")
        return page

    def leaves(self) -> list[int]:
        """Numbers of the pages that hold rows; pages of large values begin with a page's number, below 2^24 with 0."""
        stored = np.frombuffer(self._map, np.uint8, count=len(self._map) // self.size * self.size)
        kinds = stored.reshape(-1, self.size)[:, 0].copy()
        del stored
        found = {int(number) + 1 for number in np.flatnonzero(kinds == _LEAF)}
        logged = {number for number, page in self._logged.items() if page[_start(number)] == _LEAF}
        return sorted((found - set(self._logged)) | logged)

    def payload(self, number: int, at: int) -> tuple[int, bytes]:
        """Row id and record of the cell at an offset of a page, with what overflows onto other pages."""
        page = self[number]
        size, at = _varint(page, at)
        row_id, at = _varint(page, at)
        local = self._local_size(size)
        parts = [page[at : at + local]]
        left, following = size - local, int.from_bytes(page[at + local : at + local + 4], "big")
        while left > 0:
            page = self[following]
            parts.append(page[4 : 4 + min(left, self._usable - 4)])
            left -= len(parts[-1])
            following = int.from_bytes(page[:4], "big")
        payload = b"".join(parts)
        if len(payload) != size:
            raise ValueError(f"a row of page {number} is not whole")
        return row_id, payload

    def _local_size(self, size: int) -> int:
        """How much of a record lies on its own page: section 1.6 of the format."""
        most = self._usable - 35
        if size <= most:
            return size
        least = (self._usable - 12) * 32 // 255 - 23
        rest = least + (size - least) % (self._usable - 4)
        return rest if rest <= most else least


def sqlite_log_times(path: Path, topics: Collection[tuple[str, str]]) -> NDArray[np.int64]:
    """``(N,)`` log times of the messages of some topics and types in a whole file without a write-ahead log."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as database:
        numbers = [n for n, *topic in database.execute("SELECT id, name, type FROM topics") if tuple(topic) in topics]
        marks = ",".join("?" for _ in numbers)
        query = f"SELECT timestamp FROM messages WHERE topic_id IN ({marks})"
        return np.fromiter((row[0] for row in database.execute(query, numbers)), np.int64)


def missing_pages(path: Path) -> str:
    """How many pages a file lacks by its header, as text; empty where it lacks none."""
    with path.open("rb") as file:
        head = file.read(100)
    size, claimed = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    found = path.stat().st_size // (65536 if size == 1 else max(size, 1))
    return f"{path.name} has {found} of {claimed} pages" if head[:16] == MAGIC and found < claimed else ""


def has_hot_journal(path: Path) -> bool:
    """Whether a writer left a rollback journal (``FILE-journal``): the file is in the middle of a change."""
    journal = path.with_name(f"{path.name}-journal")
    if not journal.is_file():
        return False
    with journal.open("rb") as file:
        return file.read(8) == _JOURNAL_MAGIC


def wal_of(path: Path) -> Path:
    """Where sqlite keeps the write-ahead log of a database."""
    return path.with_name(f"{path.name}-wal")


def _read_log(path: Path, page_size: int) -> dict[int, bytes]:
    """Newest committed pages of a write-ahead log, by number; as sqlite does, up to the first frame that is not valid.

    Raises:
        DataError: it is not a log of this database.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    if not content:
        return {}
    magic, _, size = struct.unpack_from(">3I", content.ljust(_WAL_HEADER, b"\0"))
    if magic not in _WAL_MAGICS or size != page_size:
        raise DataError(f"the write-ahead log {path} is damaged")
    order, sums = _WAL_MAGICS[magic], _checksum(content[:24], _WAL_MAGICS[magic], (0, 0))
    committed: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}
    if sums != struct.unpack_from(">2I", content, 24):
        return committed
    for at in range(_WAL_HEADER, len(content) - _WAL_FRAME_HEADER - size + 1, _WAL_FRAME_HEADER + size):
        number, pages_after_commit = struct.unpack_from(">2I", content, at)
        page = content[at + _WAL_FRAME_HEADER : at + _WAL_FRAME_HEADER + size]
        sums = _checksum(page, order, _checksum(content[at : at + 8], order, sums))
        if content[at + 8 : at + 16] != content[16:24] or sums != struct.unpack_from(">2I", content, at + 16):
            break
        pending[number] = page
        if pages_after_commit:
            committed |= pending
            pending = {}
    return committed


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Section 4.2 of the format: two sums, each of which takes in the other."""
    first, second = sums
    words = np.frombuffer(data, f"{order}u4").tolist()
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _start(number: int) -> int:
    """Where a page's own header begins: the first page has the database's before it."""
    return 100 if number == 1 else 0


def _pointers(page: bytes, start: int, head: int) -> NDArray[np.int64]:
    """Offsets of a page's cells."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    return np.frombuffer(page, ">u2", count=count, offset=start + head).astype(np.int64)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9


def _columns(record: bytes) -> list[Column]:
    """The columns of a record; real numbers, which no bag has, are None."""
    end, at = _varint(record, 0)
    kinds = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    columns: list[Column] = []
    for kind in kinds:
        size = _INTEGER_SIZES.get(kind, 8 if kind == 7 else max(0, (kind - 12) // 2))
        value = record[at : at + size]
        if len(value) < size:
            raise ValueError("a row is not whole")
        at += size
        columns.append(_value(kind, value))
    return columns


def _value(kind: int, value: bytes) -> Column:
    if kind >= 12:
        return value if kind % 2 == 0 else value.decode(errors="replace")
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(value, "big", signed=True) if kind in _INTEGER_SIZES else None
