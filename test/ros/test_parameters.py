# SPDX-License-Identifier: Apache-2.0
"""The table of parameters: descriptors, changes while the node runs, the README's table."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from rclpy.parameter import Parameter

from vmloc_ros.ros.parameters import NodeConfig, declare_parameters, read_config

ROWS = {row.name: row for row in fields(NodeConfig)}


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
    assert not descriptor.dynamic_typing
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
    ],
)
def test_an_invalid_value_fails_with_a_reason_and_the_old_one_stays(node, name, value, reason: str) -> None:
    before = read_config(node)
    (result,) = node.set_parameters([Parameter(name, value=value)])
    assert not result.successful
    assert re.search(reason, result.reason)
    assert read_config(node) == before


def test_parameters_that_depend_on_each_other_can_be_set_together(node) -> None:
    smoothing, topic = Parameter("smoothing", value=True), Parameter("odometry_topic", value="odom")
    assert "set tf_mode to" in node.set_parameters([smoothing])[0].reason
    assert node.set_parameters_atomically([smoothing, topic]).successful
    assert read_config(node).smoothing


def test_the_readme_has_each_parameters_description() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = readme.partition("### Parameters")[2].partition("\n### ")[0]
    descriptions = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", table, re.MULTILINE))
    assert descriptions == {name: row.metadata["description"] for name, row in ROWS.items()}


def test_the_readme_lists_every_parameter_with_its_default():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? \|", readme.partition("### Parameters")[2], re.MULTILINE))
    quoted = {str: '"{}"', bool: "{}", int: "{}", float: "{}", type(None): ""}
    defaults = {
        row.name: quoted[type(row.default)].format(str(row.default).lower() if row.default is not None else "")
        for row in fields(NodeConfig)
    }
    assert table == defaults


def test_frames_lose_their_leading_slash():
    config = NodeConfig(map_frame="/map", base_frame="//base_footprint", odom_frame="/odom")
    assert (config.map_frame, config.base_frame, config.odom_frame) == ("map", "base_footprint", "odom")
