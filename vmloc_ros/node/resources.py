# SPDX-License-Identifier: Apache-2.0
"""What the node holds while configured: model, publishers, transform listener."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rclpy.node import Node

from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.frame import LIDAR
from vmloc_ros.core.transform_tree import TransformLookup
from vmloc_ros.ros.odometry import create_odometry
from vmloc_ros.ros.parameters import MAP_TO_ODOM, NodeConfig, pose_of
from vmloc_ros.ros.publishers import Outputs
from vmloc_ros.ros.subscriptions import modalities_in_use
from vmloc_ros.ros.tf_broadcaster import check_broadcast
from vmloc_ros.ros.tf_listener import listen_to_transforms
from vmloc_ros.ros.training_area import TrainingAreaCloud
from vmloc_ros.runtime.extrinsics import Extrinsics, trained_extrinsics
from vmloc_ros.runtime.map_frame import MapFrame, choose_map_frame

if TYPE_CHECKING:
    from vmloc_ros.core.localizer import Localizer
    from vmloc_ros.runtime.served_model import ServedModel


class Resources:
    """Model, publishers and transform listener: what configure creates and cleanup closes.

    Attributes:
        model: :meth:`adopt` replaces it from another thread; keep it in a variable to use it twice.

    Raises:
        VmlocError: the checkpoint cannot be loaded, the device does not work, two frames have the same name, or
            ``tf_mode`` asks for TF and tf2_msgs is not installed.
    """

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self.node, self.config = node, config
        self.model = load_configured_model(node, config)
        self.modalities = modalities_in_use(config.modalities, self.localizer.modalities)
        self.map_frame = _choose_frame(config, self.localizer)
        self.base_frame = config.robot_frame(config.base_frame or self.localizer.body_frame)
        _check_frames(self.frames)
        trained = trained_extrinsics(self.localizer.header.training)
        lookup = listen_to_transforms(node, config.jump_back_s, self._odometry_frame(config))
        self.extrinsics = Extrinsics(
            lookup,
            pose_of(config.base_from_body),
            pose_of(config.camera_from_lidar),
            trained,
            node.get_logger().warning,
        )
        self._lookup, self._more_lookups = lookup, list[TransformLookup]()
        self.odometry = create_odometry(config, self.base_frame, lookup) if _needs_odometry(config) else None
        self._area = TrainingAreaCloud(node, self.map_frame)
        try:
            self._area.publish(self.localizer.header.training)
            self.outputs = Outputs(node, config, self.map_frame, self.base_frame, self.odometry)
        except VmlocError:
            self._area.close()
            self.extrinsics.close()
            raise

    @property
    def localizer(self) -> Localizer:
        return self.model.localizer

    @property
    def needs_camera_info(self) -> bool:
        """Whether the model needs camera intrinsics: to undistort, to project scans into the image, or to solve."""
        return _needs_camera_info(self.localizer, self.modalities)

    @property
    def frames(self) -> list[str]:
        """Names from the root of TF to the base, as far as this node and the odometry publish it."""
        return self._frames(self.config)

    def _frames(self, config: NodeConfig) -> list[str]:
        odom = [config.robot_frame(config.odom_frame)] if config.tf_mode == MAP_TO_ODOM else []
        parent = [self.map_frame.parent] if self.map_frame.parent is not None else []
        return [*parent, self.map_frame.name, *odom, self.base_frame]

    @property
    def facts(self) -> dict[str, str]:
        """What runs where, in words, for log and diagnostics."""
        facts = {
            "checkpoint": self.model.checkpoint,
            "device": str(self.localizer.device),
            "model inputs": ", ".join(self.modalities),
            "frames": " -> ".join(self.frames),
        }
        if self.map_frame.parent is not None:
            facts["map origin [m]"] = " ".join(f"{x:.10g}" for x in self.map_frame.origin_m)
        return facts

    def check(self, config: NodeConfig) -> None:
        """Raise what :meth:`use` would.

        Raises:
            ConfigError: two frames have the same name, or parameters contradict each other.
            MissingPackageError: tf2_msgs is not installed.
        """
        _check_frames(self._frames(config))
        check_broadcast(config, self.map_frame.name, self.base_frame)

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters; the checkpoint waits for :meth:`adopt`."""
        if self.odometry is None and _needs_odometry(config):
            lookup = listen_to_transforms(self.node, config.jump_back_s, self._odometry_frame(config))
            self._more_lookups.append(lookup)
            self.odometry = create_odometry(config, self.base_frame, lookup)
        self.outputs.use(config, self.odometry)
        self.config = replace(config, checkpoint=self.config.checkpoint)

    def forget_motion(self) -> None:
        """Forget moving transforms and odometry so far, after a jump back in time."""
        for lookup in (self._lookup, *self._more_lookups):
            lookup.forget()
        if self.odometry is not None:
            self.odometry.reset()

    def _odometry_frame(self, config: NodeConfig) -> str | None:
        """The frame whose odometry comes from TF; None where it is not needed, or comes from a topic."""
        return self.base_frame if _needs_odometry(config) and not config.odometry_topic else None

    def adopt(self, model: ServedModel) -> None:
        """Use another model from the next frame on; topics and frames stay as they are.

        Raises:
            ConfigError: the model has other inputs or frames; the old one stays in use.
        """
        new = model.localizer
        settings, others = _settings(self.config, self.localizer), _settings(self.config, new)
        for name, value in settings.items():
            if others[name] != value:
                raise ConfigError(
                    f"{model.checkpoint} has other {name}: {others[name]}, while the node runs with {value}; "
                    "deactivate, clean up, configure and activate to change that"
                )
        self.extrinsics.compare_with(trained_extrinsics(new.header.training))
        self._area.publish(new.header.training)
        self.model = model
        self.config = replace(self.config, checkpoint=model.checkpoint)

    def close(self) -> None:
        self.outputs.close()
        self._area.close()
        self.extrinsics.close()
        for lookup in self._more_lookups:
            lookup.close()
        del self.model  # frees its memory, even where something still refers to these resources


