# SPDX-License-Identifier: Apache-2.0
"""Messages of an MCAP file, whole or cut off, found by walking through its records; see https://mcap.dev/spec.

A recorder that loses its power leaves no summary at the file's end, maybe half a chunk, maybe zeros. Every whole record
before that can be read: of whole chunks only the index that follows each of them is looked at, so that a walk through
hundreds of gigabytes takes seconds; the last chunk is unpacked as far as it goes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from lz4.frame import LZ4FrameDecompressor
from numpy.typing import NDArray
from rosbags.rosbag2.metadata import parse_qos

from vmloc_ros.bags.stored import NO_DEFINITION, Channel, definition_of
from vmloc_ros.bags.zstd import decompressor
from vmloc_ros.core.errors import DataError

MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
_RECORD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_CHUNK_HEAD = struct.Struct("<QQQII")  # times, size and checksum of the unpacked records, length of compression's name
_LARGEST_RECORD = 1 << 40
_CHUNKS_KEPT = 4  # unpacked; chunks overlap in time


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where the records of a chunk lie; ``size`` is of those that are there."""

    offset: int
    size: int
    compression: str
    unpacked_size: int
    checksum: int
    is_whole: bool


class McapFile:
    """See :class:`vmloc_ros.bags.stored.StoredMessages`.

    Raises:
        DataError: the file is no MCAP.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self.channels: dict[int, Channel] = {}
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._chunks: list[_Chunk] = []
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._rows: list[NDArray[np.int64]] = []  # of channel, log time, chunk (-1: none), offset of the message record
        self._size = path.stat().st_size
        self._file = path.open("rb")
        if self._file.read(len(MAGIC)) != MAGIC:
            self._file.close()
            raise DataError(f"{path} is no MCAP file")
        self._walk()
        self._unpacked.clear()
        rows = np.concatenate([np.empty((0, 4), np.int64), *self._rows])
        self.channels = {n: channel for n, channel in self.channels.items() if channel.serialization_format == "cdr"}
        rows = rows[np.isin(rows[:, 0], list(self.channels))]
        self.channel_of, self.logged_ns, self._chunk_of, self._offsets = rows.T

    def fetch(self, index: int) -> bytes:
        """See :class:`vmloc_ros.bags.stored.StoredMessages`."""
        chunk, offset = int(self._chunk_of[index]), int(self._offsets[index])
        if chunk < 0:
            self._file.seek(offset)
            _, size = _RECORD.unpack(self._file.read(_RECORD.size))
            return self._file.read(size)[_MESSAGE_HEAD.size :]
        records = self._unpack(chunk)
        _, size = _RECORD.unpack_from(records, offset)
        start = offset + _RECORD.size
        return records[start + _MESSAGE_HEAD.size : start + size]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _walk(self) -> None:
        position = len(MAGIC)
        while (record := self._record_at(position)) is not None:
            kind, size = record
            body = position + _RECORD.size
            if kind == _CHUNK:
                if not self._add_indexed_chunk(body, size):
                    self._add_unpacked_chunk(len(self._chunks) - 1)
            elif kind == _MESSAGE:
                self._add_message(position)
            elif kind in (_SCHEMA, _CHANNEL):
                self._file.seek(body)
                self._declare(kind, self._file.read(size))
            elif kind == _FOOTER:
                self._file.seek(body + size)
                self.problem = "" if self._file.read(len(MAGIC)) == MAGIC else "it has no end"
                return
            position = body + size

    def _record_at(self, position: int) -> tuple[int, int] | None:
        """Kind and size of a whole record; None where the file ends, which it should not do before its footer."""
        self._file.seek(position)
        head = self._file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            self.problem = "it has no end"
            return None
        kind, size = _RECORD.unpack(head)
        if kind == 0 or size > _LARGEST_RECORD:
            self.problem = f"no record begins at byte {position}"
            return None
        if position + _RECORD.size + size > self._size:
            self.problem = f"the record at byte {position} is not whole"
            if kind == _CHUNK:
                self._add_cut_chunk(position + _RECORD.size)
            return None
        return kind, size

    def _add_message(self, position: int) -> None:
        channel, _, logged_ns, _ = _MESSAGE_HEAD.unpack(self._file.read(_MESSAGE_HEAD.size))
        self._rows.append(np.array([[channel, logged_ns, -1, position]], np.int64))

    def _read_chunk(self, body: int, end: int, is_whole: bool) -> None:
        self._file.seek(body)
        _, _, unpacked_size, checksum, length = _CHUNK_HEAD.unpack(self._file.read(_CHUNK_HEAD.size))
        compression = self._file.read(length).decode(errors="replace")
        (size,) = struct.unpack("<Q", self._file.read(8))
        offset = self._file.tell()
        size = min(size, end - offset)
        self._chunks.append(_Chunk(offset, size, compression, unpacked_size, checksum, is_whole))

    def _add_cut_chunk(self, body: int) -> None:
        with suppress(struct.error):  # not even its head is whole
            self._read_chunk(body, self._size, is_whole=False)
            self._add_unpacked_chunk(len(self._chunks) - 1)

    def _add_indexed_chunk(self, body: int, size: int) -> bool:
        """Add a chunk's messages from the index that follows it; False where there is none, or half of one."""
        self._read_chunk(body, body + size, is_whole=True)
        number, position = len(self._chunks) - 1, body + size
        rows: list[NDArray[np.int64]] = []
        while True:
            self._file.seek(position)
            head = self._file.read(_RECORD.size)
            kind, length = _RECORD.unpack(head) if len(head) == _RECORD.size else (0, 0)
            if kind != _MESSAGE_INDEX or position + _RECORD.size + length > self._size:
                break
            rows.append(_index_rows(self._file.read(length), number))
            position += _RECORD.size + length
        if not rows or kind == 0:  # what ends the file may be half an index
            return False
        self._rows += rows
        if any(int(row[0, 0]) not in self.channels for row in rows if len(row)):
            with suppress(ValueError):
                for kind, offset, end in _records(self._unpack(number)):
                    if kind in (_SCHEMA, _CHANNEL):
                        self._declare(kind, self._unpack(number)[offset + _RECORD.size : end])
        return True

    def _add_unpacked_chunk(self, number: int) -> None:
        """Add a chunk's messages by unpacking it: it has no index, or is not whole."""
        try:
            records = self._unpack(number)
        except ValueError as error:
            self.problem = self.problem or str(error)
            return
        if not self._chunks[number].checksum:  # a file system may have left zeros, which nothing else tells from data
            records = records.rstrip(b"\0")
        for kind, offset, end in _records(records):
            body = offset + _RECORD.size
            if kind == _MESSAGE and end - body >= _MESSAGE_HEAD.size:
                channel, _, logged_ns, _ = _MESSAGE_HEAD.unpack_from(records, body)
                self._rows.append(np.array([[channel, logged_ns, number, offset]], np.int64))
            elif kind in (_SCHEMA, _CHANNEL):
                self._declare(kind, records[body:end])

    def _unpack(self, number: int) -> bytes:
        """The records of a chunk, of one that was cut off as many as there are."""
        if number in self._unpacked:
            self._unpacked.move_to_end(number)
            return self._unpacked[number]
        chunk = self._chunks[number]
        self._file.seek(chunk.offset)
        records = _decompress(self._file.read(chunk.size), chunk.compression)
        if chunk.is_whole and (
            len(records) != chunk.unpacked_size or (chunk.checksum and crc32(records) != chunk.checksum)
        ):
            raise ValueError(f"the chunk at byte {chunk.offset} is damaged")
        self._unpacked[number] = records
        if len(self._unpacked) > _CHUNKS_KEPT:
            self._unpacked.popitem(last=False)
        return records

    def _declare(self, kind: int, body: bytes) -> None:
        (number,) = struct.unpack_from("<H", body)
        if kind == _SCHEMA:
            name, at = _text(body, 2)
            encoding, at = _text(body, at)
            self._schemas[number] = (name, encoding, _text(body, at)[0])
        elif number not in self.channels:
            (schema,) = struct.unpack_from("<H", body, 2)
            topic, at = _text(body, 4)
            serialization, at = _text(body, at)
            name, encoding, text = self._schemas.get(schema, ("", "", ""))
            definition = definition_of(encoding, text) if name else NO_DEFINITION
            qos = _pairs(body, at + 4).get("offered_qos_profiles", "")
            self.channels[number] = Channel(topic, name, definition, serialization, tuple(parse_qos(qos)))


