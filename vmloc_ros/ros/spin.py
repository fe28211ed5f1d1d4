# SPDX-License-Identifier: Apache-2.0
"""Runs one node as a program of its own: ROS start-up, errors, signals, exit status."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node

from vmloc_ros.core.errors import ConfigError

NodeT = TypeVar("NodeT", bound=Node)


def run_node(
    name: str, create: Callable[[], NodeT], spin: Callable[[NodeT], int], args: list[str] | None = None
) -> int:
    """Initialize ROS, create a node, spin it, and shut ROS down.

    Args:
        name: of the logger for errors before the node exists.
        create: makes the node; a ConfigError that it raises is logged.
        spin: works with the node until its end and returns the exit status.
        args: command line; None: that of the process.

    Returns:
        Exit status: that of ``spin``; 0 after SIGINT or SIGTERM; 1 if the node cannot be created, with one line logged.
    """
    try:
        rclpy.init(args=args)
    except RuntimeError as error:  # RCLError: rcl rejects the arguments or a parameter file
        get_logger(name).fatal(str(error).splitlines()[0])
        return 1
    try:
        return _run(name, create, spin)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except Exception:
        if rclpy.ok():
            raise
        return 0  # a signal has shut ROS down between two calls of it
    finally:
        rclpy.try_shutdown()


def _run(name: str, create: Callable[[], NodeT], spin: Callable[[NodeT], int]) -> int:
    try:
        node = create()
    except ConfigError as error:
        get_logger(name).fatal(str(error))
        return 1
    try:
        return spin(node)
    finally:
        node.destroy_node()
