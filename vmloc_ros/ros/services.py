# SPDX-License-Identifier: Apache-2.0
"""The node's services; long work runs in threads, while the executor goes on."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from vmloc_ros.core.errors import VmlocError

Result = TypeVar("Result")


class Services:
    """Services of type std_srvs/Trigger with coroutines as callbacks."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # A waiting coroutine keeps its callback group busy: subscriptions of the default group would wait with it.
        self._group = ReentrantCallbackGroup()
        self._threads: list[threading.Thread] = []

    def offer(self, name: str, callback: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
        """Create a service; ``callback`` returns success and message, or raises an error that becomes the message."""

        async def respond(request: Any, response: Any) -> Any:
            try:
                response.success, response.message = await callback()
            except VmlocError as error:
                response.message = str(error)
            except Exception as error:
                self._node.get_logger().error(f"~/{name}:\n{traceback.format_exc()}")
                response.message = f"internal error: {type(error).__name__}: {error}"
            return response

        self._node.create_service(Trigger, f"~/{name}", respond, callback_group=self._group)

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Run a function in a thread and return or raise what it does; for coroutines of this node's executor."""
        executor = self._node.executor
        done: Future = Future(executor=executor)

        def run() -> None:
            try:
                done.set_result((function(), None))
            except Exception as error:
                done.set_result((None, error))
            if self._node.context.ok():  # else a signal has shut ROS down meanwhile
                executor.wake()  # setting the result does not

        thread = threading.Thread(target=run, name="service", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()
        result, error = await done
        if error is not None:
            raise error
        return result

    def join(self) -> None:
        """Wait for the threads: torch must not be running when the process ends."""
        for thread in self._threads:
            thread.join()
