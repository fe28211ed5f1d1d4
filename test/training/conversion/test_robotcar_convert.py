# SPDX-License-Identifier: Apache-2.0
"""A converted RobotCar sequence replays like a robot: its messages, their order, and transforms that fit together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import robotcar_sequence as mini
from training.cli import main
from training.conversion.robotcar import convert_robotcar
from training.sources.options import RobotCarOptions, SourceOptions
from training.sources.robotcar.source import RobotCarSource
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.files import BagWriter, open_bag
from vmloc_ros.core.cameras import decode_camera_info
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.messages import decode_image, decode_point_cloud, decode_pose, stamp_ns
from vmloc_ros.core.transform_tree import TransformTree

TIMES = np.arange(0.3, 0.9, 0.0625)


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    mini.write_calibration(tmp_path / "sdk")
    return mini.write_sequence(tmp_path / "2014-01-01-00-00-00", TIMES, duration_s=1.0)


def in_sdk(sequence: Path, **values: Any) -> RobotCarOptions:
    sdk = sequence.parent / "sdk"
    return RobotCarOptions(extrinsics=str(sdk / "extrinsics"), models=str(sdk / "models"), **values)


def convert(sequence: Path, stride: int = 1, robotcar: RobotCarOptions | None = None, **arguments: Any) -> Path:
    options = SourceOptions(stride=stride, robotcar=robotcar or in_sdk(sequence))
    convert_robotcar(sequence, sequence.parent / "bag", options=options, progress=False, **arguments)
    return sequence.parent / "bag"


def read(bag: Path) -> tuple[list[int], dict[str, list[Any]]]:
    """Log times in the order of the file, and messages by topic."""
    logged, messages = [], defaultdict(list)
    with open_bag(bag) as reader:
        for connection, time_ns, data in reader.messages():
            logged.append(time_ns)
            messages[connection.topic].append(reader.deserialize(data, connection.msgtype))
    return logged, messages


def tree_of(messages: dict[str, list[Any]]) -> TransformTree:
    tree = TransformTree()
    for transform in messages["/tf_static"][0].transforms:
        tree.add(transform.header.frame_id, transform.child_frame_id, decode_pose(transform))
    return tree


def test_bag_holds_the_source_s_frames_in_the_order_of_time(sequence: Path) -> None:
    logged, messages = read(convert(sequence))
    source = RobotCarSource(sequence, SourceOptions(robotcar=in_sdk(sequence)))
    assert {topic: len(entries) for topic, entries in messages.items()} == {
        "/tf_static": 1,
        "/ground_truth/pose": 10,
        "/camera/camera_info": 10,
        "/camera/image_raw": 10,
        "/lidar/points": 10,
        "/odom": 9,
    }
    assert logged == sorted(logged)
    streams = [
        messages[f"/{name}"] for name in ("camera/image_raw", "camera/camera_info", "lidar/points", "ground_truth/pose")
    ]
    for sample, image, info, cloud, truth in zip(source, *streams, strict=True):
        assert {stamp_ns(m.header) for m in (image, info, cloud, truth)} == {sample.frame.stamp_ns}
        assert (image.header.frame_id, info.header.frame_id) == ("camera_optical_frame",) * 2
        assert (cloud.header.frame_id, truth.header.frame_id) == ("vehicle", "map")
        np.testing.assert_array_equal(decode_image(image), sample.frame.image)
        assert decode_camera_info(info).camera == sample.frame.camera
        np.testing.assert_array_equal(decode_point_cloud(cloud).xyz_m, sample.frame.cloud.xyz_m)
        np.testing.assert_array_equal(decode_point_cloud(cloud).intensity, sample.frame.cloud.intensity)
        np.testing.assert_array_equal(decode_pose(truth).matrix, sample.map_from_body.matrix)


def test_training_gets_the_same_from_the_bag_as_from_the_folder(sequence: Path) -> None:
    bag = convert(sequence, stride=3)
    from_bag = list(RosbagSource(bag, SourceOptions()))
    from_folder = list(RobotCarSource(sequence, SourceOptions(stride=3, robotcar=in_sdk(sequence))))
    assert len(from_bag) == len(from_folder) == 4
    for left, right in zip(from_bag, from_folder, strict=True):
        assert left.frame.stamp_ns == right.frame.stamp_ns
        assert left.frame.camera == right.frame.camera
        np.testing.assert_array_equal(left.frame.image, right.frame.image)
        np.testing.assert_array_equal(left.frame.cloud.xyz_m, right.frame.cloud.xyz_m)
        np.testing.assert_allclose(
            left.frame.camera_from_lidar.matrix, right.frame.camera_from_lidar.matrix, atol=1e-12
        )
        np.testing.assert_array_equal(left.map_from_body.matrix, right.map_from_body.matrix)


def test_transforms_span_the_vehicle_from_utm_to_the_lenses(sequence: Path) -> None:
    tree = tree_of(read(convert(sequence))[1])
    np.testing.assert_array_equal(tree.find("utm", "map").position_m, mini.ORIGIN)
    base_from_stereo = mini.BASE_FROM_STEREO
    expected = {
        "vehicle": mini.BASE_FROM_VEHICLE,
        "ins": mini.FLIP,
        "stereo": base_from_stereo,
        "camera_optical_frame": base_from_stereo @ mini.CAMERA_FROM_OPTICAL,
        "mono_left": base_from_stereo @ np.linalg.inv(mini.matrix_of(mini.EXTRINSICS["mono_left"])),
        **{name: mini.base_from_lidar(name) for name in ("lms_front", "ldmrs", "velodyne_left")},
    }
    expected["mono_left_optical_frame"] = expected["mono_left"] @ mini.CAMERA_FROM_OPTICAL
    for frame, matrix in expected.items():
        np.testing.assert_allclose(tree.find("base_link", frame).matrix, matrix, atol=1e-12, err_msg=frame)
    assert tree.find_static("base_link", "radar") is None  # has no extrinsics here


def test_odometry_is_the_drive_from_its_first_image(sequence: Path) -> None:
    _, messages = read(convert(sequence, stride=4))
    start = np.linalg.inv(mini.map_from_base(TIMES[0]))
    for time_s, message in zip(TIMES[1:], messages["/odom"], strict=True):
        assert stamp_ns(message.header) == mini.stamp_us(time_s) * 1000
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        np.testing.assert_allclose(decode_pose(message).matrix, start @ mini.map_from_base(time_s), atol=1e-6)
        twist = message.twist.twist
        assert twist.linear.x == pytest.approx(mini.SPEED_M_S, abs=0.01)
        assert [twist.linear.y, twist.linear.z] == pytest.approx([0, 0], abs=0.05)
        up = mini.map_from_base(0)[2, :3] * mini.TURN_RAD_S  # the turn about the map's vertical, seen from the body
        np.testing.assert_allclose([twist.angular.x, twist.angular.y, twist.angular.z], up, atol=1e-4)


def test_velocities_are_those_of_the_body(sequence: Path) -> None:
    """Three motions, each another turn: the first seen from the body's start, the others from where it got to."""
    motions = [[0.3, 0.02, -0.01, 0.01, 0.02, 0.3], [0.5, -0.1, 0.02, -0.02, 0.0, -0.4], [0.1, 0, 0, 0.1, 0.05, 0.2]]
    rows = [
        f"{mini.stamp_us(0.5 * (number + 1))},{mini.stamp_us(0.5 * number)},{','.join(map(str, motion))}"
        for number, motion in enumerate(motions)
    ]
    header = "source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw"
    mini.write_lines(sequence / "vo" / "vo.csv", [header, *rows])
    _, messages = read(convert(sequence, modalities=("image",)))
    for motion, message in zip(motions, messages["/odom"], strict=True):
        moved = mini.BASE_FROM_STEREO @ mini.matrix_of(motion) @ np.linalg.inv(mini.BASE_FROM_STEREO)
        turned = Rotation.from_matrix(moved[:3, :3]).as_rotvec()
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        np.testing.assert_allclose([linear.x, linear.y, linear.z], moved[:3, 3] / 0.5, atol=1e-9)
        np.testing.assert_allclose([angular.x, angular.y, angular.z], turned / 0.5, atol=1e-9)


