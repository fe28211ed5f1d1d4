# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from scene_builders import scene_of
from training.config import TrainConfig, load_config
from training.objectives.registry import objective_config_type
from training.objectives.sensor_sets import FusionConfig
from training.objectives.variational import BoundConfig
from training.reproduction.experiments import EXPERIMENTS, VARIANTS, InputCorruption
from training.reproduction.runs import Run, Settings, corruption_of
from vmloc_ros.core.models import REGISTRY
from vmloc_ros.core.resources import share_path

IMAGE_MASKED, IMAGE_MISSING = InputCorruption("image", 1), InputCorruption("image", 2)
RANGE_MASKED, RANGE_MISSING = InputCorruption("range", 1), InputCorruption("range", 2)


def test_without_the_users_settings_the_paper_s_are_used() -> None:
    config = Run(scene_of(), VARIANTS["vmloc"], 3).config(Settings(Path("out")))
    assert config == load_config([share_path("config", "train", "seven_scenes.yaml")], ["seed=3", "model.name=vmloc"])
    assert (config.model.backbone, config.objective.samples, config.optimizer.epochs) == ("resnet34", 10, 300)


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("vmloc_iwae", ("objective", "estimator"), "iwae"),
        ("vmloc_k1", ("objective", "samples"), 1),
        ("vmloc_no_dropout", ("augment", "modality_dropout"), 0.0),
        ("vmloc_drawn", ("objective", "modality_dropout"), "drawn"),
        ("vmloc_slow_balance", ("optimizer", "balance_rate"), 1.0),
        ("vmloc_log_quaternion", ("model", "rotation"), "log_quaternion"),
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


def test_retrieval_never_has_an_untrained_network_and_prefers_given_weights() -> None:
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
    if isinstance(config.objective, FusionConfig):  # the recipe is that of the defaults
        assert config.objective == objective_config_type(name)()


@pytest.mark.parametrize("file", sorted(share_path("config", "train").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_training_configuration_is_valid_and_shows_its_command(file: Path) -> None:
    load_config([file])
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith("#   vmloc ") and file.name in line for line in lines)


def test_a_corruption_affects_the_inputs_of_the_system_alone() -> None:
    def levels(variant: str, condition: InputCorruption, kind: str = "bags") -> dict[str, int] | None:
        corruption = corruption_of(Run(scene_of(kind), VARIANTS[variant], 0), condition, Settings(Path("out")))
        return None if corruption is None else dict(corruption.levels)

    assert levels("vmloc", RANGE_MISSING) == {"lidar": 2}
    assert levels("vmloc", RANGE_MASKED, "7scenes") == {"depth": 1}
    assert levels("vmloc", IMAGE_MASKED) == {"image": 1}
    assert levels("atloc", RANGE_MISSING) == {}
    assert levels("atloc", IMAGE_MISSING) is None
    assert levels("depth_vmloc", RANGE_MISSING) is None
    assert levels("depth_vmloc", InputCorruption("range", 3)) == {"lidar": 3}


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
    pictures = dataclasses.replace(other.preprocess, modalities=ours.preprocess.modalities, undistort=True)
    assert ours.preprocess == pictures  # dense systems take their camera for a pinhole camera
    assert ours.preprocess.shortest_side == 48
    assert (other.optimizer.epochs, other.model.hidden_dim) == (77, 7)


def test_the_table_of_all_systems_has_all_of_them() -> None:
    assert set(EXPERIMENTS["systems"].variants) >= set(REGISTRY)


def test_the_letter_of_the_paper_is_its_file(tmp_path: Path) -> None:
    paper = share_path("config", "train", "paper.yaml")
    by_file = Run(scene_of(), VARIANTS["vmloc"], 0).config(Settings(Path("out"), config_files=[paper]))
    by_variant = Run(scene_of(), VARIANTS["vmloc_letter"], 0).config(Settings(Path("out")))
    assert by_file == by_variant
    assert by_file.objective == BoundConfig(modality_dropout="drawn", estimator="dreg")
