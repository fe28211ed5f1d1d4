# SPDX-License-Identifier: Apache-2.0
"""The same drive as many drivers and recorders would have written it gives the same frames and labels."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bag_builders import MS, T0, Message, calibration, poses, source, true_pose, write_bag
from vmloc_ros.bags.messages import image_message, typestore
from vmloc_ros.core.frame import Sample

pytestmark = pytest.mark.filterwarnings("error")

FRAMES, POINTS, PERIOD = 8, 400, 100 * MS
TIMES_S = np.linspace(0.0, 0.0985, POINTS)  # of the points, since the sweep's start, which is the scan's stamp
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


@dataclass(frozen=True)
class Variant:
    """How a driver writes its messages, and a recorder logs them."""

    fields: list[str]
    coordinates: str
    padding: int
    big_endian: bool
    time: tuple[str, str, str, bool]  # name, type, unit, whether absolute
    encoding: str
    row_padding: int
    slash: str
    order: str


TIMES = [
    ("t", "u4", "ns", False),
    ("t", "u4", "us", False),
    ("time", "f4", "s", False),
    ("time", "f4", "ms", False),
    ("offset_time", "u4", "ns", False),
    ("timestamp", "f8", "s", True),
    ("timestamp", "f8", "ns", True),
    ("timestamp", "f8", "us", True),
    ("time_stamp", "u4", "us", False),
    ("timeStamp", "f8", "s", True),
]
variants = st.builds(
    Variant,
    fields=st.permutations(["x", "y", "z", "intensity", "time"]),
    coordinates=st.sampled_from(["f4", "f8"]),
    padding=st.integers(0, 5),
    big_endian=st.booleans(),
    time=st.sampled_from(TIMES),
    encoding=st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "png"]),
    row_padding=st.integers(0, 9),
    slash=st.sampled_from(["", "/"]),
    order=st.sampled_from(["as sent", "by topic", "all at once", "shuffled"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variant=variants, seed=st.integers(0, 99))
def test_every_way_to_write_a_drive_gives_the_same_frames(tmp_path: Path, variant: Variant, seed: int) -> None:
    shutil.rmtree(tmp_path / "bag", ignore_errors=True)
    samples = list(source(write_bag(tmp_path / "bag", logged(drive(variant), variant.order, seed))))

    assert [sample.frame.stamp_ns for sample in samples] == [T0 + i * PERIOD for i in range(FRAMES)]
    for i, sample in enumerate(samples):
        assert_is_frame(sample, i)


def assert_is_frame(sample: Sample, i: int) -> None:
    frame, cloud = sample.frame, sample.frame.cloud
    assert cloud is not None
    assert cloud.intensity is not None
    assert cloud.time_s is not None
    np.testing.assert_array_equal(frame.image, pixels(i))
    np.testing.assert_array_equal(cloud.xyz_m, points(i))
    np.testing.assert_array_equal(cloud.intensity, np.arange(POINTS) % 200)
    # An absolute stamp in float64 nanoseconds or microseconds is good to 0.25 us, 0.13 us; offsets in us to 0.5 us.
    np.testing.assert_allclose(cloud.time_s, TIMES_S, atol=1e-6)
    np.testing.assert_allclose(sample.map_from_body.position_m, true_pose(frame.stamp_ns).position_m, atol=1e-9)


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)


def points(i: int) -> np.ndarray:
    return np.random.default_rng(i).uniform(1, 20, (POINTS, 3)).astype(np.float32)


def drive(variant: Variant) -> list[list[Message]]:
    """Pictures, clouds, poses and fixed transforms, each in its own list."""
    stamps = [T0 + i * PERIOD for i in range(FRAMES)]
    topic = "/camera/image_raw" + ("/compressed" if variant.encoding == "png" else "")
    streams = [
        [(topic, picture(t, pixels(i), variant), t) for i, t in enumerate(stamps)],
        [("/lidar/points", cloud(t, points(i), variant), t) for i, t in enumerate(stamps)],
        poses(-2, 15),
        calibration(),
    ]
    for messages in streams:
        for _, message, _ in messages:
            for part in getattr(message, "transforms", [message]):
                part.header.frame_id = variant.slash + part.header.frame_id
                if hasattr(part, "child_frame_id"):
                    part.child_frame_id = variant.slash + part.child_frame_id
    return streams


def picture(stamp_ns: int, rgb: np.ndarray, variant: Variant) -> Any:
    plain = image_message(stamp_ns, "camera_optical_frame", rgb, "rgb8")
    if variant.encoding == "png":
        data = cv2.imencode(".png", rgb[..., ::-1])[1].reshape(-1)
        kind = typestore().types["sensor_msgs/msg/CompressedImage"]
        return kind(header=plain.header, format="rgb8; png compressed bgr8", data=data)
    array = rgb if variant.encoding.startswith("rgb") else rgb[..., ::-1]
    if "a" in variant.encoding:
        array = np.dstack([array, np.full(rgb.shape[:2], 7, np.uint8)])
    if variant.encoding.endswith("16"):
        array = array.astype(">u2" if variant.big_endian else "<u2") * 257
        array = array.astype(">u2" if variant.big_endian else "<u2")
    rows = np.ascontiguousarray(array).reshape(len(rgb), -1).view(np.uint8)
    padded = np.pad(rows, [(0, 0), (0, variant.row_padding)], constant_values=99)
    plain.encoding, plain.step, plain.data = variant.encoding, padded.shape[1], padded.reshape(-1)
    plain.is_bigendian = int(variant.big_endian)
    return plain


def cloud(stamp_ns: int, xyz: np.ndarray, variant: Variant) -> Any:
    name, kind, unit, is_absolute = variant.time
    # In whole nanoseconds: an absolute stamp has no room for a sum in seconds.
    times_ns = np.round(TIMES_S * 1e9).astype(np.int64) + (stamp_ns if is_absolute else 0)
    times = times_ns / (1e9 / UNITS[unit])
    columns = {
        **{axis: (variant.coordinates, xyz[:, i]) for i, axis in enumerate("xyz")},
        "intensity": ("f4", np.arange(POINTS) % 200),
        "time": (kind, np.round(times) if kind == "u4" else times),
    }
    order = ">" if variant.big_endian else "<"
    offsets, end = [], 0
    for field in variant.fields:
        offsets.append(end)
        end += np.dtype(columns[field][0]).itemsize + variant.padding
    formats = [order + columns[field][0] for field in variant.fields]
    array = np.zeros(
        POINTS, np.dtype({"names": variant.fields, "formats": formats, "offsets": offsets, "itemsize": end})
    )
    for field in variant.fields:
        array[field] = columns[field][1]
    types = typestore().types
    point_field = types["sensor_msgs/msg/PointField"]
    names = [name if field == "time" else field for field in variant.fields]
    return types["sensor_msgs/msg/PointCloud2"](
        header=image_message(stamp_ns, "lidar_link", np.zeros((1, 1, 3), np.uint8), "rgb8").header,
        height=1,
        width=POINTS,
        fields=[
            point_field(name=label, offset=offset, datatype=DATATYPES[columns[field][0]], count=1)
            for label, field, offset in zip(names, variant.fields, offsets, strict=True)
        ],
        is_bigendian=variant.big_endian,
        point_step=end,
        row_step=end * POINTS,
        data=array.view(np.uint8).reshape(-1),
        is_dense=True,
    )


def logged(streams: list[list[Message]], order: str, seed: int) -> list[Message]:
    """The messages with the log times of a recorder, in the order of the file."""
    messages = [message for stream in streams for message in stream]
    if order == "as sent":
        return messages
    if order == "all at once":
        return [(topic, message, T0) for topic, message, _ in messages]
    if order == "by topic":
        return [(topic, message, T0 + i * 1000) for i, (topic, message, _) in enumerate(messages)]
    # Each message up to 0.4 s late, one after another in the file.
    late = [stamp + 400 * MS * delay for (_, _, stamp), delay in zip(messages, random_numbers(seed), strict=False)]
    return [(messages[i][0], messages[i][1], T0 + n * 1000) for n, i in enumerate(np.argsort(late).tolist())]


def random_numbers(seed: int) -> list[float]:
    return np.random.default_rng(seed).uniform(size=1000).tolist()
