# SPDX-License-Identifier: Apache-2.0
"""Plays a bag into vmloc_node on the bag's clock, from the moment when the node is active.

``ros2 launch vmloc_ros replay.launch.py bag:=BAG checkpoint:=...``
The arguments of vmloc.launch.py can be given too.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction, TimerAction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState

from launch import LaunchDescription

POLL_S = 0.2


def generate_launch_description():
    vmloc = os.path.join(get_package_share_directory("vmloc_ros"), "launch", "vmloc.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="rosbag2 folder to play"),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed, 1 is real time"),
            DeclareLaunchArgument("loop", default_value="false", description="start over at the end, without a pause"),
            DeclareLaunchArgument(
                "delay",
                default_value="1.0",
                description="seconds in which subscribers find the player's topics; not used with loop",
            ),
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(vmloc),
                launch_arguments={"use_sim_time": "true"}.items(),
            ),
            OpaqueFunction(function=_play_when_active),
        ]
    )


def _play_when_active(context):
    player = ExecuteProcess(cmd=_command(context), output="screen")
    namespace = LaunchConfiguration("namespace").perform(context).strip("/")
    name = "/".join(["", *filter(None, [namespace]), "vmloc_node", "get_state"])
    client = get_ros_node(context).create_client(GetState, name)
    return [OpaqueFunction(function=_wait, args=[client, None, player])]


def _wait(context, client, answer, player):
    """Ask for the node's state until it is active. An event would be lost if it came before discovery."""
    if answer is not None and answer.done():
        if answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE:
            return [player]
        answer = None
    if answer is None and client.service_is_ready():
        answer = client.call_async(GetState.Request())
    return [TimerAction(period=POLL_S, actions=[OpaqueFunction(function=_wait, args=[client, answer, player])])]


def _command(context):
    bag, rate, delay, loop = (LaunchConfiguration(name).perform(context) for name in ("bag", "rate", "delay", "loop"))
    # ros2 bag play would pause before every round.
    start = ["--loop"] if loop.lower() in ("true", "1") else ["--delay", delay]
    return ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate, *start]
