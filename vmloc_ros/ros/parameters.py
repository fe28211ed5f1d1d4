# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one table of names, defaults, descriptions and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol, get_args

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidTopicNameException, ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.validate_topic_name import validate_topic_name

from vmloc_ros.core.cameras import ImageKind
from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.frame import MODALITIES
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.names import frame_name
from vmloc_ros.ros.packages import pose_from_xyz_rpy

IMAGE_TRANSPORTS = ("raw", "compressed")
MAP_TO_BASE, MAP_TO_ODOM, NO_TF = TF_MODES = ("map_to_base", "map_to_odom", "none")

# When a changed parameter takes effect.
AT_NEXT_FRAME, AT_LOAD, AT_CONFIGURE, AT_START = "next frame", "~/load_checkpoint", "configure", "start"
_CONSTRAINTS = {
    AT_LOAD: "A change takes effect at the next configure, or when ~/load_checkpoint is called.",
    AT_CONFIGURE: "Read-only while the node is configured.",
    AT_START: "Set at start.",
}
_LIST_TYPES = {float: Parameter.Type.DOUBLE_ARRAY, str: Parameter.Type.STRING_ARRAY}


def _parameter(
    default: Any,
    description: str,
    *,
    low: float = 0,
    high: float | None = None,
    change: str = AT_CONFIGURE,
    elements: type[float] | type[str] = float,
) -> Any:
    """A table row.

    Args:
        low: bounds a number, if ``high`` is given.
        change: when a change takes effect.
        elements: type of the elements of a list. ROS has no type for an empty one, which stands for "not given".
    """
    metadata = {"description": description, "low": low, "high": high, "change": change, "elements": elements}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The parameters of ``vmloc_node``; each row says when a change takes effect. Frames lose leading slashes.

    Raises:
        ConfigError: a value is invalid, or two contradict each other.
    """

    checkpoint: str = _parameter("", "Path of the model's checkpoint (.safetensors).", change=AT_LOAD)
    device: str = _parameter("auto", "Where the model runs: auto, cpu, cuda or cuda:N.")
    autostart: bool = _parameter(True, "Configure and activate by itself at start.", change=AT_START)
    bond_heartbeat_period_s: float = _parameter(
        0.1,
        "Seconds between heartbeats for nav2_lifecycle_manager while the node is active, where package bond is "
        "installed; 0: none, for managers whose bond_timeout is 0.",
        high=1.0,
    )
    modalities: tuple[str, ...] = _parameter(
        (), "Inputs to subscribe to, of image, depth and lidar. Empty: all that the model takes.", elements=str
    )
    allow_degraded: bool = _parameter(
        True,
        "Localize frames that lack an input, or one of whose sensors is dropped as an outlier; false: publish none of "
        "these.",
        change=AT_NEXT_FRAME,
    )
    image_topic: str = _parameter("camera/image_raw", "sensor_msgs/Image, for models that take an image.")
    image_transport: str = _parameter("raw", "raw, or compressed: CompressedImage on IMAGE_TOPIC/compressed.")
    depth_topic: str = _parameter("camera/depth/image_raw", "sensor_msgs/Image, for models that take depth.")
    depth_unit_m: float = _parameter(
        0.0,
        "Metres per unit of depth images; 0: as in training, else 0.001 for integers and 1 for floats (REP 118).",
        high=1000.0,
    )
    cloud_topic: str = _parameter("lidar/points", "sensor_msgs/PointCloud2, for models that take a lidar scan.")
    camera_info_topic: str = _parameter(
        "camera/camera_info",
        "sensor_msgs/CameraInfo, for dense models, models that project the scan into the image, and ~/overlay.",
    )
    image_kind: str = _parameter(
        "auto",
        "Whether the image is raw, with K and distortion of its CameraInfo, or rectified, with P; auto: by its topic's "
        "name.",
    )
    input_depth: int = _parameter(10, "QoS depth of the sensor subscriptions, messages.", low=1, high=1000)
    slop_s: float = _parameter(
        0.1, "Largest difference between the stamps of paired messages, seconds.", high=10.0, change=AT_NEXT_FRAME
    )
    deadline_s: float = _parameter(
        0.2,
        "Longest wait of an image for its scan or depth image, seconds; then it is localized alone. Once the lidar's "
        "period is known, an image does not wait for a scan that will be farther away in time.",
        high=10.0,
        change=AT_NEXT_FRAME,
    )
    silence_s: float = _parameter(
        1.0,
        "Seconds without an image after which scans are localized alone.",
        low=0.01,
        high=60.0,
        change=AT_NEXT_FRAME,
    )
    jump_back_s: float = _parameter(
        1.0, "Stamps that jump back by more seconds than this reset the pairing.", low=0.01, high=60.0
    )
    queue_depth: int = _parameter(
        5,
        "Frames that may wait for the model; then the oldest is dropped for the newest.",
        low=1,
        high=100,
        change=AT_NEXT_FRAME,
    )
    lookahead_frames: int = _parameter(
        0, "Number of later frames that a pose waits for, with models that read clips (vidloc).", high=1000
    )
    continuous: bool = _parameter(True, "Localize every frame; false: only when ~/localize is called.")
    min_confidence: float = _parameter(
        0.05,
        "Withhold poses of lower confidence, if the checkpoint has a confidence model; 0: none.",
        high=1.0,
        change=AT_NEXT_FRAME,
    )
    max_position_std_m: float = _parameter(
        0.0,
        "Withhold poses whose position has a larger standard deviation in any direction, metres; 0: none.",
        high=1000.0,
        change=AT_NEXT_FRAME,
    )
    input_timeout_s: float = _parameter(
        3.0,
        "Seconds without a message after which an input is reported, and ~/localize gives up.",
        low=0.1,
        high=3600.0,
        change=AT_NEXT_FRAME,
    )
    map_frame: str = _parameter(
        "", "Frame of the poses; empty: the checkpoint's, or map where the checkpoint's coordinates are large."
    )
    map_origin: tuple[float, ...] = _parameter(
        (),
        "Origin x y z of map_frame in the checkpoint's frame, metres, published as static TF. Empty: zero, or the "
        "middle of the training area where the checkpoint's coordinates are beyond 10 km (UTM).",
    )
    base_frame: str = _parameter("base_link", "Frame whose pose is published; empty: the checkpoint's body frame.")
    frame_prefix: str = _parameter(
        "",
        "Put before all frames of the robot: base_frame, odom_frame and the checkpoint's body frame; not map_frame.",
    )
    tf_mode: str = _parameter(
        "map_to_base",
        "On /tf: map_to_base; map_to_odom, on robots whose odometry publishes odom_frame -> base_frame; or none.",
        change=AT_NEXT_FRAME,
    )
    odom_frame: str = _parameter("odom", "The odometry's frame, for map_to_odom and smoothing.")
    odometry_topic: str = _parameter(
        "", "nav_msgs/Odometry, for map_to_odom and smoothing; empty: odometry comes from TF."
    )
    transform_tolerance_s: float = _parameter(
        0.5, "Seconds by which the stamp of map -> odom is later than its image's.", high=10.0, change=AT_NEXT_FRAME
    )
    tf_rate_hz: float = _parameter(
        0.0, "Repeat map -> odom at this rate, with current stamps; 0: off.", high=200.0, change=AT_NEXT_FRAME
    )
    tf_timeout_s: float = _parameter(
        5.0,
        "Stop repeating map -> odom this many seconds after the latest fix.",
        low=0.01,
        high=3600.0,
        change=AT_NEXT_FRAME,
    )
    publish_odometry: bool = _parameter(
        False, "Publish ~/odometry: the same pose, with an unknown twist.", change=AT_NEXT_FRAME
    )
    smoothing: bool = _parameter(
        False, "Filter poses with odometry: reject outliers, and publish the filter's poses.", change=AT_NEXT_FRAME
    )
    smoothing_drift: float = _parameter(
        1.0,
        "Factor on the odometry's drift that smoothing expects; 1: a good wheeled robot, standard deviation 5 cm and "
        "0.1 deg after 1 m, 0.6 deg after a turn by 1 rad, growing with the square root.",
        low=0.1,
        high=100.0,
        change=AT_NEXT_FRAME,
    )
    debug_rate_hz: float = _parameter(
        2.0,
        "Highest rate of ~/range_image and ~/overlay, which are drawn only for subscribers.",
        low=0.01,
        high=100.0,
        change=AT_NEXT_FRAME,
    )
    path_length: int = _parameter(
        1000, "Number of latest poses in ~/path; 0: no ~/path.", high=100_000, change=AT_NEXT_FRAME
    )
    base_from_body: tuple[float, ...] = _parameter(
        (),
        "Pose of the checkpoint's body frame in base_frame: x y z roll pitch yaw, metres and radians, as in "
        "URDF. Empty: from TF.",
    )
    camera_from_lidar: tuple[float, ...] = _parameter(
        (), "Pose of the lidar in the camera's optical frame, given as base_from_body. Empty: from TF."
    )

    def __post_init__(self) -> None:
        for name in ("map_frame", "base_frame", "odom_frame", "frame_prefix"):
            object.__setattr__(self, name, frame_name(getattr(self, name)))
        choices = {"image_transport": IMAGE_TRANSPORTS, "tf_mode": TF_MODES, "image_kind": get_args(ImageKind)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"parameter {name} is {getattr(self, name)!r}; expected {' or '.join(allowed)}")
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown:
            raise ConfigError(f"parameter modalities has {unknown}; expected some of {', '.join(MODALITIES)}")
        if self.lookahead_frames and not self.continuous:
            raise ConfigError(
                f"parameter lookahead_frames is {self.lookahead_frames}; it must be 0 where continuous is false, since "
                "no later frames are localized"
            )
        if self.smoothing and self.tf_mode == MAP_TO_BASE and not self.odometry_topic:
            raise ConfigError(
                f"parameter smoothing takes odometry from TF, where {self.base_frame or 'the base'} has a parent "
                f"already; set tf_mode to {MAP_TO_ODOM} or {NO_TF}, or odometry_topic"
            )
        if not self.odom_frame:
            raise ConfigError("parameter odom_frame is empty; expected the odometry's frame, such as odom")
        for row in fields(self):
            value = getattr(self, row.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"parameter {row.name} must be finite, got {value}")
            if row.name.endswith("_topic") and (value or row.default):
                _check_topic(row.name, value)
        for name in ("base_from_body", "camera_from_lidar"):
            _check_numbers(name, getattr(self, name), "x y z roll pitch yaw")
        _check_numbers("map_origin", self.map_origin, "x y z")

    def robot_frame(self, name: str) -> str:
        """The name of one of the robot's frames in TF."""
        return f"{self.frame_prefix}{name}"


