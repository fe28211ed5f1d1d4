# SPDX-License-Identifier: Apache-2.0
"""Poses of a bag along its transforms, and what happens where clocks jump back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bag_builders import (
    MS,
    T0,
    Message,
    assert_pose,
    calibration,
    clouds,
    images,
    odometry,
    poses,
    source,
    true_pose,
    write_bag,
)
from helpers import yaw_pose
from training.sources.options import SourceOptions
from training.sources.rosbag.poses import PoseCollector
from vmloc_ros.bags.messages import pose_stamped_message, tf_message, transform_message
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose

BASE_FROM_IMU = Pose.from_xyz_rpy([0.3, -0.1, 0.2], [0.1, 0.2, 0.3])


def map_from_odom(stamp_ns: int) -> Pose:
    """A drift that grows linearly: interpolation is exact."""
    seconds = (stamp_ns - T0) * 1e-9
    return yaw_pose(5 + 0.1 * seconds, 0.2 * seconds, 20 + 3 * seconds)


def transforms(
    parent: str,
    child: str,
    pose_at: Callable[[int], Pose],
    *,
    step: int,
    first: int = -3,
    count: int = 40,
    topic: str = "/tf",
) -> list[Message]:
    stamps = [T0 + (first + i) * step for i in range(count)]
    return [(topic, tf_message([(parent, child, pose_at(t), t)]), t) for t in stamps]


def drift(count: int = 40, topic: str = "/tf", **options: int) -> list[Message]:
    return transforms("map", "odom", map_from_odom, step=110 * MS, count=count, topic=topic, **options)


def motion(topic: str = "/tf", **options: int) -> list[Message]:
    return transforms("odom", "base_link", true_pose, step=70 * MS, topic=topic, **options)


def mount(topic: str = "/tf_static") -> list[Message]:
    return [(topic, tf_message([("base_link", "imu", BASE_FROM_IMU, 0)]), T0 - 1)]


def moving(pose: Pose) -> list[Message]:
    """A sensor on a turning mast, which has nothing to do with the body's pose."""
    return transforms("base_link", "mast", lambda _: pose, step=50 * MS)


# --- the chain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["/tf", ""])
def test_each_transform_of_the_chain_is_interpolated_at_the_frames_stamp(tmp_path: Path, chosen: str) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), drift(), motion(), calibration())
    opened = source(path, pose_topic=chosen)
    assert (opened.map_frame, opened.body_frame, len(opened)) == ("map", "base_link", 10)
    for sample in opened:
        t = sample.frame.stamp_ns
        assert_pose(sample.map_from_body, map_from_odom(t) @ true_pose(t))
        assert sample.frame.camera_from_lidar is not None


def test_static_transforms_extend_the_chain_to_any_body(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), drift(), motion(), mount())
    opened = source(path, ("image",), body_frame="imu")
    assert opened.body_frame == "imu"
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, map_from_odom(stamp) @ true_pose(stamp) @ BASE_FROM_IMU)


def test_a_chain_may_begin_anywhere_and_go_up_as_well_as_down(tmp_path: Path) -> None:
    """Some localizers publish odom from map, upside down, so that each frame keeps one parent."""
    upside_down = transforms("odom", "map", lambda t: map_from_odom(t).inverse(), step=50 * MS)
    path = write_bag(tmp_path / "bag", images(start=T0, step=50 * MS), upside_down, motion(), mount())
    opened = source(path, ("image",), body_frame="imu")
    assert len(opened) == 10
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, map_from_odom(stamp) @ true_pose(stamp) @ BASE_FROM_IMU)
    assert source(path, ("image",), map_frame="odom").map_frame == "odom"


def test_transforms_of_a_namespace_bring_their_own_static_ones(tmp_path: Path) -> None:
    streams = drift(topic="/robot/tf"), motion(topic="/robot/tf"), mount("/robot/tf_static")
    opened = source(write_bag(tmp_path / "bag", images(), *streams), ("image",), body_frame="imu")
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, map_from_odom(stamp) @ true_pose(stamp) @ BASE_FROM_IMU)


def test_a_topic_of_poses_is_preferred_to_transforms(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), drift(), motion(), odometry())
    assert source(path, ("image",)).map_frame == "odom"
    assert source(path, ("image",), pose_topic="/tf").map_frame == "map"


