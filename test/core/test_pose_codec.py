# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import yaw_pose
from vmloc_ros.core.config import from_mapping, to_mapping
from vmloc_ros.core.geometry import Pose, rotation_angle_deg
from vmloc_ros.core.pose_codec import PoseCodec

components = st.floats(1e-3, 1) | st.floats(-1, -1e-3)
quaternions = st.tuples(components, components, components, components)
extents = st.floats(-500, 500)
# Zero, and the kind of origin that UTM has.
origins = st.sampled_from([(0.0, 0.0, 0.0), (620_123.4, 5_735_123.4, 66.1), (-3e5, 9_999_999.0, -400.0)])


@st.composite
def trajectories(draw: st.DrawFn) -> list[Pose]:
    origin = np.array(draw(origins))
    count = draw(st.integers(1, 12))
    return [
        Pose(origin + np.array(draw(st.tuples(extents, extents, extents))), np.array(draw(quaternions)))
        for _ in range(count)
    ]


@settings(max_examples=150, deadline=None)
@given(trajectories())
def test_decoding_inverts_encoding_below_a_millimetre(poses: list[Pose]) -> None:
    codec = PoseCodec.fit(poses)
    vectors = codec.encode(poses)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(poses), 6)
    positions, orientations = codec.decode(vectors)
    assert np.abs(positions - [pose.position_m for pose in poses]).max() < 1e-3
    assert rotation_angle_deg([pose.quaternion_wxyz for pose in poses], orientations).max() < 1e-3


def test_a_robot_that_stands_still_in_utm_comes_back_to_the_micrometre() -> None:
    poses = [Pose(np.array([620_123.4567891, 5_735_123.9876543, 66.1]), np.array([1.0, 0, 0, 0]))] * 7
    codec = PoseCodec.fit(poses)
    assert codec.scale_m == 1.0
    np.testing.assert_allclose(codec.encode(poses), 0, atol=1e-6)
    positions, _ = codec.decode(codec.encode(poses))
    np.testing.assert_allclose(positions, [pose.position_m for pose in poses], atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(trajectories())
def test_targets_are_centred_and_of_unit_size(poses: list[Pose]) -> None:
    codec = PoseCodec.fit(poses)
    vectors = codec.encode(poses).astype(np.float64)
    np.testing.assert_allclose(vectors[:, :3].mean(axis=0), 0, atol=1e-4)
    spread = np.std([pose.position_m for pose in poses], axis=0)
    if spread.max() > 0.02:
        assert np.sqrt((vectors[:, :3] ** 2).mean()) == pytest.approx(1.0, rel=1e-3)
    elif spread.max() < 1e-7:  # different numbers perhaps, but a robot that stands still
        assert codec.scale_m == 1.0
    assert np.linalg.norm(vectors[:, 3:], axis=1).max() <= math.pi / 2 + 1e-6


def test_one_scale_serves_all_axes() -> None:
    codec = PoseCodec.fit([yaw_pose(x, 0.0) for x in (-30.0, 30.0)])
    vectors = codec.encode([yaw_pose(0.0), yaw_pose(1.0), yaw_pose(0.0, 1.0), yaw_pose(0.0, z_m=1.0)])
    steps = vectors[1:, :3] - vectors[0, :3]
    np.testing.assert_allclose(steps, np.eye(3) / codec.scale_m, atol=1e-6)


def test_logarithms_are_of_the_rotation_from_the_reference() -> None:
    codec = PoseCodec((0.0, 0.0, 0.0), 1.0, tuple(yaw_pose(0, 0, 90).quaternion_wxyz))
    vectors = codec.encode([yaw_pose(0, 0, 90), yaw_pose(0, 0, 150), yaw_pose(0, 0, 30)])
    np.testing.assert_allclose(vectors[:, 3:], np.radians([[0, 0, 0], [0, 0, 30], [0, 0, -30]]), atol=1e-6)


def furthest_turn_deg(codec: PoseCodec, poses: list[Pose]) -> float:
    return float(rotation_angle_deg(np.array(codec.reference_wxyz), [p.quaternion_wxyz for p in poses]).max())


def test_a_street_driven_both_ways_stays_half_a_turn_clear_of_the_jump() -> None:
    """Headings 0 and 180 degrees, and the turn between them: from either heading the other one is the jump."""
    headings = [0.0] * 200 + list(np.linspace(0, 180, 20)) + [180.0] * 200
    poses = [yaw_pose(i, 0.0, yaw + 3 * math.sin(i)) for i, yaw in enumerate(headings)]
    assert furthest_turn_deg(PoseCodec.fit(poses), poses) < 130


def test_a_round_trip_puts_the_jump_where_the_fewest_poses_are() -> None:
    """All headings occur, four of them mostly (a block of houses): the jump must fall into a bend."""
    headings = np.concatenate(
        [[side] * 200 + list(np.linspace(side, side + 90, 12)[1:-1]) for side in (0.0, 90.0, 180.0, 270.0)]
    )
    poses = [yaw_pose(i, 0.0, yaw) for i, yaw in enumerate(headings)]
    reference = PoseCodec.fit(poses).reference_wxyz
    angles = rotation_angle_deg(np.array(reference), [pose.quaternion_wxyz for pose in poses])
    assert (angles > 165).mean() < 0.01


def test_neighbouring_orientations_have_neighbouring_targets_away_from_the_jump() -> None:
    poses = [yaw_pose(i, 0.0, yaw) for i, yaw in enumerate(np.linspace(-160, 160, 200))]
    logs = PoseCodec.fit(poses).encode(poses)[:, 3:]
    assert np.linalg.norm(np.diff(logs, axis=0), axis=1).max() < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"scale_m": 0.0},
        {"scale_m": -1.0},
        {"scale_m": math.inf},
        {"scale_m": math.nan},
        {"origin_m": (0.0, math.nan, 0.0)},
        {"reference_wxyz": (math.inf, 0.0, 0.0, 0.0)},
        {"reference_wxyz": (0.0, 0.0, 0.0, 0.0)},
    ],
)
def test_constants_that_cannot_be_used_are_rejected(change: dict[str, object]) -> None:
    good = {"origin_m": (0.0, 0.0, 0.0), "scale_m": 1.0, "reference_wxyz": (1.0, 0.0, 0.0, 0.0)}
    with pytest.raises(ValueError, match=r"must be finite and the scale positive|not a rotation"):
        PoseCodec(**{**good, **change})


def test_no_poses_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="no poses"):
        PoseCodec.fit([])


@settings(max_examples=50, deadline=None)
@given(trajectories())
def test_json_carries_the_constants_without_loss(poses: list[Pose]) -> None:
    codec = PoseCodec.fit(poses)
    assert from_mapping(PoseCodec, json.loads(json.dumps(to_mapping(codec)))) == codec
