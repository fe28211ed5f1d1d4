# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 messages of any layout, as the drivers of lidars send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.bags.messages import point_cloud_message, typestore
from vmloc_ros.core.frame import PointCloud

DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def layout_message(
    stamp_ns: int,
    columns: Mapping[str, NDArray[Any]],
    *,
    height: int = 1,
    gap: int = 0,
    row_padding: int = 0,
    big: bool = False,
    order: Sequence[str] | None = None,
) -> Any:
    """A PointCloud2 of these columns; eight-byte integers are sent as eight bytes each.

    Args:
        gap: unused bytes before every field and at the end of every point.
        row_padding: unused bytes after every row.
        order: field order in memory.
    """
    byte_order, names, offset, offsets = (">" if big else "<"), list(order or columns), gap, []
    for name in names:
        offsets.append(offset)
        offset += columns[name].dtype.itemsize + gap
    formats = [byte_order + columns[name].dtype.str[1:] for name in names]
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": offset})
    count = len(columns[names[0]])
    points = np.frombuffer(bytearray(b"\xee" * (count * offset)), dtype)
    for name in names:
        points[name] = columns[name]
    rows = points.view(np.uint8).reshape(height, -1)
    message = point_cloud_message(stamp_ns, "lidar_link", PointCloud(np.zeros((0, 3), np.float32)))
    field = typestore().types["sensor_msgs/msg/PointField"]
    kinds = [columns[name].dtype.str[1:] for name in names]
    message.fields = [
        field(name=name, offset=at, datatype=DATATYPES.get(kind, 2), count=1 if kind in DATATYPES else 8)
        for name, at, kind in zip(names, offsets, kinds, strict=True)
    ]
    message.height, message.width, message.is_bigendian = height, count // height, big
    message.point_step, message.row_step = offset, rows.shape[1] + row_padding
    message.data = np.pad(rows, ((0, 0), (0, row_padding)), constant_values=0x7F).reshape(-1)
    return message
