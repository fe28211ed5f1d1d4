# SPDX-License-Identifier: Apache-2.0
"""Environment variables to set before ``rclpy.init`` and the import of torch; imports neither."""

from __future__ import annotations

import os

from vmloc_ros.core.resources import share_path

# Fast DDS 2 (Humble, Jazzy) reads the first, Fast DDS 3 (Kilted) the second.
_PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def let_idle_threads_sleep() -> None:
    """Make OpenMP threads sleep, not spin, while they wait, unless the user has chosen; call before importing torch.

    On a machine whose cores are all busy, spinning threads take the core of the thread that they wait for: frames then
    take many times longer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def leave_a_core() -> None:
    """Give torch one thread on a machine of two cores, unless the user has chosen; call before importing torch.

    The other core receives messages and prepares the next frame. With two threads, one would wait for that work, and
    the other for the first.
    """
    if len(os.sched_getaffinity(0)) <= 2:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def use_fastdds_profile() -> None:
    """Make Fast DDS use the project's profile (large shared memory), unless the user has chosen one."""
    if not any(os.environ.get(name) for name in _PROFILE_VARIABLES):
        for name in _PROFILE_VARIABLES:
            os.environ[name] = str(share_path("config", "fastdds.xml"))
