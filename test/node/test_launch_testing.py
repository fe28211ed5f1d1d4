# SPDX-License-Identifier: Apache-2.0
"""Runs the launch tests in test/node/launch by launch_testing, wherever launch can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ros_graph import ament_prefix
from training.testing import write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("launch_ros.actions", "launch_testing", "launch_xml", "launch_yaml")

pytestmark = pytest.mark.usefixtures("ros_domain")


@pytest.fixture(scope="module", autouse=True)
def launch_installed():
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed (no ROS distribution)")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment in which ROS finds this checkout, and ``ros2`` only prints its arguments."""
    prefix, programs = ament_prefix(tmp_path_factory.mktemp("prefix")), tmp_path_factory.mktemp("bin")
    (programs / "ros2").write_text('#!/bin/sh\necho "$@" >&2\nexec sleep 600\n')
    (programs / "ros2").chmod(0o755)
    first = {"AMENT_PREFIX_PATH": prefix, "PATH": programs}
    paths = {name: os.pathsep.join([str(path), os.environ.get(name, "")]) for name, path in first.items()}
    python_path = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])  # where launch may come from
    return {**os.environ, **paths, "PYTHONPATH": python_path}


@pytest.mark.parametrize("name", ["node_launch_test.py", "replay_launch_test.py", "robots_launch_test.py"])
def test_the_launch_test_passes(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    write_random_checkpoint(checkpoint, ("image",))
    command = [sys.executable, "-m", "launch_testing.launch_test", str(ROOT / "test/node/launch" / name)]
    command += [f"checkpoint:={checkpoint}"] + (["bag:=drive"] if name.startswith("replay") else [])
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
