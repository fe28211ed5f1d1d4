# SPDX-License-Identifier: Apache-2.0
"""Frames do not depend on when messages were logged, on a topic's second type, or on a file's lost end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from bag_builders import MS, T0, Message, calibration, clouds, images, poses, source, write_bag
from training.sources import open_sources
from training.sources.options import SourceOptions
from training.sources.rosbag.order import merged
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.messages import image_message, pose_stamped_message, typestore
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose

BOTH = ("image", "lidar")
COUNT = 30


def recording() -> list[Message]:
    """3 s: images and clouds at 10 Hz, 30 ms apart."""
    return [*images(COUNT), *clouds(COUNT), *poses(last=60), *calibration()]


def write(path: Path, messages: Iterable[tuple[str, Any, int]], plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """A bag of topics, messages and log times as given, on one topic maybe of several types."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[tuple[str, str], Any] = {}
        for topic, message, logged_ns in messages:
            key = topic, message.__msgtype__
            if key not in connections:
                connections[key] = writer.add_connection(*key, typestore=typestore())
            writer.write(connections[key], logged_ns, typestore().serialize_cdr(message, key[1]))
    return path


def content(opened: RosbagSource) -> list[tuple[int, int | None, float | None, list[float]]]:
    """Stamp, pixel, point and position of every frame."""
    return [
        (
            sample.frame.stamp_ns,
            None if sample.frame.image is None else int(sample.frame.image[0, 0, 0]),
            None if sample.frame.cloud is None else float(sample.frame.cloud.xyz_m[0, 0]),
            sample.map_from_body.position_m.tolist(),
        )
        for sample in opened
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    opened = source(write_bag(tmp_path_factory.mktemp("plain") / "bag", recording()))
    assert opened.report["paired"] == COUNT
    return content(opened)


# --- order -------------------------------------------------------------------------------------------------------


def by_topic(messages: list[Message]) -> list[Message]:
    return sorted(messages, key=lambda entry: (entry[0], entry[2]))


def late(topic: str, seconds: float) -> list[Message]:
    delay = round(seconds * 1e9)
    moved = [(name, m, t + delay if name == topic else t) for name, m, t in recording()]
    return sorted(moved, key=lambda entry: entry[2])


ORDERS: dict[str, list[Message]] = {
    "equal times": [(topic, m, T0) for topic, m, _ in sorted(recording(), key=lambda entry: entry[2])],
    "equal times, topic by topic": [(topic, m, T0) for topic, m, _ in by_topic(recording())],
    "in a burst, topic by topic": [(topic, m, T0 + i * 1000) for i, (topic, m, _) in enumerate(by_topic(recording()))],
    "topic by topic, backwards": [
        (topic, m, T0 + i * MS) for i, (topic, m, _) in enumerate(sorted(recording(), key=lambda e: (e[0][::-1], e[2])))
    ],
    "lidar 1 s late": late("/lidar/points", 1.0),
    "lidar 10 s late": late("/lidar/points", 10.0),
    "camera 10 s late": late("/camera/image_raw", 10.0),
    "poses 10 s late": late("/ground_truth/pose", 10.0),
    "zero times": [(topic, m, 0) for topic, m, _ in by_topic(recording())],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_every_pair_is_found_whenever_it_was_logged(
    order: str, plugin: StoragePlugin, tmp_path: Path, expected: list[Any]
) -> None:
    opened = source(write(tmp_path / "bag", ORDERS[order], plugin))
    assert (opened.report["paired"], opened.report["late or duplicate"]) == (COUNT, 0)
    assert content(opened) == expected
    assert opened.doubts == []


@pytest.mark.parametrize("is_indexed", [False, True])
def test_reading_by_stamps_is_said_each_time(is_indexed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "bag", ORDERS["lidar 10 s late"])
    folder = tmp_path / "index" if is_indexed else None
    for _ in range(2):
        opened = RosbagSource(path, SourceOptions(), BOTH, index_folder=folder)
        assert len(opened) == COUNT
        assert "it is read by the stamps in their headers" in opened.choices[-1]


def test_reading_topic_by_topic_holds_a_small_part_of_the_bag_in_memory(tmp_path: Path) -> None:
    """30 MB of pictures before the first cloud: each topic's reader holds a chunk of 1 MB."""
    pixels = np.zeros((250, 400, 3), np.uint8)
    pictures = [
        ("/camera/image_raw", image_message(T0 + i * 50 * MS, "cam", pixels, "rgb8"), T0 + i * MS) for i in range(100)
    ]
    scans = [(topic, m, T0 + 1000 * MS + i * MS) for i, (topic, m, _) in enumerate(clouds(60))]
    path = write(tmp_path / "bag", [*pictures, *scans, *poses(last=80)])
    tracemalloc.start()
    try:
        opened = source(path)
        assert sum(1 for sample in opened if sample.frame.cloud is not None) == 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6


@settings(max_examples=30, deadline=None)
@given(
    delays=st.lists(st.integers(-5000, 5000), min_size=4, max_size=4), jitter=st.integers(0, 900), seed=st.integers()
)
def test_any_delays_of_topics_and_jitter_give_the_pairs_of_the_plain_order(
    tmp_path_factory: pytest.TempPathFactory, expected: list[Any], delays: list[int], jitter: int, seed: int
) -> None:
    """Jitter below a second brings the stamps of a topic out of order, too."""
    random = np.random.default_rng(abs(seed))
    topics = sorted({topic for topic, _, _ in recording() if topic in ("/lidar/points", "/camera/image_raw")})
    moved = [
        (
            topic,
            m,
            t + MS * (delays[topics.index(topic)] + int(random.integers(0, jitter + 1))) if topic in topics else t,
        )
        for topic, m, t in recording()
    ]
    path = write(tmp_path_factory.mktemp("moved") / "bag", sorted(moved, key=lambda entry: entry[2]))
    opened = source(path)
    assert content(opened) == expected  # of 30 frames, one that differs is a notable share


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-50, 50), max_size=30), min_size=1, max_size=4), st.integers(0, 30))
def test_merging_gives_every_item_once_and_in_order_where_the_window_suffices(
    streams: list[list[int]], window: int
) -> None:
    named = {str(number): stamps for number, stamps in enumerate(streams)}
    found = list(merged(named, dict.fromkeys(named, window), lambda stamp: stamp))
    assert sorted(found) == sorted(stamp for stamps in streams for stamp in stamps)
    if all(stamps[:-1] <= sorted(stamps)[: len(stamps) - 1] for stamps in streams) or window == 30:
        assert found == sorted(found)


