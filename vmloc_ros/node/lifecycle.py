# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: transitions, services and diagnostics.

Its callbacks only pass messages to the pipeline, whose first thread decodes and prepares frames, and whose second
thread localizes and publishes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.node.resources import Resources, load_configured_model
from vmloc_ros.node.session import Session
from vmloc_ros.ros.bond import bond_of
from vmloc_ros.ros.diagnostics import Diagnostics
from vmloc_ros.ros.environment import leave_a_core, let_idle_threads_sleep, use_fastdds_profile
from vmloc_ros.ros.packages import missing_packages
from vmloc_ros.ros.parameters import NodeConfig, declare_parameters, read_config
from vmloc_ros.ros.services import Services
from vmloc_ros.ros.spin import run_node

NODE_NAME = "vmloc_node"
_SLOW_PERIOD_S = 1.0


class VmlocNode(LifecycleNode):
    """Publishes the robot's pose; see ``NodeConfig`` for the parameters.

    Configure loads and warms up the model, activate subscribes, deactivate unsubscribes, cleanup frees the model.
    Services: ``~/reset`` forgets all frames so far, ``~/localize`` returns the pose of the next frame (the newest one
    if ``continuous`` is false), ``~/load_checkpoint`` changes to parameter ``checkpoint`` without losing a frame.

    Raises:
        ConfigError: a parameter has a wrong type or value.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self._state = "unconfigured"
        self._resources: Resources | None = None
        self._session: Session | None = None
        self._bond = bond_of(self)
        declare_parameters(self, self)
        self._is_loading = False
        self._diagnostics = Diagnostics(self)
        self._trigger_services = Services(self)
        for name, callback in (
            ("reset", self._reset),
            ("localize", self._localize),
            ("load_checkpoint", self._load_checkpoint),
        ):
            self._trigger_services.offer(name, callback)
        self.create_timer(_SLOW_PERIOD_S, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def is_configured(self) -> bool:
        """Whether model, publishers and frames are in use: they cannot change then."""
        return self._resources is not None

    def check(self, config: NodeConfig) -> None:
        """Raise VmlocError where the running node cannot adopt changed parameters."""
        assert self._resources is not None, "asked only while configured"
        self._resources.check(config)

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters from the next frame on."""
        assert self._resources is not None, "asked only while configured"
        self._resources.use(config)
        if self._session is not None:
            self._session.use(self._resources.config)

    def start(self) -> bool:
        """Configure and activate; False when either fails, after logging why."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def close(self) -> None:
        """Stop the worker threads and release everything, in any state."""
        self._stop()
        self._release()
        self._trigger_services.join()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("configure", "inactive", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("activate", "active", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("deactivate", "inactive", self._stop)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("cleanup", "unconfigured", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shutdown", "finalized", self.close)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("recover", "unconfigured", self.close)

    def _transition(self, name: str, reached: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition and log what it raises, which rclpy would not."""
        try:
            action()
        except VmlocError as error:
            self.get_logger().error(f"cannot {name}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            if self.context.ok():  # else a signal has shut ROS down meanwhile
                self.get_logger().fatal(f"cannot {name}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        self._state = reached
        self.get_logger().info(f"now {reached}")
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self._resources = Resources(self, read_config(self))
        facts = ", ".join(f"{name} {value}" for name, value in self._resources.facts.items())
        self.get_logger().info(f"model ready: {facts}")
        if missing := missing_packages():
            texts = [f"{name} ({text})" for name, text in missing.items()]
            self.get_logger().info(f"ROS packages that are not installed: {', '.join(texts)}")

    def _activate(self) -> None:
        assert self._resources is not None, "activate follows configure"
        self._session = Session(self._resources)
        period_s = self._resources.config.bond_heartbeat_period_s
        if self._bond is not None and period_s:
            self._bond.start(period_s)

    def _stop(self) -> None:
        if self._bond is not None:
            self._bond.stop()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _release(self) -> None:
        if self._resources is not None:
            # Imports torch, which takes seconds: not before configure.
            from vmloc_ros.runtime.served_model import release_gpu_memory

            self._resources.close()
            self._resources = None
            release_gpu_memory()

    async def _reset(self) -> tuple[bool, str]:
        self._active_session().reset()
        return True, "path, pairing and lost state cleared"

    async def _localize(self) -> tuple[bool, str]:
        return await self._trigger_services.in_thread(self._active_session().localize)

    async def _load_checkpoint(self) -> tuple[bool, str]:
        """Load a checkpoint while the present one stays in use, then change over; after an error the old one stays."""
        resources = self._resources
        if resources is None:
            raise ConfigError(f"the node is {self._state}; configure it, which loads parameter checkpoint")
        if self._is_loading:
            raise ConfigError("another checkpoint is being loaded; call again when that has ended")
        self._is_loading = True
        config = replace(resources.config, checkpoint=read_config(self).checkpoint)
        try:
            model = await self._trigger_services.in_thread(lambda: load_configured_model(self, config))
            if self._resources is resources:
                resources.adopt(model)
        except VmlocError as error:
            raise ConfigError(f"{error}; still using {resources.config.checkpoint}") from error
        finally:
            self._is_loading = False
        if self._resources is not resources:
            raise ConfigError("the node was cleaned up while the checkpoint was loading")
        self.get_logger().info(f"now using {model.checkpoint}")
        return True, f"using {model.checkpoint}"

    def _active_session(self) -> Session:
        if self._session is None:
            raise ConfigError(f"the node is {self._state}; activate it first")
        return self._session

    def _every_second(self) -> None:
        values: dict[str, Any] = {}
        facts = {} if self._resources is None else self._resources.facts
        if self._session is None:
            level, message = DiagnosticStatus.WARN, self._state
        else:
            self._session.publish_path()
            level, message, values = self._session.diagnose()
        self._diagnostics.publish(level, message, {"state": self._state, **facts, **values})


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status, 1 when it cannot start."""
    use_fastdds_profile()
    let_idle_threads_sleep()
    leave_a_core()
    return run_node(NODE_NAME, VmlocNode, _spin, args)


def _spin(node: VmlocNode) -> int:
    try:
        if node.get_parameter("autostart").value and not node.start():
            return 1 if rclpy.ok() else 0  # 0: a signal has interrupted the start
        rclpy.spin(node)
        return 0
    finally:
        node.close()
