# SPDX-License-Identifier: Apache-2.0
"""Initializes a running AMCL (Nav2) with one confident pose of vmloc_node.

``ros2 launch vmloc_ros initialpose.launch.py checkpoint:=model.safetensors``
AMCL keeps publishing map -> odom; its parameter set_initial_pose must be false. The maps of the checkpoint and of Nav2
must have the same origin. The arguments of vmloc.launch.py can be given too.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

LIMITS = {
    "max_position_std_m": ("1.0", "largest standard deviation of a confident pose's position, metres"),
    "max_yaw_std_rad": ("0.25", "largest standard deviation of its heading, radians"),
}


def generate_launch_description():
    vmloc = os.path.join(get_package_share_directory("vmloc_ros"), "launch", "vmloc.launch.py")
    limits = [DeclareLaunchArgument(name, default_value=x, description=text) for name, (x, text) in LIMITS.items()]
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the nodes and their topics"),
            *limits,
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(vmloc),
                launch_arguments={"tf_mode": "none"}.items(),  # one publisher of map -> odom: AMCL
            ),
            Node(
                package="vmloc_ros",
                executable="vmloc_initialpose",
                name="vmloc_initialpose",
                namespace=LaunchConfiguration("namespace"),
                parameters=[{name: ParameterValue(LaunchConfiguration(name), value_type=float) for name in LIMITS}],
                output="screen",
            ),
        ]
    )
