# SPDX-License-Identifier: Apache-2.0
"""Configuration of a training run, from YAML files that set what differs from the defaults."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from training.data.augment import AugmentConfig
from training.data.frozen_features import FrozenConfig
from training.data.splits import ValidationConfig
from training.objectives.base import ObjectiveConfig
from training.objectives.registry import OBJECTIVES, objective_config_type
from training.objectives.sensor_sets import FusionConfig
from training.sources.options import SourceOptions
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.config import from_mapping, to_mapping
from vmloc_ros.core.errors import ConfigError, VmlocError
from vmloc_ros.core.models import (
    DEFAULT_SYSTEM,
    ModelConfig,
    config_types,
    find_system,
    model_config,
    own_settings,
    with_former_settings,
)
from vmloc_ros.core.preprocessing import PreprocessConfig

_SHARED = "shared_by_systems"  # key that marks a file as meant for several systems
# Settings that complete configurations of earlier versions lack, with the values that those versions used.
_FORMER_SETTINGS: dict[str, dict[str, Any]] = {
    "objective": {"modality_dropout": "drawn", "estimator": "iwae"},
    "optimizer": {"balance_rate": 1.0, "clip": "whole"},
}
_FIRST_OPTIMIZER = {
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "schedule",
    "warmup_steps",
    "gradient_norm",
}
_OLD_SETTINGS = {"latent_dim", "feature_dim", "recurrent_dim", "clip_spacing"}  # no system has all of them


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Settings of the optimizer; the defaults are the paper's ("Training Details").

    Attributes:
        schedule: of the learning rate: ``constant``, or ``cosine`` down to zero at the last step.
        warmup_steps: steps over which the learning rate rises linearly.
        gradient_norm: largest norm of a gradient, to which it is clipped.
        clip: what is clipped: the gradient of each encoder and that of the rest (``parts``), or that of the whole model
            (``whole``). They differ for systems with several encoders that meet in a latent vector.
        precision: of the networks' arithmetic; weights, posterior densities and losses stay in single precision.
        balance_rate: learning rate of the objective's own parameters, which balance position and rotation (VMLoc
            Eq. 11), as a multiple of the network's. Each optimizer step changes a parameter by about its learning rate:
            at the network's, the balance would not reach its optimum in a training.
        ema_decay: decay of an exponential moving average of the weights, which is then validated and saved; 0: none.
    """

    epochs: int = 300
    batch_size: int = 64
    learning_rate: float = 5e-5
    weight_decay: float = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    gradient_norm: float = 10.0
    clip: Literal["parts", "whole"] = "parts"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema_decay: float = 0.0
    balance_rate: float = 100.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.gradient_norm <= 0:
            raise ValueError(f"epochs >= 1, batch_size >= 2, learning_rate and gradient_norm > 0, got {self}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(f"weight_decay and warmup_steps must not be negative, got {self}")
        if not 0 < self.balance_rate < math.inf:
            raise ValueError(f"balance_rate must be positive, got {self.balance_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay lies in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything but the data that determines the result of a training run.

    Attributes:
        pretrained: initial weights of the encoders: true (ImageNet weights, from torchvision's cache or download),
            false (random), or the path of a torchvision state-dict file.
        seed: of initialisation, order, augmentation and sampling.
        deterministic: whether to use deterministic operations only, which are slower on GPUs. On CPUs all operations
            are deterministic for a given number of threads.
    """

    model: ModelConfig = field(default_factory=model_config)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    source: SourceOptions = field(default_factory=SourceOptions)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = field(default_factory=objective_config_type(DEFAULT_SYSTEM))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    frozen: FrozenConfig = field(default_factory=FrozenConfig)
    pretrained: bool | str = True
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        system = find_system(self.model.name)
        taken = tuple(name for name in self.preprocess.modalities if name in system.takes) or self.preprocess.modalities
        decided = replace(self.preprocess, modalities=taken).for_system(system.needs_geometry).undistort
        object.__setattr__(self, "preprocess", replace(self.preprocess, undistort=decided))
        if self.expects_dropout and self.augment.dropped == "zeroed" and self.augment.modality_dropout:
            raise ValueError(
                "augment.dropped=zeroed needs inputs that are withheld at random: set objective.modality_dropout=drawn"
            )

    @property
    def expects_dropout(self) -> bool:
        """Whether the objective takes the expectation over modality dropout, so that it must not be drawn, too."""
        return isinstance(self.objective, FusionConfig) and self.objective.modality_dropout == "expected"

    @property
    def drawn_augment(self) -> AugmentConfig:
        """The augmentation to draw for each batch."""
        return replace(self.augment, modality_dropout=0.0) if self.expects_dropout else self.augment

    @classmethod
    def field_types(cls, values: Any) -> dict[str, type]:
        """Types of the sections ``model`` and ``objective``, which depend on the system."""
        types = config_types(values)
        return {**types, "objective": objective_config_type(_system_of(values))}


def load_config(paths: Sequence[Path], overrides: list[str] | None = None) -> TrainConfig:
    """Read YAML files, later ones over earlier ones, and apply ``a.b=value`` overrides (values are YAML).

    In a file with ``shared_by_systems: true``, settings of other systems are ignored. In all other files they are
    errors, as unknown settings are everywhere.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, the system lacks a setting, or a value has the
            wrong type or range.
        ModelError: the system is not in the registry.
    """
    layers = [_read_yaml(path) for path in paths]
    for path, layer in zip(paths, layers, strict=True):
        _check_layer(layer, str(path))
    last = _with_overrides(functools.reduce(merged, layers, {}), overrides)
    system = _system_of(last)
    values: dict[str, Any] = {}
    for path, layer in zip(paths, layers, strict=True):
        layer = _for_system(layer, system)
        _parse(_named(layer, system), str(path))  # errors name the file that contains them
        values = merged(values, layer)
    return _parse(_with_overrides(values, overrides), " + ".join(map(str, paths)) or "config")


def read_layer(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, without defaults. Raises ConfigError as :func:`load_config`."""
    values = _read_yaml(path)
    values = _for_system(values, _system_of(values))
    _parse(values, str(path))
    return values


def _check_layer(layer: Any, where: str) -> None:
    """Raise ConfigError for errors in a layer that do not depend on the system."""
    values = {**layer, _SHARED: True} if isinstance(layer, Mapping) else layer
    _parse(_for_system(values, _system_of(values)), where)


def load_config_for(system: str, paths: Sequence[Path], overrides: Sequence[str]) -> TrainConfig:
    """Load the configuration of a system, with overrides for several systems, see :func:`applicable`."""
    return load_config(paths, [*applicable(overrides, system), f"model.name={system}"])


def applicable(overrides: Sequence[str], system: str) -> list[str]:
    """The overrides, without those of settings that only other systems have."""
    kept = []
    for override in overrides:
        section, _, setting = override.partition("=")[0].partition(".")
        layer = {_SHARED: True, section: {setting: None}} if section in ("model", "objective") else {}
        if not layer or _for_system(layer, system)[section]:
            kept.append(override)
    return kept


def _system_of(values: Any) -> str:
    """Name of the system that a mapping configures."""
    section = values.get("model", {}) if isinstance(values, Mapping) else {}
    name = section.get("name", DEFAULT_SYSTEM) if isinstance(section, Mapping) else DEFAULT_SYSTEM
    return name if isinstance(name, str) else DEFAULT_SYSTEM


def _named(layer: Any, system: str) -> Any:
    """The layer, with the name of the system, which may come from another layer or an override."""
    return merged(layer, {"model": {"name": system}}) if isinstance(layer, Mapping) else layer


def _for_system(layer: Any, system: str) -> Any:
    """A layer without ``shared_by_systems`` and, if it is shared, without settings that only other systems have."""
    if not isinstance(layer, Mapping):
        return layer
    layer = dict(layer)
    is_shared = layer.pop(_SHARED, False)
    if not isinstance(is_shared, bool):
        raise ConfigError(f"{_SHARED}: expected bool, got {is_shared!r}")
    model, objective = layer.get("model"), layer.get("objective")
    # Configurations written by earlier versions hold the settings of all systems.
    is_old = isinstance(model, Mapping) and model.keys() >= _OLD_SETTINGS
    if is_shared or is_old:
        if isinstance(model, Mapping):
            own = own_settings({**model, "name": system})
            layer["model"] = {key: x for key, x in own.items() if key in model and (x is not None or not is_old)}
        if isinstance(objective, Mapping):
            layer["objective"] = {key: x for key, x in objective.items() if _is_for(system, key)}
    return _with_former_settings(layer, system) if _is_complete(layer) else layer


def _is_complete(layer: Mapping[str, Any]) -> bool:
    """Whether a program wrote the layer: this version or an earlier one, with all settings that it had."""
    optimizer = layer.get("optimizer")
    complete = isinstance(optimizer, Mapping) and optimizer.keys() >= _FIRST_OPTIMIZER
    return complete and layer.keys() >= {"model", "objective", "source", "validation", "seed"}


def _with_former_settings(layer: dict[str, Any], system: str) -> dict[str, Any]:
    """A complete layer with the settings that an earlier version lacks, as that version trained."""
    if isinstance(layer["model"], Mapping):
        layer = {**layer, "model": with_former_settings({**layer["model"], "name": system})}
    own = {field.name for field in fields(objective_config_type(system))}
    for section, former in _FORMER_SETTINGS.items():
        if isinstance(layer[section], Mapping):
            added = {key: x for key, x in former.items() if section != "objective" or key in own}
            layer = {**layer, section: {**added, **layer[section]}}
    return layer


def _is_for(system: str, setting: str) -> bool:
    """Whether the system's objective has the setting, or none has, which the check of keys reports."""
    own = {field.name for field in fields(objective_config_type(system))}
    others = {field.name for objective in OBJECTIVES.values() for field in fields(objective.config_type)}
    return setting in own or setting not in others


def _read_yaml(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    return {} if values is None else values


def merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Merge two layers: sections key by key, everything else is replaced by the upper layer."""
    both = {key: merged(lower[key], value) for key, value in upper.items() if isinstance(value, dict) and key in lower}
    return {**lower, **upper, **both}


def parse_config(values: dict[str, Any], overrides: list[str] | None, where: str) -> TrainConfig:
    """Apply ``a.b=value`` overrides to a mapping and check it.

    Raises:
        ConfigError, ModelError: as :func:`load_config`.
    """
    values = _with_overrides(values, overrides)
    return _parse(_for_system(values, _system_of(values)), where)


def upgraded(values: Any) -> Any:
    """A configuration with all defaults that an earlier version wrote, as today's would; unchanged if it is invalid."""
    try:
        return to_mapping(parse_config(values, None, "config"))
    except VmlocError:
        return values


def _parse(values: Any, where: str) -> TrainConfig:
    system = _system_of(values)
    if isinstance(values, Mapping):
        values = {"model": {"name": system}, "objective": {}, **values}
        for section, own in TrainConfig.field_types(values).items():
            _check_settings(values[section], own, f"{where}.{section}", system)
    return from_mapping(TrainConfig, values, where)


def _check_settings(values: Any, own: type, where: str, system: str) -> None:
    """Raise ConfigError for settings that the system does not have, with a list of those it has."""
    names = {field.name for field in fields(own)}
    foreign = [str(key) for key in values if key not in names] if isinstance(values, Mapping) else []
    if foreign:
        raise ConfigError(
            f"{where}: {system} has no setting {', '.join(foreign)}; it has {', '.join(sorted(names)) or 'none'} "
            f"(a file for several systems sets {_SHARED}: true)"
        )


def _with_overrides(values: Any, overrides: Sequence[str] | None) -> Any:
    if not overrides or not isinstance(values, dict):  # from_mapping rejects other types
        return values
    values = copy.deepcopy(values)
    for override in overrides:
        _apply_override(values, override)
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, such as optimizer.epochs=20")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section} is not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: value is not YAML: {' '.join(str(error).split())}") from error


def checkpoint_source_options(header: CheckpointHeader, overrides: list[str] | None) -> SourceOptions:
    """Options of data sources as used in training, with overrides of the form ``source.key=value``."""
    recorded = header.training.get("config", {}).get("source", {})
    if (bits := header.training.get("inputs", {}).get("image_bits")) is not None:
        recorded = {**recorded, "image_bits": bits}
    # A PoseStamped does not name the body frame; the checkpoint's is assumed.
    return parse_source_options({**recorded, "body_frame": header.body_frame}, overrides)


def parse_source_options(values: dict[str, Any], overrides: list[str] | None) -> SourceOptions:
    """Options of data sources with overrides of the form ``source.key=value``.

    Raises:
        ConfigError: an override is not of this form, or a value is invalid.
    """
    wrong = [override for override in overrides or [] if not override.startswith("source.")]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: only source.KEY=VALUE can be set here")
    return parse_config({"source": values}, overrides, "source options").source


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
