# SPDX-License-Identifier: Apache-2.0
"""The buffer of stamped poses: interpolation against brute force, jumps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import yaw_pose
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import rotation_angle_deg
from vmloc_ros.core.pose_buffer import MAX_SPEED_M_S, PoseBuffer, find_jump

MS = 1_000_000

stamps_ms = st.lists(st.integers(0, 5_000), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(stamps=stamps_ms, queries=stamps_ms, capacity=st.integers(1, 20))
def test_the_buffer_interpolates_what_it_holds_like_brute_force(stamps, queries, capacity):
    """Stamps in any order: more than a second back is a jump, less is a straggler."""
    buffer, kept = PoseBuffer(capacity=capacity, max_gap_s=1.0), []
    for stamp in stamps:
        buffer.add(stamp * MS, yaw_pose(0.01 * stamp, 0.02 * stamp, 0.1 * stamp))
        if kept and stamp < kept[-1] - 1_000:
            kept = []
        if not kept or stamp > kept[-1]:
            kept = [*kept, stamp][-capacity:]
        assert len(buffer) == len(kept) <= capacity
    for query in queries:
        older, newer = [t for t in kept if t <= query], [t for t in kept if t >= query]
        if not older or not newer or newer[0] - older[-1] > 1_000:
            with pytest.raises(DataError):
                buffer.at(query * MS)
        else:  # the drive is uniform: what lies between two poses is known
            pose = buffer.at(query * MS)
            np.testing.assert_allclose(pose.position_m, [0.01 * query, 0.02 * query, 0], atol=1e-9)
            expected = yaw_pose(0.0, yaw_deg=0.1 * query).quaternion_wxyz
            assert rotation_angle_deg(pose.quaternion_wxyz, expected) < 1e-6


def test_nothing_is_interpolated_across_a_teleport():
    buffer = PoseBuffer()
    buffer.add(0, yaw_pose(0.0))
    buffer.add(20 * MS, yaw_pose(50.0))
    for stamp_ns in (0, 10 * MS):
        with pytest.raises(DataError, match="does not reach back"):
            buffer.at(stamp_ns)
    np.testing.assert_allclose(buffer.at(20 * MS).position_m, [50, 0, 0])


def test_the_error_gives_the_reason():
    buffer = PoseBuffer(max_gap_s=0.1)
    with pytest.raises(DataError, match="nothing received yet"):
        buffer.at(0)
    buffer.add(100 * MS, yaw_pose(0.0))
    buffer.add(300 * MS, yaw_pose(0.0))
    with pytest.raises(DataError, match=r"the latest is 0\.200 s older"):
        buffer.at(500 * MS)
    for stamp_ns in (50 * MS, 200 * MS):
        with pytest.raises(
            DataError, match=r"does not reach back to the image's stamp, or has a gap of more than 0\.1 s"
        ):
            buffer.at(stamp_ns)


@pytest.mark.parametrize(
    ("after_ms", "after", "reason"),
    [
        (-990, yaw_pose(0.0), None),
        (-1_530, yaw_pose(0.0), "the odometry's stamps went back by 1.5 s"),
        (20, yaw_pose(50.0), "the odometry jumped by 50.0 m within 0.02 s"),
        (20, yaw_pose(1.4), None),
        (20, yaw_pose(0.0, yaw_deg=90.0), "the odometry turned by 90 deg within 0.02 s"),
        (20, yaw_pose(0.0, yaw_deg=25.0), None),
    ],
)
def test_a_jump_is_detected_with_its_reason(after_ms, after, reason):
    start_ns = 5_000 * MS
    assert find_jump(start_ns, yaw_pose(0.0), start_ns + after_ms * MS, after, MAX_SPEED_M_S, 1.0) == reason


def test_two_publishers_of_one_odometry_are_named_and_nothing_is_interpolated_until_one_stops():
    buffer = PoseBuffer()
    for i in range(20):
        buffer.add(i * 20 * MS, yaw_pose(0.02 * i))
        buffer.add(i * 20 * MS, yaw_pose(100 + 0.02 * i))
    reason = r"jumped by 100\.0 m within 0\.00 s, and 20 of the latest 20 messages jump .* two publishers\? Stop one"
    for stamp_ns in (380 * MS, 370 * MS):
        with pytest.raises(DataError, match=reason):
            buffer.at(stamp_ns)
    for i in range(20, 40):
        buffer.add(i * 20 * MS, yaw_pose(0.02 * i))
    np.testing.assert_allclose(buffer.at(770 * MS).position_m, [0.77, 0, 0], atol=1e-9)
    assert buffer.alternation is None


@pytest.mark.parametrize("count", [1, 4])
def test_a_few_resets_are_no_second_publisher(count):
    buffer = PoseBuffer()
    for i in range(40):
        buffer.add(i * 20 * MS, yaw_pose(0.02 * i + 100 * min(i, count)))
    np.testing.assert_allclose(buffer.at(770 * MS).position_m, [0.77 + 100 * count, 0, 0], atol=1e-9)
