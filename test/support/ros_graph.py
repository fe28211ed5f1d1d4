# SPDX-License-Identifier: Apache-2.0
"""Real DDS in tests: private domains, nodes in processes, waiting for conditions."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmloc_ros.core.localizer import Localizer

LIMIT_S = 30.0
_ROOT = Path(__file__).resolve().parents[2]


def localizer_of_the_node(checkpoint: Path) -> Localizer:
    """The localizer with traced networks, as in the node: rounding differs from untraced ones."""
    from vmloc_ros.runtime.served_model import load_model  # takes seconds, for tests that need no torch

    return load_model(str(checkpoint), "cpu", 0, pytest.fail).localizer


@contextmanager
def private_domain() -> Iterator[None]:
    """Set the environment of a ROS domain that no other test process on this machine uses, on the loopback only."""
    with _locked_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setenv("OMP_NUM_THREADS", "1")
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # a distribution's packages
        patch.setenv("PYTHONPATH", os.pathsep.join([str(_ROOT), *filter(None, inherited)]))
        yield


@contextmanager
def _locked_domain() -> Iterator[int]:
    for offset in range(100):
        domain = 1 + (os.getpid() + offset) % 100
        with open(Path(tempfile.gettempdir()) / f"vmloc_ros_test_domain_{domain}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError("100 test processes are using all ROS domains of this machine")


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Poll until ``condition`` is truthy and return it; fail with ``what`` after ``limit_s``."""
    deadline_s = time.monotonic() + limit_s
    while not (result := condition()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {limit_s:g} s for {what}")
        time.sleep(0.02)
    return result


class Process:
    """A Python module or snippet in a process of its own, with its output in a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("w") as stream:
            self._popen = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                # Children of a shell's background job inherit an ignored SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for_output(self, pattern: str) -> None:
        try:
            wait_until(lambda: re.search(pattern, self.output) or self.is_dead, f"output {pattern!r}")
        finally:
            assert re.search(pattern, self.output), self.output

    @property
    def is_dead(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> int:
        return self._popen.wait(LIMIT_S)

    def interrupt(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self._popen.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()


@contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[Process]:
    """A process that is killed at the end of the block."""
    process = Process(arguments, log)
    try:
        yield process
    finally:
        process.kill()


def node_arguments(parameters: dict[str, Any]) -> list[str]:
    """Command line of the node."""
    settings = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    return ["-m", "vmloc_ros.node", "--ros-args", *settings]


@contextmanager
def node_in_process(parameters: dict[str, Any] | None = None) -> Iterator[Any]:
    """A VmlocNode in this process and a ROS context of its own, which nothing spins."""
    import rclpy

    from vmloc_ros.node import VmlocNode

    context = rclpy.Context()
    rclpy.init(args=node_arguments(parameters or {})[2:], context=context)
    node = VmlocNode(context=context)
    try:
        yield node
    finally:
        node.close()
        node.destroy_node()
        rclpy.shutdown(context=context)


def set_parameter(node: Any, name: str, value: Any) -> Any:
    """Set a parameter of a node in this process; returns rcl_interfaces/SetParametersResult."""
    from rclpy.parameter import Parameter

    return node.set_parameters([Parameter(name, value=value)])[0]


def cdr(message: Any) -> bytes:
    """Serialize a message of the rosbags library, for publishers of rclpy."""
    from vmloc_ros.bags.messages import typestore

    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def ament_prefix(folder: Path) -> Path:
    """Install this checkout into a folder, as far as launch files need it; returns the folder."""
    program = folder / "lib" / "vmloc_ros" / "vmloc_node"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nfrom vmloc_ros.node import main\nraise SystemExit(main())\n")
    program.chmod(0o755)
    index = folder / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "vmloc_ros").touch()
    share = folder / "share" / "vmloc_ros"
    share.mkdir()
    for name in ("launch", "config", "package.xml"):
        (share / name).symlink_to(_ROOT / name)
    return folder


def process_bundle(node: Any, bundle: Any) -> None:
    """Run a bundle of messages through an active node's worker in this thread."""
    worker = node._session._worker
    if (prepared := worker.prepare(bundle)) is not None:
        worker.localize(prepared)


def served_poses(checkpoint: Path, bag: Path, topics: Sequence[str], folder: Path) -> dict[int, Any]:
    """Poses by stamp that the node publishes for a replayed bag of a hand-held camera; no frame is dropped or withheld.

    Args:
        topics: the model's inputs.
        folder: for logs and the recorded poses.
    """
    from vmloc_ros.bags.files import open_bag
    from vmloc_ros.core.messages import decode_pose, stamp_ns

    frame = "camera_optical_frame"
    parameters = {"checkpoint": checkpoint, "device": "cpu", "base_frame": frame, "queue_depth": 100}
    parameters["min_confidence"] = 0.0
    recording = folder / "recording"
    player = ["-m", "training.cli", "replay", str(bag), "--wait-for", *topics]
    player += ["--record", str(recording), "--record-topics", "/vmloc_node/pose"]
    with running(node_arguments(parameters), folder / "node.log") as node:
        node.wait_for_output("now active")
        with running(player, folder / "player.log") as process:
            assert process.wait() == 0, process.output
        assert node.interrupt(signal.SIGTERM) == 0
    with open_bag(recording) as reader:
        messages = [reader.deserialize(data, connection.msgtype) for connection, _, data in reader.messages()]
    return {stamp_ns(message.header): decode_pose(message) for message in messages}


class Peer:
    """A node in the test's own process, in a context of its own, that publishes and collects."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from vmloc_ros.ros.environment import use_fastdds_profile

        use_fastdds_profile()
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test_peer", context=self._context)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self._publishers: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        import rclpy

        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def collect(self, message_type: Any, topic: str, qos: Any = 100) -> list[Any]:
        """Subscribe; the list returned grows with every message."""
        self.node.create_subscription(message_type, topic, self.received[topic].append, qos)
        return self.received[topic]

    def publisher(self, message_type: Any, topic: str, qos: Any = 10) -> Any:
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(message_type, topic, qos)
        return self._publishers[topic]

    def wait_for_peers(self, subscribed: Sequence[str] = (), published: Sequence[str] = ()) -> None:
        """Wait for subscribers and publishers of these topics, plus 0.5 s: discovery is not symmetric."""
        for topic in subscribed:
            wait_until(self._publishers[topic].get_subscription_count, f"a subscriber of {topic}")
        for topic in published:
            wait_until(lambda topic=topic: self.node.count_publishers(topic), f"a publisher of {topic}")
        time.sleep(0.5)


@contextmanager
def peer() -> Iterator[Peer]:
    instance = Peer()
    try:
        yield instance
    finally:
        instance.close()
