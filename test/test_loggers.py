# SPDX-License-Identifier: Apache-2.0
"""Log records reach caplog whatever pytest plugins are loaded."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_logger_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vmloc_ros.made_by_a_test").warning("heard")
    assert caplog.messages == ["heard"]


def test_launchs_plugins_do_not_blind_caplog() -> None:
    pytest.importorskip("launch_testing", reason="launch_testing is not installed (no ROS distribution)")
    tests = f"{Path(__file__)}::{test_a_new_logger_is_heard.__name__}"
    command = [sys.executable, "-c", "import launch.logging, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"]
    result = subprocess.run([*command, "-q", tests], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout
