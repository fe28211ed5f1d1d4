# SPDX-License-Identifier: Apache-2.0
"""Two publishers on one topic of poses are told from one that jumps once."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sources.rosbag.alternation import find_alternation

STEP_NS = 20_000_000


def drive(count: int, x_m: float = 0.0, yaw_rad: float = 0.0) -> np.ndarray:
    """1 m/s along x."""
    poses = np.zeros((count, 7))
    poses[:, 0] = x_m + 0.02 * np.arange(count)
    poses[:, 3], poses[:, 6] = np.cos(yaw_rad / 2), np.sin(yaw_rad / 2)
    return poses


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), apart=st.floats(5, 1e4), share=st.floats(0.03, 0.97), shuffled=st.booleans())
def test_two_drives_in_any_mixture_are_two_publishers(seed: int, apart: float, share: float, shuffled: bool) -> None:
    rng = np.random.default_rng(seed)
    is_other = rng.random(400) < share
    is_other[[100, 200, 300, 103, 203, 303]] = [True] * 3 + [False] * 3
    poses, stamps = np.where(is_other[:, None], drive(400, apart), drive(400)), np.arange(400) * STEP_NS
    order = rng.permutation(400) if shuffled else np.arange(400)
    found = find_alternation(stamps[order], poses[order])
    assert found is not None
    [metres] = re.findall(r"its poses alternate between two tracks, ([0-9.]+) m apart: ", found)
    assert float(metres) == pytest.approx(apart, abs=0.2)


def test_two_drives_with_equal_stamps_are_two_publishers() -> None:
    poses = np.stack([drive(50), drive(50, 100.0)], axis=1).reshape(-1, 7)
    assert "two tracks, 100.0 m apart: 98 of 100 jump" in str(
        find_alternation(np.repeat(np.arange(50), 2) * STEP_NS, poses)
    )


def test_two_headings_at_one_place_are_two_publishers() -> None:
    poses = np.where(np.arange(100)[:, None] % 2, drive(100), drive(100, yaw_rad=np.pi / 2))
    assert find_alternation(np.arange(100) * STEP_NS, poses) is not None


@pytest.mark.parametrize("outliers", [[], [50], [50, 120]])
def test_resets_and_single_outliers_are_one_publisher(outliers: list[int]) -> None:
    poses = drive(400)
    poses[200:, 1] += 500.0
    poses[outliers, 0] += 70.0
    poses[300, 3:] = np.nan
    assert find_alternation(np.arange(400) * STEP_NS, poses) is None


def test_one_pose_or_none_is_one_publisher() -> None:
    for count in range(3):
        assert find_alternation(np.arange(count) * STEP_NS, drive(count)) is None
