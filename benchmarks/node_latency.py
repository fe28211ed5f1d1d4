# SPDX-License-Identifier: Apache-2.0
"""Latency of the node beyond its model's time, over DDS between processes, as Markdown tables.

python benchmarks/node_latency.py [--checkpoint FILE] [--rates 20 30] [--seconds 20] [--points 60000] [--device cpu]

For each rate, a new node and a new publisher, which sends a 640x480 rgb8 image and a PointCloud2 of (x, y, z,
intensity) with equal stamps, best effort as drivers do; this process subscribes to the poses.

* node: from the arrival of the image's message in the node to the end of publication, the latency in /diagnostics.
* model: `PoseModel.locate` for the same frame. All else is overhead, subtracted frame by frame: waiting for the cloud
  and for earlier frames, decoding, projection, scaling, covariance, confidence, messages.
* end to end: from before the publisher's call for the image to the pose's arrival in this process.
* Without ROS: `locate`, and all of `Localizer.localize`, repeatedly on the same data, without other load.

Timers wrap the node's functions, which takes microseconds. The checkpoint must take image and lidar, the latter as a
cylindrical range image. `taskset -c 0,1` in front limits all processes together to two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import numpy as np
from node_stopwatch import CPU, run_node
from node_traffic import listener, publish, random_cloud, random_image, wait_for_rest, wait_until

from training.output import markdown_table
from vmloc_ros.core.progress import with_progress
from vmloc_ros.core.resources import share_path
from vmloc_ros.ros.environment import leave_a_core, let_idle_threads_sleep

MODEL = "model"
SPAWN = multiprocessing.get_context("spawn")  # a forked child would share this process's DDS


@dataclass(frozen=True)
class Run:
    """Results at one rate; arrays in milliseconds, a row per pose.

    Attributes:
        rate_hz: actual rate of the publisher.
        counts: of messages and poses, by column.
        stages: of the node's latency, which is their sum.
        cpu_stages: CPU time of the worker threads in these, without torch's other threads and without waiting.
        foreign_cores: CPU seconds per second of processes outside of the benchmark.
    """

    rate_hz: float
    counts: dict[str, Any]
    node_ms: np.ndarray
    end_to_end_ms: np.ndarray
    stages: dict[str, np.ndarray]
    cpu_stages: dict[str, np.ndarray]
    foreign_cores: float


def own_times_ms(checkpoint: Path, device: str, points: int, count: int = 100) -> tuple[list[float], list[float], int]:
    """Times of `locate` alone and of `localize`, in turns and without ROS; and torch's number of threads."""
    import torch

    from vmloc_ros.core.frame import Frame
    from vmloc_ros.core.messages import decode_image, decode_point_cloud
    from vmloc_ros.runtime.served_model import load_model

    localizer = load_model(str(checkpoint), device, 0, print).localizer  # as the node has it
    frame = Frame(0, decode_image(random_image(0)), cloud=decode_point_cloud(random_cloud(0, points)))
    codec, samples = localizer.header.pose_codec, localizer.header.uncertainty.samples
    with torch.inference_mode():
        batch = localizer.preprocess(frame)
        calls: list[Callable[[], object]] = [
            lambda: localizer.model.locate(batch, codec, samples),
            lambda: localizer.localize(frame),
        ]
        for call in 10 * calls:  # lazy initialisation
            call()
        times_ms: tuple[list[float], list[float]] = ([], [])
        for _ in range(count):
            for call, taken in zip(calls, times_ms, strict=True):
                started_ns = time.perf_counter_ns()
                call()
                taken.append((time.perf_counter_ns() - started_ns) * 1e-6)
    return *times_ms, torch.get_num_threads()


