# SPDX-License-Identifier: Apache-2.0
"""The area of training as a cloud for RViz: over real DDS, with the node in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import yaw_pose
from ros_graph import node_arguments, peer, running, wait_until

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not installed")

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger

from training.data.coverage import pose_record
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint, save_checkpoint
from vmloc_ros.core.messages import decode_point_cloud
from vmloc_ros.ros.packages import missing_packages

pytestmark = pytest.mark.usefixtures("ros_domain")

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
AREA = "/vmloc_node/training_area"
UTM_M = np.array([620_000.0, 5_735_000.0, 110.0])


def write_checkpoint(path: Path, places_m: np.ndarray) -> Path:
    """A checkpoint in UTM with training poses at some places near its origin."""
    header = write_random_checkpoint(path, ("image",), map_frame="utm")
    record = pose_record([yaw_pose(x, y, z_m=z) for x, y, z in UTM_M + places_m], [], 1.0)
    codec = replace(header.pose_codec, origin_m=tuple(UTM_M.tolist()))
    save_checkpoint(path, replace(header, pose_codec=codec, training=record), load_checkpoint(path)[1].state_dict())
    return path


def call(us, service_type, name: str, request):
    client = us.node.create_client(service_type, name)
    wait_until(client.service_is_ready, name)
    future = client.call_async(request)
    wait_until(future.done, f"the response of {name}")
    return future.result()


def test_late_subscribers_get_the_training_area_and_that_of_the_next_checkpoint(tmp_path) -> None:
    first_m, second_m = np.array([[3.0, -4.0, 0.0], [20.0, 8.0, 1.0]]), np.array([[-7.0, 2.0, 0.5]])
    first, second = write_checkpoint(tmp_path / "1.safetensors", first_m), write_checkpoint(tmp_path / "2", second_m)
    parameters = {"checkpoint": first, "device": "cpu"}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log") as node:
        node.wait_for_output("now active")
        clouds = us.collect(PointCloud2, AREA, LATCHED)
        (cloud,) = wait_until(lambda: list(clouds), "the training area")
        assert cloud.header.frame_id == "map"
        found_m = decode_point_cloud(cloud).xyz_m
        np.testing.assert_allclose(found_m[np.argsort(found_m[:, 0])], first_m, atol=0.126)
        for name in missing_packages():
            node.wait_for_output(rf"ROS packages that are not installed: .*{name} \(")

        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(second))
        parameter = Parameter(name="checkpoint", value=value)
        request = SetParameters.Request(parameters=[parameter])
        assert call(us, SetParameters, "/vmloc_node/set_parameters", request).results[0].successful
        response = call(us, Trigger, "/vmloc_node/load_checkpoint", Trigger.Request())
        assert response.success, response.message
        wait_until(lambda: len(clouds) == 2, "the other checkpoint's area")
        np.testing.assert_allclose(decode_point_cloud(clouds[1]).xyz_m, second_m, atol=0.126)
