# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lidar_messages import layout_message
from rosbags.rosbag2 import StoragePlugin, Writer

from bag_builders import (
    BASE_FROM_CAMERA,
    BASE_FROM_LIDAR,
    CAMERA,
    MS,
    T0,
    Message,
    assert_pose,
    calibration,
    clouds,
    depths,
    images,
    odometry,
    poses,
    source,
    true_pose,
    write_bag,
)
from training.sources import open_sources
from training.sources.options import SourceOptions
from training.sources.rosbag.source import is_bag
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import camera_info_message, image_message, typestore
from vmloc_ros.core.errors import DataError

OPTIONS = SourceOptions()


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write_bag(tmp_path / "bag", images(), clouds(), poses(), calibration())


# --- frames and their poses --------------------------------------------------------------------------------------


def test_every_image_is_a_frame_with_its_nearest_cloud_and_the_calibration(bag: Path) -> None:
    frames = [sample.frame for sample in source(bag)]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(10))
    assert [float(frame.cloud.xyz_m[0, 0]) for frame in frames] == [i + 1 for i in range(10)]
    for frame in frames:
        assert frame.camera == CAMERA
        expected = BASE_FROM_CAMERA.inverse() @ BASE_FROM_LIDAR
        np.testing.assert_allclose(frame.camera_from_lidar.matrix, expected.matrix, atol=1e-9)


def test_mounts_are_the_tf_static_transforms_of_the_messages_frames(bag: Path) -> None:
    mounts = source(bag).mounts
    assert mounts.keys() == {"image", "lidar"}
    np.testing.assert_allclose(mounts["image"].matrix, BASE_FROM_CAMERA.matrix, atol=1e-9)
    np.testing.assert_allclose(mounts["lidar"].matrix, BASE_FROM_LIDAR.matrix, atol=1e-9)


def test_a_clouds_times_count_from_its_frames_stamp_not_from_its_own(tmp_path: Path, bag: Path) -> None:
    for sample in source(bag):
        np.testing.assert_allclose(sample.frame.cloud.time_s, 0.03, atol=1e-7)
    early = write_bag(tmp_path / "early", images(), clouds(offset=-20 * MS), poses(), calibration())
    paired = [sample.frame for sample in source(early) if sample.frame.image is not None]
    assert len(paired) == 10
    for frame in paired:
        np.testing.assert_allclose(frame.cloud.time_s, -0.02, atol=1e-7)
    alone = [sample.frame for sample in source(early, ("lidar",))]  # a frame of their own stamp
    assert [frame.cloud.time_s for frame in alone] == [None] * len(alone)


def test_a_mount_that_tf_static_lacks_is_missing(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    assert source(path).mounts == {}
    mounts = source(path, body_frame="camera_optical_frame").mounts  # the pose is the camera's own
    assert mounts.keys() == {"image"}
    np.testing.assert_array_equal(mounts["image"].matrix, np.eye(4))


def test_image_i_has_the_pose_of_its_own_stamp_without_any_shift(bag: Path) -> None:
    """The released loaders are off by one frame; here each pose belongs to the stamp of the pixels beside it."""
    samples = list(source(bag))
    assert len(samples) == 10
    for i, sample in enumerate(samples):
        assert sample.frame.stamp_ns == T0 + i * 100 * MS
        assert int(sample.frame.image[0, 0, 0]) == i
        assert_pose(sample.map_from_body, true_pose(sample.frame.stamp_ns))


def test_length_stamps_and_poses_agree_with_what_iterating_gives_each_time(bag: Path) -> None:
    opened = source(bag)
    for _ in range(2):
        samples = list(opened)
        assert len(opened) == len(samples)
        assert opened.stamps_ns() == [sample.frame.stamp_ns for sample in samples]
        assert [id(pose) for pose in opened.poses()] == [id(sample.map_from_body) for sample in samples]


def test_frames_outside_the_poses_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(first=3, last=9))  # 0.21 s to 0.56 s
    opened = source(path)
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in (3, 4, 5)]
    assert opened.report["frames"] == 3
    assert opened.report["frames outside the poses' time span"] == 7
    assert [int(sample.frame.image[0, 0, 0]) for sample in opened] == [3, 4, 5]


