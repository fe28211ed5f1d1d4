# SPDX-License-Identifier: Apache-2.0
"""`colcon build --symlink-install`, as the README has it, wherever colcon is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colcon workspace with a copy of this package, built once."""
    for name in ("colcon_core", "colcon_ros", "colcon_package_selection"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name.replace('_', '-')} is not installed (no ROS distribution)")
    folder = tmp_path_factory.mktemp("workspace")
    source = folder / "src" / "vmloc_ros"
    source.mkdir(parents=True)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml"):
        shutil.copy(ROOT / name, source)
    for name in ("vmloc_ros", "training", "launch", "config", "resource"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "colcon", "build", "--symlink-install", "--packages-select", "vmloc_ros"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def run_sourced(workspace: Path, command: str) -> str:
    """Standard output of a shell command after the workspace was sourced."""
    environment = {**os.environ, "COLCON_CURRENT_PREFIX": ""}
    script = f". install/local_setup.bash && {command}"
    result = subprocess.run(["bash", "-c", script], cwd=workspace, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_changed_source_file_takes_effect_without_a_rebuild(workspace: Path) -> None:
    module = workspace / "src" / "vmloc_ros" / "vmloc_ros" / "__init__.py"
    with module.open("a") as file:
        file.write('CHANGED = "after the build"\n')
    program = "import vmloc_ros; print(vmloc_ros.CHANGED)"
    assert run_sourced(workspace, f"cd / && {sys.executable} -c '{program}'").strip() == "after the build"


def test_a_changed_launch_file_takes_effect_without_a_rebuild(workspace: Path) -> None:
    source, installed = (
        workspace / path / "launch/vmloc.launch.py" for path in ("src/vmloc_ros", "install/vmloc_ros/share/vmloc_ros")
    )
    with source.open("a") as file:
        file.write("# after the build\n")
    assert installed.read_text().endswith("# after the build\n")


def test_executables_are_there_and_run_with_the_python_that_built(workspace: Path) -> None:
    programs = workspace / "install" / "vmloc_ros" / "lib" / "vmloc_ros"
    assert {path.name for path in programs.iterdir()} == {"vmloc", "vmloc_initialpose", "vmloc_node"}
    assert {path.read_text().splitlines()[0] for path in programs.iterdir()} == {f"#!{sys.executable}"}


def test_ament_finds_the_package(workspace: Path) -> None:
    assert str(workspace / "install" / "vmloc_ros") in run_sourced(workspace, 'echo "$AMENT_PREFIX_PATH"')
