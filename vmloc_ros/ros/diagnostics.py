# SPDX-License-Identifier: Apache-2.0
"""Level, message and values of the node's diagnostic status."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vmloc_ros.core.synchronizer import Statistics
from vmloc_ros.runtime.health import HealthReport


class Diagnostics:
    """Publishes one status named after the node on /diagnostics."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._hardware_id = socket.gethostname()  # as other monitors of programs have it
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self, level: bytes, message: str, values: Mapping[str, Any]) -> None:
        """Publish a status with the present time; values become strings."""
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name().lstrip('/')}: localization",
            message=message,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def judge(
    report: HealthReport, problems: list[str], modalities: tuple[str, ...], continuous: bool = True
) -> tuple[bytes, str]:
    """Level and message of an active node.

    Args:
        problems: descriptions of what is wrong with inputs, extrinsics, TF or smoothing.
        modalities: the model's inputs in use.
        continuous: whether poses are expected without a call of ~/localize.
    """
    notes = [f"{report.recent_errors} rejected: {report.latest_error}"] if report.recent_errors else []
    notes += problems
    if not report.recent_published:
        if report.recent_withheld and report.lost:
            return DiagnosticStatus.WARN, "; ".join([f"lost: {report.lost}", *notes])
        if not continuous:
            level = DiagnosticStatus.WARN if notes else DiagnosticStatus.OK
            return level, "; ".join(["waiting for a call of ~/localize", *notes])
        return DiagnosticStatus.ERROR, f"no pose: {'; '.join(notes) or 'waiting for data'}"
    missing = [name for name in modalities if name not in report.modalities]
    if missing:
        notes.append(f"localizing without {' and '.join(missing)}")
    if report.dropped_sensors:
        names = " and ".join(report.dropped_sensors)
        notes.append(f"dropped {names}, unlike the training data: check for a cover, damage or other light")
    if notes:
        return DiagnosticStatus.WARN, "; ".join(notes)
    return DiagnosticStatus.OK, f"localizing by {' and '.join(report.modalities)}"


def values_of(report: HealthReport, pairing: Statistics, dropped: int, received: Mapping[str, int]) -> dict[str, Any]:
    """Key-value pairs of an active node.

    Args:
        dropped: number of frames dropped for newer ones.
        received: number of messages by input.
    """
    latency, dropped_sensors = report.latency_ms, ", ".join(report.dropped_sensors) or "none"
    gaps = {
        f"nearest {name} to the latest unpaired frame [s]": "none" if gap is None else f"{gap * 1e-9:.3f}"
        for name, gap in pairing.nearest_gap_ns.items()
    }
    counts = {f"pairing: {k.replace('_', ' ')}": v for k, v in asdict(pairing).items() if k != "nearest_gap_ns"}
    return {
        "poses published": report.published,
        "poses withheld": report.withheld,
        "confidence": _confidence(report),
        "pose rate [Hz]": report.recent_published,
        "latest modalities": ", ".join(report.modalities) or "none",
        "dropped sensors": dropped_sensors,
        "left out as strange": dropped_sensors,  # deprecated: until the next release
        "latency p50 [ms]": "" if latency is None else f"{latency[0]:.1f}",
        "latency p95 [ms]": "" if latency is None else f"{latency[1]:.1f}",
        **{f"posterior std {name}": f"{value:.4g}" for name, value in report.posterior_std.items()},
        "dropped for newer": dropped,
        **{f"received {name}": count for name, count in received.items()},
        **{f"rejected: {kind}": count for kind, count in report.errors.items()},
        **{f"refused: {kind}": count for kind, count in report.errors.items()},  # deprecated: until the next release
        **counts,
        **gaps,
    }


def _confidence(report: HealthReport) -> str:
    if report.confidence is not None:
        return f"{report.confidence:.3g}"
    return "none: the checkpoint has no confidence model" if report.published or report.withheld else ""