def test_frames_in_a_long_gap_between_poses_are_dropped_and_counted(tmp_path: Path) -> None:
    sparse = [message for message in poses() if not T0 + 250 * MS < message[2] < T0 + 600 * MS]  # 0.21 s, then 0.63 s
    path = write_bag(tmp_path / "bag", images(), clouds(), sparse)
    opened = source(path, pose_gap_s=0.3)
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in (0, 1, 2, 7, 8, 9)]
    assert opened.report["frames in a gap between poses"] == 4
    assert len(source(path, pose_gap_s=0.5)) == 10


def test_a_cloud_without_its_image_keeps_the_cameras_extrinsics(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(3), clouds(30), poses(last=60), calibration())
    frames = [sample.frame for sample in source(path)]
    alone = [frame for frame in frames if frame.image is None]
    assert len(alone) > 10
    assert all(frame.camera_from_lidar is not None for frame in alone)


def test_the_stride_takes_every_nth_frame(bag: Path) -> None:
    opened = source(bag, stride=4)
    assert opened.stamps_ns() == [T0 + i * 400 * MS for i in range(3)]
    assert [int(sample.frame.image[0, 0, 0]) for sample in opened] == [0, 4, 8]


def test_poses_that_arrive_out_of_order_are_sorted(tmp_path: Path) -> None:
    late = [
        (topic, message, stamp + (500 * MS if i % 3 == 0 else 0)) for i, (topic, message, stamp) in enumerate(poses())
    ]
    for sample in source(write_bag(tmp_path / "bag", images(), late), ("image",)):
        assert_pose(sample.map_from_body, true_pose(sample.frame.stamp_ns))


def test_an_image_without_a_cloud_nearby_goes_alone(tmp_path: Path) -> None:
    kept = [message for i, message in enumerate(clouds()) if i not in (4, 5, 6)]
    opened = source(write_bag(tmp_path / "bag", images(), kept, poses()), slop_s=0.05)
    assert [sample.frame.modalities for sample in opened] == [
        ("image",) if i in (4, 5, 6) else ("image", "lidar") for i in range(10)
    ]
    assert (opened.report["paired"], opened.report["image alone"]) == (7, 3)


def test_a_bag_played_in_a_loop_and_recorded_gives_each_stamp_once(tmp_path: Path) -> None:
    once = [*images(count=10, step=400 * MS), *poses(last=80)]
    again = [(topic, message, stamp + 6_000 * MS) for topic, message, stamp in once]  # logged later, same headers
    opened = source(write_bag(tmp_path / "bag", once, again), ("image",))
    stamps = [sample.frame.stamp_ns for sample in opened]
    assert stamps == opened.stamps_ns() == [T0 + i * 400 * MS for i in range(10)]
    assert len(opened) == opened.report["frames"] == 10
    assert opened.report["frames outside the poses' time span"] == 0


# --- modalities and pose types -----------------------------------------------------------------------------------


def test_depth_comes_in_metres(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), depths(), poses())
    samples = list(source(path, ("image", "depth")))
    assert len(samples) == 10
    for i, sample in enumerate(samples):
        np.testing.assert_allclose(sample.frame.depth_m, (1000 + i) / 1000, rtol=1e-6)


