# SPDX-License-Identifier: Apache-2.0
"""vmloc.launch.py as a robot starts it; run by ``launch_test``, see test/node/test_launch_testing.py.

``launch_test test/node/launch/node_launch_test.py checkpoint:=model.safetensors``: the checkpoint takes images.
"""

import os
import unittest

import launch_testing.actions
import launch_testing.asserts
import numpy as np
import rclpy
from ament_index_python.packages import get_package_share_directory
from geometry_msgs.msg import PoseStamped
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image

from launch import LaunchDescription

LIMIT_S = 60.0  # torch alone takes seconds to load on a busy machine
STATE = "now active"


def generate_test_description():
    share = get_package_share_directory("vmloc_ros")
    arguments = {
        "namespace": "robot1",
        "image_topic": "front/image",
        "map_frame": "hall",
        "device": "cpu",
        "tf_mode": "none",
        "log_level": "warn",
        "use_sim_time": "true",
    }
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(share, "launch", "vmloc.launch.py")),
        launch_arguments=arguments.items(),
    )
    return LaunchDescription([DeclareLaunchArgument("checkpoint"), node, launch_testing.actions.ReadyToTest()])


class TestRunningNode(unittest.TestCase):
    """The effect of the arguments."""

    @classmethod
    def setUpClass(cls):
        rclpy.init()
        cls.node = rclpy.create_node("launch_test_peer")

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy_node()
        rclpy.shutdown()

    def wait_until(self, condition, what):
        clock = self.node.get_clock()
        end = clock.now() + rclpy.duration.Duration(seconds=LIMIT_S)
        while not condition():
            assert clock.now() < end, f"waited {LIMIT_S:g} s for {what}"
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def test_an_image_on_the_given_topic_leads_to_a_pose_in_the_given_frame(self):
        publisher = self.node.create_publisher(Image, "/robot1/front/image", 10)
        self.wait_until(publisher.get_subscription_count, "the node's subscription")
        message = Image(height=60, width=80, encoding="rgb8", step=240)
        message.data = np.zeros(60 * 240, np.uint8).tobytes()
        message.header.frame_id = "camera"
        message.header.stamp.sec = 1_700_000_000
        poses = []
        self.node.create_subscription(PoseStamped, "/robot1/vmloc_node/pose", poses.append, 10)

        def has_pose():  # discovery is not symmetric: the first images may be lost
            message.header.stamp.sec += 1
            publisher.publish(message)
            return poses

        self.wait_until(has_pose, "a pose")
        assert poses[0].header.stamp.sec > 1700000000
        assert poses[0].header.frame_id == "hall"

    def test_arguments_become_parameters_and_the_file_sets_the_rest(self):
        client = self.node.create_client(GetParameters, "/robot1/vmloc_node/get_parameters")
        self.wait_until(client.service_is_ready, "the node's parameters")
        names = ["image_topic", "tf_mode", "use_sim_time", "slop_s"]
        future = client.call_async(GetParameters.Request(names=names))
        self.wait_until(future.done, "the response")
        image_topic, tf_mode, use_sim_time, slop_s = future.result().values
        assert (image_topic.string_value, tf_mode.string_value) == ("front/image", "none")
        assert use_sim_time.bool_value
        assert slop_s.double_value == 0.1


@launch_testing.post_shutdown_test()
class TestAfterwards(unittest.TestCase):
    """Exit status and log of the node after launch has interrupted it."""

    def test_the_exit_status_is_zero(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)

    def test_the_log_level_is_followed(self, proc_output):
        text = "".join(line.text.decode() for line in proc_output)
        assert "Traceback" not in text
        assert STATE not in text  # of level info
