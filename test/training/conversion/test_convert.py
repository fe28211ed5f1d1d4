# SPDX-License-Identifier: Apache-2.0
"""A converted source holds its frames, stamps and poses; a converted 7-Scenes split the files' pixels."""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from helpers import ListSource, random_frame, yaw_pose
from training.conversion.datasets import convert_seven_scenes, write_bag
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from training.sources.seven_scenes import SevenScenesSource
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.cameras import decode_camera_info
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import (
    decode_depth,
    decode_image,
    decode_point_cloud,
    decode_pose,
    stamp_ns,
)

TOPICS = ("/camera/image_raw", "/camera/depth/image_raw", "/camera/camera_info", "/ground_truth/pose")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """One sequence of four frames, no split files."""
    root = tmp_path / "office"
    (root / "seq-01").mkdir(parents=True)
    for frame in range(4):
        generator = np.random.default_rng(frame)
        stem = str(root / "seq-01" / f"frame-{frame:06d}")
        cv2.imwrite(f"{stem}.color.png", generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        depth_mm = generator.integers(1, 65535, (6, 8), dtype=np.uint16)
        depth_mm[0, :2] = [0, 65535]
        cv2.imwrite(f"{stem}.depth.png", depth_mm)
        np.savetxt(f"{stem}.pose.txt", Pose.from_xyz_rpy(generator.normal(size=3), [0.1, 0.2, frame]).matrix)
    return root


def read(bag: Path) -> dict[str, list[tuple[int, Any]]]:
    """Log time and message of every topic."""
    messages = defaultdict(list)
    with open_bag(bag) as reader:
        for connection, logged_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages[connection.topic].append((logged_ns, message))
    return messages


def test_bag_holds_the_scene_bit_by_bit(scene: Path, tmp_path: Path) -> None:
    convert_seven_scenes(scene, "all", tmp_path / "bag", progress=False)
    source = SevenScenesSource(scene, "all")
    messages = read(tmp_path / "bag")
    assert {topic: len(entries) for topic, entries in messages.items()} == dict.fromkeys(TOPICS, 4)
    for entries in messages.values():
        assert [logged for logged, _ in entries] == source.stamps_ns()
        assert [stamp_ns(message.header) for _, message in entries] == source.stamps_ns()
    for frame, pose in enumerate(source.poses()):
        stem = str(scene / "seq-01" / f"frame-{frame:06d}")
        image, depth, info, truth = (messages[topic][frame][1] for topic in TOPICS)
        assert (image.encoding, depth.encoding) == ("rgb8", "16UC1")
        assert {m.header.frame_id for m in (image, depth, info)} == {"camera_optical_frame"}
        assert truth.header.frame_id == "map"
        np.testing.assert_array_equal(decode_image(image), cv2.imread(f"{stem}.color.png")[..., ::-1])
        stored_mm = cv2.imread(f"{stem}.depth.png", cv2.IMREAD_UNCHANGED)
        written_mm = depth.data.view(np.uint16).reshape(6, 8)
        assert written_mm[0, 1] == 0
        stored_mm[0, 1] = 0
        np.testing.assert_array_equal(written_mm, stored_mm)
        assert decode_camera_info(info).camera.fx == 585 * 8 / 640
        np.testing.assert_array_equal(decode_pose(truth).matrix, pose.matrix)


def test_bag_gives_training_the_same_samples_as_the_folder(scene: Path, tmp_path: Path) -> None:
    convert_seven_scenes(scene, "all", tmp_path / "bag", options=SourceOptions(stride=2), progress=False)
    options = SourceOptions(body_frame="camera_optical_frame")
    from_bag = list(RosbagSource(tmp_path / "bag", options, ("image", "depth")))
    from_folder = list(SevenScenesSource(scene, "all", SourceOptions(stride=2)))
    assert len(from_bag) == len(from_folder) == 2
    for bag, folder in zip(from_bag, from_folder, strict=True):
        assert bag.frame.stamp_ns == folder.frame.stamp_ns
        assert bag.frame.camera == folder.frame.camera
        np.testing.assert_array_equal(bag.frame.image, folder.frame.image)
        np.testing.assert_array_equal(bag.frame.depth_m, folder.frame.depth_m)
        np.testing.assert_array_equal(bag.map_from_body.matrix, folder.map_from_body.matrix)


def test_existing_bag_is_kept_unless_overwriting(scene: Path, tmp_path: Path) -> None:
    convert_seven_scenes(scene, "all", tmp_path / "bag", progress=False)
    with pytest.raises(DataError, match="bag exists already"):
        convert_seven_scenes(scene, "all", tmp_path / "bag", progress=False)
    convert_seven_scenes(
        scene, "all", tmp_path / "bag", options=SourceOptions(stride=4), overwrite=True, progress=False
    )
    assert len(read(tmp_path / "bag")["/camera/image_raw"]) == 1


def test_corrupt_picture_leaves_no_bag_behind(scene: Path, tmp_path: Path) -> None:
    (scene / "seq-01" / "frame-000002.color.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"frame-000002.color.png: .* truncated"):
        convert_seven_scenes(scene, "all", tmp_path / "bag", progress=False)
    assert list(tmp_path.iterdir()) == [scene]


def test_invalid_poses_stop_the_conversion_or_are_skipped(scene: Path, tmp_path: Path) -> None:
    (scene / "seq-01" / "frame-000001.pose.txt").write_text("nan " * 16)
    with pytest.raises(DataError, match=r"frame-000001.pose.txt is not a camera-to-world matrix"):
        convert_seven_scenes(scene, "all", tmp_path / "bag", progress=False)
    convert_seven_scenes(scene, "all", tmp_path / "bag", options=SourceOptions(skip_invalid=True), progress=False)
    assert len(read(tmp_path / "bag")["/ground_truth/pose"]) == 3


# --- any source ---------------------------------------------------------------------------------------------------


def samples(count: int, names: tuple[str, ...]) -> list[Sample]:
    frames = [replace(random_frame(i, names=names), stamp_ns=10**18 + i * 10**8) for i in range(count)]
    return [Sample(frame, yaw_pose(0.5 * i, yaw_deg=3.0 * i)) for i, frame in enumerate(frames)]


def test_every_modality_of_a_source_has_its_topic(tmp_path: Path) -> None:
    source = ListSource(samples(3, ("image", "depth", "lidar")))
    write_bag(source, tmp_path / "bag", progress=False)
    messages = read(tmp_path / "bag")
    assert set(messages) == {*TOPICS, "/lidar/points"}
    for entries in messages.values():
        assert [stamp_ns(message.header) for _, message in entries] == source.stamps_ns()
    for i, sample in enumerate(source):
        image, depth, info, truth, points = (messages[topic][i][1] for topic in (*TOPICS, "/lidar/points"))
        frame, cloud = sample.frame, decode_point_cloud(points)
        assert points.header.frame_id == "lidar_link"
        assert depth.encoding == "16UC1"
        assert frame.cloud is not None
        np.testing.assert_array_equal(decode_image(image), frame.image)
        np.testing.assert_allclose(decode_depth(depth), frame.depth_m, rtol=0, atol=0.000501)
        np.testing.assert_array_equal(cloud.xyz_m, frame.cloud.xyz_m)
        np.testing.assert_array_equal(cloud.intensity, frame.cloud.intensity)
        assert decode_camera_info(info).camera == frame.camera
        np.testing.assert_array_equal(decode_pose(truth).matrix, sample.map_from_body.matrix)


def test_what_a_frame_lacks_is_not_written(tmp_path: Path) -> None:
    both, image, lidar = (samples(3, names)[i] for i, names in enumerate([("image", "lidar"), ("image",), ("lidar",)]))
    blind = replace(lidar, frame=replace(lidar.frame, camera=None))
    write_bag(ListSource([both, image, blind]), tmp_path / "bag", progress=False)
    counts = {topic: len(entries) for topic, entries in read(tmp_path / "bag").items()}
    assert counts == {
        "/camera/image_raw": 2,
        "/camera/camera_info": 2,
        "/lidar/points": 2,
        "/ground_truth/pose": 3,
    }


def test_mounts_become_static_transforms_of_the_body(tmp_path: Path) -> None:
    mounts = {"camera_optical_frame": yaw_pose(1.0, yaw_deg=-90), "lidar_link": yaw_pose(0.0, 0.2, 5.0, z_m=1.7)}
    source = ListSource(samples(2, ("image", "lidar")))
    write_bag(source, tmp_path / "bag", mounts=mounts, progress=False)
    ((logged_ns, message),) = read(tmp_path / "bag")["/tf_static"]
    assert logged_ns == source.stamps_ns()[0]
    assert [transform.header.frame_id for transform in message.transforms] == ["base_link", "base_link"]
    for transform, (child, pose) in zip(message.transforms, mounts.items(), strict=True):
        assert transform.child_frame_id == child
        np.testing.assert_allclose(decode_pose(transform).matrix, pose.matrix, atol=1e-12)
    frame = next(iter(RosbagSource(tmp_path / "bag", SourceOptions(), ("image", "lidar")))).frame
    assert frame.camera_from_lidar is not None
    camera_from_lidar = np.linalg.inv(mounts["camera_optical_frame"].matrix) @ mounts["lidar_link"].matrix
    np.testing.assert_allclose(frame.camera_from_lidar.matrix, camera_from_lidar, atol=1e-12)


class CountingSource(ListSource):
    """Makes its samples on demand, and counts how many are alive then; fails at ``fails_at``."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        super().__init__(samples(count, ("image",)))
        self.most_alive, self._fails_at = 0, fails_at

    def __iter__(self) -> Iterator[Sample]:
        alive: list[weakref.ref[np.ndarray]] = []
        for i, sample in enumerate(self.samples):
            if i == self._fails_at:
                raise DataError("the disk is broken")
            image = np.copy(sample.frame.image)
            alive.append(weakref.ref(image))
            yield Sample(replace(sample.frame, image=image), sample.map_from_body)
            del image
            self.most_alive = max(self.most_alive, sum(reference() is not None for reference in alive))


def test_memory_holds_a_frame_or_two_however_many_there_are(tmp_path: Path) -> None:
    source = CountingSource(12)
    write_bag(source, tmp_path / "bag", progress=False)
    assert len(read(tmp_path / "bag")["/camera/image_raw"]) == 12
    assert 1 <= source.most_alive <= 2


def test_a_source_that_fails_midway_leaves_no_bag_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the disk is broken"):
        write_bag(CountingSource(4, fails_at=2), tmp_path / "bag", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_when_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmloc_ros.core.progress")
    write_bag(CountingSource(3), tmp_path / "quiet", progress=False)
    assert "converting" not in caplog.text
    write_bag(CountingSource(3), tmp_path / "bag", progress=True)
    assert "converting: 100 % (3 of 3 frames" in caplog.text