def test_a_bag_of_clouds_alone_serves_a_lidar_model(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", clouds(), poses()), ("lidar",))
    assert opened.modalities == ("lidar",)
    samples = list(opened)
    assert [sample.frame.modalities for sample in samples] == [("lidar",)] * 10
    for sample in samples:
        assert_pose(sample.map_from_body, true_pose(sample.frame.stamp_ns))


def test_only_wanted_modalities_are_read(bag: Path) -> None:
    assert {sample.frame.modalities for sample in source(bag, ("image",))} == {("image",)}


def test_pose_stamped_takes_its_body_from_the_options_and_its_map_from_the_message(bag: Path) -> None:
    opened = source(bag, body_frame="imu_link")
    assert (opened.map_frame, opened.body_frame) == ("map", "imu_link")


def test_odometry_serves_as_pose_with_its_own_frames(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", images(), clouds(), odometry()))
    assert (opened.map_frame, opened.body_frame) == ("odom", "base_footprint")
    for sample in opened:
        assert_pose(sample.map_from_body, true_pose(sample.frame.stamp_ns))


def test_ground_truth_is_preferred_to_drifting_odometry_unless_the_options_choose(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), odometry())
    assert source(path).map_frame == "map"
    assert source(path, pose_topic="/odom").map_frame == "odom"


def test_map_points_lie_where_the_true_poses_put_them(bag: Path) -> None:
    points = source(bag).map_points(every=5)
    assert points.shape == (10, 3)
    for row, i in ((0, 0), (5, 5)):
        expected = (true_pose(T0 + i * 100 * MS) @ BASE_FROM_LIDAR).transform(np.full(3, i + 1.0))
        np.testing.assert_allclose(points[row], expected, atol=1e-5)


# --- intrinsics --------------------------------------------------------------------------------------------------


def test_a_bag_without_camera_info_has_frames_without_intrinsics(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    assert all(sample.frame.camera is None for sample in source(path))
    with pytest.raises(DataError, match="has no camera info topic /camera_info; it has /camera/image_raw"):
        list(source(path, camera_info_topic="/camera_info"))


def test_of_several_cameras_the_one_beside_the_image_counts(tmp_path: Path) -> None:
    """An RGB-D camera publishes one camera info for each of its pictures."""
    other = dataclasses.replace(CAMERA, fx=99.0)
    infos = [("/camera/depth/camera_info", camera_info_message(T0, "depth", other), T0)]
    path = write_bag(tmp_path / "bag", images(), depths(), poses(), calibration(), infos)
    assert {sample.frame.camera for sample in source(path, ("image", "depth"))} == {CAMERA}
    opened = source(path, ("image",), camera_info_topic="/camera/depth/camera_info")
    assert {sample.frame.camera for sample in opened} == {other}


def test_several_cameras_none_of_them_beside_the_image_are_ambiguous(tmp_path: Path) -> None:
    infos = [(f"/{name}/camera_info", camera_info_message(T0, name, CAMERA), T0) for name in "ab"]
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), infos)
    with pytest.raises(DataError, match=r"several camera info topics: .*; set source\.camera_info_topic"):
        list(source(path, ("image",)))
    assert len(list(source(path, ("lidar",)))) == 10  # a lidar model needs none


def test_an_uncalibrated_camera_is_a_camera_without_intrinsics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blank = camera_info_message(T0, "camera", CAMERA)
    blank.k[:], blank.p[:] = 0, 0
    path = write_bag(tmp_path / "bag", images(), clouds(), poses(), [("/camera/camera_info", blank, T0)])
    read = list(source(path))
    assert len(read) == 10
    assert all(sample.frame.camera is None for sample in read)
    assert caplog.text.count("camera info is uncalibrated") == 1


def infos_at(*changes: Any) -> list[Message]:
    """One CameraInfo for each image; the functions change some of them."""
    messages = [camera_info_message(T0 + i * 100 * MS, "camera_optical_frame", CAMERA) for i in range(10)]
    for message, change in zip(messages, changes, strict=False):
        change(message)
    return [("/camera/camera_info", message, T0 + i * 100 * MS) for i, message in enumerate(messages)]


def uncalibrated(message: Any) -> None:
    message.k[:], message.p[:] = 0, 0


def zoomed(message: Any) -> None:
    message.k[[0, 4]] *= 2


def same(message: Any) -> None:
    pass


