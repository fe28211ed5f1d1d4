# SPDX-License-Identifier: Apache-2.0
"""Launch files and configurations agree with the node; mocks stand in for launch."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from ros_graph import ament_prefix
from vmloc_ros.core.synchronizer import Statistics
from vmloc_ros.initialpose import InitialPose
from vmloc_ros.ros.diagnostics import Diagnostics, values_of
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.runtime.health import Health

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_MODULES = (
    "launch",
    "launch.actions",
    "launch.conditions",
    "launch.launch_description_sources",
    "launch.substitutions",
    "launch_ros",
    "launch_ros.actions",
    "launch_ros.parameter_descriptions",
    "launch_ros.ros_adapters",
    "ament_index_python",
    "ament_index_python.packages",
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), ROOT / "launch" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recorder(monkeypatch):
    """Mocks of launch's modules, which record calls."""
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)
    modules = {name: MagicMock(name=name) for name in LAUNCH_MODULES}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["ament_index_python.packages"].get_package_share_directory.return_value = str(ROOT)
    return modules


def declared(recorder) -> dict[str, str | None]:
    calls = recorder["launch.actions"].DeclareLaunchArgument.call_args_list
    return {call.args[0]: call.kwargs.get("default_value") for call in calls}


def start(module: ModuleType, given: dict[str, str]) -> None:
    """Run the node's launch file with arguments, the others at their defaults."""
    defaults = {"params_file": str(ROOT / "config" / "node.yaml"), "use_sim_time": "false", "respawn": "false"}
    values = {**defaults, "rviz": "false", "log_level": "info", **given}

    def configuration(name):
        return MagicMock(perform=lambda context: values.get(name, ""))

    module.LaunchConfiguration.side_effect = configuration
    module.ParameterValue.side_effect = lambda value, value_type: value
    module._start(MagicMock())


def test_the_nodes_launch_file_overrides_only_what_is_given(recorder):
    module = load("vmloc.launch.py")
    module.generate_launch_description()
    assert set(module.OVERRIDES) <= {row.name for row in fields(NodeConfig)}
    assert all(declared(recorder)[name] == "" for name in module.OVERRIDES)
    given = {"checkpoint": "model.safetensors"}
    start(module, given)
    overrides = module.Node.call_args.kwargs["parameters"][-1]
    assert overrides.pop("use_sim_time") is False
    assert overrides == given


def test_rviz_is_off_by_default_and_every_file_named_exists(recorder):
    module = load("vmloc.launch.py")
    module.generate_launch_description()
    arguments = declared(recorder)
    assert arguments["rviz"] == "false"
    assert Path(arguments["params_file"]).is_file()
    start(module, {"rviz": "true"})
    node, rviz = (call.kwargs for call in recorder["launch_ros.actions"].Node.call_args_list)
    assert Path(rviz["arguments"][1]).is_file()
    assert {Path(path) for path in node["additional_env"].values()} == {ROOT / "config" / "fastdds.xml"}


def test_the_readme_names_every_argument(recorder):
    for name in ("vmloc.launch.py", "replay.launch.py"):
        load(name).generate_launch_description()
    section = (ROOT / "README.md").read_text().partition("## Put it on my robot")[2].partition("\n### ")[0]
    assert set(declared(recorder)) <= set(re.findall(r"(\w+)(?:`|:=)", section))


def test_a_fastdds_profile_of_the_user_is_kept(recorder, monkeypatch):
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/my/own.xml")
    start(load("vmloc.launch.py"), {})
    assert recorder["launch_ros.actions"].Node.call_args.kwargs["additional_env"] == {}


def test_the_environment_of_what_is_launched_later_is_left_alone(recorder):
    start(load("vmloc.launch.py"), {})
    recorder["launch.actions"].SetEnvironmentVariable.assert_not_called()


def test_a_missing_parameter_file_is_an_error(recorder, tmp_path):
    with pytest.raises(RuntimeError, match=r"params_file /nowhere\.yaml does not exist"):
        start(load("vmloc.launch.py"), {"params_file": "/nowhere.yaml"})


