# SPDX-License-Identifier: Apache-2.0
"""Filters poses with odometry: what parameter ``smoothing`` switches on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node

from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.uncertainty import check_pose
from vmloc_ros.ros.odometry import OdometrySource
from vmloc_ros.ros.parameters import NodeConfig
from vmloc_ros.runtime.odometry_filter import FilterConfig, FilteredPose, OdometryFilter, UpdateResult, Verdict

_PATIENCE_NS = 500_000_000  # longest wait for odometry, from the arrival of a frame
_POLL_S = 0.005
_LOG_PERIOD_S = 5.0


class Smoother:
    """Filters fixes with the odometry at their stamps, and counts the verdicts.

    Only the thread that localizes may call :meth:`smooth` and :meth:`reset`.
    """

    def __init__(self, node: Node, config: NodeConfig, odometry: OdometrySource) -> None:
        self._node, self._odometry = node, odometry
        self._filter = OdometryFilter(filter_config(config))
        self._lock = threading.Lock()
        self._verdicts: Counter[Verdict] = Counter()
        self._without_odometry = 0
        self._latest = self._latest_start = "none"
        self._problem: str | None = None

    def smooth(
        self, stamp_ns: int, map_from_base: Pose, covariance: NDArray[np.float64], arrival_ns: int
    ) -> FilteredPose:
        """Return the filtered pose at a fix's stamp; where the fix is rejected, the prediction.

        Args:
            covariance: ``(6, 6)`` about the map axes.
            arrival_ns: steady time at which the fix's frame came. Waits for odometry until half a second later.

        Raises:
            DataError: there is no odometry at that stamp; the filter is unchanged.
            ModelError: a number is not finite or a variance not positive.
        """
        check_pose(stamp_ns, map_from_base, covariance)  # a NaN would never leave the filter
        try:
            odom_from_base = _wait_for(self._odometry, stamp_ns, arrival_ns + _PATIENCE_NS)
        except DataError as error:
            with self._lock:
                self._without_odometry += 1
            raise DataError(f"pose withheld, smoothing lacks odometry: {error}") from error
        result = self._filter.correct(stamp_ns, odom_from_base, map_from_base, covariance)
        self._count(result)
        return result.filtered

    def use(self, config: NodeConfig) -> None:
        """Adopt changed parameters, from any thread."""
        self._filter.config = filter_config(config)

    def reset(self, reason: str) -> None:
        """Discard the filter's state; the next fix starts anew."""
        self._filter.reset(reason)
        with self._lock:
            self._problem = None

    @property
    def problems(self) -> list[str]:
        """The reason why the latest fix was rejected, if it was."""
        with self._lock:
            return [] if self._problem is None else [self._problem]

    @property
    def values(self) -> dict[str, Any]:
        """Counts and latest verdicts for diagnostics."""
        with self._lock:
            return {
                **{f"smoothing: {verdict.value}": self._verdicts[verdict] for verdict in Verdict},
                "smoothing: without odometry": self._without_odometry,
                "smoothing: latest": self._latest,
                "smoothing: latest start": self._latest_start,
            }

    def _count(self, result: UpdateResult) -> None:
        text = _describe(result)
        is_rejected = result.verdict is Verdict.REJECTED
        is_start = result.verdict in (Verdict.STARTED, Verdict.RESTARTED)
        with self._lock:
            self._verdicts[result.verdict] += 1
            self._latest = text
            self._problem = f"smoothing {text}" if is_rejected else None
            if is_start:
                self._latest_start = result.reason
        if is_start:
            self._node.get_logger().info(f"smoothing {text}")
        elif is_rejected:
            self._node.get_logger().warning(f"smoothing {text}", throttle_duration_sec=_LOG_PERIOD_S)


def filter_config(config: NodeConfig) -> FilterConfig:
    """The filter's settings from the node's parameters."""
    settings = FilterConfig(jump_back_s=config.jump_back_s)
    drifts = [row.name for row in fields(settings) if row.name.startswith("drift")]
    return replace(settings, **{name: config.smoothing_drift * getattr(settings, name) for name in drifts})


def _describe(result: UpdateResult) -> str:
    """A verdict in words."""
    distance = "" if result.distance is None else f" ({result.distance:.1f} standard deviations)"
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.verdict.value}{reason}{distance}"


def _wait_for(odometry: OdometrySource, stamp_ns: int, until_ns: int) -> Pose:
    """Poll for odometry at a stamp until a steady time; then raises the error of :meth:`OdometrySource.at`."""
    while True:
        try:
            return odometry.at(stamp_ns)
        except DataError:
            if time.monotonic_ns() >= until_ns:
                raise
        time.sleep(_POLL_S)