def test_the_first_valid_camera_info_holds_for_the_frames_before_it_too(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), poses(), infos_at(uncalibrated, uncalibrated))
    opened = source(path, ("image",))
    for _ in range(2):
        assert [sample.frame.camera for sample in opened] == [CAMERA] * 10


def test_a_camera_that_changes_has_its_latest_camera_info_as_on_the_robot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write_bag(tmp_path / "bag", images(), poses(), infos_at(*[same] * 5, *[zoomed] * 5))
    opened = source(path, ("image",))
    for _ in range(2):
        focal = [sample.frame.camera.fx for sample in opened if sample.frame.camera]
        assert (focal[0], focal[-1]) == (CAMERA.fx, 2 * CAMERA.fx)
    assert caplog.text.count("the camera info has changed") == 1


def test_rectified_pictures_have_p(tmp_path: Path) -> None:
    def rectified(message: Any) -> None:
        message.p[[0, 5]] *= 2
        message.d[0] = -0.3

    topic = "/camera/image_rect_color"
    path = write_bag(tmp_path / "bag", images(topic=topic), poses(), infos_at(*[rectified] * 10))
    expected = dataclasses.replace(CAMERA, fx=2 * CAMERA.fx, fy=2 * CAMERA.fy)
    assert {sample.frame.camera for sample in source(path, ("image",))} == {expected}
    (raw,) = {sample.frame.camera for sample in source(path, ("image",), image_kind="raw")}
    assert raw is not None
    assert raw.distortion is not None
    assert (raw.fx, raw.undistorted) == (CAMERA.fx, expected)


def test_a_camera_info_of_another_video_mode_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wide(message: Any) -> None:
        message.height = 4
        message.k[5], message.p[6] = 1.5, 1.5

    path = write_bag(tmp_path / "bag", images(), poses(), infos_at(*[wide] * 10))
    assert {sample.frame.camera for sample in source(path, ("image",))} == {None}
    assert caplog.text.count("the picture is 8x6, but its camera info is of pictures of 8x4") == 1


# --- storage -----------------------------------------------------------------------------------------------------


def test_a_bare_storage_file_is_a_bag_too(bag: Path, tmp_path: Path) -> None:
    (storage,) = bag.glob("*.mcap")
    bare = Path(shutil.copy(storage, tmp_path / "bare.mcap"))
    assert is_bag(bare)
    assert len(source(bare)) == 10


def test_a_folder_of_bags_gives_a_source_for_each_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_bag(tmp_path / "bags" / name, images(), clouds(), poses())
    (tmp_path / "bags" / "notes.txt").write_text("not a bag")
    opened = open_sources(tmp_path / "bags", "train", OPTIONS, ("image",))
    assert [each.name for each in opened] == ["a", "b"]
    assert [each.name for each in open_sources(tmp_path / "bags" / "b", "test", OPTIONS, ("image",))] == ["b"]


# --- what is rejected --------------------------------------------------------------------------------------------


def test_a_bag_without_a_pose_topic_is_rejected_with_what_it_has(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds())
    with pytest.raises(
        DataError, match=r"bag has no pose topic \(geometry_msgs/msg/PoseStamped or .*tfMessage\); it has /camera"
    ):
        source(path)
    with pytest.raises(DataError, match=r"has no pose topic /gt; it has /camera/image_raw \(sensor_msgs/msg/Image\)"):
        source(path, pose_topic="/gt")


@pytest.mark.parametrize(
    ("modalities", "match"),
    [
        (("image",), "has no image topic"),
        (("lidar",), r"has no lidar topic \(sensor_msgs/msg/PointCloud2\)"),
        (("depth",), "has no depth topic"),
    ],
)
def test_a_missing_sensor_is_rejected(tmp_path: Path, modalities: tuple[str, ...], match: str) -> None:
    other = {"image": clouds(), "lidar": images(), "depth": images()}[modalities[0]]
    with pytest.raises(DataError, match=match):
        source(write_bag(tmp_path / "bag", other, poses()), modalities)


