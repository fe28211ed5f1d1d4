# SPDX-License-Identifier: Apache-2.0
"""A new system is one file, one entry of the registry and one line of the docs; every command then knows it."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training_runs import write_scene

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vmloc_ros", "training", "config", "docs")

MODEL = '''# SPDX-License-Identifier: Apache-2.0
"""A toy: the pose from the image's mean colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.models.base import RegressionModel, require_modality
from vmloc_ros.core.models.config import ModelConfig
from vmloc_ros.core.models.input_output import ModelInput


@dataclass(frozen=True, slots=True)
class MeanColourConfig(ModelConfig):
    """Settings of ``mean_colour``."""

    width: int = 8


class MeanColour(RegressionModel):
    def __init__(self, config: MeanColourConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.network = nn.Sequential(nn.Linear(channels[IMAGE], config.width), nn.ReLU(), nn.Linear(config.width, 6))

    def forward(self, batch: ModelInput) -> Tensor:
        require_modality(batch, self.modalities)
        return self.network(batch.tensors[IMAGE].mean(dim=(2, 3)))
'''
REGISTRY = "vmloc_ros/core/models/__init__.py"
CHANGES = {  # what is inserted before which line of a file
    REGISTRY: {
        "from vmloc_ros.core.models.nearest import": (
            "from vmloc_ros.core.models.mean_colour import MeanColour, MeanColourConfig\n"
        ),
        '    "nearest": System(': (
            '    "mean_colour": System(MeanColour, (IMAGE,), "the image\'s mean colour", MeanColourConfig),\n'
        ),
    },
    "docs/models.md": {"**`nearest`**. ": "**`mean_colour`**. The pose from the image's mean colour.\n\n"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the toy system in it."""
    copy = tmp_path_factory.mktemp("project")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "package.xml", copy)  # marks a source tree, where files that ship are looked for
    (copy / "vmloc_ros/core/models/mean_colour.py").write_text(MODEL)
    for file, insertions in CHANGES.items():
        text = (copy / file).read_text()
        for before, line in insertions.items():
            assert text.count(before) == 1, f"{file} has no single {before!r}"
            text = text.replace(before, line + before)
        (copy / file).write_text(text)
    return copy


def vmloc(project: Path, *arguments: object) -> str:
    """What the command prints; the copy's code is imported, wherever the package is installed."""
    command = [sys.executable, "-m", "training.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def differing(ours: filecmp.dircmp, prefix: str) -> set[str]:
    names = {f"{prefix}/{name}" for name in (*ours.diff_files, *ours.right_only) if name != "__pycache__"}
    return names.union(*(differing(part, f"{prefix}/{name}") for name, part in ours.subdirs.items()))


def test_a_new_system_is_trained_described_and_evaluated_by_every_command(project: Path, tmp_path: Path) -> None:
    changed = set().union(*(differing(filecmp.dircmp(ROOT / name, project / name), name) for name in FOLDERS))
    assert changed == {"vmloc_ros/core/models/mean_colour.py", *CHANGES}
    scene, checkpoint = write_scene(tmp_path / "data" / "redkitchen"), tmp_path / "toy.safetensors"
    settings = (
        "model.name=mean_colour",
        "model.width=4",
        "preprocess.modalities=[image, depth]",
        "preprocess.shortest_side=32",
        "optimizer.epochs=1",
        "optimizer.batch_size=4",
        "validation.every=2",
        "validation.block=4",
        "pretrained=false",
    )
    overrides = [word for setting in settings for word in ("--set", setting)]
    vmloc(project, "train", "--data", scene, "--out", checkpoint, "--device", "cpu", *overrides)
    assert "mean_colour" in vmloc(project, "models")
    described = vmloc(project, "info", checkpoint)
    assert "mean_colour: the image's mean colour" in described
    assert "model.width" in described
    evaluated = vmloc(project, "evaluate", checkpoint, scene, "--out", tmp_path / "results", "--device", "cpu")
    assert "| mean_colour |" in evaluated
    table = ("reproduce", "table1", "--data", scene.parent, "--out", tmp_path / "table", "--device", "cpu")
    made = vmloc(project, *table, "--systems", "mean_colour", *overrides[2:])
    assert "mean_colour" in made
