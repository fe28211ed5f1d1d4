# SPDX-License-Identifier: Apache-2.0
"""The table of parameters: descriptors, changes while the node runs, the README's table."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from rclpy.parameter import Parameter

from vmloc_ros.ros.parameters import NodeConfig, declare_parameters, read_config

ROWS = {row.name: row for row in fields(NodeConfig)}
LISTS = [name for name, row in ROWS.items() if isinstance(row.default, tuple)]


@pytest.fixture(scope="module")
def node(ros_domain):
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("parameters", context=context)
    declare_parameters(node)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("name", ROWS)
def test_ros_describes_every_parameter_and_bounds_every_number(node, name: str) -> None:
    descriptor, default = node.describe_parameter(name), ROWS[name].default
    assert descriptor.description == ROWS[name].metadata["description"]
    assert descriptor.read_only == (name == "autostart")
    assert descriptor.dynamic_typing == isinstance(default, tuple)  # an empty list's type is not the full one's
    assert descriptor.additional_constraints
    bounds = {float: descriptor.floating_point_range, int: descriptor.integer_range}.get(type(default))
    if bounds is not None:
        assert bounds[0].from_value <= default <= bounds[0].to_value


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("slop_s", 11.0, "slop_s"),
        ("slop_s", float("nan"), "slop_s"),
        ("slop_s", "wide", "Wrong parameter type"),
        ("path_length", -1, "path_length"),
        ("autostart", False, "read-only"),
        ("tf_mode", "map_to_moon", "parameter tf_mode is 'map_to_moon'; expected map_to_base or map_to_odom or none"),
        ("image_topic", "front image", "parameter image_topic is 'front image', which is no topic"),
        ("odom_frame", "", "parameter odom_frame is empty"),
        ("base_from_body", [1.0, 2.0], r"parameter base_from_body must be 6 finite numbers \(x y z roll pitch yaw\)"),
        ("modalities", ["radar"], r"parameter modalities has \['radar'\]; expected some of"),
        ("modalities", [1, 2], r"parameter modalities is \[1, 2\]; expected a list of words, empty for 'not given'"),
        ("modalities", "image", "parameter modalities is 'image'; expected a list of words"),
        ("map_origin", [True, False, True], "expected a list of numbers"),
        ("map_origin", None, "parameter map_origin cannot be deleted; set it to \\[\\] for 'not given'"),
    ],
)
def test_an_invalid_value_fails_with_a_reason_and_the_old_one_stays(node, name, value, reason: str) -> None:
    before = read_config(node)
    (result,) = node.set_parameters([Parameter(name, value=value)])
    assert not result.successful
    assert re.search(reason, result.reason)
    assert read_config(node) == before


def test_every_parameter_has_a_value_so_that_dumps_are_complete(node) -> None:
    parameters = node.get_parameters(list(ROWS))
    assert all(parameter.value is not None for parameter in parameters)
    types = {parameter.name: parameter.type_ for parameter in parameters if parameter.name in LISTS}
    assert types == {name: Parameter.Type.DOUBLE_ARRAY for name in LISTS} | {"modalities": Parameter.Type.STRING_ARRAY}


# As ROS gives the type of an empty list: in Python, and from `ros2 param set NODE NAME "[]"`.
@pytest.mark.parametrize("type_", [Parameter.Type.BYTE_ARRAY, Parameter.Type.BOOL_ARRAY, Parameter.Type.DOUBLE_ARRAY])
@pytest.mark.parametrize("name", LISTS)
def test_lists_are_set_and_unset(node, name, type_) -> None:
    value = {"modalities": ["image"], "map_origin": [1, 2, 3]}.get(name, [0, 0, 1.5, 0, 0, 0][:1] + [0] * 5)
    assert node.set_parameters([Parameter(name, value=value)])[0].successful
    assert getattr(read_config(node), name) == tuple(value)
    assert node.set_parameters([Parameter(name, type_, [])])[0].successful
    assert getattr(read_config(node), name) == ()


@pytest.mark.parametrize("text", ["[]", "[0.0, 0.0, 1.5, 0.0, 0.0, 0.0]", "[0, 0, 2, 0, 0, 0]"])
def test_a_parameter_file_gives_lists_empty_and_full(ros_domain, tmp_path, text) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text(f"/**:\n  ros__parameters:\n    base_from_body: {text}\n    modalities: []\n")
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(file)], context=context)
    node = rclpy.create_node("from_file", context=context)
    declare_parameters(node)
    config = read_config(node)
    assert config.base_from_body == tuple(map(float, json.loads(text)))
    assert config.modalities == ()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_parameters_that_depend_on_each_other_can_be_set_together(node) -> None:
    smoothing, topic = Parameter("smoothing", value=True), Parameter("odometry_topic", value="odom")
    assert "set tf_mode to" in node.set_parameters([smoothing])[0].reason
    assert node.set_parameters_atomically([smoothing, topic]).successful
    assert read_config(node).smoothing


def test_the_readme_has_each_parameters_description_and_when_a_change_takes_effect() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = readme.partition("### Parameters")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (.*) \|$", table, re.MULTILINE)
    assert {name: text for name, _, text in rows} == {name: row.metadata["description"] for name, row in ROWS.items()}
    changes = {
        name: row.metadata["change"].replace("~/load_checkpoint", "`~/load_checkpoint`") for name, row in ROWS.items()
    }
    assert {name: change for name, change, _ in rows} == changes


def test_the_readme_lists_every_parameter_with_its_default():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? \|", readme.partition("### Parameters")[2], re.MULTILINE))
    quoted = {str: '"{}"', bool: "{}", int: "{}", float: "{}", tuple: "[]"}
    defaults = {row.name: quoted[type(row.default)].format(str(row.default).lower()) for row in fields(NodeConfig)}
    assert table == defaults


def test_frames_lose_their_leading_slash():
    config = NodeConfig(map_frame="/map", base_frame="//base_footprint", odom_frame="/odom")
    assert (config.map_frame, config.base_frame, config.odom_frame) == ("map", "base_footprint", "odom")