def load_configured_model(node: Node, config: NodeConfig) -> ServedModel:
    """Load and warm up the checkpoint of the parameters; takes seconds.

    Raises:
        VmlocError: no checkpoint is given, it cannot be loaded, or the device does not work.
    """
    if not config.checkpoint:
        raise ConfigError("parameter checkpoint is not set; give the path of a checkpoint file")
    # Imports torch, which takes seconds: not before signals are handled, and not when parameters are invalid.
    from vmloc_ros.runtime.served_model import load_model

    model = load_model(config.checkpoint, config.device, config.lookahead_frames, node.get_logger().warning)
    if config.min_confidence > 0 and model.localizer.confidence is None:
        node.get_logger().warning(
            f"{config.checkpoint} has no confidence model: poses are published even where the robot has never been"
        )
    return model


def _needs_odometry(config: NodeConfig) -> bool:
    return config.smoothing or config.tf_mode == MAP_TO_ODOM


def _choose_frame(config: NodeConfig, localizer: Localizer) -> MapFrame:
    """The frame in which poses of this localizer are published."""
    centre_m = localizer.header.pose_codec.origin_m
    return choose_map_frame(localizer.map_frame, centre_m, config.map_frame, config.map_origin or None)


def _needs_camera_info(localizer: Localizer, modalities: tuple[str, ...]) -> bool:
    preprocess = localizer.header.preprocess
    projects = LIDAR in modalities and preprocess.lidar_projection == "pinhole"
    return projects or ((localizer.model.needs_geometry or bool(preprocess.undistort)) and modalities != (LIDAR,))


def _settings(config: NodeConfig, localizer: Localizer) -> dict[str, str]:
    """Inputs and frames of a localizer, in words: what :meth:`Resources.adopt` must not change."""
    modalities = modalities_in_use(config.modalities, localizer.modalities)
    frame = _choose_frame(config, localizer)
    origin = " ".join(f"{x:.10g}" for x in frame.origin_m)
    return {
        "inputs": ", ".join(modalities) + (", camera_info" if _needs_camera_info(localizer, modalities) else ""),
        "map frames": frame.name if frame.parent is None else f"{frame.name} at {origin} in {frame.parent}",
        "base frames": config.robot_frame(config.base_frame or localizer.body_frame),
    }


def _check_frames(frames: list[str]) -> None:
    if len(set(frames)) < len(frames):
        raise ConfigError(
            f"frames must differ, got {' -> '.join(frames)}; correct parameter map_frame, odom_frame or base_frame"
        )
