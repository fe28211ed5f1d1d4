# SPDX-License-Identifier: Apache-2.0
"""The node's end of a bond: heartbeats by which nav2_lifecycle_manager sees that an active node is alive.

Both ends of a bond publish bond/Status messages of the same id on one topic, each with an instance id of its own. An
end that says that it is not active any more, or is silent for its heartbeat timeout, breaks the bond (bond_core's
protocol). Nav2's manager forms a bond with each node that it has activated, and brings all of its nodes down when one
breaks.
"""

from __future__ import annotations

import uuid
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from vmloc_ros.ros.packages import MissingPackageError, message_class

TOPIC = "bond"  # as nav2_util's lifecycle nodes have it
TYPE = "bond/msg/Status"
HEARTBEAT_TIMEOUT_S = 4.0  # Nav2's: after so long a silence the manager takes this node for dead
_FAREWELLS = 3  # of which one may be lost


class Bond:
    """Publishes heartbeats from its construction until :meth:`close`, which tells the other end that this one is gone.

    Args:
        node: its name is the bond's id.
        period_s: between heartbeats.

    Raises:
        MissingPackageError: package ``bond`` is not installed; Nav2 installs it.
    """

    def __init__(self, node: Node, period_s: float) -> None:
        self._type: Any = message_class(TYPE)
        self._node, self._period_s = node, period_s
        self._instance = str(uuid.uuid4())
        self._publisher = node.create_publisher(self._type, TOPIC, 10)
        self._timer = node.create_timer(period_s, self._beat, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._beat()

    def close(self) -> None:
        """Break the bond."""
        self._node.destroy_timer(self._timer)
        for _ in range(_FAREWELLS):
            self._publish(active=False)
        self._node.destroy_publisher(self._publisher)

    def _beat(self) -> None:
        self._publish(active=True)

    def _publish(self, active: bool) -> None:
        message = self._type(id=self._node.get_name(), instance_id=self._instance, active=active)
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.heartbeat_timeout, message.heartbeat_period = HEARTBEAT_TIMEOUT_S, self._period_s
        self._publisher.publish(message)


def open_bond(node: Node, period_s: float) -> Bond | None:
    """A bond with heartbeats of this period; None for a period of 0, or without package ``bond``, which Nav2 has."""
    if not period_s:
        return None
    try:
        return Bond(node, period_s)
    except MissingPackageError:
        return None