def _check_numbers(name: str, numbers: tuple[float, ...], meaning: str) -> None:
    count = len(meaning.split())
    if numbers and (len(numbers) != count or not all(map(math.isfinite, numbers))):
        raise ConfigError(f"parameter {name} must be {count} finite numbers ({meaning}), got {list(numbers)}")


def _check_topic(name: str, topic: str) -> None:
    try:
        validate_topic_name(topic)
    except InvalidTopicNameException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"parameter {name} is {topic!r}, which is no topic: {reason}") from error


def pose_of(xyz_rpy: tuple[float, ...]) -> Pose | None:
    """The pose given by a parameter ``x y z roll pitch yaw``; None if it is empty."""
    return pose_from_xyz_rpy(xyz_rpy) if xyz_rpy else None


class Running(Protocol):
    """What the node does with the parameters while it is configured."""

    @property
    def is_configured(self) -> bool:
        """Whether parameters are in use."""

    def check(self, config: NodeConfig) -> None:
        """Raise VmlocError where a change cannot take effect."""

    def use(self, config: NodeConfig) -> None:
        """Adopt a change."""


def declare_parameters(node: Node, running: Running | None = None) -> None:
    """Declare the table's parameters, and check every later change against it.

    Args:
        running: told of changes while it is configured; those that it could not use any more are refused.

    Raises:
        ConfigError: a value from the command line or a file has a wrong type or is out of range.
    """
    for row in fields(NodeConfig):
        try:
            node.declare_parameter(row.name, _default(row), _descriptor(row))
        except ParameterException as error:
            raise ConfigError(f"parameter {row.name} is wrong: {error}") from error
        if _is_list(row) and not _value(row, node.get_parameter(row.name)):  # its type cannot be told by its elements
            node.set_parameters([Parameter(row.name, _LIST_TYPES[row.metadata["elements"]], [])])
    read_config(node)

    def use(changes: list[Parameter]) -> None:
        if running is not None and running.is_configured and {change.name for change in changes} & _ROWS.keys():
            running.use(_changed(node, changes))

    def check(changes: list[Parameter]) -> SetParametersResult:
        try:
            _check_changes(node, running, changes)
            if not sees_values_set:
                use(changes)
        except VmlocError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    sees_values_set = hasattr(node, "add_post_set_parameters_callback")  # not in Humble
    node.add_on_set_parameters_callback(check)
    if sees_values_set:
        node.add_post_set_parameters_callback(use)


