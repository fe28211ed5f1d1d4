# SPDX-License-Identifier: Apache-2.0
"""An atomic rosbag2 writer: bags that open in ``ros2 bag`` and Foxglove (definitions and QoS profiles are stored)."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from vmloc_ros.bags.messages import typestore
from vmloc_ros.core.errors import DataError

LATCHED_TOPICS = ("/tf_static",)
_UNLIMITED = QosTime(9223372036, 854775807)


class BagWriter:
    """Write a rosbag2 folder (MCAP) that appears under its name only when it is complete.

    A context manager: messages go to a temporary folder beside ``path``, which is renamed on a clean exit and
    removed when the body raises.

    Args:
        path: the bag's folder; missing parents are made.
        overwrite: replace an existing bag (never a folder that is not a bag).
        message_types: definitions for ``write_raw`` of types that ROS 2 Jazzy does not have, for instance the
            ``typestore`` of the reader that the messages come from.

    Raises:
        DataError: ``path`` exists and may not be replaced or cannot be written, or a message has an unknown
            type.
    """

    def __init__(self, path: Path | str, overwrite: bool = False, message_types: Typestore | None = None) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._message_types = message_types
        self._connections: dict[str, Connection] = {}
        self._latched = set(LATCHED_TOPICS)
        self._check_target()

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if not self._overwrite:
            raise DataError(f"{self.path} exists already; choose another name or ask to overwrite it")
        if not (self.path / "metadata.yaml").is_file():
            raise DataError(f"{self.path} exists and is not a bag folder; it is not overwritten, choose another name")

    def __enter__(self) -> BagWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._workspace = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise self._cannot_write(error) from error
        # The library names the storage file after its folder: the folder has its final name already.
        self._writer = Writer(
            self._workspace / self.path.name, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._writer.abort()
                return
            self._writer.close()
            self._put_in_place()
        except OSError as failure:
            raise self._cannot_write(failure) from failure
        finally:
            shutil.rmtree(self._workspace, ignore_errors=True)

    def _put_in_place(self) -> None:
        self._check_target()
        replaced = self._workspace / "replaced"
        if self.path.exists():
            self.path.rename(replaced)
        try:
            self._writer.path.rename(self.path)
        except OSError:
            if replaced.exists():
                replaced.rename(self.path)
            raise

    def latch(self, topic: str) -> None:
        """Store transient local durability for a topic, before its first message; players then offer it."""
        self._latched.add(topic)

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Write a message (a dataclass of :func:`typestore`) received at ``stamp_ns``."""
        type_name = message.__msgtype__
        self.write_raw(topic, type_name, typestore().serialize_cdr(message, type_name), stamp_ns)

    def write_raw(self, topic: str, type_name: str, cdr_bytes: bytes | memoryview, stamp_ns: int) -> None:
        """Write a serialized message of type ``package/msg/Name`` received at ``stamp_ns``."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._connect(topic, type_name)
        if connection.msgtype != type_name:
            raise DataError(f"topic {topic} of {self.path} has type {connection.msgtype}, got a {type_name}")
        try:
            self._writer.write(connection, int(stamp_ns), cdr_bytes)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _connect(self, topic: str, type_name: str) -> Connection:
        for store in (self._message_types, typestore()):
            if store is not None and type_name in store.fielddefs:
                return self._writer.add_connection(
                    topic, type_name, typestore=store, offered_qos_profiles=[_offered_qos(topic in self._latched)]
                )
        raise DataError(f"topic {topic}: no definition of type {type_name} is known, so it cannot be recorded")

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(f"cannot write bag {self.path}: {error.strerror or error}")


def _offered_qos(latched: bool) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _UNLIMITED,
        _UNLIMITED,
        QosLiveliness.AUTOMATIC,
        _UNLIMITED,
        False,
    )
