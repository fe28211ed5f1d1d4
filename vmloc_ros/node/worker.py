# SPDX-License-Identifier: Apache-2.0
"""What the worker threads do with a bundle of messages: decode and prepare; then localize, publish or withhold."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import DataError, MessageError, VmlocError
from vmloc_ros.core.frame import Estimate, Frame
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.synchronizer import Bundle
from vmloc_ros.core.uncertainty import moved_covariance, position_std_m
from vmloc_ros.node.resources import Resources
from vmloc_ros.ros.smoother import Smoother
from vmloc_ros.runtime.frame_builder import FrameBuilder
from vmloc_ros.runtime.health import Health
from vmloc_ros.runtime.lost_detector import LostDetector

if TYPE_CHECKING:
    from vmloc_ros.core.models import ModelInput
    from vmloc_ros.runtime.served_model import Model

_LOG_PERIOD_S = 5.0

Outcome = tuple[bool, str]  # whether a pose went out, and which or why not


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """A decoded bundle, ready for the model that was in use when it was prepared, and for no other.

    Attributes:
        batch: None where the frame is not to be localized: it has been refused, and only its pictures go out.
    """

    bundle: Bundle[Any]
    frame: Frame
    model: Model
    batch: ModelInput | None


class Worker:
    """Answers bundles and tells those who wait for an answer.

    :meth:`prepare` is for the first worker thread, :meth:`answer` and :meth:`forget` are for the second.

    Attributes:
        smoother: None where poses go out as they are.
    """

    def __init__(self, resources: Resources, health: Health) -> None:
        from vmloc_ros.ros.visualization import DebugImages  # needs torch: see Resources

        config = resources.config
        self._node, self._resources, self._health = resources.node, resources, health
        self._frames = FrameBuilder(resources.extrinsics, lambda error: self._leave_out("undecodable", error))
        # Of the frames that the model may answer next: stamp, and when the message came.
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=config.lookahead_frames + 1)
        self._latest_ns: int | None = None
        self._lost = LostDetector(config.min_confidence, config.max_position_std_m)
        odometry = resources.odometry if config.smoothing else None
        self.smoother = Smoother(self._node, config, odometry) if odometry is not None else None
        self._waiting: list[concurrent.futures.Future[Outcome]] = []
        self._waiting_lock = threading.Lock()
        preprocess = resources.localizer.header.preprocess
        self._debug_images = DebugImages(self._node, preprocess, config.debug_rate_hz)
        self._model = resources.model
        self._model.forget()

    @property
    def is_awaited(self) -> bool:
        """Whether someone waits for the next answer."""
        return bool(self._waiting)

    def expect(self) -> concurrent.futures.Future[Outcome]:
        """The outcome of the next frame, once there is one."""
        outcome: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        with self._waiting_lock:
            self._waiting.append(outcome)
        return outcome

    def give_up(self, outcome: concurrent.futures.Future[Outcome]) -> None:
        """Wait for an outcome no longer."""
        with self._waiting_lock:
            self._waiting = [other for other in self._waiting if other is not outcome]

    def tell(self, published: bool, text: str) -> None:
        """Let those who wait know what became of a frame."""
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, []
        for outcome in waiting:
            outcome.set_result((published, text))

    def take_camera_info(self, message: Any) -> None:
        """The latest CameraInfo."""
        self._debug_images.camera_info = message
        if self._resources.needs_camera:  # else a camera without calibration must not keep frames back
            self._frames.camera_info = message

    def prepare(self, bundle: Bundle[Any]) -> PreparedFrame | None:
        """Decode, project, scale; None for what cannot be decoded. Whatever a frame does, the node goes on."""
        with self._refusing():
            frame, model, batch = self._frames.build(bundle), self._resources.model, None
            missing = [name for name in self._resources.modalities if name not in frame.modalities]
            if missing and not self._resources.config.allow_degraded:
                self._refuse("degraded", f"frame without {' and '.join(missing)}, and allow_degraded is false")
            else:
                with self._refusing():
                    batch = model.prepare(frame)
            return PreparedFrame(bundle, frame, model, batch)
        return None

    def answer(self, prepared: PreparedFrame) -> None:
        """Localize and publish. Whatever a frame does, the node goes on."""
        with self._refusing():
            if prepared.batch is not None:
                self._localize(prepared.bundle, prepared.frame, prepared.model, prepared.batch)
        with self._refusing():
            self._debug_images.publish(prepared.bundle, prepared.frame)  # after the poses, which are not to wait

    def forget(self) -> None:
        """Start anew, as if this were the first frame."""
        self._model.forget()
        self._arrivals.clear()
        self._latest_ns = None
        self._lost.reset()
        self._start_smoothing_anew("~/reset was called")
        self._health.found()
        self._resources.outputs.start_anew()

    def close(self) -> None:
        """Tell those who wait that nothing comes, once the workers have ended."""
        self.tell(False, "the node has been deactivated")
        self._debug_images.close()
        del self._model  # its memory is to be free after cleanup, whoever still holds this

    def _localize(self, bundle: Bundle[Any], frame: Frame, model: Model, batch: ModelInput) -> None:
        if model is not self._model:
            self._adopt(model)
        estimates = model.feed(frame, batch)
        self._arrivals.append((bundle.stamp_ns, bundle.arrival_ns))
        for estimate in estimates:  # of this frame, or of earlier ones that waited
            with self._refusing():
                self._publish_or_withhold(estimate, model.localizer.body_frame)

    def _adopt(self, model: Model) -> None:
        """Take notice of another model."""
        from vmloc_ros.runtime.served_model import release_gpu_memory

        self._model = model
        self._start_smoothing_anew("another checkpoint is in use")
        self._debug_images.use(model.localizer.header.preprocess)
        release_gpu_memory()

    def _publish_or_withhold(self, estimate: Estimate, body_frame: str) -> None:
        if self._latest_ns is not None and estimate.stamp_ns <= self._latest_ns:
            self._leave_the_past()  # the pairing lets stamps go back only after a jump in time
        self._latest_ns = estimate.stamp_ns
        was_lost = self._lost.is_lost
        if reason := self._degraded(estimate) or self._lost.check(estimate):
            self._withhold(reason, estimate.confidence)
            return
        arrival_ns = dict(self._arrivals)[estimate.stamp_ns]
        text = self._publish(estimate, body_frame, arrival_ns)
        latency_ms = (time.monotonic_ns() - arrival_ns) * 1e-6
        self._health.published(latency_ms, estimate)
        if was_lost:
            self._node.get_logger().info("no longer lost")
        self.tell(True, text)

    def _degraded(self, estimate: Estimate) -> str:
        if self._resources.config.allow_degraded or not estimate.dropped_sensors:
            return ""
        return f"{' and '.join(estimate.dropped_sensors)} unlike any in training, and allow_degraded is false"

    def _publish(self, estimate: Estimate, body_frame: str, arrival_ns: int) -> str:
        resources = self._resources
        base_from_body = resources.extrinsics.base_from_body(resources.base_frame, body_frame)
        if base_from_body is None:
            raise DataError(
                f"no transform from {body_frame} to {resources.base_frame}: publish it on /tf_static, or set "
                f"parameter base_from_body, or base_frame:={body_frame}"
            )
        map_from_base = estimate.map_from_body @ base_from_body.inverse()
        offset_m = map_from_base.position_m - estimate.map_from_body.position_m
        covariance = moved_covariance(estimate.covariance, offset_m)
        map_from_base = resources.map_frame.from_checkpoint(map_from_base)
        if self.smoother is not None:
            filtered = self.smoother.smooth(estimate.stamp_ns, map_from_base, covariance, arrival_ns)
            map_from_base, covariance = filtered.map_from_base, filtered.covariance
        resources.outputs.publish(estimate.stamp_ns, map_from_base, covariance)
        return f"{resources.base_frame} in {resources.map_frame.name}: {_describe(map_from_base, covariance, estimate)}"

    def _withhold(self, reason: str, confidence: float | None) -> None:
        self._resources.outputs.stop()  # also repeats of the transform before
        self._health.withheld(reason, confidence)
        self._node.get_logger().warning(f"lost: {reason}", throttle_duration_sec=_LOG_PERIOD_S)
        self.tell(False, f"lost: {reason}")

    def _leave_the_past(self) -> None:
        """Forget what belongs to the time before a jump back."""
        self._start_smoothing_anew("stamps have jumped back")
        self._resources.outputs.start_anew()
        if self._resources.odometry is not None:
            self._resources.odometry.forget()

    def _start_smoothing_anew(self, reason: str) -> None:
        if self.smoother is not None:
            self.smoother.reset(reason)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Counts, logs and tells what goes wrong inside, and goes on."""
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

    def _refuse(self, kind: str, reason: str) -> None:
        self._leave_out(kind, reason)
        self.tell(False, reason)

    def _leave_out(self, kind: str, reason: str) -> None:
        self._health.refused(kind, reason)
        self._node.get_logger().warning(f"{kind}: {reason}", throttle_duration_sec=_LOG_PERIOD_S)


def _describe(map_from_base: Pose, covariance: NDArray[np.float64], estimate: Estimate) -> str:
    """A pose for people to read."""
    x, y, z = map_from_base.position_m
    rotation = map_from_base.rotation
    roll, pitch, yaw = np.degrees(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            np.arcsin(np.clip(-rotation[2, 0], -1, 1)),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )
    confidence = "" if estimate.confidence is None else f", confidence {estimate.confidence:.2g}"
    return (
        f"x {x:.3f} y {y:.3f} z {z:.3f} m, roll {roll:.1f} pitch {pitch:.1f} yaw {yaw:.1f} deg, "
        f"position std {position_std_m(covariance):.2g} m{confidence}, by {' and '.join(estimate.modalities)} at "
        f"{estimate.stamp_ns * 1e-9:.3f} s"
    )
