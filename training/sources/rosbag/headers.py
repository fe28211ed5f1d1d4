# SPDX-License-Identifier: Apache-2.0
"""Headers of serialized messages, read without decoding the rest."""

from __future__ import annotations

import struct


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
