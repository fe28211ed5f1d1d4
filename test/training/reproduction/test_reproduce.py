# SPDX-License-Identifier: Apache-2.0
"""``vmloc reproduce`` end to end on tiny data, and what it uses again."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from helpers import without_padding
from scene_builders import write_scene
from training.cli import main
from training.reproduction import runs as reproduce_runs
from training.reproduction.experiments import EXPERIMENTS, VARIANTS
from training.reproduction.runs import Run, Settings, State, examine
from training.reproduction.scenes import SceneData, find_scenes
from vmloc_ros.core.checkpoint import load_checkpoint, read_header, save_checkpoint
from vmloc_ros.core.errors import ConfigError

CONFIG = """
shared_by_systems: true
model: {backbone: squeezenet1_1, latent_dim: 16, hidden_dim: 16, feature_dim: 16, recurrent_dim: 16}
pretrained: false
preprocess: {shortest_side: 32}
optimizer: {epochs: 1, batch_size: 4, learning_rate: 1e-4}
validation: {every: 2, block: 4}
"""


def run(table: str, root: Path, out: Path, *arguments: object) -> int:
    config = root / "tiny.yaml"
    config.write_text(CONFIG)
    common = ["--data", root, "--out", out, "--config", config, "--device", "cpu"]
    return main(["reproduce", table, *map(str, [*common, *arguments])])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a folder in which table 4 was made on them."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_scene(folder / "data", "redkitchen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMLOC_CACHE", str(folder / "cache"))  # this fixture comes before the one that sets it for tests
        assert run("table4", folder / "data", folder / "out", "--systems", "atloc", "vmloc") == 0
    return folder / "data", folder / "out"


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same data, and a copy of the results that a test may spoil."""
    shutil.copytree(made[1], tmp_path / "out")
    return made[0], tmp_path / "out"


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever trains or evaluates."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(reproduce_runs, "train", fail)
    monkeypatch.setattr(reproduce_runs, "evaluate_checkpoints", fail)


