# SPDX-License-Identifier: Apache-2.0
"""The node with timers around functions of its two worker threads, for node_latency.py."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

CPU = " cpu"  # ends the names of CPU times


class Stopwatch:
    """Times functions that the node's two worker threads call, frame by frame."""

    def __init__(self) -> None:
        self.frames: list[dict[str, float]] = []
        self._prepared: dict[int, dict[str, float]] = {}
        self._thread = threading.local()

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Replace a function by one that times itself."""
        function = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started_ns, cpu_started_ns = time.perf_counter_ns(), time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                times = self._thread.__dict__
                times[name] = (time.perf_counter_ns() - started_ns) * 1e-6
                times[f"{name}{CPU}"] = (time.thread_time_ns() - cpu_started_ns) * 1e-6

        setattr(owner, attribute, timed)

    def close_frames(self, worker: Any, outputs: Any, health: Any) -> None:
        """Store a frame's times when the node counts its pose as published, with stamp and latency."""
        prepare, publish, published = worker.prepare, outputs.publish, health.published

        def prepare_and_note(instance: Any, bundle: Any) -> Any:
            prepared = prepare(instance, bundle)
            self._prepared[bundle.stamp_ns] = dict(self._thread.__dict__)
            return prepared

        def publish_and_note(instance: Any, stamp: int, *others: Any) -> None:
            publish(instance, stamp, *others)
            self._thread.stamp = stamp

        def published_and_note(instance: Any, latency_ms: float, *others: Any) -> None:
            published(instance, latency_ms, *others)
            times = self._thread.__dict__
            self.frames.append({**self._prepared.pop(times["stamp"]), **times, "node": latency_ms})

        worker.prepare, outputs.publish, health.published = prepare_and_note, publish_and_note, published_and_note


def run_node(arguments: list[str], report: Path) -> None:
    """Run the node with timers until SIGTERM, then write the times of its frames to ``report``."""
    from vmloc_ros import node
    from vmloc_ros.core import preprocessing
    from vmloc_ros.core.localizer import Localizer
    from vmloc_ros.node.worker import Worker
    from vmloc_ros.ros.publishers import Outputs
    from vmloc_ros.runtime.frame_builder import FrameBuilder
    from vmloc_ros.runtime.health import Health

    stopwatch = Stopwatch()
    stopwatch.watch("decode", FrameBuilder, "build")
    stopwatch.watch("project", preprocessing, "cylindrical_projection")
    stopwatch.watch("preprocess", Localizer, "preprocess")
    stopwatch.watch("estimate", Localizer, "estimate")
    stopwatch.watch("localize", Localizer, "localize")
    stopwatch.watch("publish", Outputs, "publish")
    stopwatch.close_frames(Worker, Outputs, Health)
    node.main(arguments)
    report.write_text(json.dumps(stopwatch.frames))
