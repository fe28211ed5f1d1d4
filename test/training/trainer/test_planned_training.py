# SPDX-License-Identifier: Apache-2.0
"""``vmloc train`` without a configuration: from a bag to a calibrated checkpoint, a report of the plan, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from room_bags import write_room_bag

from training.cli import main
from training.config import load_config
from vmloc_ros.core.checkpoint import read_header
from vmloc_ros.core.localizer import Localizer

# Small enough for a test; what is planned is tested in test_plan.py.
SMALL = [
    *("--set", "pretrained=false"),
    *("--set", "model.hidden_dim=16"),
    *("--set", "optimizer.epochs=1"),
    *("--set", "optimizer.batch_size=16"),
    *("--set", "validation.fold_epochs=1"),
    *("--set", "model.hypotheses=8"),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path / "cache"))


def run(bag: Path, out: Path, *more: str) -> int:
    return main(["train", "--data", str(bag), "--out", str(out), "--device", "cpu", *more])


def test_a_bag_with_depth_alone_becomes_a_map_and_its_plan_trains_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bag, out = write_room_bag(tmp_path / "bag", ["depth"]), tmp_path / "m.safetensors"
    assert run(bag, out, "--minutes", "1", *SMALL) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "dense_lidar with depth" in printed
    assert "2 folds of blocks of" in printed
    assert any("of everything about" in line for line in caplog.messages)
    header = read_header(out)
    assert (header.model.name, header.preprocess.modalities) == ("dense_lidar", ("depth",))
    assert Localizer.load(out).map_frame == "map"

    plan = out.with_name("m.plan.yaml")
    assert plan.read_text().startswith("# Planned by vmloc train")
    whole = load_config([out.with_suffix(".yaml")])
    assert load_config([plan], [text for text in SMALL if text != "--set"]) == whole
    # A plan that may have been edited is not lost, and is given back by --config.
    other = tmp_path / "other.safetensors"
    out.unlink()
    assert run(bag, out) == 1
    assert f"train by it with --config {plan}" in capsys.readouterr().err
    assert run(bag, other, "--config", str(plan), *SMALL, "--set", "validation.folds=0") == 0
    assert load_config([other.with_suffix(".yaml")]).preprocess == whole.preprocess


def plan_of(bag: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run(bag, folder / "m.safetensors", "--plan-only", "--set", "pretrained=false", *more) == 0
    assert not (folder / "m.safetensors").exists()
    return capsys.readouterr().out


def test_a_camera_alone_is_planned_with_what_to_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan_of(write_room_bag(tmp_path / "bag", ["image"], 60), tmp_path, capsys)
    assert "image_vmloc with the camera alone" in printed
    assert "expect decimetres" in printed
    assert load_config([tmp_path / "m.plan.yaml"], ["pretrained=false"]).model.name == "image_vmloc"


@pytest.mark.parametrize(("sensors", "in_tf"), [(("image", "lidar"), True), (("image", "depth"), False)])
def test_camera_and_lidar_or_depth_are_planned_with_the_dense_system(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sensors: Sequence[str], in_tf: bool
) -> None:
    bag = write_room_bag(tmp_path / "bag", sensors, 60, poses_in_tf=in_tf)
    printed = plan_of(bag, tmp_path, capsys)
    assert f"vmloc_dense with {' and '.join(sensors)}" in printed
    config = load_config([tmp_path / "m.plan.yaml"])
    assert (config.model.name, config.preprocess.modalities) == ("vmloc_dense", tuple(sensors))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--minutes", "0"], "--minutes must be at least"),
        (["--plan-only", "--config", "x.yaml"], "leave one of them out"),
        (["--set", "preprocess.modalities=image"], "is a list of image, depth and lidar"),
        (["--set", "preprocess.modalities=[lidar]"], "has no lidar topic"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], problem: str
) -> None:
    bag = write_room_bag(tmp_path / "bag", ["image"], 4)
    assert run(bag, tmp_path / "m.safetensors", *more) == 1
    assert problem in capsys.readouterr().err


def test_several_processes_need_a_plan_that_was_made_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(tmp_path, tmp_path / "m.safetensors") == 1
    assert "plan once, with --plan-only" in capsys.readouterr().err


def test_a_system_that_is_chosen_is_trained_by_its_defaults_and_not_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    assert run(tmp_path / "bag", out, "--plan-only", "--set", "model.name=vmloc") == 1
    assert "--plan-only chooses the system" in capsys.readouterr().err
    assert run(tmp_path / "bag", out, "--set", "model.name=vmloc") == 1  # there is no such bag
    assert not (tmp_path / "m.plan.yaml").exists()
    assert "does not exist" in capsys.readouterr().err