@pytest.mark.parametrize(
    ("option", "topic", "match"),
    [
        (
            "image_topic",
            "/lidar/points",
            "the image topic /lidar/points is sensor_msgs/msg/PointCloud2, expected sensor_msgs/msg/Image or",
        ),
        ("cloud_topic", "/camera/image_raw", "the lidar topic /camera/image_raw is sensor_msgs/msg/Image, expected"),
        ("pose_topic", "/lidar/points", "the pose topic /lidar/points is sensor_msgs/msg/PointCloud2, expected"),
        ("image_topic", "/nothing", "has no image topic /nothing; it has"),
    ],
)
def test_a_topic_of_the_wrong_type_or_name_is_rejected(bag: Path, option: str, topic: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        source(bag, **{option: topic})


def test_several_candidates_are_ambiguous_until_one_is_chosen(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), images(topic="/rear/image_raw"), poses(), poses(topic="/gps/pose"))
    with pytest.raises(
        DataError, match=r"several image topics: /camera/image_raw .*, /rear/image_raw .*; set source\.image_topic"
    ):
        source(path, ("image",))
    with pytest.raises(
        DataError, match=r"several pose topics: /gps/pose .*, /ground_truth/pose .*; set source\.pose_topic"
    ):
        source(path, ("image",), image_topic="/rear/image_raw")
    assert len(source(path, ("image",), image_topic="/rear/image_raw", pose_topic="/gps/pose")) == 10


def test_clocks_that_do_not_overlap_are_rejected_with_the_poses_span(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(start=T0 + 10**12), poses())
    with pytest.raises(DataError, match=rf"none of 10 frames .* from {T0 - 140 * MS} to .* share one clock"):
        source(path, ("image",))


def write_declared(path: Path, topic: str, kind: str, *streams: Iterable[Message]) -> Path:
    """A bag that declares a topic without any message."""
    store = typestore()
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection(topic, kind, typestore=store)
        connections: dict[str, Any] = {}
        for name, message, stamp in itertools.chain(*streams):
            if name not in connections:
                connections[name] = writer.add_connection(name, message.__msgtype__, typestore=store)
            writer.write(connections[name], stamp, store.serialize_cdr(message, message.__msgtype__))
    return path


def test_a_declared_topic_without_messages_is_rejected_not_a_crash(tmp_path: Path) -> None:
    kind = "geometry_msgs/msg/PoseStamped"
    path = write_declared(tmp_path / "no poses", "/gt", kind, images())
    with pytest.raises(DataError, match="has no pose topic"):
        source(path, ("image",))
    with pytest.raises(DataError, match=r"none of 10 frames .* poses of /gt \(0 at all\)"):
        source(path, ("image",), pose_topic="/gt")
    path = write_declared(tmp_path / "no images", "/image", "sensor_msgs/msg/Image", poses())
    with pytest.raises(DataError, match=r"none of 0 frames of /image"):
        source(path, ("image",), image_topic="/image")


def test_an_empty_bag_is_rejected(tmp_path: Path) -> None:
    path = write_declared(tmp_path / "bag", "/image", "sensor_msgs/msg/Image")
    with pytest.raises(DataError, match=r"bag .* is empty"):
        source(path)


def test_a_pose_of_nan_is_rejected_with_its_topic(tmp_path: Path) -> None:
    broken = poses()
    broken[4][1].pose.position.y = float("nan")
    with pytest.raises(DataError, match=rf"bag: /ground_truth/pose: invalid pose at {broken[4][2]} ns: .*finite"):
        source(write_bag(tmp_path / "bag", images(), broken), ("image",))
    opened = source(tmp_path / "bag", ("image",), skip_invalid=True)
    assert opened.report["invalid poses"] == 1
    for sample in opened:
        assert_pose(sample.map_from_body, true_pose(sample.frame.stamp_ns))


