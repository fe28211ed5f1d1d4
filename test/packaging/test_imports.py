# SPDX-License-Identifier: Apache-2.0
"""The core and the training tools import where ROS is absent, and import directions are enforced."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Imports every module of a package while a finder refuses what a Python expression (argument 1) picks out.
IMPORT_ALL = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if eval(sys.argv[1]):
            raise ModuleNotFoundError(f"{name} is refused here", name=name)

sys.meta_path.insert(0, Refuse())
package = importlib.import_module(sys.argv[2])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
NO_ROS = (
    "top.endswith('_msgs') or top in "
    "{'rclpy', 'std_srvs', 'tf2_ros', 'cv_bridge', 'launch', 'launch_ros', 'ament_index_python'}"
)
NO_TRAINING_EXTRA = "top in {'embreex', 'matplotlib', 'rosbags', 'scipy', 'tabulate', 'tensorboard', 'tqdm', 'trimesh'}"


def import_all(refuse: str, package: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, refuse, package],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("package", ["vmloc_ros.core", "training"])
def test_every_module_imports_without_ros(package: str) -> None:
    result = import_all(NO_ROS, package)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 5


def test_core_imports_without_what_only_training_needs() -> None:
    result = import_all(f"{NO_ROS} or {NO_TRAINING_EXTRA}", "vmloc_ros.core")
    assert result.returncode == 0, result.stderr


def test_refusing_finder_would_notice_ros() -> None:
    result = import_all("top == 'numpy'", "vmloc_ros.core")
    assert result.returncode != 0
    assert "numpy is refused here" in result.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code and of the tools' settings, to do wrong in."""
    for package in ("training", "vmloc_ros"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def import_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    run = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", run], cwd=folder, capture_output=True, text=True, timeout=100)


def test_import_linter_accepts_the_code_as_it_is(copy: Path) -> None:
    result = import_linter(copy)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("vmloc_ros/core/geometry.py", "from vmloc_ros.core import localizer", "inside the core"),
        ("vmloc_ros/core/preprocessing.py", "import vmloc_ros.core.models", "inside the core"),
        ("vmloc_ros/core/messages.py", "from vmloc_ros.runtime import pipeline", "stand on the core"),
        ("vmloc_ros/core/synchronizer.py", "from vmloc_ros.ros import packages", "stand on the core"),
        ("vmloc_ros/node/lifecycle.py", "import training.objectives.base", "training stands on vmloc_ros"),
        ("training/objectives/base.py", "from vmloc_ros import node", "training needs no ROS"),
        ("vmloc_ros/core/newcomer.py", "pass", "inside the core"),
        ("vmloc_ros/core/models/dense/cells.py", "from vmloc_ros.core.models.dense import solver", "inside the dense"),
        ("training/data/dataset.py", "import training.trainer.trainer", "inside training"),
        ("training/newcomer.py", "pass", "inside training"),
        ("training/trainer/train.py", "from vmloc_ros import runtime", "training needs no ROS"),
    ],
)
def test_import_linter_refuses(copy: Path, module: str, line: str, contract: str) -> None:
    with (copy / module).open("a") as file:
        file.write(f"\n\ndef wrong_direction():\n    {line}\n")
    result = import_linter(copy)
    assert result.returncode != 0
    assert contract in "".join(text for text in result.stdout.splitlines() if "KEPT" not in text), result.stdout


@pytest.mark.parametrize(
    "module", ["vmloc_ros/core/frame.py", "vmloc_ros/core/messages.py", "training/objectives/base.py"]
)
@pytest.mark.parametrize("line", ["import rclpy", "from sensor_msgs.msg import Image"])
def test_ruff_refuses_ros_outside_the_node_and_the_player(copy: Path, module: str, line: str) -> None:
    pytest.importorskip("ruff")
    (copy / module).write_text(f"def wrong_direction():\n    {line}\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", module]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert "ROS is imported by vmloc_ros/{node,ros,replay}" in result.stdout
