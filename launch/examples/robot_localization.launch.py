# SPDX-License-Identifier: Apache-2.0
"""Fuses vmloc_node's poses with wheel odometry in robot_localization's ekf_node, which publishes map -> odom.

``ros2 launch vmloc_ros robot_localization.launch.py checkpoint:=model.safetensors``
Needs ``apt install ros-$ROS_DISTRO-robot-localization``, and a base that publishes ``odom`` (nav_msgs/Odometry) and
odom -> base_link. The arguments of vmloc.launch.py can be given too. Until the second pose the filter may be off by the
way that the robot made during the first one's latency: see config/examples/robot_localization.yaml.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


def generate_launch_description():
    share = get_package_share_directory("vmloc_ros")
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the nodes and their topics"),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="follow /clock"),
            DeclareLaunchArgument(
                "ekf_params_file",
                default_value=os.path.join(share, "config", "examples", "robot_localization.yaml"),
                description="ROS parameters of ekf_node",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(os.path.join(share, "launch", "vmloc.launch.py")),
                launch_arguments={"tf_mode": "none"}.items(),  # one publisher of map -> odom: the filter
            ),
            Node(
                package="robot_localization",
                executable="ekf_node",
                name="ekf_filter_node_map",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("ekf_params_file"), {"use_sim_time": use_sim_time}],
                # In a namespace the robot's TF is its own, as vmloc.launch.py has it.
                remappings=[("odometry/filtered", "odometry/global"), ("/tf", "tf"), ("/tf_static", "tf_static")],
                output="screen",
            ),
        ]
    )
