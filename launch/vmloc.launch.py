# SPDX-License-Identifier: Apache-2.0
"""Starts vmloc_node, and RViz with ``rviz:=true``.

``ros2 launch vmloc_ros vmloc.launch.py checkpoint:=model.safetensors``
Launch files that include this one keep their own arguments and environment: what is declared and set here ends here.
"""

import os
import re

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

# Arguments that override a parameter of the same name; left empty, params_file decides.
OVERRIDES = {
    "checkpoint": "model to localize with",
    "device": "auto, cpu, cuda or cuda:N",
    "autostart": "configure and activate at start; false: wait for a lifecycle manager",
    "image_topic": "sensor_msgs/Image",
    "cloud_topic": "sensor_msgs/PointCloud2",
    "depth_topic": "sensor_msgs/Image",
    "camera_info_topic": "sensor_msgs/CameraInfo",
    "map_frame": "frame of the poses",
    "base_frame": "frame whose pose is published",
    "frame_prefix": "put before all frames of the robot, as by robot_state_publisher; not before map_frame",
    "tf_mode": "map_to_base, map_to_odom or none",
    "odom_frame": "the odometry's frame, for map_to_odom and smoothing",
    "odometry_topic": "nav_msgs/Odometry, for map_to_odom and smoothing",
}
FLAGS = {
    "use_sim_time": "follow /clock",
    "respawn": "start the node again, after 2 s, when it has ended",
    "rviz": "start RViz too",
}
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
NODE_NAME = "vmloc_node"
RESPAWN_DELAY_S = 2.0


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
        DeclareLaunchArgument("namespace", default_value="", description="of the node, its topics and, as Nav2's, /tf"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error"),
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value="false", description=text, choices=["true", "false", "True", "False"])
        for name, text in FLAGS.items()
    ]
    return LaunchDescription([GroupAction([*arguments, OpaqueFunction(function=_start)])])


def _start(context):
    """The actions, with all arguments as they are now: processes that respawn later would find others."""
    names = [*OVERRIDES, *FLAGS, "params_file", "namespace", "log_level"]
    given = {name: LaunchConfiguration(name).perform(context) for name in names}
    flags = {name: given[name].lower() == "true" for name in FLAGS}
    check_params_file(given["params_file"], given["namespace"])
    common = {
        "namespace": given["namespace"],
        "remappings": tf_remappings(given["namespace"], given["frame_prefix"]),
    }
    return [_vmloc_node(given, flags, common), *([_rviz(flags, common)] if flags["rviz"] else [])]


def _vmloc_node(given, flags, common):
    overrides = {name: ParameterValue(given[name], value_type=str) for name in OVERRIDES if given[name]}
    if given["autostart"]:
        overrides["autostart"] = given["autostart"].lower() == "true"
    profile = os.path.join(get_package_share_directory("vmloc_ros"), "config", "fastdds.xml")
    chosen = any(os.environ.get(name) for name in PROFILE_VARIABLES)
    return Node(
        package="vmloc_ros",
        executable="vmloc_node",
        name=NODE_NAME,
        parameters=[given["params_file"], {"use_sim_time": flags["use_sim_time"], **overrides}],
        arguments=["--ros-args", "--log-level", given["log_level"]],
        additional_env={} if chosen else {name: profile for name in PROFILE_VARIABLES},
        respawn=flags["respawn"],
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
        **common,
    )


def _rviz(flags, common):
    share = get_package_share_directory("vmloc_ros")
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", os.path.join(share, "config", "vmloc.rviz")],  # the configuration's topics are relative
        parameters=[{"use_sim_time": flags["use_sim_time"]}],
        **common,
    )


def tf_remappings(namespace, frame_prefix):
    """Robots in namespaces have trees of their own, as in Nav2; those with frame prefixes share one."""
    return [("/tf", "tf"), ("/tf_static", "tf_static")] if namespace.strip("/") and not frame_prefix else []


def check_params_file(path, namespace):
    """Raise RuntimeError if a parameter file is missing, or has nothing for the node, which ROS would ignore."""
    if not os.path.isfile(path):
        raise RuntimeError(f"params_file {path} does not exist")
    node = "/".join(["", *filter(None, namespace.split("/")), NODE_NAME])
    with open(path) as file:
        found = dict(_nodes(yaml.safe_load(file)))
    taken_over = (
        "If another launch file's params_file was taken over, include vmloc.launch.py with params_file in its "
        "launch_arguments"
    )
    given = [name for nodes, names in found.items() if _matches(nodes, node) for name in names]
    if not given:
        others = ", ".join(found) or "nothing"
        raise RuntimeError(f"params_file {path} has no parameters for {node}, only for {others}. {taken_over}")
    # Those of another program may be for all nodes, too.
    if not set(given) & _own_parameters():
        raise RuntimeError(f"params_file {path} has only {', '.join(given)}, none of {NODE_NAME}'s. {taken_over}")


def _own_parameters():
    """The names in config/node.yaml."""
    with open(os.path.join(get_package_share_directory("vmloc_ros"), "config", "node.yaml")) as file:
        return {name for _, names in _nodes(yaml.safe_load(file)) for name in names}


def _nodes(tree, prefix=""):
    """Names of nodes in a parameter file, and those of their parameters; namespaces may be nested or have slashes."""
    for key, value in (tree or {}).items() if isinstance(tree, dict) else ():
        name = f"{prefix}/{str(key).strip('/')}"
        if isinstance(value, dict) and "ros__parameters" in value:
            yield name, list(value["ros__parameters"] or {})
        elif isinstance(value, dict):
            yield from _nodes(value, name)


def _matches(name, node):
    """Whether a name of a parameter file stands for a node: * is any word, ** are any words (rcl_yaml_param_parser)."""
    words = {"**": "(/[^/]+)*", "*": "/[^/]+"}
    pattern = "".join(words.get(word, f"/{re.escape(word)}") for word in name.strip("/").split("/"))
    return re.fullmatch(pattern, node) is not None
