# SPDX-License-Identifier: Apache-2.0
"""What a bag's scans show while its index is built: which are empty, and how their points' times are to be read."""

from __future__ import annotations

from typing import Any

from rosbags.interfaces import Connection

from training.sources.rosbag.frames import Bundles
from vmloc_ros.bags.files import BagReader
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import LIDAR
from vmloc_ros.core.messages import has_returns, observe_point_times
from vmloc_ros.core.point_times import TIMES, PointTimes

_OBSERVED = 20  # first scans with points, by which the times' reading is chosen


class ScanSurvey:
    """Looks at the scans of a bag, in the order of the log.

    Attributes:
        count: number of scans.
        empty: number of those without a return.
        empty_ns: their stamps.
    """

    def __init__(self, reader: BagReader, streams: dict[str, str]) -> None:
        self._reader, self._topic = reader, streams.get(LIDAR)
        self._times = PointTimes()
        self._observed = 0
        self.count = self.empty = 0
        self.empty_ns: set[int] = set()

    def add(self, connection: Connection, data: bytes, stamp_ns: int) -> None:
        """Take a message of any stream in; one that cannot be decoded is the business of those who read its frame."""
        if connection.topic != self._topic:
            return
        self.count += 1
        try:
            message: Any = self._reader.deserialize(data, connection.msgtype)
            if not has_returns(message):
                self.empty += 1
                self.empty_ns.add(stamp_ns)
            elif self._observed < _OBSERVED:
                self._observed += 1
                observe_point_times(message, self._times)
        except (DataError, MessageError):
            return

    def usable(self, bundles: Bundles) -> Bundles:
        """The frames that hold more than an empty scan."""
        return [b for b in bundles if set(b.messages) != {LIDAR} or b.messages[LIDAR][0] not in self.empty_ns]

    @property
    def readings(self) -> dict[str, Any]:
        """How the scans are read, by name."""
        if self._topic is None:
            return {}
        self._times.settle()
        return {TIMES: self._times.record}
