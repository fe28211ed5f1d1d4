# SPDX-License-Identifier: Apache-2.0
"""replay.launch.py with a player that only prints its arguments; run by ``launch_test``.

``launch_test test/node/launch/replay_launch_test.py checkpoint:=model.safetensors bag:=drive``; needs ``ros2``.
"""

import os
import unittest

import launch_testing.actions
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

LIMIT_S = 60.0
COMMAND = "bag play drive --clock 100 --rate 2.0 --loop"  # no --delay, which would pause before every round


def generate_test_description():
    share = get_package_share_directory("vmloc_ros")
    replay = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(share, "launch", "replay.launch.py")),
        launch_arguments={"bag": LaunchConfiguration("bag"), "rate": "2.0", "loop": "true"}.items(),
    )
    arguments = [DeclareLaunchArgument("checkpoint"), DeclareLaunchArgument("bag")]
    return LaunchDescription([*arguments, replay, launch_testing.actions.ReadyToTest()])


class TestReplay(unittest.TestCase):
    """Node and player run together."""

    def test_the_player_gets_the_bag_and_starts_once_the_node_is_active(self, proc_output):
        proc_output.assertWaitFor(COMMAND, timeout=LIMIT_S)
        lines = [line.text.decode() for line in proc_output]
        (active,) = [number for number, line in enumerate(lines) if "now active" in line]
        assert all(COMMAND not in line for line in lines[:active])
