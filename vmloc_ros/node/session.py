# SPDX-License-Identifier: Apache-2.0
"""What the node holds while active: subscriptions, pipeline and worker."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError  # another class than the built-in before 3.11
from typing import Any

from vmloc_ros.core.errors import VmlocError
from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.core.stamp_judge import StampJudge
from vmloc_ros.core.synchronizer import Synchronizer
from vmloc_ros.node.resources import Resources
from vmloc_ros.node.worker import Worker
from vmloc_ros.ros.diagnostics import judge, values_of
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.ros.subscriptions import CAMERA_INFO, Input, create_inputs
from vmloc_ros.runtime.health import Health
from vmloc_ros.runtime.outcomes import Outcome, OutcomeWaiters
from vmloc_ros.runtime.pipeline import Pipeline
from vmloc_ros.runtime.stamp_problems import StampProblems


class Session:
    """Subscriptions, pipeline and worker: what activate creates and deactivate closes.

    Raises:
        ConfigError: a QoS override is wrong.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._node, self._config, self._outputs = resources.node, resources.config, resources.outputs
        self._extrinsics, self._modalities = resources.extrinsics, resources.modalities
        self._health, self._waiters = Health(), OutcomeWaiters()
        self._worker = Worker(resources, self._health, self._waiters)
        is_wanted = None if self._config.continuous else lambda: self._waiters.is_awaited
        judge: StampJudge[Any] = StampJudge(self._modalities, round(self._config.jump_back_s * 1e9))
        self._pipeline = Pipeline(
            self._synchronizer(),
            self._worker.prepare,
            self._worker.localize,
            self._config.queue_depth,
            is_wanted,
            judge,
        )
        self._stamp_problems = StampProblems(self._pipeline)
        self._inputs: list[Input] = []
        try:
            needs_info = resources.needs_camera_info
            self._inputs += create_inputs(self._node, self._config, self._modalities, needs_info, self._receive)
            self._subscribe_to_odometry()
        except VmlocError:
            self.close()
            raise
        used = [source.description for source in self._inputs]
        if resources.odometry is not None and not self._config.odometry_topic:
            used.append(f"odometry from TF, {self._config.odom_frame} -> {resources.base_frame}")
        self._node.get_logger().info(f"inputs: {', '.join(used)}")

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters, after the resources have."""
        self._config = config
        durations_ns = self._durations_ns()
        del durations_ns["jump_back_ns"]  # read-only while configured
        self._pipeline.adjust(config.queue_depth, **durations_ns)
        if not self._hears_odometry:
            self._subscribe_to_odometry()
        self._worker.use(config)

    def close(self) -> None:
        """Unsubscribe, and end the worker threads after the frames in work."""
        for source in self._inputs:
            source.close()
        self._pipeline.stop()
        self._worker.close()
        self._outputs.suspend()

    def reset(self) -> None:
        """Forget path, pairing and being lost: the next frame is treated as the first."""
        self._pipeline.reset(then=self._worker.reset)

    def localize(self) -> Outcome:
        """Return the outcome of the next frame, on demand of the newest; blocks, so not for the executor's thread."""
        outcome = self._waiters.expect()
        self._pipeline.wake()
        try:
            return outcome.result(self._config.input_timeout_s)
        except FutureTimeoutError:
            return Outcome(
                False, f"no frame within {self._config.input_timeout_s:g} s; see /diagnostics for what is missing"
            )
        finally:
            self._waiters.give_up(outcome)

    def publish_path(self) -> None:
        self._outputs.publish_path()

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Return level, message and values for diagnostics; logs changes of what is wrong with the inputs."""
        found = [source.problem(self._config.input_timeout_s) for source in self._inputs]
        problems = [problem for problem in found if problem is not None]
        problems += [*self._outputs.problems, *self._extrinsics.problems]
        report = self._health.report()
        received = {source.name: source.count for source in self._inputs}
        values = values_of(report, self._pipeline.statistics, self._pipeline.dropped, received)
        for source in self._inputs:
            values |= source.values
        topics = {source.name: source.topic for source in self._inputs if source.name in self._modalities}
        problems += self._stamp_problems.report(topics)
        values |= self._stamp_problems.values
        values |= self._outputs.counts
        if (smoother := self._worker.smoother) is not None:
            problems += smoother.problems
            values |= smoother.values
        return *judge(report, problems, self._modalities, self._config.continuous), values

    def _synchronizer(self) -> Synchronizer[Any]:
        primary, *secondary = self._modalities
        return Synchronizer(primary, tuple(secondary), **self._durations_ns(), learns_periods=True)

    def _durations_ns(self) -> dict[str, int]:
        seconds = {
            "slop_ns": self._config.slop_s,
            "deadline_ns": self._config.deadline_s,
            "silence_ns": self._config.silence_s,
            "jump_back_ns": self._config.jump_back_s,
        }
        return {name: round(value * 1e9) for name, value in seconds.items()}

    def _subscribe_to_odometry(self) -> None:
        odometry = self._resources.odometry
        self._hears_odometry = odometry is not None
        if odometry is not None:
            self._inputs += odometry.subscribe(self._node)

    def _receive(self, name: str, message: Any) -> None:
        """Take a message of any subscription in; returns at once."""
        if name == CAMERA_INFO:
            self._worker.take_camera_info(message)
        else:
            # With simulated time the clock stands at 0 before its first message.
            clock_ns = self._node.get_clock().now().nanoseconds or None
            self._pipeline.add(name, stamp_ns(message.header), message, clock_ns)