def _index_rows(body: bytes, chunk: int) -> NDArray[np.int64]:
    """``(N, 4)`` rows of a message index."""
    (channel,) = struct.unpack_from("<H", body)
    entries = np.frombuffer(body, "<i8", offset=6, count=(len(body) - 6) // 16 * 2).reshape(-1, 2)
    rows = np.empty((len(entries), 4), np.int64)
    rows[:, 0], rows[:, 2] = channel, chunk
    rows[:, 1], rows[:, 3] = entries.T
    return rows


def _records(records: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, offset and end of every whole record in unpacked bytes."""
    offset = 0
    while offset + _RECORD.size <= len(records):
        kind, size = _RECORD.unpack_from(records, offset)
        end = offset + _RECORD.size + size
        if kind == 0 or end > len(records):
            return
        yield kind, offset, end
        offset = end


def _decompress(data: bytes, compression: str) -> bytes:
    """Unpacked data, as far as they go where they are cut off."""
    if not compression:
        return data
    if compression not in ("zstd", "lz4"):
        raise ValueError(f"compression {compression!r} is not known")
    unpacker = decompressor() if compression == "zstd" else LZ4FrameDecompressor()
    try:
        return bytes(unpacker.decompress(data))
    except Exception as error:  # each library has its own
        raise ValueError(f"a chunk cannot be unpacked: {error}") from error


def _text(body: bytes, at: int) -> tuple[str, int]:
    """A string with its length before it, and where it ends."""
    (length,) = struct.unpack_from("<I", body, at)
    return body[at + 4 : at + 4 + length].decode(errors="replace"), at + 4 + length


def _pairs(body: bytes, at: int) -> dict[str, str]:
    pairs = {}
    while at < len(body):
        key, at = _text(body, at)
        pairs[key], at = _text(body, at)
    return pairs
