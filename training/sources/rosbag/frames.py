# SPDX-License-Identifier: Apache-2.0
"""Frames of a bag without decoding them: serialized messages, paired by the node's own synchronizer."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.rosbag.order import Logged, StampLog
from training.sources.rosbag.topics import connections_of
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.synchronizer import Bundle, Synchronizer

# What is kept of a message: its type and its bytes.
Serialized = tuple[str, bytes]

_DEADLINE_NS = 200_000_000


def read_header(data: bytes, is_ros2: bool) -> tuple[int, str]:
    """Stamp (ns) and frame of a serialized message that begins with a ``std_msgs/Header``.

    Both layouts have them at the same place: four bytes (ROS 2: the CDR encapsulation, whose second byte is the
    byte order; ROS 1: ``seq``), seconds, nanoseconds, the length of the frame's name, and the name.

    Raises:
        ValueError: the message is too short.
    """
    order = "<" if data[1:2] != b"\0" or not is_ros2 else ">"
    try:
        seconds, nanoseconds, length = struct.unpack_from(f"{order}i2I", data, 4)
    except struct.error as error:
        raise ValueError(f"it has {len(data)} bytes, too few for a header") from error
    name = bytes(data[16 : 16 + length]).rstrip(b"\0").decode(errors="replace")
    return seconds * 1_000_000_000 + nanoseconds, name


class FrameReader:
    """Pairs the streams' messages by the stamps in their headers.

    Where the clock jumps back, frames are dropped until it has caught up: stamps increase strictly.

    Args:
        reader: an open bag.
        streams: topics by modality; each message of the first one makes a frame.
        slop_s: see :class:`SourceOptions`.
        keep_data: keep the messages in the bundles, not just their stamps.
        by_stamps: messages come in the order of their stamps, not of their log times; see ``order``.

    Attributes:
        log: stamps and log times of all messages, unless the data are kept.
        pairs: of every frame of the first stream the stamps of its messages, None where there is none; likewise.
        first_frames: by modality ``header.frame_id`` of its first message.
        repeated: number of frames dropped after the clock jumped back.

    Raises:
        DataError: a topic's type does not begin with a header.
    """

    def __init__(
        self, reader: AnyReader, streams: dict[str, str], slop_s: float, keep_data: bool, by_stamps: bool = False
    ) -> None:
        self._path, self._is_ros2, self._keep_data = reader.paths[0], reader.is2, keep_data
        self._by_stamps = by_stamps
        self._roles = {topic: name for name, topic in streams.items()}
        self._primary, *others = streams
        slop_ns = round(slop_s * 1e9)
        deadline_ns = max(_DEADLINE_NS, slop_ns) if by_stamps else _DEADLINE_NS
        self._synchronizer: Synchronizer[Serialized | None] = Synchronizer(
            self._primary, tuple(others), slop_ns=slop_ns, deadline_ns=deadline_ns
        )
        self.log = StampLog(streams)
        self.pairs: set[tuple[int | None, ...]] = set()
        self.first_frames: dict[str, str] = {}
        self.repeated = 0
        self._newest_ns = -(1 << 63)
        for topic in self._roles:
            _check_begins_with_header(reader, topic)

    def add(self, connection: Connection, logged_ns: int, data: bytes) -> list[Bundle[Serialized | None]]:
        """Take a message in and return the frames that it completes.

        Raises:
            DataError: the message is too short.
        """
        stamp_ns, frame_id = self._header(connection, logged_ns, data)
        role = self._roles[connection.topic]
        self.first_frames.setdefault(role, frame_id)
        if self._keep_data:
            return self.add_stamp(role, stamp_ns, logged_ns, (connection.msgtype, data))
        self.log.add(role, stamp_ns, logged_ns)
        return self.add_stamp(role, stamp_ns, logged_ns)

    def add_stamp(
        self, role: str, stamp_ns: int, logged_ns: int, payload: Serialized | None = None
    ) -> list[Bundle[Serialized | None]]:
        """Take in a message whose header was read, and return the frames that it completes."""
        now_ns = stamp_ns if self._by_stamps else logged_ns
        return self._new(self._synchronizer.add(role, stamp_ns, payload, now_ns))

    def stamp_of(self, message: Logged) -> int:
        """Stamp of a message of the bag; errors as of :meth:`add`."""
        return self._header(*message)[0]

    def flush(self) -> list[Bundle[Serialized | None]]:
        """The frames that are still pending at the bag's end."""
        return self._new(self._synchronizer.flush())

    @property
    def counts(self) -> dict[str, int]:
        """How the messages paired."""
        counts = self._synchronizer.statistics
        return {
            "paired": counts.paired,
            f"{self._primary} alone": counts.primary_only,
            f"without {self._primary}": counts.secondary_only,
            "late or duplicate": counts.late + counts.duplicate,
        }

    def _header(self, connection: Connection, logged_ns: int, data: bytes) -> tuple[int, str]:
        try:
            return read_header(data, self._is_ros2)
        except ValueError as error:
            raise DataError(
                f"{self._path}: {connection.topic}: damaged message logged at {logged_ns} ns: {error}"
            ) from error

    def _new(self, bundles: Iterable[Bundle[Serialized | None]]) -> list[Bundle[Serialized | None]]:
        kept = []
        for bundle in bundles:
            if bundle.stamp_ns > self._newest_ns:
                self._newest_ns = bundle.stamp_ns
                kept.append(bundle)
                if not self._keep_data and self._primary in bundle.messages:
                    self.pairs.add(tuple(bundle.messages.get(role, (None,))[0] for role in self._roles.values()))
            else:
                self.repeated += 1
        return kept


def _check_begins_with_header(reader: AnyReader, topic: str) -> None:
    for msgtype in {connection.msgtype for connection in connections_of(reader, [topic])}:
        fields = reader.typestore.fielddefs[msgtype][1] if msgtype in reader.typestore.fielddefs else []
        if not fields or fields[0][1][1] != "std_msgs/msg/Header":
            raise DataError(
                f"{reader.paths[0]}: the bag's definition of {msgtype} ({topic}) does not begin with a header"
            )
