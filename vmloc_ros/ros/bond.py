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
    """Publishes heartbeats from :meth:`start` until :meth:`stop`, which tells the other end that this one is gone.

    The publisher stays: one that is destroyed at once would take its last messages with it.

    Args:
        node: its name is the bond's id.

    Raises:
        MissingPackageError: package ``bond`` is not installed; Nav2 installs it.
    """

    def __init__(self, node: Node) -> None:
        self._type: Any = message_class(TYPE)
        self._node, self._instance, self._period_s = node, "", 0.0
        self._publisher = node.create_publisher(self._type, TOPIC, 10)
        self._timer: Any = None

    def start(self, period_s: float) -> None:
        """Begin a bond, as a new instance."""
        self.stop()
        self._instance, self._period_s = str(uuid.uuid4()), period_s
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(period_s, lambda: self._publish(active=True), clock=clock)
        self._publish(active=True)

    def stop(self) -> None:
        """Break the bond, if there is one."""
        if self._timer is None:
            return
        self._node.destroy_timer(self._timer)
        self._timer = None
        for _ in range(_FAREWELLS):
            self._publish(active=False)

    def _publish(self, active: bool) -> None:
        message = self._type(id=self._node.get_name(), instance_id=self._instance, active=active)
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.heartbeat_timeout, message.heartbeat_period = HEARTBEAT_TIMEOUT_S, self._period_s
        self._publisher.publish(message)


def bond_of(node: Node) -> Bond | None:
    """The node's bond; None without package ``bond``, which Nav2 has."""
    try:
        return Bond(node)
    except MissingPackageError:
        return None
