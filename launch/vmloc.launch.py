# SPDX-License-Identifier: Apache-2.0
"""Starts vmloc_node, and RViz with ``rviz:=true``.

``ros2 launch vmloc_ros vmloc.launch.py checkpoint:=model.safetensors``
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

# Arguments that override a parameter of the same name; left empty, params_file decides.
OVERRIDES = {
    "checkpoint": "model to localize with",
    "device": "auto, cpu, cuda or cuda:N",
    "image_topic": "sensor_msgs/Image",
    "cloud_topic": "sensor_msgs/PointCloud2",
    "depth_topic": "sensor_msgs/Image",
    "camera_info_topic": "sensor_msgs/CameraInfo",
    "map_frame": "frame of the poses",
    "base_frame": "frame whose pose is published",
    "tf_mode": "map_to_base, map_to_odom or none",
    "odom_frame": "the odometry's frame, for map_to_odom and smoothing",
    "odometry_topic": "nav_msgs/Odometry, for map_to_odom and smoothing",
}
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def generate_launch_description():
    share = get_package_share_directory("vmloc_ros")
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=f"{text}; empty: as in params_file")
        for name, text in OVERRIDES.items()
    ]
    arguments += [
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(share, "config", "node.yaml"),
            description="ROS parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="follow /clock"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error"),
        DeclareLaunchArgument("rviz", default_value="false", description="start RViz too"),
    ]
    profile = os.path.join(share, "config", "fastdds.xml")
    chosen = any(os.environ.get(name) for name in PROFILE_VARIABLES)
    environment = [] if chosen else [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),  # the configuration's topics are relative
        arguments=["-d", os.path.join(share, "config", "vmloc.rviz")],
        parameters=[{"use_sim_time": _sim_time()}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return LaunchDescription([*arguments, *environment, OpaqueFunction(function=_vmloc_node), rviz])


def _sim_time():
    return ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)


def _vmloc_node(context):
    values = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    overrides = {name: ParameterValue(value, value_type=str) for name, value in values.items() if value}
    return [
        Node(
            package="vmloc_ros",
            executable="vmloc_node",
            name="vmloc_node",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), {"use_sim_time": _sim_time(), **overrides}],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="screen",
        )
    ]