def measure(options: argparse.Namespace, rate_hz: float) -> Run:
    """Measure one node with one publisher at one rate."""
    foreign_s, started_s = _foreign_s(), time.perf_counter()
    parameters = {"checkpoint": options.checkpoint, "device": options.device, "min_confidence": 0.0}
    settings = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    with tempfile.TemporaryDirectory() as folder, listener() as (arrivals_ns, diagnostics):
        report = Path(folder) / "frames.json"
        node = SPAWN.Process(target=run_node, args=(["--ros-args", "--log-level", "warn", *settings], report))
        node.start()
        try:
            wait_until(lambda: diagnostics.get("state") == "active", "an active node")
            with ProcessPoolExecutor(1, SPAWN) as pool:
                stamps = pool.submit(publish, rate_hz, options.seconds, options.points).result()
            wait_for_rest(arrivals_ns, diagnostics)
        finally:
            node.terminate()
            node.join()
        frames = json.loads(report.read_text())
    foreign_cores = (_foreign_s() - foreign_s) / (time.perf_counter() - started_s)
    counts = {
        "sent": len(stamps),
        "images arrived": diagnostics["received image"],
        "clouds arrived": diagnostics["received lidar"],
        "paired": diagnostics["pairing: paired"],
        "poses": len(arrivals_ns),
        "dropped for newer": diagnostics["dropped for newer"],
        "newest localized": "yes" if stamps[-1] in arrivals_ns else "no",
    }
    frames = [frame for frame in frames if frame["stamp"] in arrivals_ns]
    end_to_end_ms = np.array([(arrivals_ns[frame["stamp"]] - frame["stamp"]) * 1e-6 for frame in frames])
    times = {name: np.array([frame[name] for frame in frames]) for name in frames[0]}
    stages = _stages(times)
    stages["pairing, queueing, the rest"] = times["node"] - sum(stages.values())
    cpu_stages = _stages({name: times[f"{name}{CPU}"] for name in times if f"{name}{CPU}" in times})
    sent_hz = 1e9 * (len(stamps) - 1) / (stamps[-1] - stamps[0])
    return Run(sent_hz, counts, times["node"], end_to_end_ms, stages, cpu_stages, foreign_cores)


def _stages(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Times of the stages, from those of functions that call each other."""
    return {
        "decoding": times["decode"],
        "projection": times["project"],
        "other preprocessing": times["preprocess"] - times["project"],
        MODEL: times["localize"] - times["estimate"],
        "covariance, confidence": times["estimate"],
        "publication": times["publish"],
    }


def _foreign_s() -> float:
    """CPU time of the whole machine, except this process and its ended children."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy_s - sum(os.times()[:4])


def main() -> None:
    """Measure and print."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, where no terminal draws a bar
    let_idle_threads_sleep()  # as the node does; for the processes without a node, too
    leave_a_core()
    with ProcessPoolExecutor(1, SPAWN) as pool:
        own = pool.submit(own_times_ms, options.checkpoint, options.device, options.points).result()
    rates = with_progress(options.rates, len(options.rates), "Node latency", "rates")
    runs = [measure(options, rate_hz) for rate_hz in rates]
    print(_conditions(options, *own), _runs_table(runs), f"Stages at {runs[0].rate_hz:.1f} Hz:", sep="\n\n", end="\n\n")
    print(_stages_table(runs[0]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=share_path("resource", "vmloc_street.safetensors"))
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0], help="Hz")
    parser.add_argument("--seconds", type=float, default=20.0, help="at each rate")
    parser.add_argument("--points", type=int, default=60_000)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _conditions(options: argparse.Namespace, alone_ms: list[float], whole_ms: list[float], threads: int) -> str:
    cpu = next(line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    return (
        f"{os.cpu_count()} cores of {cpu}; {threads} torch threads; load {os.getloadavg()[1]:.1f}; "
        f"{options.checkpoint.name} on {options.device}; {options.points} points; {options.seconds:g} s at each rate; "
        f"times as p50 / p95\n\nWithout ROS: model {_spread(np.array(alone_ms))} ms, {1e3 / np.mean(alone_ms):.1f} Hz; "
        f"all of localize {_spread(np.array(whole_ms))} ms, {1e3 / np.mean(whole_ms):.1f} Hz"
    )


def _runs_table(runs: list[Run]) -> str:
    times = ("node", "model", "node - model", "end to end", "end to end - model")
    heads = ["rate (Hz)", *runs[0].counts, *(f"{name} (ms)" for name in times), "others' CPU (cores)"]
    rows = []
    for run in runs:
        model_ms = run.stages[MODEL]
        times_ms = (run.node_ms, model_ms, run.node_ms - model_ms, run.end_to_end_ms, run.end_to_end_ms - model_ms)
        cells = [f"{run.rate_hz:.1f}", *run.counts.values(), *map(_spread, times_ms), f"{run.foreign_cores:.2f}"]
        rows.append(cells)
    return markdown_table(heads, rows, labels=0)


def _stages_table(run: Run) -> str:
    rows = []
    for name, values in run.stages.items():
        cpu = _spread(run.cpu_stages[name]) if name in run.cpu_stages else ""
        rows.append([name, _spread(values), cpu])
    return markdown_table(["stage", "ms", "CPU time of the thread (ms)"], rows, labels=1)


def _spread(values: np.ndarray) -> str:
    median, p95 = np.percentile(values, [50, 95])
    return f"{median:.1f} / {p95:.1f}"


if __name__ == "__main__":
    main()
