# SPDX-License-Identifier: Apache-2.0
"""scripts/setup.sh on machines that lack something: each failure names the step and the remedy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "bash cat cp df dirname env flock grep mkdir mv rm sed sha256sum tail uname"

# A python3 that has rclpy, or lacks ensurepip or Python.h, where files of these names say so; its `-m venv` makes
# a venv in which pip fails with a text of the test's choice.
FAKE_PYTHON = """#!{bash}
case "$*" in
    *ensurepip*) [ ! -e {state}/no_ensurepip ]; exit ;;
    *Python.h*) [ ! -e {state}/no_headers ]; exit ;;
    *"import rclpy"*) [ -e {state}/has_rclpy ]; exit ;;
    *"import numpy"*) echo "numpy<2"; exit ;;
    *"version_info"*) [ ! -e {state}/too_old ]; exit ;;
    "-m venv "*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python"; exit ;;
    "-m pip --version") exit ;;
    "-m pip install "*) echo "$*" >{state}/pip_arguments; cat {state}/pip_says >&2; exit 1 ;;
    --version) echo Python 3.12.0; exit ;;
esac
exit 1
"""


class Machine:
    """A project folder, and a PATH with nothing on it but what the script may use."""

    def __init__(self, folder: Path) -> None:
        self.project, self.bin, self.state = folder / "project", folder / "bin", folder / "state"
        for made in (self.project, self.bin, self.state):
            made.mkdir()
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        for name in TOOLS.split():
            path = shutil.which(name)
            if path is None:
                pytest.skip(f"{name} is not installed")
            (self.bin / name).symlink_to(path)
        for name in ("gcc", "g++"):
            self.add_program(name, "#!/bin/sh\n")
        self.add_program("python3", FAKE_PYTHON.format(bash=shutil.which("bash"), state=self.state))
        (self.state / "pip_says").touch()

    def add_program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "scripts/setup.sh"],
            cwd=self.project,
            env={"PATH": str(self.bin), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the ROS 2 wheels are for Linux x86_64")
    return Machine(tmp_path)


@pytest.mark.parametrize(("lack", "package"), [("no_ensurepip", "python3-venv"), ("no_headers", "python3-dev")])
def test_missing_part_of_python_is_named(machine: Machine, lack: str, package: str) -> None:
    (machine.state / lack).touch()
    result = machine.set_up()
    assert result.returncode == 1
    assert f"lacks {package}" in result.stderr
    assert f"sudo apt install {package}" in result.stderr
    assert not (machine.project / ".venv").exists()


def test_all_missing_packages_are_named_at_once(machine: Machine) -> None:
    (machine.state / "no_ensurepip").touch()
    (machine.state / "no_headers").touch()
    (machine.bin / "g++").unlink()
    assert "sudo apt install python3-venv build-essential python3-dev" in machine.set_up().stderr


def test_missing_or_old_python_is_named(machine: Machine) -> None:
    (machine.state / "too_old").touch()
    result = machine.set_up()
    assert result.returncode == 1
    assert "no Python 3.10 to 3.14 found" in result.stderr
    assert "sudo apt install python3" in result.stderr


def test_distribution_that_cannot_be_imported_is_named(machine: Machine) -> None:
    result = machine.set_up(ROS_DISTRO="jazzy")
    assert result.returncode == 1
    assert "ROS_DISTRO is jazzy" in result.stderr
    assert "/opt/ros/jazzy/setup.bash" in result.stderr


@pytest.mark.parametrize(
    ("pip_says", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError(': Failed to establish a new connection')", "cannot reach the package index"),
        ("ERROR: No matching distribution found for torch>=2.4", "cannot reach the package index"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "pip cache purge"),
        ("something unheard of", "Start again"),
    ],
)
def test_failed_installation_names_step_remedy_and_log(machine: Machine, pip_says: str, remedy: str) -> None:
    (machine.state / "pip_says").write_text(f"{pip_says}\n")
    result = machine.set_up()
    assert result.returncode == 1
    assert "step failed: installing PyTorch and all other packages" in result.stderr
    assert pip_says in result.stderr
    assert remedy in result.stderr
    assert (machine.project / ".venv" / "step.log").read_text() == f"{pip_says}\n"
    assert not (machine.project / ".venv" / "ready").exists()


def test_failed_installation_is_taken_up_where_it_stopped(machine: Machine) -> None:
    assert "making " in machine.set_up().stdout
    again = machine.set_up()
    assert "making " not in again.stdout
    assert "installing PyTorch" in again.stdout


def test_venv_that_someone_else_made_is_left_alone(machine: Machine) -> None:
    (machine.project / ".venv").mkdir()
    (machine.project / ".venv" / "precious").touch()
    result = machine.set_up()
    assert result.returncode == 1
    assert "was not made by scripts/setup.sh" in result.stderr
    assert (machine.project / ".venv" / "precious").exists()


def test_test_script_stops_where_the_setup_fails(machine: Machine) -> None:
    (machine.state / "no_ensurepip").touch()
    result = subprocess.run(
        ["bash", "scripts/test.sh"],
        cwd=machine.project,
        env={"PATH": str(machine.bin)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "[test]" not in result.stdout


def test_a_distribution_s_packages_and_colcon_bound_the_versions_in_the_venv(machine: Machine) -> None:
    (machine.state / "has_rclpy").touch()
    machine.set_up(ROS_DISTRO="jazzy")
    constraints = machine.project / ".venv" / "constraints.txt"
    assert f"-c {constraints}" in (machine.state / "pip_arguments").read_text()
    assert constraints.read_text().split() == ["numpy<2", "setuptools>=77.0.3,<80"]
