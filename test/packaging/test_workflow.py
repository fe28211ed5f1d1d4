# SPDX-License-Identifier: Apache-2.0
"""The GitHub workflow covers what the project claims to support."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    if not WORKFLOW.exists():
        pytest.skip("the workflow is not part of this copy")
    return yaml.safe_load(WORKFLOW.read_text())


def test_every_python_of_the_setup_script_has_a_job(workflow: dict[str, Any]) -> None:
    (newest,) = re.findall(r"local newest=(\d+)", (ROOT / "scripts" / "setup.sh").read_text())
    expected = [f"3.{minor}" for minor in range(10, int(newest) + 1)]
    assert workflow["jobs"]["wheels"]["strategy"]["matrix"]["python"] == expected


def test_every_distribution_of_the_readme_has_a_job(workflow: dict[str, Any]) -> None:
    (names,) = re.findall(r"On a ROS 2 distribution \((.*?)\)", (ROOT / "README.md").read_text())
    assert workflow["jobs"]["distribution"]["strategy"]["matrix"]["ros"] == names.lower().split(", ")


def test_the_lowest_versions_are_those_that_setup_py_names(workflow: dict[str, Any]) -> None:
    steps = [step.get("run", "") for step in workflow["jobs"]["wheels"]["steps"]]
    (path,) = re.findall(r"GITHUB_WORKSPACE/(\S+?)\"", "\n".join(steps))
    bounds = dict(re.findall(r"^(\w+)==([\d.]+?)\.\*", (ROOT / path).read_text(), re.MULTILINE))
    (torch,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert bounds["torch"] == torch


def test_slow_tests_run_every_night(workflow: dict[str, Any]) -> None:
    triggers = workflow[True]  # YAML 1.1 reads "on" so
    assert "schedule" in triggers
    assert "schedule" in workflow["jobs"]["slow"]["if"]
    assert any("-m slow" in step.get("run", "") for step in workflow["jobs"]["slow"]["steps"])


def test_actionlint_has_nothing_to_say() -> None:
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("actionlint is not installed")
    result = subprocess.run([program, str(WORKFLOW)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