def test_single_transforms_serve_as_poses_with_their_own_frames(tmp_path: Path) -> None:
    """As motion capture publishes them."""
    stamps = [T0 + i * 50 * MS for i in range(-2, 40)]
    vicon = [("/vicon/cart", transform_message(t, "world", "cart", true_pose(t)), t) for t in stamps]
    opened = source(write_bag(tmp_path / "bag", images(), vicon), ("image",))
    assert (opened.map_frame, opened.body_frame, len(opened)) == ("world", "cart", 10)
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), count=st.integers(2, 9))
def test_any_two_frames_of_any_tree_are_related_as_their_places_say(data: st.DataObject, seed: int, count: int) -> None:
    """Every frame has a place in the world; transforms between neighbours are published either way round."""
    rng = np.random.default_rng(seed)
    world = [Pose.from_xyz_rpy(rng.normal(0, 3, 3), rng.uniform(-1.5, 1.5, 3)) for _ in range(count)]
    goal = data.draw(st.integers(1, count - 1))
    collector = PoseCollector(Path("bag"), "/tf", True, SourceOptions(map_frame="f0", body_frame=f"f{goal}"))
    for child in range(1, count):
        ends = [data.draw(st.integers(0, child - 1)), child]
        if data.draw(st.booleans()):
            ends.reverse()
        edge = f"f{ends[0]}", f"f{ends[1]}", world[ends[0]].inverse() @ world[ends[1]]
        for stamp in (T0, T0 + 10 * MS):
            collector.add(tf_message([(*edge, stamp)]), stamp)
    [label], outside = collector.finish().label(np.array([T0 + 3 * MS]), gap_s=1.0)
    assert label is not None
    assert not outside.any()
    np.testing.assert_allclose(label.matrix, (world[0].inverse() @ world[goal]).matrix, atol=1e-9)


# --- no pose -----------------------------------------------------------------------------------------------------


def test_a_frame_needs_every_transform_of_the_chain(tmp_path: Path) -> None:
    """The drift ends at 0.55 s, the motion begins at 0.21 s: frames between have both."""
    path = write_bag(tmp_path / "bag", images(), drift(count=9), motion(first=3))
    opened = source(path, ("image",))
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in (3, 4, 5)]
    assert opened.report["frames outside the poses' time span"] == 7


def test_a_gap_in_one_transform_of_the_chain_drops_its_frames(tmp_path: Path) -> None:
    sparse = [message for message in drift() if not T0 + 200 * MS < message[2] < T0 + 600 * MS]  # 0.11 s, then 0.66 s
    path = write_bag(tmp_path / "bag", images(), sparse, motion())
    opened = source(path, ("image",), pose_gap_s=0.3)
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in (0, 1, 7, 8, 9)]
    assert opened.report["frames in a gap between poses"] == 5
    assert len(source(path, ("image",), pose_gap_s=0.6)) == 10


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "/tf does not lead from map to base_link: above base_link the chain ends at odom; frames known: base_"),
        ({"map_frame": "odom", "body_frame": "camera"}, "from odom to camera: camera is unknown; frames known: base_"),
        ({"map_frame": "odom", "body_frame": "odom"}, "nothing moves between odom and odom"),
        ({"map_frame": "base_link", "body_frame": "imu"}, "nothing moves between base_link and imu in /tf; choose"),
        ({"map_frame": "odom", "pose_topic": "/tf_static"}, "/tf_static does not lead from odom to base_link"),
    ],
)
def test_a_broken_chain_is_refused_with_where_it_ends(tmp_path: Path, options: dict[str, str], match: str) -> None:
    path = write_bag(tmp_path / "bag", images(), motion(), mount())
    with pytest.raises(DataError, match=rf"bag: .*{match}"):
        source(path, ("image",), **options)


def test_transforms_that_go_round_in_a_circle_are_refused_only_where_the_chain_is_on_it(tmp_path: Path) -> None:
    twice = transforms("map", "base_link", true_pose, step=70 * MS)
    path = write_bag(tmp_path / "bag", images(), drift(), motion(), twice, mount())
    ways = "in two ways, map -> base_link and map -> odom -> base_link"
    with pytest.raises(DataError, match=f"leads from map to base_link {ways}"):
        source(path, ("image",))
    world = transforms("world", "base_link", true_pose, step=70 * MS)  # ground truth beside the robot's own tree
    opened = source(write_bag(tmp_path / "two", images(), drift(), motion(), world), ("image",), map_frame="world")
    assert_pose(opened.poses()[3], true_pose(opened.stamps_ns()[3]))


def test_transforms_of_another_time_are_refused_with_their_spans(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(start=T0 + 10**12), drift(), motion())
    span = rf"map -> odom: 40 from {T0 - 330 * MS} to {T0 + 3960 * MS} ns; odom -> base_link: 40 from"
    with pytest.raises(DataError, match=rf"none of 10 frames .* poses of /tf \({span} .* share one clock"):
        source(path, ("image",))


def test_poses_in_several_frames_are_refused(tmp_path: Path) -> None:
    moved = [("/ground_truth/pose", pose_stamped_message(T0, "odom", true_pose(T0)), T0)]
    with pytest.raises(
        DataError, match=r"/ground_truth/pose are of several frames \(map -> body: 32, odom -> body: 1\), as two"
    ):
        source(write_bag(tmp_path / "bag", images(), poses(), moved), ("image",))


