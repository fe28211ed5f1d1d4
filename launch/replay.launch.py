# SPDX-License-Identifier: Apache-2.0
"""Plays a bag into vmloc_node on the bag's clock, from the moment when the node is active.

``ros2 launch vmloc_ros replay.launch.py bag:=BAG checkpoint:=...``
The arguments of vmloc.launch.py can be given too.
"""

import os
import time

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    TimerAction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState

from launch import LaunchDescription

POLL_S, ANSWER_S, REMIND_S = 0.2, 5.0, 30.0


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
    return [OpaqueFunction(function=_wait, args=[client, player, _Waiting()])]


class _Waiting:
    """What is known of a node that is not active yet."""

    def __init__(self):
        self.answer = None  # a future
        self.asked_s = self.told_s = time.monotonic()


def _wait(context, client, player, waiting):
    """Ask for the node's state until it is active. An event would be lost if it came before discovery."""
    now_s = time.monotonic()
    if waiting.answer is not None and waiting.answer.done():
        if waiting.answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE:
            return [player]
        waiting.answer = None
    if waiting.answer is not None and now_s - waiting.asked_s > ANSWER_S:  # the node that was asked may have ended
        client.remove_pending_request(waiting.answer)
        waiting.answer = None
    if waiting.answer is None and client.service_is_ready():
        waiting.answer, waiting.asked_s = client.call_async(GetState.Request()), now_s
    actions = []
    if now_s - waiting.told_s > REMIND_S:
        waiting.told_s = now_s
        actions.append(
            LogInfo(msg=f"the bag is not played yet: {client.srv_name} does not say that the node is active")
        )
    again = OpaqueFunction(function=_wait, args=[client, player, waiting])
    return [*actions, TimerAction(period=POLL_S, actions=[again])]


def _command(context):
    bag, rate, delay, loop = (LaunchConfiguration(name).perform(context) for name in ("bag", "rate", "delay", "loop"))
    # ros2 bag play would pause before every round.
    start = ["--loop"] if loop.lower() in ("true", "1") else ["--delay", delay]
    return ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate, *start]
