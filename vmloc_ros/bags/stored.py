# SPDX-License-Identifier: Apache-2.0
"""What a storage file holds, found without its index: for damaged files, and for log times alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat, Qos

_FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}
NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")


@dataclass(frozen=True, slots=True)
class Channel:
    """A topic with one type, as a storage file declares it."""

    topic: str
    msgtype: str
    definition: MessageDefinition
    serialization_format: str
    qos: tuple[Qos, ...]


class StoredMessages(Protocol):
    """The messages of one storage file.

    Attributes:
        path: the file.
        problem: how the file ends before its end; empty where it is whole.
        channels: by the file's own number.
        channel_of: ``(N,)`` number of each message's channel, in the order of writing.
        logged_ns: ``(N,)`` log times.
    """

    path: Path
    problem: str
    channels: dict[int, Channel]
    channel_of: NDArray[np.int64]
    logged_ns: NDArray[np.int64]

    def fetch(self, index: int) -> bytes:
        """The serialized message; raises ValueError or OSError where its bytes are damaged."""

    def close(self) -> None:
        """Close the file."""


def definition_of(encoding: str, text: str) -> MessageDefinition:
    """A message definition as the library has it; without format where the encoding is unknown."""
    return MessageDefinition(_FORMATS[encoding], text) if encoding in _FORMATS else NO_DEFINITION
