# SPDX-License-Identifier: Apache-2.0
"""A converted 7-Scenes split holds the files' pixels, the source's stamps and poses."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from training.convert import convert_seven_scenes
from training.sources.options import SourceOptions
from training.sources.rosbag import RosbagSource
from training.sources.seven_scenes import SevenScenesSource
from vmloc_ros.core.bags import open_bag
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_camera_info, decode_image, decode_pose, stamp_ns

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
        assert decode_camera_info(info).fx == 585 * 8 / 640
        np.testing.assert_array_equal(decode_pose(truth).matrix, pose.matrix)


def test_bag_gives_training_the_same_samples_as_the_folder(scene: Path, tmp_path: Path) -> None:
    convert_seven_scenes(scene, "all", tmp_path / "bag", stride=2, progress=False)
    options = SourceOptions(body_frame="camera_optical_frame")
    from_bag = list(RosbagSource(tmp_path / "bag", options, ("image", "depth")))
    from_folder = list(SevenScenesSource(scene, "all", stride=2))
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
    convert_seven_scenes(scene, "all", tmp_path / "bag", stride=4, overwrite=True, progress=False)
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
    convert_seven_scenes(scene, "all", tmp_path / "bag", skip_invalid=True, progress=False)
    assert len(read(tmp_path / "bag")["/ground_truth/pose"]) == 3
