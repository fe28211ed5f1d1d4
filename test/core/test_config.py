# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import TrainConfig, load_config, parse_config
from training.objectives.base import BalanceConfig, ObjectiveConfig
from vmloc_ros.core.config import from_mapping, to_mapping
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.models.baselines import AtLocConfig, MapNetConfig
from vmloc_ros.core.models.config import VariationalConfig

OF_VMLOC = (
    "attention_reduction, backbone, dropout, hidden_dim, latent_dim, log_variance_range, log_variance_start, name, "
    "rotation"
)


@dataclass(frozen=True)
class Inner:
    width: int = 3
    factor: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    crop: tuple[int, int] | None = None
    weights: bool | str = False
    kind: Literal["a", "b"] = "a"
    record: dict[str, Any] = field(default_factory=dict)


# --- reading -----------------------------------------------------------------------------------------------------


def test_missing_keys_take_the_defaults_and_nested_sections_are_read() -> None:
    config = from_mapping(Outer, {"name": "x", "inner": {"width": 7}, "crop": [1, 2], "names": ["p", "q"]})
    assert config == Outer("x", Inner(7), crop=(1, 2), names=("p", "q"))


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_numbers_are_read_as_yaml_writes_them(text: str) -> None:
    values = yaml.safe_load(f"{{name: x, inner: {{factor: {text}}}, pair: [1, {text}]}}")
    config = from_mapping(Outer, values)
    assert config.inner.factor == config.pair[1] == 1e-4
    assert isinstance(config.pair[0], float)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Outer,
        name=st.text(),
        inner=st.builds(Inner, st.integers(1), st.floats(allow_nan=False, allow_infinity=False)),
        pair=st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
        names=st.lists(st.text(), max_size=3).map(tuple),
        crop=st.none() | st.tuples(st.integers(), st.integers()),
        weights=st.booleans() | st.text(),
        kind=st.sampled_from(["a", "b"]),
        record=st.dictionaries(st.text(), st.integers() | st.lists(st.booleans(), max_size=2), max_size=3),
    )
)
def test_json_and_yaml_bring_every_configuration_back(config: Outer) -> None:
    assert from_mapping(Outer, json.loads(json.dumps(to_mapping(config)))) == config
    assert from_mapping(Outer, yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"nmae": "x"}, "file: unknown key nmae; known keys: crop, inner, kind"),
        ({"name": "x", "inner": {"wdith": 3}}, r"file\.inner: unknown key wdith; known keys: factor, width"),
        ({"name": "x", 3: 4}, "unknown key 3"),
        ({}, "file: .*missing.*name"),
        ({"name": 3}, r"file\.name: expected str, got 3"),
        ({"name": None}, r"file\.name: expected str, got None"),
        ({"name": "x", "inner": 3}, r"file\.inner: expected a mapping of Inner settings, got 3"),
        ({"name": "x", "inner": None}, r"file\.inner: expected a mapping"),
        ({"name": "x", "inner": {"width": 1.5}}, r"file\.inner\.width: expected int, got 1\.5"),
        ({"name": "x", "inner": {"width": True}}, r"file\.inner\.width: expected int, got True"),
        ({"name": "x", "inner": {"width": "3"}}, r"file\.inner\.width: expected int, got '3'"),
        ({"name": "x", "inner": {"width": 0}}, r"file\.inner: width must be positive, got 0"),
        ({"name": "x", "inner": {"factor": "fast"}}, r"factor: expected a number, got 'fast'"),
        ({"name": "x", "inner": {"factor": True}}, r"factor: expected (a number|float), got True"),
        ({"name": "x", "inner": {"factor": [1]}}, r"factor: expected a number, got \[1\]"),
        ({"name": "x", "inner": {"factor": float("nan")}}, r"factor: expected a number, got nan"),
        ({"name": "x", "inner": {"factor": "nan"}}, r"factor: expected a number, got 'nan'"),
        ({"name": "x", "inner": {"factor": 10**400}}, r"factor: expected a number"),
        ({"name": "x", "pair": [1]}, r"file\.pair: expected 2 values, got 1"),
        ({"name": "x", "pair": 1}, r"file\.pair: expected a list, got 1"),
        ({"name": "x", "pair": [1, "b"]}, r"file\.pair\[1\]: expected a number"),
        ({"name": "x", "names": "ab"}, r"file\.names: expected a list, got 'ab'"),
        ({"name": "x", "names": [1]}, r"file\.names\[0\]: expected str"),
        ({"name": "x", "crop": [1, 2, 3]}, r"file\.crop: expected 2 values"),
        ({"name": "x", "weights": 3}, r"file\.weights: expected bool, got 3; or file\.weights: expected str"),
        ({"name": "x", "kind": "c"}, r"file\.kind: expected one of a, b, got 'c'"),
        ({"name": "x", "record": []}, r"file\.record: expected dict"),
        ([], r"file: expected a mapping of Outer settings, got \[\]"),
        ("text", "file: expected a mapping"),
        (None, "file: expected a mapping"),
    ],
)
def test_errors_name_key_and_section(values: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        from_mapping(Outer, values, "file")
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]), json_values, max_size=4))
def test_any_content_raises_config_errors_only(values: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        from_mapping(TrainConfig, values)


# --- training configuration --------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers() -> None:
    config = load_config([])
    assert (config.optimizer.batch_size, config.optimizer.learning_rate) == (64, 5e-5)
    assert (config.optimizer.weight_decay, config.optimizer.epochs) == (5e-5, 300)
    assert (config.objective.samples, config.objective.beta, config.objective.gamma) == (10, -3.0, 0.0)
    assert (config.model.backbone, config.model.latent_dim, config.model.dropout) == ("resnet34", 1024, 0.5)
    assert config.preprocess.shortest_side == 256


def test_where_the_defaults_are_not_the_papers_a_file_takes_them_back() -> None:
    ours, paper = load_config([]), load_config([Path(__file__).parents[2] / "config" / "train" / "paper.yaml"])
    assert (ours.augment.modality_dropout, paper.augment.modality_dropout) == (pytest.approx(2 / 3), 0.4)
    assert (ours.objective.estimator, paper.objective.estimator) == ("dreg_lambda", "dreg")
    assert (ours.model.rotation, paper.model.rotation) == ("six_d", "log_quaternion")
    assert (ours.expects_dropout, paper.expects_dropout) == (True, False)


def test_later_files_win_key_by_key(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 3\noptimizer: {epochs: 5, batch_size: 8}\npreprocess: {modalities: [image, depth]}\n")
    second.write_text("optimizer: {epochs: 9}\npreprocess: {modalities: [image]}\npretrained: false\n")
    config = load_config([first, second])
    assert (config.seed, config.optimizer.epochs, config.optimizer.batch_size) == (3, 9, 8)
    assert (config.preprocess.modalities, config.pretrained) == (("image",), False)
    second.write_text("optimizer: {epoch: 9}\n")
    with pytest.raises(ConfigError, match=r"b\.yaml.*epoch"):
        load_config([first, second])


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\noptimizer: {epochs: 5, batch_size: 8}\n")
    config = load_config(
        [path], ["optimizer.epochs=7", "model.dropout=0", "preprocess.crop=[64, 64]", "pretrained=false"]
    )
    assert (config.seed, config.optimizer.epochs, config.optimizer.batch_size) == (3, 7, 8)
    assert (config.model.dropout, config.preprocess.crop, config.pretrained) == (0.0, (64, 64), False)


def test_overriding_does_not_change_the_mapping_it_starts_from() -> None:
    values = {"source": {"stride": 2}}
    assert parse_config(values, ["source.stride=5"], "x").source.stride == 5
    assert values == {"source": {"stride": 2}}


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config([tmp_path / "c.yaml"]) == TrainConfig()


@pytest.mark.parametrize("overrides", [None, ["seed=1"], ["optimizer.epochs=3"]])
@pytest.mark.parametrize(
    "text", ["[1, 2]", "[]", "just text", "3", "{unclosed", "a: b: c", "\t", "key: !!python/object:os.x {}"]
)
def test_a_file_that_is_not_a_mapping_is_an_error(tmp_path: Path, text: str, overrides: list[str] | None) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as caught:
        load_config([path], overrides)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_and_folders_are_errors(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01" * 10)
    for name in ("none.yaml", "binary.yaml", "."):
        with pytest.raises(ConfigError, match="is not a readable YAML file"):
            load_config([tmp_path / name])


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("epochs", "override 'epochs' is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("", "is not of the form key=value"),
        ("optimizer.epoch=3", "optimizer: unknown key epoch"),
        ("optimiser.epochs=3", "unknown key optimiser"),
        ("seed.deep=3", "override 'seed.deep=3': seed is not a section"),
        ("seed={unclosed", "override 'seed={unclosed': value is not YAML"),
        ("optimizer.epochs=many", r"optimizer\.epochs: expected int, got 'many'"),
        ("optimizer.epochs=", r"optimizer\.epochs: expected int, got None"),
    ],
)
def test_errors_name_the_wrong_override(tmp_path: Path, override: str, match: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3")
    with pytest.raises(ConfigError, match=match):
        load_config([path], [override])


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("optimizer.epochs=0", "epochs >= 1"),
        ("optimizer.batch_size=1", "batch_size >= 2"),
        ("optimizer.learning_rate=0", "learning_rate"),
        ("optimizer.learning_rate=.nan", "learning_rate: expected a number"),
        ("optimizer.weight_decay=-1", "must not be negative"),
        ("optimizer.schedule=linear", "expected one of constant, cosine, got 'linear'"),
        ("objective.samples=0", "samples >= 1"),
        ("objective.kl_weight=-1", "kl_weight >= 0"),
        ("frozen.views=0", "views >= 1"),
        ("frozen.cells=-1", "cells >= 0"),
        ("augment.rotation_deg=181", r"rotation_deg lies in \[0, 180\]"),
        ("augment.zoom=0.9", "zoom is at least 1"),
        ("optimizer.precision=fp64", "expected one of fp32, bf16, fp16, got 'fp64'"),
        ("optimizer.ema_decay=1", r"ema_decay lies in \[0, 1\), got 1\.0"),
        ("optimizer.ema_decay=-0.1", r"ema_decay lies in \[0, 1\)"),
        ("optimizer.gradient_norm=0", "gradient_norm > 0"),
        ("validation.patience=-1", "patience >= 0"),
        ("augment.dropped=black", "expected one of absent, zeroed, got 'black'"),
        ("deterministic=1", "deterministic: expected bool, got 1"),
        ("validation.every=1", "every is 0 or >= 2"),
        ("validation.block=0", "block and interval >= 1"),
        ("validation.folds=-1", "folds and fold_epochs must not be negative"),
        ("validation.fold_epochs=-1", "folds and fold_epochs must not be negative"),
        ("augment.modality_dropout=1", r"lie in \[0, 1\)"),
        ("augment.colour_jitter=-0.1", r"lie in \[0, 1\)"),
        ("source.stride=0", "stride >= 1"),
        ("source.slop_s=0", "slop_s > 0"),
        ("preprocess.cylinder.rows=0", "rows must be a positive integer"),
        ("model.dropout=1", "dropout < 1"),
    ],
)
def test_a_value_out_of_range_is_an_error_with_the_limit(override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config([], [override])


@pytest.mark.parametrize(
    ("system", "override", "match"),
    [
        ("vmloc_dense", "objective.cells=-1", "cells and solver_weight must not be negative"),
        ("vmloc_dense", "objective.solver_weight=-0.1", "cells and solver_weight must not be negative"),
        ("vmloc_dense", "objective.solver_weight=.nan", "solver_weight: expected a number"),
        ("dense_image", "model.cell_stride=0", "cell_stride, .* must be positive"),
        ("dense_lidar", "model.cell_blocks=-1", "cell_blocks and map_voxel_m must not be negative"),
        ("vmloc_dense", "model.hypotheses=0", "hypotheses must be positive"),
        ("poe_vmloc", "objective.kl_weight=-1", "kl_weight must not be negative"),
        ("vidloc", "model.recurrent_dim=0", "recurrent_dim must be positive"),
        ("atloc", "model.attention_reduction=0", "attention_reduction must be positive"),
        ("mapnet", "model.clip_length=1", "clip_length is 1, set 2 or more"),
    ],
)
def test_a_systems_own_value_out_of_range_is_an_error_with_the_limit(system: str, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config([], [f"model.name={system}", override])


@pytest.mark.parametrize(
    ("system", "override", "own"),
    [
        ("atloc", "model.cell_stride=4", "attention_reduction, backbone, dropout, feature_dim, name, rotation"),
        ("vmloc", "model.feature_dim=4", OF_VMLOC),
        ("nearest", "model.dropout=0", "backbone, name"),
        ("vmloc", "model.latentdim=4", OF_VMLOC),
        ("atloc", "objective.samples=4", "beta, gamma"),
        ("poe_vmloc", "objective.estimator=stl", "beta, gamma, kl_weight, modality_dropout"),
        ("vmloc_dense", "objective.gamma=1", "cells, solver_weight"),
        ("nearest", "objective.beta=1", "none"),
    ],
)
def test_a_setting_that_the_system_lacks_is_an_error_that_lists_those_it_has(
    tmp_path: Path, system: str, override: str, own: str
) -> None:
    setting = override.partition(".")[2].partition("=")[0]
    expected = f"{system} has no setting {setting}; it has {own}"
    with pytest.raises(ConfigError, match=expected):
        load_config([], [f"model.name={system}", override])
    section, value = override.partition(".")[0], override.partition("=")[2]
    path = tmp_path / "own.yaml"
    path.write_text(f"{section}: {{{setting}: {value}}}")
    with pytest.raises(ConfigError, match=rf"own\.yaml\.{section}: {expected}"):
        load_config([path], [f"model.name={system}"])


def test_a_shared_file_gives_each_system_the_settings_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(
        "shared_by_systems: true\n"
        "model: {latent_dim: 7, feature_dim: 8, recurrent_dim: 9, dropout: 0.25}\n"
        "objective: {samples: 3, gamma: -2.0, cells: 5}\n"
    )
    vmloc, vidloc, dense, nearest = (
        load_config([path], [f"model.name={name}"]) for name in ("vmloc", "vidloc", "vmloc_dense", "nearest")
    )
    assert (vmloc.model.latent_dim, vmloc.model.dropout, vmloc.objective.samples) == (7, 0.25, 3)
    assert (vidloc.model.feature_dim, vidloc.model.recurrent_dim, vidloc.objective.gamma) == (8, 9, -2.0)
    assert (dense.model.dropout, dense.objective.cells) == (0.25, 5)
    assert (nearest.model.name, nearest.objective) == ("nearest", ObjectiveConfig())


def test_a_shared_file_that_names_a_system_serves_a_later_layers_system(tmp_path: Path) -> None:
    path, later = tmp_path / "shared.yaml", tmp_path / "later.yaml"
    path.write_text("shared_by_systems: true\nmodel: {name: vmloc, latent_dim: 7, feature_dim: 8}\n")
    later.write_text("model: {name: atloc}")
    assert load_config([path, later]).model == AtLocConfig("atloc", feature_dim=8)
    assert load_config([path], ["model.name=atloc"]).model == AtLocConfig("atloc", feature_dim=8)
    assert load_config([path]).model == VariationalConfig("vmloc", latent_dim=7)


def test_a_shared_file_may_not_hold_settings_that_no_system_has(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text("shared_by_systems: true\nmodel: {latent_dimension: 7}\n")
    with pytest.raises(ConfigError, match=r"shared\.yaml\.model: vmloc has no setting latent_dimension"):
        load_config([path])


def test_configurations_of_earlier_versions_with_the_settings_of_all_systems_are_read() -> None:
    values = {
        "model": {
            "name": "mapnet",
            "backbone": "shufflenet_v2_x0_5",
            "latent_dim": 1024,
            "feature_dim": 64,
            "clip_length": None,
            "clip_spacing": 4,
            "recurrent_dim": 256,
            "cell_stride": 8,
        },
        "objective": {"samples": 10, "estimator": "iwae", "kl_weight": 0.001, "beta": -3.0, "gamma": -1.0, "cells": 0},
    }
    config = parse_config(values, None, "an earlier version's")
    assert config.model == MapNetConfig("mapnet", "shufflenet_v2_x0_5", feature_dim=64, clip_length=3, clip_spacing=4)
    assert config.objective == BalanceConfig(beta=-3.0, gamma=-1.0)


def test_complete_configurations_of_earlier_versions_keep_what_those_versions_trained() -> None:
    """Settings that they lack have the values of that time, not today's defaults."""
    values = to_mapping(TrainConfig())
    for section, names in {
        "model": ("rotation", "log_variance_range", "log_variance_start"),
        "objective": ("modality_dropout", "estimator"),
        "optimizer": ("balance_rate", "clip"),
    }.items():
        for name in names:
            del values[section][name]
    config = parse_config(values, None, "an earlier version's")
    assert (config.model.rotation, config.model.log_variance_range) == ("log_quaternion", (-8.0, 8.0))
    assert (config.objective.modality_dropout, config.objective.estimator) == ("drawn", "iwae")
    assert (config.optimizer.balance_rate, config.optimizer.clip) == (1.0, "whole")
    assert parse_config(to_mapping(TrainConfig()), None, "today's") == TrainConfig()


def test_inputs_that_are_zeroed_must_be_drawn() -> None:
    with pytest.raises(ConfigError, match=r"dropped=zeroed needs .*: set objective\.modality_dropout=drawn"):
        load_config([], ["augment.dropped=zeroed"])
    drawn = load_config([], ["augment.dropped=zeroed", "objective.modality_dropout=drawn"])
    assert drawn.drawn_augment == drawn.augment
    assert load_config([], ["model.name=atloc", "augment.dropped=zeroed"]).augment.dropped == "zeroed"


def test_dropout_that_the_objective_takes_the_expectation_of_is_not_drawn_too() -> None:
    assert load_config([]).drawn_augment == dataclasses.replace(TrainConfig().augment, modality_dropout=0.0)
    assert load_config([], ["model.name=vidloc"]).drawn_augment == TrainConfig().augment


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "config" / "train").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_configurations_that_ship_are_valid(path: Path) -> None:
    assert load_config([path]) != TrainConfig()


def test_early_stopping_cannot_be_combined_with_folds() -> None:
    with pytest.raises(ConfigError, match="patience needs frames that are held out of the model's own training"):
        load_config([], ["validation.folds=2", "validation.patience=3"])
