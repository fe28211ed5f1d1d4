# SPDX-License-Identifier: Apache-2.0
"""Environment variables that the node sets unless the user has."""

from __future__ import annotations

import os

import pytest

from vmloc_ros.ros.environment import leave_a_core


@pytest.mark.parametrize(
    ("cores", "chosen", "expected"), [(1, None, "1"), (2, None, "1"), (3, None, None), (2, "2", "2"), (8, "4", "4")]
)
def test_on_two_cores_torch_gets_one_thread_unless_the_user_has_chosen(cores, chosen, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("OMP_NUM_THREADS", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    leave_a_core()
    assert os.environ.get("OMP_NUM_THREADS") == expected
