# SPDX-License-Identifier: Apache-2.0
"""Frames of a bag without decoding them: serialized messages, paired by the node's own synchronizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from training.sources.rosbag.headers import read_header
from training.sources.rosbag.message_stamps import FalseStamps, MessageStamps
from training.sources.rosbag.order import Logged, StampLog
from training.sources.rosbag.topics import connections_of
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.synchronizer import Bundle, Synchronizer

# What is kept of a message: its type and its bytes.
Serialized = tuple[str, bytes]
Bundles = list[Bundle[Serialized | None]]

_DEADLINE_NS = 200_000_000
# Share of frames that the order of logging must lose, or pair otherwise, before the order of stamps is used: the robot,
# too, goes on without a scan that comes late now and then, and one reader is faster than several.
_NOTABLE_LOSS = 0.02


class Pairing:
    """Pairs stamped messages as the robot does.

    Where the clock jumps back, frames are dropped until it has caught up: stamps increase strictly.

    Args:
        streams: names of the streams; each message of the first one makes a frame.
        slop_s: see :class:`SourceOptions`.
        by_stamps: messages come in the order of their stamps, not of their log times; see ``order``.

    Attributes:
        repeated: number of frames dropped after the clock jumped back.
    """

    def __init__(self, streams: Iterable[str], slop_s: float, by_stamps: bool) -> None:
        self._by_stamps = by_stamps
        self._primary, *others = streams
        slop_ns = round(slop_s * 1e9)
        deadline_ns = max(_DEADLINE_NS, slop_ns) if by_stamps else _DEADLINE_NS
        self._synchronizer: Synchronizer[Serialized | None] = Synchronizer(
            self._primary, tuple(others), slop_ns=slop_ns, deadline_ns=deadline_ns
        )
        self.repeated = 0
        self._newest_ns = -(1 << 63)

    def add(self, role: str, stamp_ns: int, logged_ns: int, payload: Serialized | None = None) -> Bundles:
        """Take a message in and return the frames that it completes."""
        now_ns = stamp_ns if self._by_stamps else logged_ns
        return self._new(self._synchronizer.add(role, stamp_ns, payload, now_ns))

    def flush(self) -> Bundles:
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

    def _new(self, bundles: Iterable[Bundle[Serialized | None]]) -> Bundles:
        kept = []
        for bundle in bundles:
            if bundle.stamp_ns > self._newest_ns:
                self._newest_ns = bundle.stamp_ns
                kept.append(bundle)
            else:
                self.repeated += 1
        return kept


class _StampReader:
    """Reads the headers of the streams' messages.

    Args:
        reader: an open bag.
        streams: topics by modality.
        use_log_times: take log times in place of the headers' stamps.

    Raises:
        DataError: a topic's type does not begin with a header.
    """

    def __init__(self, reader: AnyReader, streams: dict[str, str], use_log_times: bool) -> None:
        self._path, self._is_ros2, self._use_log_times = reader.paths[0], reader.is2, use_log_times
        self._roles = {topic: name for name, topic in streams.items()}
        for topic in self._roles:
            _check_begins_with_header(reader, topic)

    def _read(self, connection: Connection, logged_ns: int, data: bytes) -> tuple[str, int, str]:
        """Modality, stamp and frame of a message. Raises DataError: it is too short."""
        try:
            stamp_ns, frame_id = read_header(data, self._is_ros2)
        except ValueError as error:
            raise DataError(
                f"{self._path}: {connection.topic}: damaged message logged at {logged_ns} ns: {error}"
            ) from error
        return self._roles[connection.topic], logged_ns if self._use_log_times else stamp_ns, frame_id


class FirstReading(_StampReader):
    """Collects stamps while a bag is read for the first time: only later messages tell which of them are false.

    Args, Raises: see :class:`_StampReader`.

    Attributes:
        first_frames: by modality ``header.frame_id`` of its first message.
        false: the messages whose stamp cannot be true; of :meth:`judge`.
    """

    def __init__(self, reader: AnyReader, streams: dict[str, str], use_log_times: bool) -> None:
        super().__init__(reader, streams, use_log_times)
        self._stamps = MessageStamps(streams)
        self.first_frames: dict[str, str] = {}
        self.false: FalseStamps = {}

    def add(self, connection: Connection, logged_ns: int, data: bytes) -> int:
        """Take a message in and return its stamp. Raises DataError: it is too short."""
        role, stamp_ns, frame_id = self._read(connection, logged_ns, data)
        self.first_frames.setdefault(role, frame_id)
        self._stamps.add(role, stamp_ns, logged_ns)
        return stamp_ns

    def judge(self) -> None:
        """Find the messages whose stamps cannot be true, and warn of them.

        Raises:
            DataError: no message of a topic has a stamp that can be true.
        """
        self.false = self._stamps.judge(self._path)

    def believed(self) -> Iterator[tuple[str, int, int]]:
        """Modality, stamp and log time of the other messages, in the order of the recording."""
        return self._stamps.believed()

    @property
    def counts(self) -> dict[str, int]:
        """Number of messages with a false stamp by modality, after :meth:`judge`."""
        return self._stamps.counts


@dataclass(frozen=True, slots=True)
class PairedStamps:
    """All frames of a bag, after its first reading.

    Attributes:
        stamps: of each frame, and when the message that gave it was logged.
        counts: how the messages paired.
        repeated: number of frames dropped after the clock jumped back.
        windows: by modality, where messages are to be read by their stamps (see ``order``); empty: as they were logged.
        lost: why many messages have no partner, for a warning; None where they are few.
    """

    stamps: list[tuple[int, int]]
    counts: dict[str, int]
    repeated: int
    windows: dict[str, int]
    lost: str | None


def pair_stamps(
    first: FirstReading, streams: dict[str, str], slop_s: float, usable: Callable[[Bundles], Bundles]
) -> PairedStamps:
    """Pair messages in the order of the log, or by their stamps where that makes notably other frames.

    Args:
        first: after :meth:`FirstReading.judge`.
        streams: topics by modality.
        slop_s: see :class:`SourceOptions`.
        usable: leaves out frames that hold nothing that can be used.
    """
    log = StampLog(streams)
    for message in first.believed():
        log.add(*message)
    pairing, bundles = _pair(first.believed(), streams, slop_s, by_stamps=False)
    windows: dict[str, int] = {}
    if not log.has_restart:
        other, others = _pair(log.in_order(log.windows), streams, slop_s, by_stamps=True)
        if _missing(bundles, others, next(iter(streams))) > _NOTABLE_LOSS:
            pairing, bundles, windows = other, others, log.windows
    logged_at: dict[int, int] = {}
    for _, stamp_ns, logged_ns in first.believed():
        logged_at.setdefault(stamp_ns, logged_ns)
    arrivals = [(b.stamp_ns, logged_at[b.stamp_ns] if windows else b.arrival_ns) for b in usable(bundles)]
    lost = log.lost_pairs(streams, pairing.counts[f"{next(iter(streams))} alone"], slop_s)
    return PairedStamps(arrivals, pairing.counts, pairing.repeated, windows, lost)


def _pair(
    messages: Iterable[tuple[str, int, int]], streams: Iterable[str], slop_s: float, by_stamps: bool
) -> tuple[Pairing, Bundles]:
    pairing, bundles = Pairing(streams, slop_s, by_stamps), []
    for role, stamp_ns, logged_ns in messages:
        bundles += pairing.add(role, stamp_ns, logged_ns)
    return pairing, bundles + pairing.flush()


def _missing(bundles: Bundles, others: Bundles, primary: str) -> float:
    """Share of the other frames of the primary stream that are not among these, of the same messages."""
    known, wanted = (
        {tuple((name, stamp_ns) for name, (stamp_ns, _) in b.messages.items()) for b in found if primary in b.messages}
        for found in (bundles, others)
    )
    return len(wanted - known) / max(len(wanted), 1)


class FrameReader(_StampReader):
    """Pairs the streams' serialized messages, in a later reading than the first.

    Args:
        reader: see :class:`_StampReader`.
        streams: see :class:`_StampReader`.
        pairing: takes the messages in.
        false: messages to leave out.
        use_log_times: see :class:`_StampReader`.
    """

    def __init__(
        self, reader: AnyReader, streams: dict[str, str], pairing: Pairing, false: FalseStamps, use_log_times: bool
    ) -> None:
        super().__init__(reader, streams, use_log_times)
        self._pairing, self._false = pairing, false

    def add(self, connection: Connection, logged_ns: int, data: bytes) -> Bundles:
        """Take a message in and return the frames that it completes. Raises DataError: it is too short."""
        role, stamp_ns, _ = self._read(connection, logged_ns, data)
        if (stamp_ns, logged_ns) in self._false.get(role, ()):
            return []
        return self._pairing.add(role, stamp_ns, logged_ns, (connection.msgtype, data))

    def flush(self) -> Bundles:
        """The frames that are still pending at the bag's end."""
        return self._pairing.flush()

    def stamp_of(self, message: Logged) -> int | None:
        """Stamp of a message of the bag, None of one that is left out; errors as of :meth:`add`."""
        role, stamp_ns, _ = self._read(*message)
        return None if (stamp_ns, message[1]) in self._false.get(role, ()) else stamp_ns


def _check_begins_with_header(reader: AnyReader, topic: str) -> None:
    for msgtype in {connection.msgtype for connection in connections_of(reader, [topic])}:
        fields = reader.typestore.fielddefs[msgtype][1] if msgtype in reader.typestore.fielddefs else []
        if not fields or fields[0][1][1] != "std_msgs/msg/Header":
            raise DataError(
                f"{reader.paths[0]}: the bag's definition of {msgtype} ({topic}) does not begin with a header"
            )