@pytest.mark.parametrize(
    ("text", "namespace", "fits"),
    [
        ("/**: {ros__parameters: {device: cpu}}", "robot1", True),
        ("vmloc_node: {ros__parameters: {device: cpu}}", "", True),
        ("/vmloc_node: {ros__parameters: {device: cpu}}", "robot1", False),
        ("robot1: {vmloc_node: {ros__parameters: {device: cpu}}}", "/robot1", True),
        ("/robot1/vmloc_node: {ros__parameters: {device: cpu}}", "robot1", True),
        ("/*/vmloc_node: {ros__parameters: {device: cpu}}", "robot1", True),
        ("/**/vmloc_node: {ros__parameters: {device: cpu}}", "fleet/robot1", True),
        ("amcl: {ros__parameters: {a: 1}}\ncontroller_server: {ros__parameters: {b: 2}}", "", False),
        ("/**: {ros__parameters: {use_sim_time: true, robot_radius: 0.2}}", "robot1", False),
        ("", "", False),
    ],
)
def test_a_parameter_file_of_other_nodes_is_an_error(recorder, tmp_path, text, namespace, fits):
    file = tmp_path / "parameters.yaml"
    file.write_text(text)
    module = load("vmloc.launch.py")
    if fits:
        module.check_params_file(str(file), namespace)
        return
    with pytest.raises(RuntimeError, match=r"has (no parameters for /(robot1/)?vmloc_node, only for|only use_sim)"):
        module.check_params_file(str(file), namespace)


@pytest.mark.parametrize(
    ("given", "remapped"),
    [({}, False), ({"namespace": "robot1"}, True), ({"namespace": "robot1", "frame_prefix": "robot1/"}, False)],
)
def test_a_namespace_has_its_own_tf_unless_frames_have_a_prefix(recorder, given, remapped):
    start(load("vmloc.launch.py"), given)
    started = recorder["launch_ros.actions"].Node.call_args.kwargs
    assert started["namespace"] == given.get("namespace", "")
    assert started["remappings"] == ([("/tf", "tf"), ("/tf_static", "tf_static")] if remapped else [])


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_flags_become_truth_values(recorder, text, value):
    start(load("vmloc.launch.py"), {"autostart": text, "respawn": text, "use_sim_time": text})
    started = recorder["launch_ros.actions"].Node.call_args.kwargs
    assert started["respawn"] is value
    assert (started["parameters"][-1]["use_sim_time"], started["parameters"][-1]["autostart"]) == (value, value)


@pytest.mark.parametrize(("loop", "expected"), [("true", ["--loop"]), ("false", ["--delay", "1.0"])])
def test_replay_plays_with_the_bags_clock(recorder, loop, expected):
    module = load("replay.launch.py")
    module.generate_launch_description()
    (source,) = module.PythonLaunchDescriptionSource.call_args.args
    assert Path(source).is_file()
    assert dict(module.IncludeLaunchDescription.call_args.kwargs["launch_arguments"]) == {"use_sim_time": "true"}
    values = {"bag": "drive", "rate": "2.0", "delay": "1.0", "loop": loop}
    module.LaunchConfiguration.side_effect = lambda name: MagicMock(perform=lambda context: values[name])
    command = module._command(MagicMock())
    assert command[:4] == ["ros2", "bag", "play", "drive"]
    assert "--clock" in command
    assert command[command.index("--rate") + 1] == "2.0"
    assert command[len(command) - len(expected) :] == expected


def included(module) -> dict[str, str]:
    """Arguments with which an example includes the node's launch file."""
    (source,) = module.PythonLaunchDescriptionSource.call_args.args
    assert Path(source) == ROOT / "launch" / "vmloc.launch.py"
    return dict(module.IncludeLaunchDescription.call_args.kwargs["launch_arguments"])


def test_robot_localization_alone_publishes_the_transform_and_gets_the_nodes_pose(recorder):
    module = load("examples/robot_localization.launch.py")
    module.generate_launch_description()
    assert included(module) == {"tf_mode": "none"}
    assert module.Node.call_args.kwargs["executable"] == "ekf_node"
    assert declared(recorder)["use_sim_time"] == "false"
    text = Path(declared(recorder)["ekf_params_file"]).read_text()
    parameters = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert parameters["pose0"] == "vmloc_node/pose_with_covariance"
    assert parameters["world_frame"] == parameters["map_frame"] == "map"
    assert parameters["publish_tf"] is True
    assert parameters["base_link_frame"] == {row.name: row.default for row in fields(NodeConfig)}["base_frame"]


