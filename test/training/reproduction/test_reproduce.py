# SPDX-License-Identifier: Apache-2.0
"""The paper's tables end to end on tiny data, what is kept and used again, and what is said about data and settings."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision

from bag_builders import calibration, clouds, images, poses, write_bag
from helpers import without_padding, yaw_pose
from training.cli import main
from training.config import TrainConfig, load_config
from training.reproduction import runs as reproduce_runs
from training.reproduction.experiments import EXPERIMENTS, VARIANTS, Comparison, Damage
from training.reproduction.runs import Run, Settings, State, corruption_of, examine
from training.reproduction.scenes import SceneData, TableScene, describe, find_scenes, read_scene
from training.reproduction.tables import Line, averages, comparisons_table, scene_table
from training.simulation.traversal import CLOUD_TOPIC, IMAGE_TOPIC, TRUTH_TOPIC, Traversal, is_traversal
from vmloc_ros.core.checkpoint import load_checkpoint, read_header, save_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.models import REGISTRY
from vmloc_ros.core.resources import share_path

CONFIG = """
shared_by_systems: true
model: {backbone: squeezenet1_1, latent_dim: 16, hidden_dim: 16, feature_dim: 16, recurrent_dim: 16}
pretrained: false
preprocess: {shortest_side: 32}
optimizer: {epochs: 1, batch_size: 4, learning_rate: 1e-4}
validation: {every: 2, block: 4}
"""
IMAGE_MASKED, IMAGE_MISSING = Damage("image", 1), Damage("image", 2)
RANGE_MASKED, RANGE_MISSING = Damage("range", 1), Damage("range", 2)


def write_scene(root: Path, name: str, frames: int = 8) -> Path:
    """A 7-Scenes folder: sequence 1 to train on, 2 to test on."""
    for sequence in (1, 2):
        folder = root / name / f"seq-0{sequence}"
        folder.mkdir(parents=True)
        for number in range(frames):
            rng = np.random.default_rng([sequence, number])
            stem = str(folder / f"frame-{number:06d}")
            cv2.imwrite(f"{stem}.color.png", rng.integers(0, 256, (36, 48, 3), np.uint8))
            cv2.imwrite(f"{stem}.depth.png", rng.integers(500, 3000, (36, 48)).astype(np.uint16))
            np.savetxt(f"{stem}.pose.txt", yaw_pose(0.1 * number, 0.0, number).matrix)
    (root / name / "TrainSplit.txt").write_text("sequence1\n")
    (root / name / "TestSplit.txt").write_text("sequence2\n")
    return root / name


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

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(reproduce_runs, "train", refuse)
    monkeypatch.setattr(reproduce_runs, "evaluate_checkpoints", refuse)


def results(out: Path, table: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By system and input."""
    record = json.loads((out / f"{table}.json").read_text())
    return {(line["system"], line["input"]): line for line in record["results"]}


# --- end to end --------------------------------------------------------------------------------------------------