def test_a_plain_recording_is_read_by_one_reader_in_the_order_of_logging(tmp_path: Path) -> None:
    """A scan that comes 0.3 s late now and then does not change that: the robot goes on without it, too."""
    late_one = [
        (topic, m, t + 300 * MS * (topic == "/lidar/points" and t == T0 + 5030 * MS))
        for topic, m, t in [*images(100), *clouds(100), *poses(last=160)]
    ]
    opened = source(write(tmp_path / "bag", sorted(late_one, key=lambda entry: entry[2])))
    assert not any("read by the stamps" in text for text in opened.choices)


def test_a_sensor_without_a_shared_clock_is_told_with_the_distance(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(COUNT), clouds(COUNT, offset=20_000 * MS), poses(last=60), calibration())
    opened = source(path)
    assert opened.report["paired"] == 0
    (doubt,) = opened.doubts
    assert (
        "30 of 30 messages of /camera/image_raw have no partner within source.slop_s = 0.1 s, the nearest of "
        "/lidar/points is 18.6 s away (median)"
    ) in doubt


def test_the_warning_comes_again_when_the_index_is_loaded(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(COUNT), clouds(5), poses(last=60), calibration())
    for _ in range(2):
        (doubt,) = RosbagSource(path, SourceOptions(), BOTH, index_folder=tmp_path / "index").doubts
        assert "24 of 30 messages of /camera/image_raw have no partner" in doubt


# --- two types on one topic --------------------------------------------------------------------------------------


def compressed(message: Any) -> Any:
    pixels = np.asarray(message.data).reshape(message.height, message.width, 3)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].reshape(-1)
    return typestore().types["sensor_msgs/msg/CompressedImage"](
        header=message.header, format="rgb8; png compressed bgr8", data=png
    )


@pytest.mark.parametrize("chosen", [range(10, COUNT), [7]])
def test_raw_and_compressed_pictures_of_one_topic_are_all_read(
    chosen: Iterable[int], tmp_path: Path, expected: list[Any]
) -> None:
    mixed = [
        (topic, compressed(m) if topic == "/camera/image_raw" and (t - T0) // (100 * MS) in chosen else m, t)
        for topic, m, t in sorted(recording(), key=lambda entry: entry[2])
    ]
    assert content(source(write(tmp_path / "bag", mixed))) == expected


def test_messages_of_a_type_that_does_not_fit_are_left_out_and_counted(tmp_path: Path, expected: list[Any]) -> None:
    strays = [
        (topic, pose_stamped_message(T0 + 5 * MS, "map", Pose(np.zeros(3), np.array([1.0, 0, 0, 0]))), T0 + i * MS)
        for topic in ("/lidar/points", "/camera/image_raw")
        for i in range(3)
    ]
    path = write(tmp_path / "bag", sorted([*recording(), *strays], key=lambda entry: entry[2]))
    opened = source(path)
    assert content(opened) == expected
    for (topic, kind), doubt in zip(
        (("/camera/image_raw", "Image"), ("/lidar/points", "PointCloud2")), opened.doubts, strict=True
    ):
        assert (
            f"{topic} has messages of several types; used are those of sensor_msgs/msg/{kind}, left out are 3 of "
            "geometry_msgs/msg/PoseStamped"
        ) in doubt
    with pytest.raises(DataError, match=r"/lidar/points is sensor_msgs/msg/PointCloud2, geometry_msgs/msg/PoseSt"):
        source(path, image_topic="/lidar/points")


# --- cut off -----------------------------------------------------------------------------------------------------


def test_a_recording_that_was_cut_off_is_used_as_far_as_it_goes_where_the_options_say_so(
    tmp_path: Path, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As a recorder leaves it: split files NAME_N, and no metadata.yaml; the folder is one recording."""
    whole = write_bag(tmp_path / "whole", recording())
    bag = tmp_path / "drive"
    bag.mkdir()
    [file] = whole.glob("*.mcap")
    (bag / "drive_0.mcap").write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    for data in (bag, bag / "drive_0.mcap"):
        with pytest.raises(DataError, match=r"cut off after \d+ messages, .*mcap recover .*--allow-truncated"):
            open_sources(data, "all", SourceOptions(), BOTH)
        [opened] = open_sources(data, "all", SourceOptions(allow_truncated=True), BOTH)
        found = content(opened)
        assert 5 < len(found) < COUNT
        assert found[:-1] == expected[: len(found) - 1]
    assert "is cut off or damaged, and what is there is used" in caplog.text