def test_messages_are_written_in_the_order_of_time_as_frames_are_read(
    sequence: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    write, frame = BagWriter.write, RobotCarSource.frame

    def recording_write(bag: BagWriter, topic: str, message: Any, time_ns: int) -> None:
        events.append((topic, time_ns))
        write(bag, topic, message, time_ns)

    def recording_frame(source: RobotCarSource, index: int) -> Frame:
        events.append(("read", source.stamps_ns()[index]))
        return frame(source, index)

    monkeypatch.setattr(BagWriter, "write", recording_write)
    monkeypatch.setattr(RobotCarSource, "frame", recording_frame)
    convert(sequence)
    written = [time_ns for topic, time_ns in events if topic != "read"]
    assert written == sorted(written)
    images = [topic for topic, _ in events if topic in ("read", "/camera/image_raw")]
    assert images == ["read", "/camera/image_raw"] * len(TIMES)  # no second frame is held


def test_compressed_images_are_jpeg_of_the_same_colours(sequence: Path) -> None:
    _, messages = read(convert(sequence, compressed=True))
    assert "/camera/image_raw" not in messages
    for number, message in enumerate(messages["/camera/image_raw/compressed"]):
        assert message.header.frame_id == "camera_optical_frame"
        assert cv2.imdecode(message.data, cv2.IMREAD_COLOR) is not None
        image = decode_image(message).astype(int)
        np.testing.assert_allclose(image[2:-2, 2:12], np.broadcast_to([200, 10 + number, 30], (20, 10, 3)), atol=6)


def test_without_lookup_table_images_stay_distorted_and_without_camera_info(sequence: Path) -> None:
    (sequence.parent / "sdk" / "models" / "stereo_narrow_left_distortion_lut.bin").unlink()
    with pytest.raises(DataError, match=r"lut.bin is missing.*--no-undistort"):
        convert(sequence)
    _, messages = read(convert(sequence, robotcar=in_sdk(sequence, undistort=False), modalities=("image",)))
    assert messages.keys() == {"/tf_static", "/ground_truth/pose", "/camera/image_raw", "/odom"}


def test_sequence_without_visual_odometry_gets_no_odometry(sequence: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sequence / "vo" / "vo.csv").unlink()
    _, messages = read(convert(sequence))
    assert "/odom" not in messages
    assert "vo.csv is missing; the bag gets no odometry" in caplog.text


@pytest.mark.parametrize("broken", ["stereo/centre", "lms_front"])
def test_damage_in_the_middle_leaves_no_bag_behind(sequence: Path, broken: str) -> None:
    path = sorted((sequence / broken).iterdir())[5]
    path.write_bytes(path.read_bytes()[:-13])
    with pytest.raises(DataError, match=rf"{path.name}.* (is truncated|cut short)"):
        convert(sequence)
    assert sorted(child.name for child in sequence.parent.iterdir()) == [sequence.name, "sdk"]


def test_command_line_converts_and_reports_in_one_line(sequence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, sdk = sequence.parent / "bag", sequence.parent / "sdk"
    command = ["convert", "robotcar", str(sequence), "--out", str(bag)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "models is not a folder" in error
    command += ["--extrinsics", str(sdk / "extrinsics"), "--models", str(sdk / "models"), "--stride", "5"]
    assert main([*command, "--no-undistort", "--compressed", "--lidar", "none"]) == 0
    _, messages = read(bag)
    assert len(messages["/camera/image_raw/compressed"]) == 2
    assert "/lidar/points" not in messages
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert len(read(bag)[1]["/lidar/points"]) == 2
    assert main([*command, "--overwrite", "--lidar", "ldmrs"]) == 1
    assert "ldmrs.timestamps is missing" in capsys.readouterr().err
    assert len(read(bag)[1]["/lidar/points"]) == 2  # the bag from before is untouched


def test_all_sequences_share_one_map(sequence: Path) -> None:
    """Bags of two drives over the same place have the same poses there."""
    other = mini.write_sequence(sequence.parent / "later", TIMES[4:], duration_s=1.0)
    _, first = read(convert(sequence, modalities=("image",)))
    _, second = read(convert(other, modalities=("image",), overwrite=True))
    poses: list[list[Pose]] = [[decode_pose(m) for m in bag["/ground_truth/pose"]] for bag in (first, second)]
    for left, right in zip(poses[0][4:], poses[1], strict=True):
        np.testing.assert_array_equal(left.matrix, right.matrix)
