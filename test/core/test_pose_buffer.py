# SPDX-License-Identifier: Apache-2.0
"""The odometry's past: interpolation against brute force, jumps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import yaw_pose
from vmloc_ros.core.geometry import rotation_angle_deg
from vmloc_ros.core.pose_buffer import OdometryBuffer

MS = 1_000_000

stamps_ms = st.lists(st.integers(0, 5_000), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(stamps=stamps_ms, queries=stamps_ms, capacity=st.integers(1, 20))
def test_the_buffer_interpolates_what_it_holds_like_brute_force(stamps, queries, capacity):
    """Stamps in any order: more than a second back is a jump, less is a straggler."""
    buffer, kept = OdometryBuffer(capacity=capacity, max_gap_s=1.0), []
    for stamp in stamps:
        jump = buffer.add(stamp * MS, yaw_pose(0.01 * stamp, 0.02 * stamp, 0.1 * stamp))
        if kept and stamp < kept[-1] - 1_000:
            assert jump.startswith("the odometry's stamps went back by ")
            assert float(jump.split()[-2]) == pytest.approx((kept[-1] - stamp) / 1_000, abs=0.051)
            kept = []
        else:
            assert jump is None
        if not kept or stamp > kept[-1]:
            kept = [*kept, stamp][-capacity:]
        assert len(buffer) == len(kept) <= capacity
    for query in queries:
        pose = buffer.at(query * MS)
        older, newer = [t for t in kept if t <= query], [t for t in kept if t >= query]
        if not older or not newer or newer[0] - older[-1] > 1_000:
            assert pose is None
        else:  # the drive is uniform: what lies between two poses is known
            np.testing.assert_allclose(pose.position_m, [0.01 * query, 0.02 * query, 0], atol=1e-9)
            expected = yaw_pose(0.0, yaw_deg=0.1 * query).quaternion_wxyz
            assert rotation_angle_deg(pose.quaternion_wxyz, expected) < 1e-6


def test_nothing_is_interpolated_across_a_teleport():
    buffer = OdometryBuffer()
    assert buffer.add(0, yaw_pose(0.0)) is None
    assert buffer.add(20 * MS, yaw_pose(50.0)) == "the odometry jumped by 50.0 m within 0.02 s"
    assert buffer.at(10 * MS) is None
    assert buffer.at(0) is None
    np.testing.assert_allclose(buffer.at(20 * MS).position_m, [50, 0, 0])
