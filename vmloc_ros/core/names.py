# SPDX-License-Identifier: Apache-2.0
"""Names of frames and topics as they compare: with or without a leading slash they mean the same."""

from __future__ import annotations

from collections.abc import Iterable


def frame_name(name: str) -> str:
    """A frame's name without leading slashes.

    tf of ROS 1 wrote ``/base_link``; tf2 refuses such names (``frame_ids cannot start with a '/'``), but drivers,
    launch files and recordings still have them.
    """
    return name.lstrip("/")


def topic_name(name: str) -> str:
    """A topic's name with one leading slash: ``camera/image_raw`` is ``/camera/image_raw`` outside of namespaces."""
    return f"/{name.lstrip('/')}"


def find_topic(names: Iterable[str], wanted: str) -> str | None:
    """The name that means the wanted topic, the same spelling first; None without one."""
    same = [name for name in names if topic_name(name) == topic_name(wanted)]
    return wanted if wanted in same else next(iter(same), None)
