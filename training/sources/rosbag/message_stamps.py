# SPDX-License-Identifier: Apache-2.0
"""Stamps and log times of all messages that make frames, and which of them cannot be true."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Mapping, Set
from itertools import combinations
from pathlib import Path

import numpy as np

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.stamps import OTHER_CLOCK_NS, StampReport, explain_false_stamps, find_false_stamps

logger = logging.getLogger(__name__)

# Stamp and log time of each message with a false stamp, by modality: the same messages in every reading of a bag.
FalseStamps = Mapping[str, Set[tuple[int, int]]]


class MessageStamps:
    """Collects stamps while a bag is read, and judges them when it has been.

    Args:
        streams: topics by modality.
    """

    def __init__(self, streams: dict[str, str]) -> None:
        self._streams, self._names = streams, list(streams)
        self._roles, self._stamps_ns, self._logged_ns = array("B"), array("q"), array("q")
        self._false = np.empty(0, bool)
        self.counts: dict[str, int] = {}

    def add(self, role: str, stamp_ns: int, logged_ns: int) -> None:
        """Add a message, in the order of the recording."""
        self._roles.append(self._names.index(role))
        self._stamps_ns.append(stamp_ns)
        self._logged_ns.append(logged_ns)

    def judge(self, path: Path) -> FalseStamps:
        """Find the messages whose stamp cannot be true, and warn of them.

        Args:
            path: of the bag, for messages.

        Raises:
            DataError: no message of a topic has a stamp that can be true.
        """
        roles, stamps, logged = np.array(self._roles), np.array(self._stamps_ns), np.array(self._logged_ns)
        self._false = np.zeros(len(roles), bool)
        found: dict[str, set[tuple[int, int]]] = {}
        delays_ns: dict[str, float] = {}
        for number, (name, topic) in enumerate(self._streams.items()):
            rows = np.flatnonzero(roles == number)
            report = find_false_stamps(stamps[rows], logged[rows])
            check_stamps(f"{path}: {topic}", report)
            self._false[rows] = report.false
            self.counts[f"{name} with a false stamp"] = report.zeros + report.departed
            lost = rows[report.false]
            found[name] = set(zip(stamps[lost].tolist(), logged[lost].tolist(), strict=True))
            if len(lost) < len(rows):
                true = rows[~report.false]
                delays_ns[topic] = float(np.median(logged[true] - stamps[true]))
        _compare_clocks(path, delays_ns)
        return found

    def believed(self) -> Iterator[tuple[str, int, int]]:
        """Modality, stamp and log time of the other messages, in the order of the recording; after :meth:`judge`."""
        for role, stamp_ns, logged_ns, false in zip(
            self._roles, self._stamps_ns, self._logged_ns, self._false.tolist(), strict=True
        ):
            if not false:
                yield self._names[role], stamp_ns, logged_ns


def check_stamps(where: str, report: StampReport) -> None:
    """Warn of false stamps.

    Args:
        where: name of bag and topic.

    Raises:
        DataError: none of the messages has a stamp that can be true.
    """
    total = len(report.false)
    if total and report.zeros == total:
        raise DataError(
            f"{where}: all {total} messages are stamped 0, so that it is unknown when they were taken; have the driver "
            "set header.stamp and record again, or take log times in place of all stamps: source.stamps=log"
        )
    if report.zeros or report.departed:
        logger.warning("%s", explain_false_stamps(where, report.zeros, report.departed, report.departure_ns, total))


def _compare_clocks(path: Path, delays_ns: Mapping[str, float]) -> None:
    """Warn of topics whose stamps are of different clocks."""
    for (first, first_ns), (second, second_ns) in combinations(delays_ns.items(), 2):
        gap_ns = first_ns - second_ns
        if abs(gap_ns) > OTHER_CLOCK_NS:
            logger.warning(
                "%s: %s and %s are stamped by different clocks, %.1f s apart, and cannot be paired; synchronize them "
                "and record again, or take log times in place of all stamps: source.stamps=log",
                path,
                first,
                second,
                abs(gap_ns) * 1e-9,
            )
