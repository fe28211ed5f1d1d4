# SPDX-License-Identifier: Apache-2.0
"""Frames of a bag without decoding them: serialized messages, paired by the node's own synchronizer."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.rosbag.message_stamps import FalseStamps, MessageStamps
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
        use_log_times: take log times in place of the headers' stamps.
        false: messages to leave out, of an earlier reading of the same bag. None: the first reading. Then all frames
            come from :meth:`flush`, since only later messages tell which stamps were false.

    Attributes:
        false: the messages that are left out; of the first reading after :meth:`flush`.
        first_frames: by modality ``header.frame_id`` of its first message.
        repeated: number of frames dropped after the clock jumped back.

    Raises:
        DataError: a topic's type does not begin with a header.
    """

    def __init__(
        self,
        reader: AnyReader,
        streams: dict[str, str],
        slop_s: float,
        keep_data: bool,
        use_log_times: bool = False,
        false: FalseStamps | None = None,
    ) -> None:
        self._path, self._is_ros2, self._keep_data = reader.paths[0], reader.is2, keep_data
        self._use_log_times, self.false = use_log_times, false or {}
        self._read = MessageStamps(streams) if false is None else None
        self._roles = {topic: name for name, topic in streams.items()}
        self._primary, *others = streams
        self._synchronizer: Synchronizer[Serialized | None] = Synchronizer(
            self._primary, tuple(others), slop_ns=round(slop_s * 1e9), deadline_ns=_DEADLINE_NS
        )
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
        try:
            stamp_ns, frame_id = read_header(data, self._is_ros2)
        except ValueError as error:
            raise DataError(
                f"{self._path}: {connection.topic}: damaged message logged at {logged_ns} ns: {error}"
            ) from error
        role = self._roles[connection.topic]
        self.first_frames.setdefault(role, frame_id)
        stamp_ns = logged_ns if self._use_log_times else stamp_ns
        if self._read is not None:
            self._read.add(role, stamp_ns, logged_ns)
            return []
        if (stamp_ns, logged_ns) in self.false.get(role, ()):
            return []
        payload = (connection.msgtype, data) if self._keep_data else None
        return self._new(self._synchronizer.add(role, stamp_ns, payload, logged_ns))

    def flush(self) -> list[Bundle[Serialized | None]]:
        """The frames that are still pending at the bag's end; of a first reading all of them.

        Raises:
            DataError: no message of a topic has a stamp that can be true.
        """
        bundles = []
        if self._read is not None:
            self.false = self._read.judge(self._path)
            for role, stamp_ns, logged_ns in self._read.believed():
                bundles += self._new(self._synchronizer.add(role, stamp_ns, None, logged_ns))
        return bundles + self._new(self._synchronizer.flush())

    @property
    def counts(self) -> dict[str, int]:
        """How the messages paired."""
        counts = self._synchronizer.statistics
        return {
            "paired": counts.paired,
            f"{self._primary} alone": counts.primary_only,
            f"without {self._primary}": counts.secondary_only,
            "late or duplicate": counts.late + counts.duplicate,
            **({} if self._read is None else self._read.counts),
        }

    def _new(self, bundles: Iterable[Bundle[Serialized | None]]) -> list[Bundle[Serialized | None]]:
        kept = []
        for bundle in bundles:
            if bundle.stamp_ns > self._newest_ns:
                self._newest_ns = bundle.stamp_ns
                kept.append(bundle)
            else:
                self.repeated += 1
        return kept


def _check_begins_with_header(reader: AnyReader, topic: str) -> None:
    msgtype = reader.topics[topic].msgtype
    fields = reader.typestore.fielddefs[msgtype][1] if msgtype in reader.typestore.fielddefs else []
    if not fields or fields[0][1][1] != "std_msgs/msg/Header":
        raise DataError(f"{reader.paths[0]}: the bag's definition of {msgtype} ({topic}) does not begin with a header")
