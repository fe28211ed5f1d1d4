# SPDX-License-Identifier: Apache-2.0
"""Message classes by name, and what to say when their package is absent."""

from __future__ import annotations

import importlib
from typing import Any

from vmloc_ros.core.errors import VmlocError


class MissingPackageError(VmlocError):
    """A ROS message package is not installed for this Python."""


def message_class(type_name: str) -> Any:
    """The rclpy class of ``package/msg/Name``.

    Raises:
        MissingPackageError: the package is not installed, or has no such message.
    """
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise MissingPackageError(
            f"message type {type_name} is not available: install ROS package {package} "
            f"(apt: ros-$ROS_DISTRO-{package.replace('_', '-')}; without a distribution: scripts/setup.sh)"
        ) from error
