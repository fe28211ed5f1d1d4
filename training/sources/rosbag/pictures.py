# SPDX-License-Identifier: Apache-2.0
"""What a bag's pictures and depth images have in common, from a sample of them taken while the bag is indexed."""

from __future__ import annotations

from typing import Any

from rosbags.interfaces import Connection

from training.sources.options import SourceOptions
from vmloc_ros.bags.files import BagReader
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.frame import DEPTH, IMAGE
from vmloc_ros.core.image_decoders import DepthDecoder, ImageDecoder

BITS, UNITS = "image_bits", "depth_units_m"  # names of the readings

_FIRST = 10  # messages of a topic that are decoded
_EVERY = 25  # and those of 16 bits later: a drive may begin in the dark
_MOST_FAILURES = 50  # before the first that can be decoded: cameras may start with empty messages


class PictureSample:
    """Decodes a sample of the messages to learn the readings ``image_bits`` and ``depth_units_m``.

    Args:
        reader: an open bag.
        streams: topics by modality.
    """

    def __init__(self, reader: BagReader, streams: dict[str, str], options: SourceOptions) -> None:
        self._reader, self._options = reader, options
        self._names = {topic: name for name, topic in streams.items() if name in (IMAGE, DEPTH)}
        self._image, self._depth = ImageDecoder(), DepthDecoder(options.depth_unit_m or None)
        self._seen = dict.fromkeys(self._names, 0)
        self._decoded = dict.fromkeys(self._names, 0)
        self._problems: dict[str, str] = {}

    def add(self, connection: Connection, data: bytes) -> None:
        """Take a message of any topic in.

        Raises:
            DataError: none of a topic's messages so far, and they are many, can be decoded.
        """
        topic = connection.topic
        if topic not in self._names:
            return
        number, self._seen[topic] = self._seen[topic], self._seen[topic] + 1
        if self._decoded[topic] < _FIRST or (self._is_sampled_on(topic) and number % _EVERY == 0):
            self._decode(connection, data)

    def readings(self) -> dict[str, Any]:
        """The readings of what was seen.

        Raises:
            DataError: none of a topic's messages can be decoded.
        """
        for topic, count in self._seen.items():
            if count and not self._decoded[topic]:
                raise DataError(self._none_of(topic))
        readings: dict[str, Any] = {}
        if self._image.bits is not None:
            readings[BITS] = max(self._image.bits, self._options.image_bits)
        if self._depth.units_m:
            readings[UNITS] = self._depth.units_m
        return readings

    def _is_sampled_on(self, topic: str) -> bool:
        return self._names[topic] == IMAGE and self._image.bits is not None

    def _decode(self, connection: Connection, data: bytes) -> None:
        topic = connection.topic
        decode = self._image if self._names[topic] == IMAGE else self._depth
        try:
            decode(self._reader.deserialize(data, connection.msgtype))
            self._decoded[topic] += 1
        except (DataError, MessageError) as error:
            self._problems.setdefault(topic, str(error))
            if not self._decoded[topic] and self._seen[topic] >= _MOST_FAILURES:
                raise DataError(self._none_of(topic)) from error

    def _none_of(self, topic: str) -> str:
        name = self._names[topic]
        return (
            f"{self._reader.paths[0]}: none of the first {self._seen[topic]} messages of {topic} can be decoded: "
            f"{self._problems[topic]}; choose another topic by source.{name}_topic, or leave {name} out of "
            "preprocess.modalities"
        )