def test_extrinsics_of_nan_are_rejected_with_their_topic(tmp_path: Path) -> None:
    broken = calibration()
    broken[0][1].transforms[1].transform.rotation.w = float("nan")
    with pytest.raises(DataError, match="bag: /tf_static: invalid pose"):
        source(write_bag(tmp_path / "bag", images(), poses(), broken), ("image",))


def test_a_picture_of_another_size_is_rejected_with_its_topic_and_stamp(tmp_path: Path) -> None:
    """One CameraInfo cannot be true of both."""
    mixed = images()
    mixed[5] = (mixed[5][0], image_message(mixed[5][2], "camera", np.zeros((12, 16, 3), np.uint8), "rgb8"), mixed[5][2])
    opened = source(write_bag(tmp_path / "bag", mixed, poses()), ("image",))
    with pytest.raises(DataError, match=rf"/camera/image_raw at {T0 + 500 * MS} ns: .* 16x12, those before it 8x6"):
        list(opened)


def test_images_that_repeat_a_stamp_are_counted_once(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), images(3), poses())
    opened = source(path, ("image",))
    assert len(opened) == len(list(opened)) == 10
    assert opened.report["late or duplicate"] == 3


def test_a_header_too_short_to_hold_a_stamp_is_rejected(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for topic, message, stamp in poses():
            bag.write(topic, message, stamp)
        bag.write_raw("/camera/image_raw", "sensor_msgs/msg/Image", b"\0\1\0\0\0\0", T0)
    with pytest.raises(DataError, match=rf"bag: /camera/image_raw: damaged message logged at {T0} ns: it has 6 bytes"):
        source(tmp_path / "bag", ("image",))


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_bag_is_rejected_with_its_name(bag: Path, kept: float) -> None:
    (storage,) = bag.glob("*.mcap")
    content = storage.read_bytes()
    storage.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match="bag") as caught:
        list(source(bag))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(12))
def test_damage_inside_a_bag_raises_a_data_error_or_nothing(bag: Path, seed: int) -> None:
    (storage,) = bag.glob("*.mcap")
    content = bytearray(storage.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(len(content), size=6):
        content[position] = rng.integers(256)
    storage.write_bytes(content)
    with contextlib.suppress(DataError):
        list(source(bag))


def test_what_is_no_data_at_all_is_rejected_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="nowhere does not exist; give a bag, a folder of bags or a 7-Scenes scene"):
        open_sources(tmp_path / "nowhere", "train", OPTIONS, ("image",))
    for name in ("empty", "file.txt"):
        with pytest.raises(DataError, match=r"is neither a bag .* nor a folder of bags, nor a 7-Scenes scene"):
            open_sources(tmp_path / name, "train", OPTIONS, ("image",))
    for name in ("garbage.mcap", "garbage.db3", "garbage.bag"):
        (tmp_path / name).write_bytes(b"garbage" * 50)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            open_sources(tmp_path / name, "train", OPTIONS, ("image",))


# --- points' times, and empty scans ------------------------------------------------------------------------------

SWEEP_S = np.linspace(0, 0.1, 300, endpoint=False)
WALLS = np.random.default_rng(0).normal(0, 10, (300, 3)).astype(np.float32)


def scans(*, count: int = 10, empty: Iterable[int] = (), **times: Any) -> list[Message]:
    """Scans at the images' stamps whose points' times are given, by field."""
    found = []
    for number in range(count):
        values = {name: of(number) if callable(of) else of for name, of in times.items()}
        xyz = WALLS * np.float32(number not in empty)
        stamp = T0 + number * 100 * MS
        columns = {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], **values}
        found.append(("/lidar/points", layout_message(stamp, columns), stamp))
    return found


def emptied(message: Any, change: str) -> None:
    message.data, message.width, message.row_step = np.zeros(0, np.uint8), 0, 0
    if change == "no fields":
        message.fields, message.point_step = [], 0
    elif change == "no rows":
        message.height = 0


