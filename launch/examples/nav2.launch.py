# SPDX-License-Identifier: Apache-2.0
"""Nav2 with vmloc_node in AMCL's place: map server, vmloc_node and their lifecycle manager, then Nav2's navigation.

``ros2 launch vmloc_ros nav2.launch.py checkpoint:=model.safetensors map:=/maps/ground_floor.yaml``
Needs ``apt install ros-$ROS_DISTRO-nav2-bringup``, and a base that publishes odom -> base_link. Costmaps, planners and
controllers stay as ``nav2_params_file`` has them. The maps of the checkpoint and of Nav2 must have the same origin (see
``map_origin``). ``navigation:=false`` starts no navigation, for a robot that has its own launch file for it. The
arguments of vmloc.launch.py can be given too.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

MANAGED = ["map_server", "vmloc_node"]  # in the order of their start
ARGUMENTS = {
    "map": ("", "Nav2's map, a .yaml file"),
    "namespace": ("", "of all nodes, their topics and, as Nav2's, /tf"),
    "use_sim_time": ("false", "follow /clock"),
    "nav2_params_file": ("", "Nav2's parameters; empty: those of nav2_bringup"),
    "navigation": ("true", "start nav2_bringup's navigation_launch.py, too"),
    "bond_timeout": ("4.0", "seconds without a heartbeat after which the manager stops its nodes; 0.0: never"),
}


def generate_launch_description():
    vmloc = os.path.join(get_package_share_directory("vmloc_ros"), "launch", "vmloc.launch.py")
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=x, description=text) for name, (x, text) in ARGUMENTS.items()),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(vmloc),
                # The manager configures and activates the node, which publishes map -> odom as AMCL does.
                launch_arguments={"tf_mode": "map_to_odom", "autostart": "false"}.items(),
            ),
            OpaqueFunction(function=_nav2),
        ]
    )


def _nav2(context):
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not os.path.isfile(given["map"]):
        raise RuntimeError(f"map {given['map']!r} does not exist; give Nav2's map: map:=/path/to/map.yaml")
    if LaunchConfiguration("frame_prefix", default="").perform(context):
        raise RuntimeError("frame_prefix: Nav2's nodes have none; give each robot a namespace instead")
    use_sim_time = given["use_sim_time"].lower() == "true"
    tf = [("/tf", "tf"), ("/tf_static", "tf_static")]
    actions = [
        Node(
            package="nav2_map_server",
            executable="map_server",
            name="map_server",
            namespace=given["namespace"],
            parameters=[{"use_sim_time": use_sim_time, "yaml_filename": given["map"]}],
            remappings=tf,
            output="screen",
        ),
        Node(
            package="nav2_lifecycle_manager",
            executable="lifecycle_manager",
            name="lifecycle_manager_localization",
            namespace=given["namespace"],
            parameters=[
                {
                    "use_sim_time": use_sim_time,
                    "autostart": True,
                    "node_names": MANAGED,
                    "bond_timeout": float(given["bond_timeout"]),
                }
            ],
            output="screen",
        ),
    ]
    return actions + ([_navigation(given)] if given["navigation"].lower() == "true" else [])


def _navigation(given):
    bringup = get_package_share_directory("nav2_bringup")
    arguments = {
        "namespace": given["namespace"],
        "use_sim_time": given["use_sim_time"],
        "autostart": "true",
        "use_composition": "False",  # else it looks for the container of nav2_bringup's own launch file
        "params_file": given["nav2_params_file"] or os.path.join(bringup, "params", "nav2_params.yaml"),
    }
    source = PythonLaunchDescriptionSource(os.path.join(bringup, "launch", "navigation_launch.py"))
    # In a group of its own: params_file and autostart are arguments of vmloc.launch.py, too.
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=arguments.items())])
