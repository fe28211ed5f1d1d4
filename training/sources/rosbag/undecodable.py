# SPDX-License-Identifier: Apache-2.0
"""Messages of a recording that cannot be decoded are missing messages, as long as they are few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from vmloc_ros.core.errors import DataError

_ENOUGH = 20  # messages, to judge by before all are read


class Undecodable:
    """Counts one pass's messages that cannot be decoded, warns of a topic's first one, and refuses too many.

    Args:
        streams: topics by modality.
        warn: called with the text of a warning.
    """

    def __init__(self, streams: Mapping[str, str], warn: Callable[[str], object]) -> None:
        self._streams, self._warn = streams, warn
        self._read: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of messages that could not be decoded, for :attr:`RosbagSource.report`."""
        return {f"{name} messages that cannot be decoded": count for name, count in self._failed.items()}

    def decoded(self, name: str) -> None:
        """Count a message of the modality that was decoded."""
        self._read[name] += 1

    def failed(self, name: str, stamp_ns: int, reason: str) -> None:
        """Count a message that cannot be decoded.

        Raises:
            DataError: more than half of the topic's messages cannot be.
        """
        self._read[name] += 1
        self._failed[name] += 1
        if name not in self._first:
            self._first[name] = f"at {stamp_ns} ns: {reason}"
            self._warn(
                f"{self._streams[name]}: {self._first[name]}; frames go on without the messages that cannot be decoded"
            )
        if self._read[name] >= _ENOUGH:
            self._refuse_most(name)

    def finish(self, inform: Callable[[str], object]) -> None:
        """To be called after the last message, with what is called with each topic's numbers.

        Raises:
            DataError: more than half of a topic's messages cannot be decoded.
        """
        for name, failed in self._failed.items():
            self._refuse_most(name)
            inform(f"{failed} of {self._read[name]} messages of {self._streams[name]} cannot be decoded")

    def _refuse_most(self, name: str) -> None:
        failed, read = self._failed[name], self._read[name]
        if 2 * failed > read:
            raise DataError(
                f"{failed} of {read} messages of {self._streams[name]} cannot be decoded, the first {self._first[name]}"
            )