def test_the_reading_of_a_recording_is_its_scans_and_holds_from_the_first_frame_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ticks(number: int) -> np.ndarray:
        return np.round(SWEEP_S * (1e6 if number else 31e6)).astype(np.uint32)

    path = write_bag(tmp_path / "bag", images(), scans(t=ticks), poses(), calibration())
    with caplog.at_level("INFO"):
        recording = source(path)
    assert "points' times of /lidar/points: field 't', uint32, us since the header's stamp; a sweep" in caplog.text
    assert recording.readings["lidar_times"]["unit"] == "us"
    for _ in range(2):
        times = [sample.frame.cloud.time_s for sample in recording]
        np.testing.assert_allclose(times[0], 0.05, atol=1e-3)  # the broken one: all of the sweep's middle
        np.testing.assert_allclose(times[1:], np.tile(SWEEP_S, (9, 1)), atol=1e-6)
    assert sum("a scan do not fit" in record.message for record in caplog.records) == 1


def test_times_that_are_not_understood_are_left_out_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_bag(tmp_path / "bag", images(), scans(time=(SWEEP_S + 1.7e9).astype("f4")), poses(), calibration())
    recording = source(path)
    assert all(sample.frame.cloud.time_s is None for sample in recording)
    assert len([record for record in caplog.records if "left out" in record.message]) == 1
    assert "(float32) is 1700000000 to 1700000000, the same" in recording.readings["lidar_times"]["left_out"]
    untimed = write_bag(tmp_path / "untimed", images(), scans(), poses(), calibration())
    assert source(untimed).readings == {"lidar_times": None}
    assert source(untimed, ("image",)).readings == {}


@pytest.mark.parametrize("change", ["no points", "no fields", "no rows", "zeros"])
def test_an_empty_scan_is_a_missing_one(tmp_path: Path, change: str) -> None:
    messages = scans(empty=(3, 7) if change == "zeros" else ())
    if change != "zeros":
        for number in (3, 7):
            emptied(messages[number][1], change)
    path = write_bag(tmp_path / "bag", images(), messages, poses(), calibration())
    recording = source(path)
    present = [sample.frame.modalities for sample in recording]
    assert present == [("image",) if number in (3, 7) else ("image", "lidar") for number in range(10)]
    assert recording.report["empty scans"] == 2
    assert len(recording.map_points(every=1)) == 8 * len(WALLS)
    alone = source(path, ("lidar",))
    assert len(alone) == len(list(alone)) == 8
    assert T0 + 300 * MS not in alone.stamps_ns()


def test_a_recording_of_empty_scans_has_no_lidar_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_bag(tmp_path / "bag", images(), scans(empty=range(10)), poses(), calibration())
    recording = source(path)
    assert recording.modalities == ("image",)
    assert {sample.frame.modalities for sample in recording} == {("image",)}
    assert "all 10 scans of /lidar/points are empty" in caplog.text
    with pytest.raises(DataError, match="all 10 scans of /lidar/points are empty"):
        source(path, ("lidar",))


def test_a_scan_without_coordinates_is_a_missing_one_and_a_recording_of_them_an_error_that_names_the_fields(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some, every = scans(), scans()
    for _, message, _ in [some[4], *every]:
        message.fields = message.fields[:2]
    path = write_bag(tmp_path / "some", images(), some, poses(), calibration())
    assert [sample.frame.cloud is None for sample in source(path)] == [i == 4 for i in range(10)]
    assert "lacks field z; its fields: x, y" in caplog.text
    path = write_bag(tmp_path / "every", images(), every, poses(), calibration())
    with pytest.raises(DataError, match=r"10 of 10 messages of /lidar/points .* lacks field z; its fields: x, y"):
        list(source(path))


def test_depth_alone_has_the_camera_of_its_camera_info(tmp_path: Path) -> None:
    opened = source(write_bag(tmp_path / "bag", depths(), poses(), calibration()), ("depth",))
    assert next(iter(opened)).frame.camera == CAMERA