def test_the_filters_configuration_fits_its_state():
    """The lengths that ekf_node expects: x y z roll pitch yaw, with first and second derivatives."""
    text = (ROOT / "config" / "examples" / "robot_localization.yaml").read_text()
    parameters = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert [i for i, used in enumerate(parameters["pose0_config"]) if used] == [0, 1, 5]
    assert [i for i, used in enumerate(parameters["odom0_config"]) if used] == [6, 7, 11]
    for name in ("pose0_config", "odom0_config"):
        assert len(parameters[name]) == 15
        assert all(isinstance(used, bool) for used in parameters[name])
    numbers = parameters["initial_estimate_covariance"]
    assert all(isinstance(number, float) for number in numbers)
    covariance = np.reshape(numbers, (15, 15))
    np.testing.assert_array_equal(covariance, np.diag(covariance.diagonal()))
    large = [i for i, variance in enumerate(covariance.diagonal()) if variance > 1]
    assert large == [i for i, used in enumerate(parameters["pose0_config"]) if used]
    assert all(isinstance(parameters[name], float) for name in ("frequency", "history_length"))


@pytest.fixture
def initialpose_defaults(ros_domain) -> dict[str, float]:
    """The limits of a confident pose that vmloc_initialpose declares."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = InitialPose(context=context)
    yield {name: node.get_parameter(name).value for name in ("max_position_std_m", "max_yaw_std_rad")}
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_amcl_alone_publishes_the_transform_and_gets_one_pose(recorder, initialpose_defaults):
    module = load("examples/initialpose.launch.py")
    module.generate_launch_description()
    assert included(module) == {"tf_mode": "none"}
    started = module.Node.call_args.kwargs
    assert (started["package"], started["executable"]) == ("vmloc_ros", "vmloc_initialpose")
    assert {name: float(declared(recorder)[name]) for name in initialpose_defaults} == initialpose_defaults
    assert set(started["parameters"][0]) == set(initialpose_defaults)


@pytest.mark.parametrize("navigation", ["true", "false"])
def test_nav2_manages_the_node_in_the_place_of_amcl(recorder, tmp_path, navigation):
    module = load("examples/nav2.launch.py")
    module.generate_launch_description()
    assert included(module) == {"tf_mode": "map_to_odom", "autostart": "false"}
    given = {name: default for name, (default, _) in module.ARGUMENTS.items()}
    given |= {"map": str(tmp_path / "floor.yaml"), "navigation": navigation, "namespace": "robot1"}
    module.LaunchConfiguration = lambda name, default="": MagicMock(perform=lambda context: given.get(name, default))
    with pytest.raises(RuntimeError, match=r"floor\.yaml' does not exist"):
        module._nav2(None)
    (tmp_path / "floor.yaml").write_text("image: floor.pgm\n")
    given["frame_prefix"] = "robot1/"
    with pytest.raises(RuntimeError, match="give each robot a namespace"):
        module._nav2(None)
    del given["frame_prefix"]
    module.IncludeLaunchDescription.reset_mock()
    module._nav2(None)
    server, manager = (call.kwargs for call in module.Node.call_args_list)
    assert server["parameters"][0]["yaml_filename"] == given["map"]
    assert manager["parameters"][0]["node_names"] == ["map_server", "vmloc_node"]
    assert manager["parameters"][0]["bond_timeout"] == 4.0
    assert {server["namespace"], manager["namespace"]} == {"robot1"}
    assert module.IncludeLaunchDescription.called == (navigation == "true")
    if navigation == "true":
        # The configurations of vmloc.launch.py's arguments hold here, too, unless they are given.
        arguments = dict(module.IncludeLaunchDescription.call_args.kwargs["launch_arguments"])
        assert arguments["autostart"] == "true"
        assert arguments["params_file"].endswith("nav2_params.yaml")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("vmloc.launch.py", "rviz"),
        ("replay.launch.py", "bag"),
        ("examples/robot_localization.launch.py", "ekf_params_file"),
        ("examples/initialpose.launch.py", "max_yaw_std_rad"),
        ("examples/nav2.launch.py", "nav2_params_file"),
    ],
)
def test_launch_itself_accepts_the_file(name, argument, tmp_path, monkeypatch):
    pytest.importorskip("launch_ros", reason="launch is not installed (no ROS distribution)")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(ament_prefix(tmp_path)))
    description = load(name).generate_launch_description()
    assert {"checkpoint", argument} <= {argument.name for argument in description.get_launch_arguments()}


def test_the_parameter_file_lists_declared_parameters_with_their_defaults():
    parameters = yaml.safe_load((ROOT / "config" / "node.yaml").read_text())["/**"]["ros__parameters"]
    rows = {row.name: row.default for row in fields(NodeConfig)}
    defaults = {name: list(default) if isinstance(default, tuple) else default for name, default in rows.items()}
    assert parameters == {name: defaults.get(name, "not a parameter of the node") for name in parameters}
    assert set(parameters) == set(rows)  # by which the launch file knows a parameter file for the node


def test_rviz_shows_every_output_and_input_by_names_that_follow_its_namespace():
    text = (ROOT / "config" / "vmloc.rviz").read_text()
    displays = yaml.safe_load(text)["Visualization Manager"]["Displays"]
    topics = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert topics == {
        "vmloc_node/pose_with_covariance",
        "vmloc_node/path",
        "vmloc_node/training_area",
        "ground_truth/pose",
        "lidar/points",
        "camera/image_raw",
        "vmloc_node/overlay",
        "vmloc_node/range_image",
    }


def panels_of(layout) -> list[str]:
    """Panels of a Foxglove layout, which is a tree of splits."""
    if isinstance(layout, str):
        return [layout]
    assert layout["direction"] in ("row", "column")
    return [*panels_of(layout["first"]), *panels_of(layout["second"])]


def test_foxglove_shows_every_output_and_latency():
    document = json.loads((ROOT / "config" / "vmloc.foxglove.json").read_text())
    panels = document["configById"]
    assert sorted(panels_of(document["layout"])) == sorted(panels)
    scene = next(config for name, config in panels.items() if name.startswith("3D!"))
    assert scene["followTf"] == "map"
    assert set(scene["topics"]) == {
        "/vmloc_node/pose_with_covariance",
        "/vmloc_node/path",
        "/vmloc_node/training_area",
        "/ground_truth/pose",
        "/lidar/points",
    }
    images = {config["imageMode"]["imageTopic"] for name, config in panels.items() if name.startswith("Image!")}
    assert images == {"/vmloc_node/overlay", "/vmloc_node/range_image"}
    kinds = {name.partition("!")[0] for name in panels}
    assert kinds == {"3D", "Image", "Plot", "DiagnosticSummary", "DiagnosticStatusPanel"}


def test_foxglove_plots_diagnostics_that_the_node_publishes():
    text = (ROOT / "config" / "vmloc.foxglove.json").read_text()
    paths = [
        path["value"] for name, config in json.loads(text)["configById"].items() for path in config.get("paths", [])
    ]
    keys = {match[1] for path in paths if (match := re.search(r'\{key=="(.*?)"\}', path))}
    assert len(keys) == 3
    assert keys <= set(values_of(Health().report(), Statistics(), 0, {}))
    assert all(path.startswith(("/diagnostics.", "/vmloc_node/pose_with_covariance.")) for path in paths)


def test_the_fastdds_profile_replaces_the_builtin_transports():
    root = ElementTree.parse(ROOT / "config" / "fastdds.xml").getroot()
    values = {element.tag.split("}")[1]: (element.text or "").strip() for element in root.iter()}
    assert int(values["segment_size"]) >= 64 * 2**20
    assert values["useBuiltinTransports"] == "false"


def test_the_analyzer_matches_each_nodes_status_and_no_other():
    text = (ROOT / "config" / "examples" / "diagnostics.yaml").read_text()
    analyzer = yaml.safe_load(text)["analyzers"]["ros__parameters"]["localization"]
    (part,) = analyzer["contains"]
    published = []
    for name in ("/vmloc_node", "/robot1/vmloc_node"):
        node = MagicMock(get_fully_qualified_name=lambda name=name: name)
        node.get_clock().now().to_msg.return_value = Time()
        diagnostics = Diagnostics(node)
        diagnostics.publish(DiagnosticStatus.OK, "localizing", {})
        published += node.create_publisher.return_value.publish.call_args.args[0].status
    assert [part in status.name for status in published] == [True, True]
    assert len({status.name for status in published}) == 2
    assert all(status.hardware_id == socket.gethostname() for status in published)
    assert part not in "camera_driver: frequency"
    assert isinstance(analyzer["timeout"], float)
