# SPDX-License-Identifier: Apache-2.0
"""What the node holds while configured (model, publishers, TF) and while active (subscriptions, worker)."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rclpy.node import Node

from vmloc_ros.core.errors import ConfigError, DataError, MessageError, VmlocError
from vmloc_ros.core.frame import LIDAR, Estimate
from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.core.transforms import moved_covariance
from vmloc_ros.health import Health
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.ros_diagnostics import judge, values_of
from vmloc_ros.ros_extrinsics import Extrinsics, listen_to_transforms
from vmloc_ros.ros_frames import FrameBuilder
from vmloc_ros.ros_inputs import CAMERA_INFO, create_inputs
from vmloc_ros.ros_outputs import Outputs
from vmloc_ros.ros_parameters import NodeConfig, pose_of
from vmloc_ros.synchronizer import Bundle, Synchronizer

_LOG_PERIOD_S = 5.0


class Resources:
    """Model, publishers and transform listener: what configure makes and cleanup lets go.

    Raises:
        VmlocError: the checkpoint cannot be loaded, the device does not work, frames are equal, or TF is
            wanted and tf2_msgs is not installed.
    """

    def __init__(self, node: Node, config: NodeConfig) -> None:
        if not config.checkpoint:
            raise ConfigError("parameter checkpoint is not set; give the path of a checkpoint file")
        # Loading torch takes seconds: not before ROS can be interrupted, and not when parameters are wrong.
        from vmloc_ros.core.localizer import Localizer

        self.node, self.config = node, config
        self.localizer = Localizer.load(Path(config.checkpoint).expanduser(), config.device)
        self.localizer.stream(config.lookahead_frames)  # to hear now, not at activation, that the model cannot
        self.localizer.warm_up()
        self.map_frame = config.map_frame or self.localizer.map_frame
        self.base_frame = config.base_frame or self.localizer.body_frame
        if self.map_frame == self.base_frame:
            raise ConfigError(f"map_frame and base_frame are both {self.map_frame!r}; they must differ")
        self.outputs = Outputs(node, self.map_frame, self.base_frame, config.path_length, config.publish_tf)
        self.extrinsics = Extrinsics(
            listen_to_transforms(node), pose_of(config.base_from_body), pose_of(config.camera_from_lidar)
        )

    @property
    def facts(self) -> dict[str, str]:
        """For logs and diagnostics."""
        return {
            "checkpoint": self.config.checkpoint,
            "device": str(self.localizer.device),
            "model inputs": ", ".join(self.localizer.modalities),
            "frames": f"{self.map_frame} -> {self.base_frame}",
        }

    def close(self) -> None:
        self.outputs.close()
        self.extrinsics.close()


class Session:
    """Subscriptions and the worker that answers them: what activate makes and deactivate ends.

    Raises:
        ConfigError: a QoS override is wrong.
    """

    def __init__(self, resources: Resources) -> None:
        self._node, self._config = resources.node, resources.config
        self._localizer, self._outputs = resources.localizer, resources.outputs
        self._extrinsics = resources.extrinsics
        self._base_frame = resources.base_frame
        self._health = Health()
        lookahead = self._config.lookahead_frames
        self._stream = self._localizer.stream(lookahead)
        # Of the frames that the stream may answer next: stamp, and when the message came.
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=lookahead + 1)
        self._latest_ns: int | None = None
        self._frames = FrameBuilder(self._extrinsics, lambda error: self._refuse("undecodable", error))
        self._pipeline = Pipeline(self._synchronizer(), self._process, self._config.queue_depth)
        preprocess = self._localizer.header.preprocess
        in_camera = LIDAR in preprocess.modalities and preprocess.lidar_projection == "pinhole"
        try:
            self._inputs = create_inputs(self._node, self._config, self._localizer.modalities, in_camera, self._receive)
        except VmlocError:
            self._pipeline.stop()
            raise

    def close(self) -> None:
        """Unsubscribe and end the worker after the frame in its hands."""
        for source in self._inputs:
            source.close()
        self._pipeline.stop()

    def publish_path(self) -> None:
        self._outputs.publish_path()

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Level, message and values for diagnostics; logs what is wrong with the inputs."""
        found = [source.problem(self._config.input_timeout_s) for source in self._inputs]
        problems = [problem for problem in found if problem is not None]
        report = self._health.report()
        received = {source.name: source.count for source in self._inputs}
        values = values_of(report, self._pipeline.statistics, self._pipeline.dropped, received)
        return *judge(report, problems, self._localizer.modalities), values

    def _synchronizer(self) -> Synchronizer[Any]:
        primary, *secondary = self._localizer.modalities
        seconds = {
            "slop_ns": self._config.slop_s,
            "deadline_ns": self._config.deadline_s,
            "silence_ns": self._config.silence_s,
            "jump_back_ns": self._config.jump_back_s,
        }
        return Synchronizer(primary, tuple(secondary), **{name: round(value * 1e9) for name, value in seconds.items()})

    def _receive(self, name: str, message: Any) -> None:
        """The callback of every subscription: nothing that takes time."""
        if name == CAMERA_INFO:
            self._frames.camera_info = message
        else:
            self._pipeline.add(name, stamp_ns(message.header), message)

    def _process(self, bundle: Bundle[Any]) -> None:
        """In the worker thread: decode, localize, publish. Whatever a frame does, the node goes on."""
        with self._refusing():
            estimates = self._stream.feed(self._frames.build(bundle))
            self._arrivals.append((bundle.stamp_ns, bundle.arrival_ns))
            for estimate in estimates:  # of this frame, or of earlier ones that waited
                with self._refusing():
                    self._publish(estimate)
                    arrival_ns = dict(self._arrivals)[estimate.stamp_ns]
                    latency_ms = (time.monotonic_ns() - arrival_ns) * 1e-6
                    self._health.published(latency_ms, estimate.modalities, estimate.posterior_std)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Counts and logs what goes wrong inside, and goes on."""
        try:
            yield
        except MessageError as error:
            self._refuse("undecodable", str(error))
        except VmlocError as error:
            self._refuse("not localized", str(error))
        except Exception as error:
            if self._node.context.ok():  # else a signal has ended ROS under our feet
                self._node.get_logger().debug(traceback.format_exc())
                self._refuse("internal error", f"{type(error).__name__}: {error}")

    def _publish(self, estimate: Estimate) -> None:
        body_frame = self._localizer.body_frame
        base_from_body = self._extrinsics.base_from_body(self._base_frame, body_frame)
        if base_from_body is None:
            raise DataError(
                f"no transform from {body_frame} to {self._base_frame}: publish it on /tf_static, or set "
                f"parameter base_from_body, or base_frame:={body_frame}"
            )
        map_from_base = estimate.map_from_body @ base_from_body.inverse()
        offset_m = map_from_base.position_m - estimate.map_from_body.position_m
        if self._latest_ns is not None and estimate.stamp_ns <= self._latest_ns:
            self._outputs.forget_path()  # the pairing lets stamps go back only after a jump in time
        self._latest_ns = estimate.stamp_ns
        self._outputs.publish(estimate.stamp_ns, map_from_base, moved_covariance(estimate.covariance, offset_m))

    def _refuse(self, kind: str, reason: str) -> None:
        self._health.refused(kind, reason)
        self._node.get_logger().warning(f"{kind}: {reason}", throttle_duration_sec=_LOG_PERIOD_S)
