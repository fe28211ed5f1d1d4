# SPDX-License-Identifier: Apache-2.0
"""The nodes' modules import quickly, so that ROS starts, and can be interrupted, at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", ["vmloc_ros.node", "vmloc_ros.initialpose"])
def test_importing_a_node_loads_no_torch(module: str) -> None:
    """torch takes seconds, and reads OMP_NUM_THREADS and OMP_WAIT_POLICY, which ``main`` sets, when it is imported."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100).returncode == 0
