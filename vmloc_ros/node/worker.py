# SPDX-License-Identifier: Apache-2.0
"""The work of the two worker threads on each bundle of messages: prepare it; then localize, publish or withhold."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from rclpy.node import Node

from vmloc_ros.core.frame import Estimate
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.node.preparation import FramePreparation, PreparedFrame
from vmloc_ros.node.publication import PosePublication
from vmloc_ros.node.resources import Resources
from vmloc_ros.ros.frame_errors import FrameErrors
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.smoother import Smoother
from vmloc_ros.runtime.gate import Gate
from vmloc_ros.runtime.health import Health
from vmloc_ros.runtime.lost_detector import LostDetector
from vmloc_ros.runtime.outcomes import Outcome, OutcomeWaiters

if TYPE_CHECKING:
    from vmloc_ros.core.models import ModelInput
    from vmloc_ros.runtime.served_model import ServedModel

_LOG_PERIOD_S = 5.0


class Worker:
    """Runs each frame through preparation, model, gate and publication.

    :meth:`prepare` is for the first worker thread, :meth:`localize` and :meth:`reset` are for the second. No frame
    stops them: :class:`FrameErrors` handles whatever goes wrong.

    Args:
        health: counts published and withheld poses and rejected frames.
        waiters: get each frame's outcome.
    """

    def __init__(self, resources: Resources, health: Health, waiters: OutcomeWaiters) -> None:
        from vmloc_ros.ros.visualization import DebugImages  # imports torch: see load_configured_model

        config = resources.config
        self._node, self._health, self._waiters = resources.node, health, waiters
        self._robot_frame = config.robot_frame
        self._errors = FrameErrors(self._node, health, waiters)
        lost_detector = LostDetector(config.min_confidence, config.max_position_std_m)
        self._gate = Gate(resources.modalities, config.allow_degraded, lost_detector)
        self._preparation = FramePreparation(resources, self._gate, self._errors)
        self._publication = PosePublication(resources)
        preprocess = resources.localizer.header.preprocess
        self._debug_images = DebugImages(self._node, preprocess, config.debug_rate_hz)
        # Stamps and arrival times of the frames whose estimates the model may return next.
        self._lost_log = _LostLog(self._node)
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=config.lookahead_frames + 1)
        self._model = resources.model
        self._model.reset()

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters, from any thread."""
        self._gate.allow_degraded = config.allow_degraded
        self._gate.lost_detector.min_confidence = config.min_confidence
        self._gate.lost_detector.max_position_std_m = config.max_position_std_m
        self._debug_images.rate_hz = config.debug_rate_hz
        self._publication.use(config)

    @property
    def smoother(self) -> Smoother | None:
        """None where poses are published as estimated."""
        return self._publication.smoother

    def take_camera_info(self, message: Any) -> None:
        """Store the latest CameraInfo."""
        self._preparation.take_camera_info(message)

    def prepare(self, bundle: Bundle[Any]) -> PreparedFrame | None:
        """Decode, project and scale a bundle; None if it cannot be decoded."""
        return self._preparation.prepare(bundle)

    def localize(self, prepared: PreparedFrame) -> None:
        """Estimate the pose of a frame, and publish or withhold what the model returns."""
        with self._errors.handled():
            if prepared.batch is not None:
                self._run_model(prepared, prepared.batch)
        with self._errors.handled():
            self._debug_images.publish(prepared.bundle, prepared.frame)  # last: poses must not wait for them

    def reset(self) -> None:
        """Forget all frames so far, as if the next were the first."""
        self._model.reset()
        self._arrivals.clear()
        self._gate.reset()
        self._publication.reset("~/reset was called")
        self._health.clear_lost()

    def close(self) -> None:
        """Report to those who wait that no frame comes; for after the end of the worker threads."""
        self._waiters.resolve(Outcome(False, "the node has been deactivated"))
        self._debug_images.close()
        del self._model  # frees its memory, even where something still refers to this worker

    def _run_model(self, prepared: PreparedFrame, batch: ModelInput) -> None:
        bundle, model = prepared.bundle, prepared.model
        if model is not self._model:
            self._adopt(model)
        estimates = model.feed(prepared.frame, batch)
        self._arrivals.append((bundle.stamp_ns, bundle.arrival_ns))
        for estimate in estimates:  # of this frame, or of earlier ones that waited for it
            with self._errors.handled():
                self._publish_or_withhold(estimate, self._robot_frame(model.localizer.body_frame))

    def _adopt(self, model: ServedModel) -> None:
        """Change over to the model of another checkpoint."""
        from vmloc_ros.runtime.served_model import release_gpu_memory

        self._model = model
        self._publication.restart_smoothing("another checkpoint is in use")
        self._debug_images.use(model.localizer.header.preprocess)
        release_gpu_memory()

    def _publish_or_withhold(self, estimate: Estimate, body_frame: str) -> None:
        self._publication.follow(estimate.stamp_ns)
        was_lost = self._gate.is_lost
        if reason := self._gate.check_estimate(estimate):
            self._withhold(reason, estimate.confidence)
            return
        arrival_ns = dict(self._arrivals)[estimate.stamp_ns]
        text = self._publication.publish(estimate, body_frame, arrival_ns)
        self._health.published((time.monotonic_ns() - arrival_ns) * 1e-6, estimate)
        if was_lost:
            self._lost_log.found()
        self._waiters.resolve(Outcome(True, text))

    def _withhold(self, reason: str, confidence: float | None) -> None:
        self._publication.suspend()
        self._health.withheld(reason, confidence)
        self._lost_log.lost(reason)
        self._waiters.resolve(Outcome(False, f"lost: {reason}"))


class _LostLog:
    """Logs that the robot is lost at most once in 5 s, and the end of it where the beginning was logged."""

    def __init__(self, node: Node) -> None:
        self._node, self._latest_s, self._is_logged = node, -math.inf, False

    def lost(self, reason: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._latest_s + _LOG_PERIOD_S:
            self._latest_s, self._is_logged = now_s, True
            self._node.get_logger().warning(f"lost: {reason}")

    def found(self) -> None:
        if self._is_logged:
            self._is_logged = False
            self._node.get_logger().info("no longer lost")
