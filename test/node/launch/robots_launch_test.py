# SPDX-License-Identifier: Apache-2.0
"""Two robots, whose launch files (XML and YAML) include vmloc.launch.py; run by ``launch_test``.

``launch_test test/node/launch/robots_launch_test.py checkpoint:=model.safetensors``: the checkpoint takes images.
"""

import os
import unittest

import launch_testing.actions
import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import AnyLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from launch import LaunchDescription

LIMIT_S = 90.0  # torch takes seconds to load on a busy machine, here twice
MAPS = {"robot1": "map", "robot2": "hall"}
FOLDER = os.path.dirname(os.path.abspath(__file__))
ENV = ExecuteProcess(cmd=["env"], output="screen")
SEEN = {}


def generate_test_description():
    files = [os.path.join(FOLDER, name) for name in ("robot1.launch.xml", "robot2.launch.yaml")]
    return LaunchDescription(
        [
            DeclareLaunchArgument("checkpoint"),
            *(_including(file) for file in files),
            OpaqueFunction(function=_look),
            ENV,
            launch_testing.actions.ReadyToTest(),
        ]
    )


def _including(file):
    arguments = {"checkpoint": LaunchConfiguration("checkpoint")}
    return IncludeLaunchDescription(AnyLaunchDescriptionSource(file), launch_arguments=arguments.items())


def _look(context):
    SEEN["configurations"] = dict(context.launch_configurations)


class TestRobots(unittest.TestCase):
    """Topics, transforms, and what the included files leave behind."""

    @classmethod
    def setUpClass(cls):
        rclpy.init()
        cls.node = rclpy.create_node("launch_test_peer")

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy_node()
        rclpy.shutdown()

    def test_each_robot_has_its_own_poses_and_transforms(self):
        poses = {name: [] for name in MAPS}
        transforms = {topic: [] for topic in ("/tf", "/robot1/tf", "/robot2/tf")}
        publishers = {}
        for name in MAPS:
            publishers[name] = self.node.create_publisher(Image, f"/{name}/camera/image_raw", 10)
            self.node.create_subscription(PoseStamped, f"/{name}/vmloc_node/pose", poses[name].append, 10)
        for topic, received in transforms.items():
            self.node.create_subscription(TFMessage, topic, received.append, 10)
        message = Image(height=60, width=80, encoding="rgb8", step=240)
        message.data = np.zeros(60 * 240, np.uint8).tobytes()
        message.header.stamp.sec = 1_700_000_000
        end = self.node.get_clock().now() + rclpy.duration.Duration(seconds=LIMIT_S)
        while not (all(poses.values()) and transforms["/robot1/tf"] and transforms["/robot2/tf"]):
            assert self.node.get_clock().now() < end, "waited for poses and transforms"
            message.header.stamp.sec += 1
            for publisher in publishers.values():
                publisher.publish(message)
            rclpy.spin_once(self.node, timeout_sec=0.1)
        for name, map_frame in MAPS.items():
            (transform,) = transforms[f"/{name}/tf"][0].transforms
            assert (transform.header.frame_id, transform.child_frame_id) == (map_frame, "base_link")
        assert not transforms["/tf"]

    def test_nothing_is_left_behind_for_what_is_launched_later(self, proc_output, proc_info):
        proc_info.assertWaitForShutdown(ENV, timeout=LIMIT_S)
        lines = b"".join(line.text for line in proc_output[ENV]).decode().splitlines()
        environment = dict(line.partition("=")[::2] for line in lines)
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
            assert environment.get(name) == os.environ.get(name)
        assert "params_file" not in SEEN["configurations"]
        assert "tf_mode" not in SEEN["configurations"]
