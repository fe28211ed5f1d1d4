# SPDX-License-Identifier: Apache-2.0
"""Whose poses a topic holds whose messages name no child frame (PoseStamped, PoseWithCovarianceStamped).

In this order, unless ``source.body_frame`` says it:

1. ``base_link`` where static transforms know it: REP-105's name of a robot's body.
2. Without any static transform, the frame of the only sensor (or of all, where they share one): a hand-held camera, as
   SLAM and the TUM recordings have it.
3. The root above all sensors, where static transforms have one.
4. ``base_link``, with the sensors' mounts unknown.

All but the first are assumptions, which are told to the user.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmloc_ros.core.transform_tree import Edge, ancestors

BASE_FRAME = "base_link"
OPTICAL_RPY = "-1.5708,0,-1.5708"  # of an optical frame (REP-103) on a body whose x axis is the camera's direction


def choose_body(topic: str, edges: list[Edge], sensors: Mapping[str, str]) -> tuple[str, str]:
    """The frame whose poses a topic holds, and what was assumed, as text; empty where nothing was.

    Args:
        topic: the pose topic, for the text.
        edges: parent and child of the static transforms.
        sensors: frames of the bag's sensors by topic.
    """
    parents = {child: parent for parent, child in edges}
    known, frames = {*parents, *parents.values()}, sorted(set(sensors.values()) - {""})
    if BASE_FRAME in known:
        return BASE_FRAME, ""
    whose = f"the poses of {topic} name no frame whose they are"
    if not known and len(frames) == 1:
        return frames[0], _of_the_sensor(topic, frames[0])
    roots = {ancestors(parents, frame)[-1] for frame in frames}
    if len(roots) == 1 and roots <= known:
        [root] = roots
        return root, (
            f"assumed: the poses of {topic} are those of {root}, the root of /tf_static; {whose}. If they are of "
            f"another one of {_listing(known)}, type it: --set source.body_frame={frames[0]}, for instance"
        )
    place = "/tf_static does not connect all sensors with one frame" if known else "the recording has no /tf_static"
    choice = _listing({*known, *frames})
    return BASE_FRAME, (
        f"{whose}, and {place}: they are taken as those of {BASE_FRAME}, and where sensors are mounted on it is not "
        f"known. Type the frame, --set source.body_frame={next(iter(frames), 'FRAME')} for instance"
        + (f", of {choice}" if choice else "")
    )


def unknown_mounts(body: str, frames: Mapping[str, str]) -> str:
    """What to type where mounts are not recorded, as text.

    Args:
        frames: of the sensors by modality whose mount on the body is unknown.
    """
    sensors = ", ".join(f"{name} ({frame or 'without a frame'})" for name, frame in frames.items())
    words = " ".join(f"--set source.mounts.{name}=[x,y,z,roll,pitch,yaw]" for name in frames)
    return (
        f"where {sensors} is mounted on {body} is not recorded; models that need geometry need it: /tf_static must "
        f"lead from {body} to the sensor, or type {words} (metres and radians; {_optical_hint()})"
    )


def _of_the_sensor(topic: str, frame: str) -> str:
    axes = "x right, y down, z forward (REP-103), if it is a camera"
    return (
        f"assumed: the poses of {topic} are those of {frame}, the frame of the only sensor, with its axes ({axes}), as "
        f"the recording has no /tf_static. If they are those of another frame, type its name and where the sensor is "
        f"mounted on it: --set source.body_frame={BASE_FRAME} --set source.mounts.image=[x,y,z,roll,pitch,yaw] "
        f"(metres and radians; {_optical_hint()})"
    )


def _optical_hint() -> str:
    return f"a camera at x, y, z that looks along the body's x axis: [x,y,z,{OPTICAL_RPY}]"


def _listing(frames: set[str]) -> str:
    return ", ".join(sorted(frames))
