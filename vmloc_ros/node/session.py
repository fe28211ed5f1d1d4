# SPDX-License-Identifier: Apache-2.0
"""What the node holds while active: subscriptions, and the worker that answers them."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from vmloc_ros.core.errors import VmlocError
from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.core.synchronizer import Synchronizer
from vmloc_ros.node.resources import Resources
from vmloc_ros.node.worker import Outcome, Worker
from vmloc_ros.ros.diagnostics import judge, values_of
from vmloc_ros.ros.subscriptions import CAMERA_INFO, Input, create_inputs
from vmloc_ros.runtime.health import Health
from vmloc_ros.runtime.pipeline import Pipeline


class Session:
    """Subscriptions and the worker that answers them: what activate makes and deactivate ends.

    Raises:
        ConfigError: a QoS override is wrong.
    """

    def __init__(self, resources: Resources) -> None:
        self._node, self._config, self._outputs = resources.node, resources.config, resources.outputs
        self._extrinsics, self._modalities = resources.extrinsics, resources.modalities
        self._health = Health()
        self._answers = Worker(resources, self._health)
        wanted = None if self._config.continuous else lambda: self._answers.is_awaited
        self._pipeline = Pipeline(
            self._synchronizer(), self._answers.prepare, self._answers.answer, self._config.queue_depth, wanted
        )
        self._inputs: list[Input] = []
        try:
            needs_camera = resources.needs_camera
            self._inputs += create_inputs(self._node, self._config, self._modalities, needs_camera, self._receive)
            if resources.odometry is not None:
                self._inputs += resources.odometry.subscribe(self._node)
        except VmlocError:
            self.close()
            raise

    def close(self) -> None:
        """Unsubscribe and end the worker after the frame in its hands."""
        for source in self._inputs:
            source.close()
        self._pipeline.stop()
        self._answers.close()
        self._outputs.stop()

    def reset(self) -> None:
        """Forget path, pairing and being lost: the next frame is as the first."""
        self._pipeline.reset(then=self._answers.forget)

    def localize(self) -> Outcome:
        """What became of the next frame, or on demand of the newest; blocks, so not for the executor's thread."""
        outcome = self._answers.expect()
        self._pipeline.wake()
        try:
            return outcome.result(self._config.input_timeout_s)
        except concurrent.futures.TimeoutError:
            return False, f"no frame within {self._config.input_timeout_s:g} s; /diagnostics says what is missing"
        finally:
            self._answers.give_up(outcome)

    def publish_path(self) -> None:
        self._outputs.publish_path()

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Level, message and values for diagnostics; logs what is wrong with the inputs."""
        found = [source.problem(self._config.input_timeout_s) for source in self._inputs]
        problems = [problem for problem in found if problem is not None]
        problems += [*self._outputs.problems, *self._extrinsics.problems]
        report = self._health.report()
        received = {source.name: source.count for source in self._inputs}
        values = values_of(report, self._pipeline.statistics, self._pipeline.dropped, received)
        for source in self._inputs:
            values |= source.values
        values |= self._outputs.counts
        if (smoother := self._answers.smoother) is not None:
            problems += smoother.problems
            values |= smoother.values
        return *judge(report, problems, self._modalities, self._config.continuous), values

    def _synchronizer(self) -> Synchronizer[Any]:
        primary, *secondary = self._modalities
        seconds = {
            "slop_ns": self._config.slop_s,
            "deadline_ns": self._config.deadline_s,
            "silence_ns": self._config.silence_s,
            "jump_back_ns": self._config.jump_back_s,
        }
        times_ns = {name: round(value * 1e9) for name, value in seconds.items()}
        return Synchronizer(primary, tuple(secondary), **times_ns, learns_periods=True)

    def _receive(self, name: str, message: Any) -> None:
        """The callback of every subscription: nothing that takes time."""
        if name == CAMERA_INFO:
            self._answers.take_camera_info(message)
        else:
            self._pipeline.add(name, stamp_ns(message.header), message)
