# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one table of names, defaults, descriptions and ranges."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_args

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
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import MODALITIES
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.names import frame_name
from vmloc_ros.ros.packages import pose_from_xyz_rpy

IMAGE_TRANSPORTS = ("raw", "compressed")
MAP_TO_BASE, MAP_TO_ODOM, NO_TF = TF_MODES = ("map_to_base", "map_to_odom", "none")


def _parameter(
    default: Any,
    description: str,
    *,
    low: float = 0,
    high: float | None = None,
    read_only: bool = False,
    unset: Parameter.Type = Parameter.Type.DOUBLE_ARRAY,
) -> Any:
    """A table row; ``low`` bounds a number only if ``high`` is given, ``unset`` is the ROS type of a None."""
    metadata = {"description": description, "low": low, "high": high, "read_only": read_only, "unset": unset}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The parameters of ``vmloc_node``; they take effect at the next configure. Frames lose leading slashes.

    Raises:
        ConfigError: a value is invalid, or two contradict each other.
    """

    checkpoint: str = _parameter("", "Path of the model's checkpoint (.safetensors).")
    device: str = _parameter("auto", "Where the model runs: auto, cpu, cuda or cuda:N.")
    autostart: bool = _parameter(True, "Configure and activate by itself at start.", read_only=True)
    modalities: tuple[str, ...] | None = _parameter(
        None,
        "Inputs to subscribe to, of image, depth and lidar. Not set: all that the model takes.",
        unset=Parameter.Type.STRING_ARRAY,
    )
    allow_degraded: bool = _parameter(
        True,
        "Localize frames that lack an input, or one of whose sensors is dropped as an outlier; false: publish none of "
        "these.",
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
    slop_s: float = _parameter(0.1, "Largest difference between the stamps of paired messages, seconds.", high=10.0)
    deadline_s: float = _parameter(
        0.2,
        "Longest wait of an image for its scan or depth image, seconds; then it is localized alone. Once the lidar's "
        "period is known, an image does not wait for a scan that will be farther away in time.",
        high=10.0,
    )
    silence_s: float = _parameter(
        1.0, "Seconds without an image after which scans are localized alone.", low=0.01, high=60.0
    )
    jump_back_s: float = _parameter(
        1.0, "Stamps that jump back by more seconds than this reset the pairing.", low=0.01, high=60.0
    )
    queue_depth: int = _parameter(
        5, "Frames that may wait for the model; then the oldest is dropped for the newest.", low=1, high=100
    )
    lookahead_frames: int = _parameter(
        0, "Number of later frames that a pose waits for, with models that read clips (vidloc).", high=1000
    )
    continuous: bool = _parameter(True, "Localize every frame; false: only when ~/localize is called.")
    min_confidence: float = _parameter(
        0.05, "Withhold poses of lower confidence, if the checkpoint has a confidence model; 0: none.", high=1.0
    )
    max_position_std_m: float = _parameter(
        0.0,
        "Withhold poses whose position has a larger standard deviation in any direction, metres; 0: none.",
        high=1000.0,
    )
    input_timeout_s: float = _parameter(
        3.0,
        "Seconds without a message after which an input is reported, and ~/localize gives up.",
        low=0.1,
        high=3600.0,
    )
    map_frame: str = _parameter(
        "", "Frame of the poses; empty: the checkpoint's, or map where the checkpoint's coordinates are large."
    )
    map_origin: tuple[float, ...] | None = _parameter(
        None,
        "Origin x y z of map_frame in the checkpoint's frame, metres, published as static TF. Not set: zero, or the "
        "middle of the training area where the checkpoint's coordinates are beyond 10 km (UTM).",
    )
    base_frame: str = _parameter("base_link", "Frame whose pose is published; empty: the checkpoint's body frame.")
    tf_mode: str = _parameter(
        "map_to_base",
        "On /tf: map_to_base; map_to_odom, on robots whose odometry publishes odom_frame -> base_frame; or none.",
    )
    odom_frame: str = _parameter("odom", "The odometry's frame, for map_to_odom and smoothing.")
    odometry_topic: str = _parameter(
        "", "nav_msgs/Odometry, for map_to_odom and smoothing; empty: odometry comes from TF."
    )
    transform_tolerance_s: float = _parameter(
        0.5, "Seconds by which the stamp of map -> odom is later than its image's.", high=10.0
    )
    tf_rate_hz: float = _parameter(0.0, "Repeat map -> odom at this rate, with current stamps; 0: off.", high=200.0)
    tf_timeout_s: float = _parameter(
        5.0, "Stop repeating map -> odom this many seconds after the latest fix.", low=0.01, high=3600.0
    )
    publish_odometry: bool = _parameter(False, "Publish ~/odometry: the same pose, with an unknown twist.")
    smoothing: bool = _parameter(False, "Filter poses with odometry: reject outliers, and publish the filter's poses.")
    smoothing_drift: float = _parameter(
        1.0,
        "Factor on the odometry's drift that smoothing expects; 1: a good wheeled robot, standard deviation 5 cm and "
        "0.1 deg after 1 m, 0.6 deg after a turn by 1 rad, growing with the square root.",
        low=0.1,
        high=100.0,
    )
    debug_rate_hz: float = _parameter(
        2.0, "Highest rate of ~/range_image and ~/overlay, which are drawn only for subscribers.", low=0.01, high=100.0
    )
    path_length: int = _parameter(1000, "Number of latest poses in ~/path; 0: no ~/path.", high=100_000)
    base_from_body: tuple[float, ...] | None = _parameter(
        None,
        "Pose of the checkpoint's body frame in base_frame: x y z roll pitch yaw, metres and radians, as in "
        "URDF. Not set: from TF.",
    )
    camera_from_lidar: tuple[float, ...] | None = _parameter(
        None, "Pose of the lidar in the camera's optical frame, given as base_from_body. Not set: from TF."
    )

    def __post_init__(self) -> None:
        for name in ("map_frame", "base_frame", "odom_frame"):
            object.__setattr__(self, name, frame_name(getattr(self, name)))
        choices = {"image_transport": IMAGE_TRANSPORTS, "tf_mode": TF_MODES, "image_kind": get_args(ImageKind)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"parameter {name} is {getattr(self, name)!r}; expected {' or '.join(allowed)}")
        unknown = [name for name in self.modalities or () if name not in MODALITIES]
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


def _check_numbers(name: str, numbers: tuple[float, ...] | None, meaning: str) -> None:
    count = len(meaning.split())
    if numbers is not None and (len(numbers) != count or not all(map(math.isfinite, numbers))):
        raise ConfigError(f"parameter {name} must be {count} finite numbers ({meaning}), got {list(numbers)}")


def _check_topic(name: str, topic: str) -> None:
    try:
        validate_topic_name(topic)
    except InvalidTopicNameException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"parameter {name} is {topic!r}, which is no topic: {reason}") from error


def pose_of(xyz_rpy: tuple[float, ...] | None) -> Pose | None:
    """The pose given by a parameter ``x y z roll pitch yaw``; None if it is not set."""
    return None if xyz_rpy is None else pose_from_xyz_rpy(xyz_rpy)


def declare_parameters(node: Node) -> None:
    """Declare the table's parameters, and check every later change against it.

    Raises:
        ConfigError: a value from the command line or a file has a wrong type or is out of range.
    """
    for row in fields(NodeConfig):
        default = row.metadata["unset"] if row.default is None else row.default
        try:
            node.declare_parameter(row.name, default, _descriptor(row))
        except ParameterException as error:
            raise ConfigError(f"parameter {row.name} is wrong: {error}") from error
    read_config(node)
    node.add_on_set_parameters_callback(lambda changes: _check_changes(node, changes))


def read_config(node: Node) -> NodeConfig:
    """Read the parameters' present values."""
    return NodeConfig(**_values(node))


def _values(node: Node) -> dict[str, Any]:
    names = [row.name for row in fields(NodeConfig)]
    return {name: _value(node.get_parameter_or(name)) for name in names}


def _value(parameter: Parameter) -> Any:
    is_array = parameter.type_ in (Parameter.Type.DOUBLE_ARRAY, Parameter.Type.STRING_ARRAY)
    return tuple(parameter.value) if is_array else parameter.value


def _check_changes(node: Node, changes: list[Parameter]) -> SetParametersResult:
    values = _values(node)
    values.update({change.name: _value(change) for change in changes if change.name in values})
    try:
        NodeConfig(**values)
    except ConfigError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def _descriptor(row: Field[Any]) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=row.metadata["description"], read_only=row.metadata["read_only"])
    low, high = row.metadata["low"], row.metadata["high"]
    if high is not None and isinstance(row.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif high is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor
