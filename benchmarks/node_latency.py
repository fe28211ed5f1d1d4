# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: TID251  (what it measures is ROS)
"""What the node adds to its model's time, over DDS between processes, as Markdown tables.

python benchmarks/node_latency.py [--checkpoint FILE] [--rates 20 30] [--seconds 20] [--points 60000] [--device cpu]

For each rate, a node of its own and a publisher of its own, which sends a 640x480 rgb8 image and a PointCloud2 of
(x, y, z, intensity) with equal stamps, best effort as drivers do; this process listens.

* answer: from the arrival of the image's message in the node to the end of publication, as /diagnostics has it.
* model: `PoseModel.locate` in that very frame. All else is overhead, subtracted frame by frame: waiting for the cloud
  and for the frames before, decoding, projection, scaling, covariance, confidence, messages.
* end to end: from before the publisher's call for the image to the pose's arrival in this process.
* Without ROS: `locate`, and all of `Localizer.localize`, again and again on the same data, with nothing beside.

Timers wrap the node's functions, which takes microseconds. The checkpoint must take image and lidar, the latter as a
cylindrical picture. On a machine of more cores, `taskset -c 0,1` in front leaves two to all processes together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from node_stopwatch import CPU, run_node
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2, PointField
from tqdm import tqdm

from vmloc_ros.core.messages import stamp_ns
from vmloc_ros.core.resources import share_path
from vmloc_ros.ros_environment import leave_a_core, let_idle_threads_sleep, use_fastdds_profile

HEIGHT, WIDTH, BEAMS = 480, 640, 32
MATCH_LIMIT_S = 60.0
VARIANTS = 4  # different messages that are sent in turn
MODEL = "model"
SPAWN = multiprocessing.get_context("spawn")  # a forked child would share this process's DDS


@dataclass(frozen=True)
class Run:
    """One rate's outcome; arrays in milliseconds, a row per pose.

    Attributes:
        rate_hz: that the publisher reached.
        counts: of messages and poses, by column.
        stages: of the answer, which they add up to.
        cpu_stages: CPU time of the worker threads in them, without torch's other threads and without waiting.
        foreign_cores: CPU seconds per second of processes that are not the benchmark's.
    """

    rate_hz: float
    counts: dict[str, Any]
    answer_ms: np.ndarray
    end_to_end_ms: np.ndarray
    stages: dict[str, np.ndarray]
    cpu_stages: dict[str, np.ndarray]
    foreign_cores: float


def publish(rate_hz: float, seconds: float, points: int) -> list[int]:
    """Send images and clouds at a rate; returns the stamps."""
    use_fastdds_profile()
    rclpy.init()
    node = rclpy.create_node("latency_publisher")
    images = node.create_publisher(Image, "camera/image_raw", qos_profile_sensor_data)
    clouds = node.create_publisher(PointCloud2, "lidar/points", qos_profile_sensor_data)
    _wait_until(lambda: images.get_subscription_count() and clouds.get_subscription_count(), "the node's subscriptions")
    time.sleep(1.0)  # the other side may have to learn of us yet
    messages = [(_image(seed), _cloud(seed, points)) for seed in range(VARIANTS)]
    stamps = []
    started_s = time.perf_counter()
    for index in range(round(seconds * rate_hz)):
        time.sleep(max(0.0, started_s + index / rate_hz - time.perf_counter()))
        image, cloud = messages[index % VARIANTS]
        image.header.stamp = cloud.header.stamp = rclpy.time.Time(nanoseconds=time.time_ns()).to_msg()
        images.publish(image)
        clouds.publish(cloud)
        stamps.append(stamp_ns(image.header))
    time.sleep(1.0)  # shared memory goes with its process
    rclpy.shutdown()
    return stamps


def own_times_ms(checkpoint: Path, device: str, points: int, count: int = 100) -> tuple[list[float], list[float], int]:
    """Of `locate` alone and of `localize`, and torch's number of threads; in turns, without ROS."""
    import torch

    from vmloc_ros.core.frame import Frame
    from vmloc_ros.core.messages import decode_image, decode_point_cloud
    from vmloc_ros.model import load_model

    localizer = load_model(str(checkpoint), device, 0, print).localizer  # as the node has it
    frame = Frame(0, decode_image(_image(0)), cloud=decode_point_cloud(_cloud(0, points)))
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
    """One node and one publisher, at one rate."""
    foreign_s, started_s = _foreign_s(), time.perf_counter()
    parameters = {"checkpoint": options.checkpoint, "device": options.device, "min_confidence": 0.0}
    settings = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    with tempfile.TemporaryDirectory() as folder, _listener() as (arrivals_ns, diagnostics):
        report = Path(folder) / "frames.json"
        node = SPAWN.Process(target=run_node, args=(["--ros-args", "--log-level", "warn", *settings], report))
        node.start()
        try:
            _wait_until(lambda: diagnostics.get("state") == "active", "an active node")
            with ProcessPoolExecutor(1, SPAWN) as pool:
                stamps = pool.submit(publish, rate_hz, options.seconds, options.points).result()
            _wait_for_rest(arrivals_ns, diagnostics)
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
        "newest answered": "yes" if stamps[-1] in arrivals_ns else "no",
    }
    frames = [frame for frame in frames if frame["stamp"] in arrivals_ns]
    end_to_end_ms = np.array([(arrivals_ns[frame["stamp"]] - frame["stamp"]) * 1e-6 for frame in frames])
    times = {name: np.array([frame[name] for frame in frames]) for name in frames[0]}
    stages = _stages(times)
    stages["pairing, queueing, the rest"] = times["answer"] - sum(stages.values())
    cpu_stages = _stages({name: times[f"{name}{CPU}"] for name in times if f"{name}{CPU}" in times})
    sent_hz = 1e9 * (len(stamps) - 1) / (stamps[-1] - stamps[0])
    return Run(sent_hz, counts, times["answer"], end_to_end_ms, stages, cpu_stages, foreign_cores)