def test_every_system_is_tested_with_every_damage_and_the_figures_are_the_evaluations_own(
    made: tuple[Path, Path],
) -> None:
    found = results(made[1], "table4")
    assert len(found) == 10
    folder = made[1] / "redkitchen" / "evaluation"
    for (system, damage), name in {
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
            assert found[system, damage]["mean"][key] == metrics[key]
    assert found["atloc", "image missing"]["mean"] == {}
    assert found["atloc", "image missing"]["why_not"] == "no input left"


def test_the_text_says_which_data_and_settings_and_what_is_missing(made: tuple[Path, Path]) -> None:
    text = (made[1] / "table4.md").read_text()
    assert "REAL (7scenes); 8 of 7000 training frames, 8 of 5000 test frames. A SUBSET" in text
    assert "`optimizer.epochs` 1, not 300" in text
    assert "`model.backbone` squeezenet1_1, not resnet34" in text
    assert "`preprocess.shortest_side` 32, not 256" in text
    assert "`objective.estimator`" not in text  # vmloc's dreg is the paper's own
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
    assert config["objective"]["estimator"] == "dreg"
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


def test_retrieval_takes_the_weights_that_it_is_given_once_whatever_the_seeds(copied: tuple[Path, Path]) -> None:
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


def test_retrieval_without_weights_says_how_to_go_on_before_anything_is_trained(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("table1", made[0], tmp_path, "--systems", "atloc", "nearest", "--nearest-weights", tmp_path / "none.pth")
    error = capsys.readouterr().err
    assert code == 1
    assert "none.pth does not exist" in error
    assert "or leave nearest out of --systems" in error
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


# --- what is kept ------------------------------------------------------------------------------------------------


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
    asked = []
    original = reproduce_runs.train
    monkeypatch.setattr(reproduce_runs, "train", lambda **given: asked.append(given) or original(**given))
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert [(given["resume"], given["overwrite"]) for given in asked] == [(True, False)]
    assert "held_out" in read_header(path).metrics


def test_an_evaluation_older_than_its_checkpoint_or_of_other_data_is_done_again(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = copied
    asked = []
    original = reproduce_runs.evaluate_checkpoints
    monkeypatch.setattr(
        reproduce_runs, "evaluate_checkpoints", lambda *given, **more: asked.append(given) or original(*given, **more)
    )
    (out / "redkitchen" / "atloc_seed0.safetensors").touch()
    assert run("table1", data, out, "--systems", "atloc") == 0
    (out / "redkitchen" / "evaluation" / "atloc_seed0" / "test_data.txt").write_text("others\n")
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert run("table1", data, out, "--systems", "atloc") == 0
    assert len(asked) == 2


def test_a_damaged_checkpoint_is_named(copied: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    path = copied[1] / "redkitchen" / "atloc_seed0.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert run("table1", *copied, "--systems", "atloc") == 1
    assert "atloc_seed0.safetensors is truncated" in capsys.readouterr().err


# --- settings ----------------------------------------------------------------------------------------------------


def scene_of(kind: str = "7scenes", **changes: Any) -> TableScene:
    files = {"7scenes": "seven_scenes.yaml", "robotcar": "robotcar.yaml", "bags": "robot_bag.yaml"}
    scene = TableScene("somewhere", kind, files[kind], (), (), ("train", "test"), {"somewhere": None})
    return dataclasses.replace(scene, **changes)


def test_without_the_users_settings_the_paper_s_are_used() -> None:
    config = Run(scene_of(), VARIANTS["vmloc"], 3).config(Settings(Path("out")))
    assert config == load_config([share_path("config", "train", "seven_scenes.yaml")], ["seed=3", "model.name=vmloc"])
    assert (config.model.backbone, config.objective.samples, config.objective.estimator) == ("resnet34", 10, "dreg")


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("vmloc_iwae", ("objective", "estimator"), "iwae"),
        ("vmloc_k1", ("objective", "samples"), 1),
        ("vmloc_no_dropout", ("augment", "modality_dropout"), 0.0),
        ("vmloc_zeroed", ("augment", "dropped"), "zeroed"),
    ],
)
def test_an_ablation_differs_from_vmloc_in_one_key_whatever_the_user_sets(
    variant: str, key: tuple[str, str], value: Any
) -> None:
    settings = Settings(
        Path("out"), overrides=["objective.samples=7", "objective.estimator=stl", "augment.colour_jitter=0.2"]
    )
    ours, theirs = (
        dataclasses.asdict(Run(scene_of(), VARIANTS[name], 0).config(settings)) for name in ("vmloc", variant)
    )
    assert theirs[key[0]][key[1]] == value != ours[key[0]][key[1]]
    theirs[key[0]][key[1]] = ours[key[0]][key[1]]
    assert ours == theirs


def test_retrieval_never_has_an_untrained_network_and_prefers_what_it_is_given() -> None:
    def weights(**changes: Any) -> bool | str:
        return Run(scene_of(), VARIANTS["nearest"], 0).config(Settings(Path("out"), **changes)).pretrained

    assert weights(overrides=["pretrained=false"]) is True
    assert weights(overrides=["pretrained=mine.pth"]) == "mine.pth"
    assert weights(overrides=["pretrained=false"], nearest_weights=Path("a: b.pth")) == "a: b.pth"
    config = Run(scene_of(), VARIANTS["nearest"], 0).config(Settings(Path("out"), nearest_backbone="mobilenet_v2"))
    assert config.model.backbone == "mobilenet_v2"


@pytest.mark.parametrize("name", [file.stem for file in share_path("config", "train", "systems").iterdir()])
def test_the_shipped_configurations_of_single_systems_set_nothing_else(name: str) -> None:
    assert name in REGISTRY
    config = load_config([share_path("config", "train", "systems", f"{name}.yaml")])
    assert config.model.name == name
    assert config.optimizer == TrainConfig().optimizer
    assert (getattr(config.objective, "estimator", "") == "dreg") == (name in ("vmloc", "image_vmloc", "depth_vmloc"))


@pytest.mark.parametrize("file", sorted(share_path("config", "train").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_training_configuration_is_valid_and_says_how_to_use_it(file: Path) -> None:
    load_config([file])
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith("#   vmloc ") and file.name in line for line in lines)


def test_damage_hits_what_a_system_takes() -> None:
    def levels(variant: str, damage: Damage, kind: str = "bags") -> dict[str, int] | None:
        corruption = corruption_of(Run(scene_of(kind), VARIANTS[variant], 0), damage, Settings(Path("out")))
        return None if corruption is None else dict(corruption.levels)

    assert levels("vmloc", RANGE_MISSING) == {"lidar": 2}
    assert levels("vmloc", RANGE_MASKED, "7scenes") == {"depth": 1}
    assert levels("vmloc", IMAGE_MASKED) == {"image": 1}
    assert levels("atloc", RANGE_MISSING) == {}
    assert levels("atloc", IMAGE_MISSING) is None
    assert levels("depth_vmloc", RANGE_MISSING) is None
    assert levels("depth_vmloc", Damage("range", 3)) == {"lidar": 3}


@pytest.mark.parametrize(
    ("kind", "file"), [("7scenes", "dense_rgbd.yaml"), ("bags", "dense_street.yaml"), ("robotcar", "dense_town.yaml")]
)
@pytest.mark.parametrize("name", ["vmloc_dense", "dense_image", "dense_lidar"])
def test_a_recipe_goes_over_files_and_under_overrides_and_leaves_the_pictures_alone(
    tmp_path: Path, kind: str, file: str, name: str
) -> None:
    user = tmp_path / "user.yaml"
    common = "pretrained: weights.pth\nmodel: {hidden_dim: 7, backbone: resnet18}\npreprocess: {shortest_side: 48}\n"
    user.write_text("optimizer: {epochs: 77}\n" + common)
    settings = Settings(tmp_path, [user], ["optimizer.batch_size=6"])
    scene = scene_of(kind, regions=5 if kind == "robotcar" else 0)
    ours, other = (Run(scene, VARIANTS[system], 0).config(settings) for system in (name, "vmloc"))
    recipe = load_config([share_path("config", "train", file)])
    assert ours.optimizer == dataclasses.replace(recipe.optimizer, batch_size=6)
    voxel_m = 0 if name == "dense_image" else recipe.model.map_voxel_m
    regions = 5 if kind == "robotcar" else recipe.model.regions
    own = {"name": name, "map_voxel_m": voxel_m, "regions": regions, "backbone": "resnet18"}
    assert ours.model == dataclasses.replace(recipe.model, **own)
    assert ours.pretrained == "weights.pth"
    assert (ours.augment, ours.validation, ours.source.register_depth) == (
        recipe.augment,
        recipe.validation,
        recipe.source.register_depth,
    )
    assert ours.preprocess == dataclasses.replace(other.preprocess, modalities=ours.preprocess.modalities)
    assert ours.preprocess.shortest_side == 48
    assert (other.optimizer.epochs, other.model.hidden_dim) == (77, 7)


def test_the_table_of_all_systems_leaves_none_out() -> None:
    assert set(EXPERIMENTS["systems"].variants) >= set(REGISTRY)


# --- scenes ------------------------------------------------------------------------------------------------------


def write_sequences(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "stereo.timestamps").touch()


LOOP = ("2014-06-26-09-24-58", "2014-06-26-08-53-56")


def test_robotcars_test_sequences_are_rows_of_their_own(tmp_path: Path) -> None:
    write_sequences(tmp_path, *LOOP, "2014-06-23-15-36-04", "2014-06-23-15-41-25")
    found = find_scenes(tmp_path, "robotcar", None)
    (scene,) = found.scenes
    assert scene.name == "loop"
    assert scene.regions == 22  # 1.1 km
    assert [path.name for path in scene.train] == list(LOOP)
    assert scene.rows == {"LOOP1": "2014-06-23-15-36-04", "LOOP2": "2014-06-23-15-41-25"}
    assert [path.name for path in scene.test] == list(scene.rows.values())
    assert [text.split(":")[0] for text in found.missing] == ["FULL"]
    assert Run(scene, VARIANTS["atloc"], 0).config(Settings(tmp_path)).source.robotcar.scene == "loop"


def test_a_missing_robotcar_sequence_is_named(tmp_path: Path) -> None:
    write_sequences(tmp_path, *LOOP, "2014-06-23-15-41-25")
    found = find_scenes(tmp_path, "robotcar", None)
    assert found.scenes[0].rows == {"LOOP2": "2014-06-23-15-41-25"}
    assert found.missing[0] == "LOOP1: there is no 2014-06-23-15-36-04"
    (tmp_path / LOOP[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"LOOP: .* lacks {LOOP[0]} of the train split"):
        find_scenes(tmp_path, "robotcar", ["loop"])


def bag_scene(root: Path) -> Path:
    for part, count in (("train", 2), ("test", 1)):
        for number in range(count):
            write_bag(root / "yard" / part / f"bag_{number}", images(), clouds(), poses(), calibration())
    return root


def test_a_folder_with_bags_for_training_and_test_is_a_scene(tmp_path: Path) -> None:
    (scene,) = find_scenes(bag_scene(tmp_path), "robotcar", None).scenes  # no RobotCar: what there is
    assert (scene.name, scene.kind, scene.rows, scene.simulated) == ("yard", "bags", {"yard": None}, False)
    config = load_config([], ["preprocess.modalities=[image, lidar]", "source.test_every=2"])
    data = read_scene(scene, config)
    assert (dict(data.train), dict(data.test)) == ({"bag_0": 10, "bag_1": 10}, {"bag_0": 10})
    text = describe(scene, data)
    assert text == "bags, not of `vmloc simulate`; 20 training frames in 2 sequences, 10 test frames"
    assert read_scene(scene, config).fingerprint == data.fingerprint
    (tmp_path / "yard" / "test" / "bag_0" / "metadata.yaml").touch()
    assert read_scene(scene, config).fingerprint != data.fingerprint


def test_scenes_of_the_tables_kind_come_first_and_others_on_request(tmp_path: Path) -> None:
    bag_scene(tmp_path)
    for name in ("stairs", "chess"):
        write_scene(tmp_path, name, 1)
    (tmp_path / "notes").mkdir()
    assert [scene.name for scene in find_scenes(tmp_path, "7scenes", None).scenes] == ["chess", "stairs"]
    assert [scene.name for scene in find_scenes(tmp_path, None, None).scenes] == ["chess", "stairs", "yard"]
    assert [scene.name for scene in find_scenes(tmp_path, "7scenes", ["yard"]).scenes] == ["yard"]
    assert len(find_scenes(tmp_path, "7scenes", None).missing) == 5
    with pytest.raises(DataError, match=r"no scene 'garden' in .*; it has chess, stairs, yard"):
        find_scenes(tmp_path, None, ["garden"])


def test_no_scene_at_all_is_an_error_that_says_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no scene: neither a folder of 7-Scenes \(chess, fire, .* nor a folder NAME"
    ):
        find_scenes(tmp_path, None, None)
    with pytest.raises(DataError, match="none is not a folder"):
        find_scenes(tmp_path / "none", None, None)


def test_a_whole_scene_is_not_called_a_subset() -> None:
    scene = scene_of(official=(20, 10))
    assert describe(scene, SceneData({"a": 20}, {"b": 10}, "")) == "REAL (7scenes); 20 training frames, 10 test frames"
    assert "10 of 20 training frames, 10 test frames. A SUBSET" in describe(scene, SceneData({"a": 10}, {"b": 10}, ""))


def test_only_the_simulators_own_bags_are_called_simulated() -> None:
    traversal = Traversal(5, duration_s=2.0, image_size=(16, 12))
    first = next(iter(traversal.records()))
    topics = {record.topic for record in traversal.records()}
    assert is_traversal(first.log_ns, topics)
    assert not is_traversal(first.log_ns + 1, topics)
    assert not is_traversal(first.log_ns, topics - {TRUTH_TOPIC})
    assert not is_traversal(first.log_ns, {IMAGE_TOPIC, CLOUD_TOPIC, TRUTH_TOPIC})


# --- the tables --------------------------------------------------------------------------------------------------


def line(row: str, variant: str, *positions_m: float, damage: Damage | None = None) -> Line:
    metrics = tuple({"mean_position_m": x, "mean_rotation_deg": 10 * x} for x in positions_m)
    return Line("loop", row, variant, damage, tuple(range(len(positions_m))), metrics)


@pytest.mark.parametrize(
    ("table", "rows", "system", "metres", "degrees"),
    [
        ("table1", 7, "hourglass", 0.23, 9.53),
        ("table1", 7, "posenet_plus", 0.23, 8.12),
        ("table1", 7, "vidloc", 0.22, None),  # 0.23 in the paper
        ("table1", 7, "mapnet", 0.21, 7.77),
        ("table1", 7, "atloc", 0.20, 7.56),
        ("table1", 7, "vmloc", 0.19, 7.01),
        ("table2", 4, "mapnet", 29.8, 8.68),
        ("table2", 4, "atloc", 23.8, 8.19),
        ("table2", 4, "vmloc", 17.5, 4.92),
        ("table3", 4, "image_vmloc", 23.8, 7.22),  # 23.9 in the paper
        ("table3", 4, "attention_vmloc", 24.2, 6.69),  # 19.3, 5.35
        ("table3", 4, "poe_vmloc", 23.4, 6.45),  # 18.7, 5.16
        ("table3", 4, "vmloc", 17.5, 4.92),
    ],
)
def test_the_papers_averages_follow_from_its_rows(
    table: str, rows: int, system: str, metres: float, degrees: float | None
) -> None:
    """The paper's own averages, but for those that its notes name; a figure copied wrongly would move them."""
    experiment = EXPERIMENTS[table]
    figures = [experiment.paper[row, system, None] for row in experiment.paper_rows]
    assert len(figures) == rows
    step = 0.005 if metres < 1 else 0.05
    assert np.mean([errors[0] for errors in figures]) == pytest.approx(metres, abs=step * 1.1)
    if degrees is None:
        assert all(errors[1] is None for errors in figures)
    else:
        assert np.mean([errors[1] for errors in figures]) == pytest.approx(degrees, abs=0.008)


def test_the_tables_ask_for_what_the_paper_has() -> None:
    for experiment in EXPERIMENTS.values():
        assert set(experiment.variants) <= set(VARIANTS)
        for _, variant, damage in experiment.paper:
            assert variant in experiment.variants
            assert damage in experiment.inputs_of(variant)
        for _, *sides in experiment.comparisons:
            assert all(damage in experiment.inputs_of(variant) for variant, damage in sides)
    assert EXPERIMENTS["table4"].paper["FULL2", "vmloc", RANGE_MISSING] == (38.7, 9.70)
    assert ("FULL2", "atloc", IMAGE_MISSING) not in EXPERIMENTS["table4"].paper


def test_figures_stand_beside_the_papers_with_the_seeds_deviation() -> None:
    lines = [line("LOOP1", "vmloc", 7.0, 9.0), line("LOOP1", "depth_vmloc", 0.1234), line("LOOP2", "vmloc")]
    lines[2] = dataclasses.replace(lines[2], why_not="not trained")
    table = without_padding(scene_table(lines, EXPERIMENTS["table3"], "lidar")).splitlines()
    assert table[0] == "| data | system | mean position (m) | paper | mean rotation (deg) | paper | seeds |"
    assert table[2] == "| LOOP1 | vmloc | 8.00 ± 1.41 | 7.7 | 80.0 ± 14.1 | 3.23 | 2 |"
    assert table[3] == "| LOOP1 | depth_vmloc | 0.123 | – | 1.23 | – | 1 |"
    assert table[4] == "| LOOP2 | vmloc | – | 7.76 | – | 3.16 | not trained |"


def test_columns_that_would_say_nothing_are_left_out() -> None:
    lines = [line("yard", "vmloc", 1.0), line("yard", "vmloc", 2.0, damage=RANGE_MISSING)]
    table = without_padding(scene_table(lines, EXPERIMENTS["table4"], "lidar")).splitlines()
    assert table[0] == "| input | system | mean position (m) | mean rotation (deg) | seeds |"
    assert table[3] == "| lidar missing | vmloc | 2.00 | 20.0 | 1 |"


def test_averages_are_over_rows_and_beside_the_papers_over_the_same_rows() -> None:
    lines = [
        line("LOOP1", "vmloc", 7.0, 9.0),
        line("LOOP2", "vmloc", 1.0, 2.0),
        line("LOOP1", "poe_vmloc", 5.0),
        line("LOOP2", "poe_vmloc", 5.0, 6.0),  # other seeds: no average
        line("LOOP1", "image_vmloc", 5.0),
    ]
    (average,) = averages(lines)
    assert [metrics["mean_position_m"] for metrics in average.metrics] == [4.0, 5.5]
    text = without_padding(scene_table([average], EXPERIMENTS["table3"], "lidar")).splitlines()[2]
    assert text == "| vmloc | 4.75 ± 1.06 | 7.73 | 47.5 ± 10.6 | 3.195 | 2 |"
    assert averages(lines[:1]) == []


def test_comparisons_give_the_difference_and_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 0.5, 4), rng.normal(2, 0.3, 3)
    lines = [line("yard", "vmloc", *first), line("yard", "vmloc_k1", *second), line("yard", "image_vmloc", 1.5)]
    questions = (
        Comparison("k", ("vmloc", None), ("vmloc_k1", None)),
        Comparison("image", ("vmloc", None), ("image_vmloc", None)),
        Comparison("depth", ("vmloc", None), ("depth_vmloc", None)),
    )
    table = without_padding(comparisons_table(lines, questions, "mean")).splitlines()
    error = math.sqrt(first.var(ddof=1) / 4 + second.var(ddof=1) / 3)
    difference = first.mean() - second.mean()
    assert table[2] == f"| k | {difference:+.2f} ± {error:.2f} | {10 * difference:+.1f} ± {10 * error:.1f} |"
    assert table[3] == f"| image | {first.mean() - 1.5:+.2f} | {10 * (first.mean() - 1.5):+.1f} |"
    assert len(table) == 4
    assert comparisons_table(lines[2:], questions, "mean") == ""


# --- what may be asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--systems", "vmlok"], "system 'vmlok' is unknown; known: vmloc, "),
        (["--scenes", "chess"], "chess: there is no chess/TrainSplit.txt"),
        (["--seeds", "0"], "the number of seeds must be at least 1, got 0"),
        (["--set", "optimizer.epoch=3"], "unknown key epoch"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], match: str
) -> None:
    assert run("table1", made[0], tmp_path, *arguments) == 1
    error = capsys.readouterr().err
    assert match in error
    assert "Traceback" not in error
    assert not (tmp_path / "redkitchen").exists()


def test_the_command_explains_itself(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*EXPERIMENTS, "cost"))


def test_a_table_needs_data(capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce", "table1"]) == 1
    assert capsys.readouterr().err.endswith("vmloc reproduce: table1 needs --data ROOT\n")
