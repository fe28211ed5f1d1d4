# SPDX-License-Identifier: Apache-2.0
"""What reading a recording tells: what cannot be read, what is assumed, what is lost, how sensors are mounted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from training.check.findings import Finding
from training.sources.base import Source
from training.sources.factory import open_with_every_modality, share_image_bits
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from training.sources.rosbag.topics import choose_pose_topic, connections_of, moving_topics, static_topics
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import DataError, MessageError
from vmloc_ros.core.fixed_transforms import FixedTransforms
from vmloc_ros.core.frame import MODALITIES
from vmloc_ros.core.geometry import Pose, rotation_angle_deg
from vmloc_ros.core.messages import decode_pose
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.transform_tree import Edge, find_path

_PACKAGES = ("training", "vmloc_ros")
_NOTABLE, _MUCH = 0.02, 0.2  # shares of what was recorded that are lost
_NO_LOSS = ("frames", "frames of the other split")
# How sources say that they have no such sensor, which is no fault of the recording.
_ABSENT = re.compile(rf"\bno ({'|'.join(MODALITIES)})\b")


@contextmanager
def warnings_of_readers() -> Iterator[list[str]]:
    """Collects what is warned of while data are read, once each, in place of logging it; what is INFO is dropped."""
    found: dict[str, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.setdefault(record.getMessage())

    handler, texts = Collector(), []
    loggers = [logging.getLogger(name) for name in _PACKAGES]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield texts
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
        texts += found


def open_recordings(data: Sequence[Path], split: str, options: SourceOptions) -> tuple[list[Source], list[Finding]]:
    """Sources at several paths with every modality that they have, and what cannot be read."""
    sources: list[Source] = []
    findings: list[Finding] = []
    for path in data:
        try:
            opened, problems = open_with_every_modality(path, split, options)
        except DataError as error:
            findings.append(Finding("error", "reading", str(error), "", {}, path.name))
            continue
        sources += opened
        findings += [
            Finding("warning", "reading", str(problem), "", {}, path.name)
            for problem in problems
            if not _ABSENT.search(str(problem))
        ]
    share_image_bits(sources)
    return sources, findings


def reading_findings(source: Source) -> list[Finding]:
    """What a source says of itself: what it reads, what it assumed, what it lost."""
    findings = [Finding("ok", "reading", text, "", {}, source.name) for text in getattr(source, "choices", ())]
    if not findings:
        text = (
            f"{len(source)} frames of {', '.join(source.modalities)}; poses of {source.body_frame} in "
            f"{source.map_frame}"
        )
        findings = [Finding("ok", "reading", text, "", {}, source.name)]
    findings += [Finding("warning", "reading", text, "", {}, source.name) for text in getattr(source, "doubts", ())]
    return [*findings, _losses(source)]


def _losses(source: Source) -> Finding:
    kept = max(len(source), 1)
    lost = {what: n for what, n in source.report.items() if n and what not in _NO_LOSS and "paired" not in what}
    shares = {what: n / (kept + n) for what, n in lost.items()}
    worst = max((share for what, share in shares.items() if not what.endswith(" alone")), default=0.0)
    text = ", ".join(f"{n} {what}" for what, n in lost.items())
    values = {"frames": len(source), **lost}
    if not lost:
        return Finding("ok", "losses", f"none of {len(source)} frames", "", values, source.name)
    text = f"{len(source)} frames are used; {text}"
    if max(shares.values()) < _NOTABLE:
        return Finding("ok", "losses", text, "", values, source.name)
    remedy = "see docs/inputs.md for each of these"
    return Finding("warning" if worst > _MUCH else "note", "losses", text, remedy, values, source.name)


def mount_findings(source: Source, options: SourceOptions) -> list[Finding]:
    """Transforms from the body to the sensors: missing, moving, or changed in the course of the recording."""
    moving = _moving(source, options) if isinstance(source, RosbagSource) else {}
    findings = []
    for name in source.modalities:
        if name in moving and name not in options.mounts.poses:
            findings.append(_moving_finding(name, *moving[name], source))
        elif name not in source.mounts:
            text = f"where the {name} is mounted on {source.body_frame} is not recorded"
            remedy = f"--set source.mounts.{name}=[x,y,z,roll,pitch,yaw] (metres, radians), or publish it on /tf_static"
            findings.append(Finding("warning", "transforms", text, remedy, {"sensor": name}, source.name))
    if not findings:
        text = ", ".join(f"{name} at {_place(source.mounts[name])} m" for name in source.modalities)
        findings.append(Finding("ok", "transforms", f"on {source.body_frame}: {text}", "", {}, source.name))
    return findings


def _place(pose: Pose) -> str:
    return " ".join(f"{x:.2f}" for x in pose.position_m)


def _moving_finding(name: str, edge: Edge, metres: float, degrees: float, source: Source) -> Finding:
    text = (
        f"the {name} moves on {source.body_frame}: {' -> '.join(edge)} changes by up to {metres:.2f} m and "
        f"{degrees:.1f} deg in "
        "the recording; mounts are taken as fixed"
    )
    remedy = (
        f"hold the joint still while recording and localizing, or localize the {name}'s own frame: --set "
        f"source.body_frame={edge[1]} (with poses of /tf)"
    )
    values = {"sensor": name, "parent": edge[0], "child": edge[1], "metres": metres, "degrees": degrees}
    return Finding("warning", "transforms", text, remedy, values, source.name)


def _moving(source: RosbagSource, options: SourceOptions) -> dict[str, tuple[Edge, float, float]]:
    """By modality: a transform between body and sensor that changes, and by how many metres and degrees."""
    first, changes = _transforms(source.path, options)
    found = {}
    for name, frame in source.sensor_frames.items():
        path = find_path(first.keys(), source.body_frame, frame)
        moved = [(edge, *changes[edge]) for edge, _ in path or () if edge in changes]
        if moved:
            found[name] = max(moved, key=lambda one: one[2])
    return found


def _transforms(path: Path, options: SourceOptions) -> tuple[Mapping[Edge, Pose], Mapping[Edge, tuple[float, float]]]:
    """Each transform's first value, and by how much those that move move, metres and degrees."""
    first: dict[Edge, Pose] = {}
    largest: dict[Edge, tuple[float, float]] = {}
    fixed = FixedTransforms()
    with open_bag(path, options.allow_truncated) as reader:
        static = static_topics(reader, choose_pose_topic(reader, options))
        topics = [*static, *moving_topics(reader, static)]
        for connection, _, data in reader.messages(connections_of(reader, topics)) if topics else ():
            message = reader.deserialize(data, connection.msgtype)
            for transform in message.transforms:  # type: ignore[attr-defined]
                edge = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
                try:
                    pose = decode_pose(transform)
                except MessageError:
                    continue
                start = first.setdefault(edge, pose)
                fixed.add(*edge, pose)
                if edge in fixed.moving:
                    metres = float(np.linalg.norm(pose.position_m - start.position_m))
                    degrees = float(rotation_angle_deg(pose.quaternion_wxyz, start.quaternion_wxyz))
                    most = largest.get(edge, (0.0, 0.0))
                    largest[edge] = max(most[0], metres), max(most[1], degrees)
    return first, largest
