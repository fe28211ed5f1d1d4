# SPDX-License-Identifier: Apache-2.0
"""The node's policy for frames that cannot be localized: count, log, report, and go on with the next."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.node import Node

from vmloc_ros.core.errors import MessageError, VmlocError
from vmloc_ros.runtime.health import Health
from vmloc_ros.runtime.outcomes import Outcome, OutcomeWaiters

_LOG_PERIOD_S = 5.0


class FrameErrors:
    """Rejects frames and messages; for any thread.

    Args:
        health: counts what is rejected, by kind.
        waiters: get the reason as the outcome of a rejected frame.
    """

    def __init__(self, node: Node, health: Health, waiters: OutcomeWaiters) -> None:
        self._node, self._health, self._waiters = node, health, waiters

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Reject the frame in work for any exception of the block, which then ends without one."""
        try:
            yield
        except MessageError as error:
            self.reject_frame("undecodable", str(error))
        except VmlocError as error:
            self.reject_frame("not localized", str(error))
        except Exception as error:
            if self._node.context.ok():  # else a signal has shut ROS down while the frame was in work
                self._node.get_logger().debug(traceback.format_exc())
                self.reject_frame("internal error", f"{type(error).__name__}: {error}")

    def reject_frame(self, kind: str, reason: str) -> None:
        """Count, log and report a frame that gets no pose."""
        self.reject_message(kind, reason)
        self._waiters.resolve(Outcome(False, reason))

    def reject_message(self, kind: str, reason: str) -> None:
        """Count and log a message whose frame goes on without it."""
        self._health.rejected(kind, reason)
        self._node.get_logger().warning(f"{kind}: {reason}", throttle_duration_sec=_LOG_PERIOD_S)
