# SPDX-License-Identifier: Apache-2.0
"""What must be set before ``rclpy.init``; imports no ROS so that it can run first."""

from __future__ import annotations

import os

from vmloc_ros.core.resources import share_path

# Fast DDS 2 (Humble, Jazzy) reads the first, Fast DDS 3 (Kilted) the second.
_PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def let_idle_threads_sleep() -> None:
    """Make OpenMP threads sleep, not spin, while they wait, unless the user has decided; before torch is imported.

    On a machine whose cores are all busy, spinning threads keep the one they wait for from running: frames then take
    many times longer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def leave_a_core() -> None:
    """Give torch one thread on a machine of two cores, unless the user has decided; before torch is imported.

    The other core receives messages and prepares the next frame: of two threads one would have to wait for that, and
    the other for it.
    """
    if len(os.sched_getaffinity(0)) <= 2:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def use_fastdds_profile() -> None:
    """Make Fast DDS use the project's profile (large shared memory), unless the user has chosen one."""
    if not any(os.environ.get(name) for name in _PROFILE_VARIABLES):
        for name in _PROFILE_VARIABLES:
            os.environ[name] = str(share_path("config", "fastdds.xml"))