def read_config(node: Node) -> NodeConfig:
    """Read the parameters' present values."""
    return _changed(node, [])


def _changed(node: Node, changes: list[Parameter]) -> NodeConfig:
    """The parameters after some changes."""
    parameters = {name: node.get_parameter(name) for name in _ROWS}
    parameters |= {change.name: change for change in changes if change.name in parameters}
    return NodeConfig(**{name: _value(_ROWS[name], parameter) for name, parameter in parameters.items()})


def _value(row: Field[Any], parameter: Parameter) -> Any:
    """A parameter's value; lists become tuples, which may hold whole numbers for floats."""
    value, elements = parameter.value, row.metadata["elements"]
    if not _is_list(row):
        return value
    if value is None:  # as ROS reads [] in a parameter file
        return ()
    allowed = (int, float) if elements is float else (str,)
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or any(isinstance(x, bool) or not isinstance(x, allowed) for x in value):
        kind = "numbers" if elements is float else "words"
        shown = list(value) if is_list else value
        raise ConfigError(f"parameter {row.name} is {shown!r}; expected a list of {kind}, empty for 'not given'")
    return tuple(map(elements, value))


def _check_changes(node: Node, running: Running | None, changes: list[Parameter]) -> None:
    """Raise ConfigError where the parameters after these changes are invalid, or too late."""
    deleted = [change.name for change in changes if change.name in _ROWS and change.type_ == Parameter.Type.NOT_SET]
    if deleted:
        raise ConfigError(f"parameter {deleted[0]} cannot be deleted; set it to [] for 'not given'")
    before, after = read_config(node), _changed(node, changes)
    if running is None or not running.is_configured:
        return
    fixed = [row.name for row in _ROWS.values() if row.metadata["change"] == AT_CONFIGURE]
    for name in fixed:
        if getattr(before, name) != getattr(after, name):
            raise ConfigError(
                f"parameter {name} is read-only while the node is configured; deactivate and clean up, set it, then "
                "configure and activate"
            )
    running.check(after)


def _is_list(row: Field[Any]) -> bool:
    return isinstance(row.default, tuple)


def _default(row: Field[Any]) -> Any:
    return list(row.default) if _is_list(row) else row.default


def _descriptor(row: Field[Any]) -> ParameterDescriptor:
    change = row.metadata["change"]
    descriptor = ParameterDescriptor(
        description=row.metadata["description"],
        additional_constraints=_CONSTRAINTS.get(change, f"A change takes effect at the {change}."),
        read_only=change == AT_START,
        dynamic_typing=_is_list(row),  # an empty list's type is another one
    )
    low, high = row.metadata["low"], row.metadata["high"]
    if high is not None and isinstance(row.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif high is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


_ROWS = {row.name: row for row in fields(NodeConfig)}
