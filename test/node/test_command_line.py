# SPDX-License-Identifier: Apache-2.0
"""`ros2 param` and `ros2 lifecycle` with a running node, wherever ros2cli is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")

from ros_graph import node_arguments, running, wait_until
from training.testing import write_random_checkpoint
from vmloc_ros.ros.parameters import NodeConfig

pytestmark = pytest.mark.usefixtures("ros_domain")

NODE = "/vmloc_node"


def ros2(*arguments: str) -> str:
    """Output of the command line tool; "" while it does not find the node."""
    command = [sys.executable, "-c", "import sys; from ros2cli.cli import main; sys.exit(main())", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "" if "Node not found" in result.stderr else result.stdout + result.stderr


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    for name in ("ros2param", "ros2lifecycle"):
        pytest.importorskip(name, reason=f"{name} is not installed (no ROS distribution)")
    folder = tmp_path_factory.mktemp("node")
    write_random_checkpoint(folder / "model.safetensors", ("image",))
    parameters = {"checkpoint": folder / "model.safetensors", "device": "cpu"}
    with running(node_arguments(parameters), folder / "node.log") as process:
        process.wait_for_output("now active")
        wait_until(lambda: "active" in ros2("lifecycle", "get", "--no-daemon", NODE), "the node")
        yield


def dump() -> dict:
    text = wait_until(lambda: ros2("param", "dump", "--no-daemon", NODE), "the parameters")
    return yaml.safe_load(text)[NODE]["ros__parameters"]


def test_a_dump_has_every_parameter_and_loads(node: None, tmp_path: Path) -> None:
    parameters = dump()
    assert {row.name for row in fields(NodeConfig)} <= set(parameters)
    assert parameters["base_from_body"] == parameters["modalities"] == []
    file = tmp_path / "parameters.yaml"
    own = {row.name: parameters[row.name] for row in fields(NodeConfig) if row.name != "autostart"}  # read-only
    own["min_confidence"] = 0.25
    file.write_text(yaml.safe_dump({NODE: {"ros__parameters": own}}))
    text = wait_until(lambda: ros2("param", "load", "--no-daemon", NODE, str(file)), "the answers")
    assert text.count("successful") == len(own), text
    assert dump() == {**parameters, "min_confidence": 0.25}


def test_a_parameter_that_cannot_change_says_so(node: None) -> None:
    arguments = ("param", "set", "--no-daemon", NODE, "image_topic", "front")
    text = wait_until(lambda: ros2(*arguments), "the answer")
    assert "image_topic is read-only while the node is configured" in text


def test_transitions(node: None) -> None:
    for transition, state in (("deactivate", "inactive"), ("activate", "active")):
        text = wait_until(lambda name=transition: ros2("lifecycle", "set", "--no-daemon", NODE, name), "the answer")
        assert "Transitioning successful" in text
        assert state in wait_until(lambda: ros2("lifecycle", "get", "--no-daemon", NODE), "the state")