def _stages(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shares of time, from that of functions that call each other."""
    return {
        "decoding": times["decode"],
        "projection": times["project"],
        "other preprocessing": times["preprocess"] - times["project"],
        MODEL: times["localize"] - times["estimate"],
        "covariance, confidence": times["estimate"],
        "publication": times["publish"],
    }


@contextmanager
def _listener() -> Iterator[tuple[dict[int, int], dict[str, str]]]:
    """When the pose of each stamp came, and the latest diagnostics; both grow."""
    use_fastdds_profile()
    arrivals_ns: dict[int, int] = {}
    diagnostics: dict[str, str] = {}
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("latency_listener", context=context)
    node.create_subscription(
        PoseStamped, "vmloc_node/pose", lambda pose: arrivals_ns.setdefault(stamp_ns(pose.header), time.time_ns()), 100
    )
    node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda array: diagnostics.update({pair.key: pair.value for pair in array.status[0].values}),
        10,
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield arrivals_ns, diagnostics
    finally:
        executor.shutdown()
        thread.join()
        rclpy.shutdown(context=context)


def _wait_for_rest(arrivals_ns: dict[int, int], diagnostics: dict[str, str]) -> None:
    """Until no more poses come and the diagnostics have counted them all."""
    seen = -1
    while len(arrivals_ns) > seen:
        seen = len(arrivals_ns)
        time.sleep(2.0)
    if not seen:
        raise SystemExit(f"no pose came; the node says: {diagnostics}")


def _wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + MATCH_LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"waited {MATCH_LIMIT_S:g} s for {what}")
        time.sleep(0.02)


def _image(seed: int) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=pixels.tobytes())
    message.header.frame_id = "camera"
    return message


def _cloud(seed: int, points: int) -> PointCloud2:
    """Beams from -25 to 15 degrees that turn once, ranges at random; 16 bytes a point."""
    rng = np.random.default_rng(seed)
    elevation = np.radians(np.linspace(-25, 15, BEAMS))[np.arange(points) % BEAMS]
    azimuth = np.linspace(-np.pi, np.pi, points, endpoint=False)
    directions = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    xyz_m = np.stack(directions, 1) * rng.uniform(1, 60, (points, 1))
    rows = np.column_stack([xyz_m, rng.uniform(0, 255, points)]).astype(np.float32)
    names = ("x", "y", "z", "intensity")
    fields = [PointField(name=name, offset=4 * n, datatype=PointField.FLOAT32, count=1) for n, name in enumerate(names)]
    message = PointCloud2(height=1, width=points, fields=fields, point_step=16, row_step=16 * points)
    message.data = rows.tobytes()
    message.header.frame_id = "lidar"
    return message


def _foreign_s() -> float:
    """CPU time of the whole machine, but for this process and its ended children."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy_s - sum(os.times()[:4])


def main() -> None:
    """Measure and print."""
    options = _options()
    let_idle_threads_sleep()  # as the node does, for those without it too
    leave_a_core()
    with ProcessPoolExecutor(1, SPAWN) as pool:
        own = pool.submit(own_times_ms, options.checkpoint, options.device, options.points).result()
    runs = [measure(options, rate_hz) for rate_hz in tqdm(options.rates, desc="rates")]
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
    times = ("answer", "model", "answer - model", "end to end", "end to end - model")
    heads = ["rate (Hz)", *runs[0].counts, *(f"{name} (ms)" for name in times), "others' CPU (cores)"]
    rows = [f"| {' | '.join(heads)} |", "|---:" * len(heads) + "|"]
    for run in runs:
        model_ms = run.stages[MODEL]
        times_ms = (run.answer_ms, model_ms, run.answer_ms - model_ms, run.end_to_end_ms, run.end_to_end_ms - model_ms)
        cells = [f"{run.rate_hz:.1f}", *run.counts.values(), *map(_spread, times_ms), f"{run.foreign_cores:.2f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _stages_table(run: Run) -> str:
    rows = ["| stage | ms | CPU time of the thread (ms) |", "|---|---:|---:|"]
    for name, values in run.stages.items():
        cpu = _spread(run.cpu_stages[name]) if name in run.cpu_stages else ""
        rows.append(f"| {name} | {_spread(values)} | {cpu} |")
    return "\n".join(rows)


def _spread(values: np.ndarray) -> str:
    median, p95 = np.percentile(values, [50, 95])
    return f"{median:.1f} / {p95:.1f}"


if __name__ == "__main__":
    main()
