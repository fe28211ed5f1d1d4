# SPDX-License-Identifier: Apache-2.0
"""Plays a bag into vmloc_node on the bag's clock.

``ros2 launch vmloc_ros replay.launch.py bag:=BAG checkpoint:=...``
The arguments of vmloc.launch.py can be given too.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription


def generate_launch_description():
    vmloc = os.path.join(get_package_share_directory("vmloc_ros"), "launch", "vmloc.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="rosbag2 folder to play"),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed, 1 is real time"),
            DeclareLaunchArgument("loop", default_value="false", description="start over at the end"),
            DeclareLaunchArgument("delay", default_value="10.0", description="seconds for the model to load"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(vmloc),
                launch_arguments={"use_sim_time": "true"}.items(),
            ),
            OpaqueFunction(function=_player),
        ]
    )


def _player(context):
    bag, rate, delay = (LaunchConfiguration(name).perform(context) for name in ("bag", "rate", "delay"))
    loop = ["--loop"] if LaunchConfiguration("loop").perform(context).lower() in ("true", "1") else []
    command = ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate, "--delay", delay, *loop]
    return [ExecuteProcess(cmd=command, output="screen")]