def test_only_transforms_of_the_chain_need_to_be_valid(tmp_path: Path) -> None:
    broken = motion()
    broken[5][1].transforms[0].transform.rotation.w = float("nan")
    streams = images(), drift(), mount(), moving(Pose.identity())
    path = write_bag(tmp_path / "bag", *streams, broken)
    with pytest.raises(DataError, match=rf"bag: /tf: invalid pose at {broken[5][2]} ns: .*nan"):
        source(path, ("image",))
    opened = source(path, ("image",), skip_invalid=True)
    assert (opened.report["invalid poses"], len(opened)) == (1, 10)
    harmless = moving(Pose.identity())
    harmless[5][1].transforms[0].transform.translation.x = float("nan")
    assert len(source(write_bag(tmp_path / "well", images(), drift(), motion(), harmless), ("image",))) == 10


# --- clocks that jump back ---------------------------------------------------------------------------------------


def again(messages: Iterable[Message], logged_later: int) -> list[Message]:
    return [(topic, message, stamp + logged_later) for topic, message, stamp in messages]


def elsewhere(stamp_ns: int) -> Pose:
    return yaw_pose(1000, 0, 90) @ true_pose(stamp_ns)


@pytest.mark.parametrize("topic", ["/gt", "/tf"])
def test_a_simulation_that_starts_again_elsewhere_does_not_mix_its_two_passes(tmp_path: Path, topic: str) -> None:
    """The second pass has the same stamps but other places, and goes on for longer: only then do its frames count.

    Its images at 2.945 s, later than the first pass's, and at 3.045 s, between the poses of both, have no pose either.
    """

    def truth(pose_at: Callable[[int], Pose], count: int) -> list[Message]:
        if topic == "/tf":
            return transforms("map", "base_link", pose_at, step=70 * MS, count=count)
        stamps = [T0 + (i - 3) * 70 * MS for i in range(count)]
        return [(topic, pose_stamped_message(t, "map", pose_at(t)), t) for t in stamps]

    first = [*images(30), *truth(true_pose, 47)]  # images to 2.9 s, poses to 3.01 s
    second = [*images(50, start=T0 + 45 * MS), *truth(elsewhere, 80)]
    path = write_bag(tmp_path / "bag", first, again(second, 10_000 * MS))
    opened = source(path, ("image",))
    samples = list(opened)
    assert opened.stamps_ns() == [sample.frame.stamp_ns for sample in samples]
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in range(30)] + [
        T0 + (45 + i * 100) * MS for i in range(31, 50)
    ]
    assert [int(sample.frame.image[0, 0, 0]) for sample in samples] == [*range(30), *range(31, 50)]
    for sample in samples:
        stamp = sample.frame.stamp_ns
        assert_pose(sample.map_from_body, true_pose(stamp) if stamp < T0 + 3000 * MS else elsewhere(stamp))
    assert opened.report["poses after the clock jumped back"] == 47
    assert opened.report["frames after the clock jumped back"] == 31


def test_a_camera_whose_clock_alone_jumps_back_has_no_frames_until_it_has_caught_up(tmp_path: Path) -> None:
    late = again(images(40, start=T0 + 50 * MS), 2000 * MS)  # the camera starts anew after 2 s
    opened = source(write_bag(tmp_path / "bag", images(20), late, poses(last=90)), ("image",))
    assert opened.stamps_ns() == [T0 + i * 100 * MS for i in range(20)] + [
        T0 + (50 + i * 100) * MS for i in range(19, 40)
    ]
    assert [int(sample.frame.image[0, 0, 0]) for sample in opened] == [*range(20), *range(19, 40)]
    assert opened.report["frames after the clock jumped back"] == 19


def test_one_pose_with_a_stamp_of_zero_costs_no_more_than_itself(tmp_path: Path) -> None:
    """Drivers send such before they know the time."""
    unset = [("/ground_truth/pose", pose_stamped_message(0, "map", elsewhere(T0)), T0 + 250 * MS)]
    opened = source(write_bag(tmp_path / "bag", images(), poses(), unset), ("image",), pose_gap_s=0.2)
    assert opened.report["poses with a false stamp"] == 1
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))
    assert len(opened) == 10


def test_of_two_poses_with_one_stamp_the_first_counts(tmp_path: Path) -> None:
    """A relay repeats what another one has sent already, or with a slight difference."""
    nearby = yaw_pose(0.1, 0.0, 1.0)
    repeated = [
        ("/ground_truth/pose", pose_stamped_message(t, "map", nearby @ true_pose(t)), t + 1) for _, _, t in poses()
    ]
    opened = source(write_bag(tmp_path / "bag", images(), poses(), repeated), ("image",))
    for stamp, pose in zip(opened.stamps_ns(), opened.poses(), strict=True):
        assert_pose(pose, true_pose(stamp))