def results(out: Path, table: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By system and input."""
    record = json.loads((out / f"{table}.json").read_text())
    return {(line["system"], line["input"]): line for line in record["results"]}


# --- end to end --------------------------------------------------------------------------------------------------


def test_every_system_is_tested_with_every_input_and_the_figures_are_the_evaluations_own(
    made: tuple[Path, Path],
) -> None:
    found = results(made[1], "table4")
    assert len(found) == 10
    folder = made[1] / "redkitchen" / "evaluation"
    for (system, condition), name in {
        ("vmloc", "clean"): "vmloc_seed0",
        ("vmloc", "image masked"): "vmloc_seed0_image1",
        ("vmloc", "image missing"): "vmloc_seed0_image2",
        ("vmloc", "range masked"): "vmloc_seed0_depth1",
        ("vmloc", "range missing"): "vmloc_seed0_depth2",
        ("atloc", "clean"): "atloc_seed0",
        ("atloc", "image masked"): "atloc_seed0_image1",
        ("atloc", "range missing"): "atloc_seed0",  # it takes none
    }.items():
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert metrics["frames"] == 8
        for key in ("mean_position_m", "median_rotation_deg"):
            assert found[system, condition]["mean"][key] == metrics[key]
    assert found["atloc", "image missing"]["mean"] == {}
    assert found["atloc", "image missing"]["why_not"] == "no input left"


def test_the_text_names_data_settings_and_missing_scenes(made: tuple[Path, Path]) -> None:
    text = (made[1] / "table4.md").read_text()
    assert "REAL (7scenes); 8 of 7000 training frames, 8 of 5000 test frames. A SUBSET" in text
    assert "`optimizer.epochs` 1, not 300" in text
    assert "`model.backbone` squeezenet1_1, not resnet34" in text
    assert "`preprocess.shortest_side` 32, not 256" in text
    assert "`objective.estimator` dreg_lambda, not dreg" in text  # ours
    assert "`objective.samples`" not in text  # the paper's own
    assert "The paper has no figures for these data." in text
    assert "depth missing" in text
    assert "* FULL: " in text
    assert "2014-11-28-12-07-13" in text
    assert f"torch {torch.__version__}" in text
    record = json.loads((made[1] / "table4.json").read_text())
    assert record["scenes"]["redkitchen"]["simulated"] is False
    assert record["hardware"] in text


def test_the_csv_has_a_line_for_each_seed_and_the_mean(made: tuple[Path, Path]) -> None:
    with (made[1] / "table4.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["system"], row["input"]) == ("vmloc", "clean")]
    assert [row["seed"] for row in rows] == ["0", "mean"]
    assert rows[0]["mean_position_m"] == rows[1]["mean_position_m"]
    assert float(rows[0]["mean_position_m"]) == results(made[1], "table4")["vmloc", "clean"]["mean"]["mean_position_m"]


def test_systems_are_trained_with_their_own_settings_under_the_users(made: tuple[Path, Path]) -> None:
    header = read_header(made[1] / "redkitchen" / "vmloc_seed0.safetensors")
    config = header.training["config"]
    assert config["objective"]["samples"] == 10
    assert config["optimizer"]["learning_rate"] == 1e-4
    assert config["preprocess"]["depth_range_m"] == [0.0, 5.0]  # the scene's own
    assert read_header(made[1] / "redkitchen" / "atloc_seed0.safetensors").preprocess.modalities == ("image",)


def test_another_table_uses_what_is_there_and_shows_the_papers_figures(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_work(monkeypatch)
    assert run("table1", *made, "--systems", "atloc", "vmloc") == 0
    printed = capsys.readouterr().out
    assert (made[1] / "table1.md").read_text() in printed
    metrics = json.loads((made[1] / "redkitchen" / "evaluation" / "vmloc_seed0" / "metrics.json").read_text())
    ours_m, ours_deg = metrics["median_position_m"], metrics["median_rotation_deg"]
    line = next(line for line in without_padding(printed).splitlines() if line.startswith("| vmloc |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[1]) == pytest.approx(ours_m, rel=0.01)
    assert float(cells[3]) == pytest.approx(ours_deg, rel=0.01)
    assert (cells[2], cells[4], cells[5]) == ("0.21", "5.01", "1")
    assert "* stairs: there is no stairs/TrainSplit.txt" in printed
    assert "* redkitchen" not in printed


def test_a_second_seed_is_added_and_its_deviation_shown(copied: tuple[Path, Path]) -> None:
    data, out = copied
    first = (out / "redkitchen" / "atloc_seed0.safetensors").stat().st_mtime_ns
    assert run("table1", data, out, "--systems", "atloc", "--seeds", 2) == 0
    assert (out / "redkitchen" / "atloc_seed0.safetensors").stat().st_mtime_ns == first
    each = [
        json.loads((out / "redkitchen" / "evaluation" / f"atloc_seed{seed}" / "metrics.json").read_text())
        for seed in (0, 1)
    ]
    values = [metrics["median_position_m"] for metrics in each]
    assert values[0] != values[1]
    line = results(out, "table1")["atloc", "clean"]
    assert line["mean"]["median_position_m"] == pytest.approx(sum(values) / 2)
    assert line["std"]["median_position_m"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert " ± " in (out / "table1.md").read_text()


def test_retrieval_takes_the_given_weights_and_has_one_seed(copied: tuple[Path, Path]) -> None:
    data, out = copied
    weights = out / "squeezenet.pth"
    torch.manual_seed(3)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), weights)
    arguments = ("--systems", "atloc", "nearest", "--nearest-weights", weights, "--seeds", 2, "--no-train")
    assert run("table1", data, out, *arguments) == 0
    assert results(out, "table1")["nearest", "clean"]["why_not"] == "not trained"
    assert results(out, "table1")["atloc", "clean"]["seeds"] == [0]
    assert run("table1", data, out, *arguments[:-3]) == 0
    assert results(out, "table1")["nearest", "clean"]["seeds"] == [0]
    trunk = load_checkpoint(out / "redkitchen" / "nearest_seed0.safetensors")[1].state_dict()
    known = torch.load(weights, weights_only=True)
    assert any(torch.equal(tensor, known["features.0.weight"]) for tensor in trunk.values())


def test_retrieval_without_weights_fails_with_advice_before_anything_is_trained(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("table1", made[0], tmp_path, "--systems", "atloc", "nearest", "--nearest-weights", tmp_path / "none.pth")
    error = capsys.readouterr().err
    assert code == 1
    assert "none.pth does not exist" in error
    assert "or omit nearest from --systems" in error
    assert not (tmp_path / "redkitchen" / "atloc_seed0.safetensors").exists()


def test_all_systems_see_frames_of_one_size_and_the_dense_ones_are_trained_by_their_recipe(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, out = made[0], tmp_path
    recipe = (
        "model.backbone=shufflenet_v2_x0_5",
        "optimizer.epochs=1",
        "optimizer.batch_size=4",
        "model.map_voxel_m=0",
        "validation={every: 2, block: 4}",
    )
    settings = [word for value in recipe for word in ("--set", value)]
    assert run("systems", data, out, "--systems", "vmloc_dense", *settings, "--no-train") == 0
    assert "NOT the paper's settings" not in capsys.readouterr().out
    assert run("systems", data, out, "--systems", "vmloc_dense", "atloc", *settings) == 0
    text = capsys.readouterr().out
    dense = next(line for line in text.splitlines() if line.startswith("* vmloc_dense has the settings of "))
    assert dense.startswith(
        "* vmloc_dense has the settings of `config/train/dense_rgbd.yaml`, but for `model.backbone` "
    )
    assert "`optimizer.epochs` 1, " in dense
    assert "`optimizer.epochs` 1, not 300" in text  # atloc's
    assert (
        "| input | system | median position (m) | 95 % (m) | median rotation (deg) | 95 % (deg) | seeds |"
        in without_padding(text)
    )
    found = results(out, "systems")
    assert set(found) == {
        ("atloc", "clean"),
        *(("vmloc_dense", f) for f in ("clean", "image missing", "range missing")),
    }
    header = read_header(out / "redkitchen" / "vmloc_dense_seed0.safetensors")
    assert header.training["config"]["model"]["frozen"] is True
    assert header.preprocess.shortest_side == 32


# --- stored results ---------------------------------------------------------------------------------------------


def test_the_same_command_again_has_nothing_to_do(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    no_work(monkeypatch)
    assert run("table4", *copied, "--systems", "atloc", "vmloc") == 0


def test_a_checkpoint_of_other_settings_is_not_used(copied: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    data, out = copied
    changed = ("--systems", "atloc", "--set", "optimizer.learning_rate=2e-4")
    assert run("table1", data, out, *changed) == 1
    error = capsys.readouterr().err
    assert "atloc_seed0.safetensors was trained with optimizer.learning_rate = 0.0001, not 0.0002" in error
    assert "replace it with --retrain, or choose another --out" in error
    assert run("table1", data, out, *changed, "--retrain") == 0
    header = read_header(out / "redkitchen" / "atloc_seed0.safetensors")
    assert header.training["config"]["optimizer"]["learning_rate"] == 2e-4
    metrics = out / "redkitchen" / "evaluation" / "atloc_seed0" / "metrics.json"
    assert metrics.stat().st_mtime_ns > (out / "redkitchen" / "atloc_seed0.safetensors").stat().st_mtime_ns


def test_a_checkpoint_of_other_data_is_not_used(copied: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    path = copied[1] / "redkitchen" / "atloc_seed0.safetensors"
    header, model = load_checkpoint(path)
    header.training["data"][0]["name"] = "office/train"
    save_checkpoint(path, header, model.state_dict())
    assert run("table1", *copied, "--systems", "atloc") == 1
    assert "was trained with other data (1 sequences, not 1; office/train differs)" in capsys.readouterr().err


def test_keys_that_a_checkpoint_does_not_know_yet_do_not_matter_while_they_have_their_defaults(
    copied: tuple[Path, Path],
) -> None:
    path = copied[1] / "redkitchen" / "atloc_seed0.safetensors"
    header, model = load_checkpoint(path)
    del header.training["config"]["augment"]
    save_checkpoint(path, header, model.state_dict())
    settings = Settings(copied[1], [copied[0] / "tiny.yaml"])
    scene = find_scenes(copied[0], None, None).scenes[0]
    data = SceneData({"redkitchen/train": 8}, {"redkitchen/test": 8}, "")
    assert examine(Run(scene, VARIANTS["atloc"], 0), data, settings) is State.FINISHED
    assert examine(Run(scene, VARIANTS["atloc"], 1), data, settings) is State.ABSENT
    other = dataclasses.replace(settings, overrides=["augment.colour_jitter=0.1"])
    with pytest.raises(ConfigError, match=r"augment.colour_jitter = 0\.4, not 0\.1"):
        examine(Run(scene, VARIANTS["atloc"], 0), data, other)


def test_an_unfinished_training_is_resumed_and_not_taken_for_a_result(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = copied
    path = out / "redkitchen" / "atloc_seed0.safetensors"
    header, model = load_checkpoint(path)
    save_checkpoint(path, dataclasses.replace(header, metrics={}), model.state_dict())  # as after an epoch
    assert run("table1", data, out, "--systems", "atloc", "--no-train") == 0
    assert results(out, "table1")["atloc", "clean"]["why_not"] == "not trained"
    calls = []
    original = reproduce_runs.train
    monkeypatch.setattr(reproduce_runs, "train", lambda **arguments: calls.append(arguments) or original(**arguments))
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert [(call["resume"], call["overwrite"]) for call in calls] == [(True, False)]
    assert "held_out" in read_header(path).metrics


def test_an_evaluation_older_than_its_checkpoint_or_of_other_data_is_done_again(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = copied
    calls = []
    original = reproduce_runs.evaluate_checkpoints
    monkeypatch.setattr(
        reproduce_runs, "evaluate_checkpoints", lambda *given, **more: calls.append(given) or original(*given, **more)
    )
    (out / "redkitchen" / "atloc_seed0.safetensors").touch()
    assert run("table1", data, out, "--systems", "atloc") == 0
    (out / "redkitchen" / "evaluation" / "atloc_seed0" / "test_data.txt").write_text("others\n")
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert len(calls) == 2


def test_a_damaged_checkpoint_is_named(copied: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    path = copied[1] / "redkitchen" / "atloc_seed0.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert run("table1", *copied, "--systems", "atloc") == 1
    assert "atloc_seed0.safetensors is truncated" in capsys.readouterr().err


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--systems", "vmlok"], "system 'vmlok' is unknown; known: vmloc, "),
        (["--scenes", "chess"], "chess: there is no chess/TrainSplit.txt"),
        (["--seeds", "0"], "the number of seeds must be at least 1, got 0"),
        (["--set", "optimizer.epoch=3"], "unknown key epoch"),
    ],
)
def test_invalid_arguments_are_an_error_of_one_line(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], match: str
) -> None:
    assert run("table1", made[0], tmp_path, *arguments) == 1
    error = capsys.readouterr().err
    assert match in error
    assert "Traceback" not in error
    assert not (tmp_path / "redkitchen").exists()


def test_the_help_lists_all_tables(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*EXPERIMENTS, "cost"))


def test_a_table_needs_data(capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce", "table1"]) == 1
    assert capsys.readouterr().err.endswith("vmloc reproduce: table1 needs --data ROOT\n")
