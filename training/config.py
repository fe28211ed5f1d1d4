# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run; YAML files hold only what differs from the defaults."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from training.data.augment import AugmentConfig
from training.data.frozen_features import FrozenConfig
from training.data.splits import ValidationConfig
from training.objectives.base import ObjectiveConfig
from training.sources.options import SourceOptions
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.config import from_mapping
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.models import ModelConfig
from vmloc_ros.core.preprocessing import PreprocessConfig


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Defaults are the paper's ("Training Details").

    Attributes:
        schedule: of the learning rate: ``constant``, or ``cosine`` down to zero at the last step.
        warmup_steps: the learning rate rises linearly over them.
        gradient_norm: gradients are clipped to it.
        precision: of the networks' arithmetic; weights, posterior densities and losses stay in single precision.
        ema_decay: of an exponential moving average of the weights, which is then what is validated and kept; 0: none.
    """

    epochs: int = 300
    batch_size: int = 64
    learning_rate: float = 5e-5
    weight_decay: float = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    gradient_norm: float = 10.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.gradient_norm <= 0:
            raise ValueError(f"epochs >= 1, batch_size >= 2, learning_rate and gradient_norm > 0, got {self}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(f"weight_decay and warmup_steps must not be negative, got {self}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay lies in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, beside the data.

    Attributes:
        pretrained: start of the encoders: true (ImageNet weights from torchvision's cache or download), false, or
            the path of a torchvision state-dict file.
        seed: of initialisation, order, augmentation and sampling.
        deterministic: use only operations whose result is the same every time. The CPU's are anyway, with the same
            number of threads; a GPU's are slower.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    source: SourceOptions = field(default_factory=SourceOptions)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    frozen: FrozenConfig = field(default_factory=FrozenConfig)
    pretrained: bool | str = True
    seed: int = 0
    deterministic: bool = False


def load_config(paths: Sequence[Path], overrides: list[str] | None = None) -> TrainConfig:
    """Read YAML files, later ones over earlier ones, and apply ``a.b=value`` overrides (values are YAML).

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, or a value has the wrong type or range.
    """
    values: dict[str, Any] = {}
    for path in paths:
        values = _merged(values, read_layer(path))
    return parse_config(values, overrides, " + ".join(map(str, paths)) or "config")


def read_layer(path: Path) -> dict[str, Any]:
    """What a YAML file says, and nothing else. Raises ConfigError as :func:`load_config`, with the file's name."""
    values = _read_yaml(path)
    from_mapping(TrainConfig, values, str(path))
    return values


def _read_yaml(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    return {} if values is None else values


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key, everything else is replaced."""
    both = {key: _merged(lower[key], value) for key, value in upper.items() if isinstance(value, dict) and key in lower}
    return {**lower, **upper, **both}


def parse_config(values: dict[str, Any], overrides: list[str] | None, where: str) -> TrainConfig:
    """Apply ``a.b=value`` overrides to a mapping and check it. Raises ConfigError as :func:`load_config`."""
    if overrides and isinstance(values, dict):  # from_mapping refuses anything else
        values = copy.deepcopy(values)
        for override in overrides:
            _apply_override(values, override)
    return from_mapping(TrainConfig, values, where)


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
    """The options used in training, with overrides."""
    recorded = header.training.get("config", {}).get("source", {})
    # A PoseStamped names no body: take it to be the checkpoint's.
    return parse_source_options({**recorded, "body_frame": header.body_frame}, overrides)


def parse_source_options(values: dict[str, Any], overrides: list[str] | None) -> SourceOptions:
    """Options of data sources with overrides of the form ``source.key=value``.

    Raises:
        ConfigError: an override is of something else, or a value does not fit.
    """
    wrong = [override for override in overrides or [] if not override.startswith("source.")]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: only source.KEY=VALUE can be set here")
    return parse_config({"source": values}, overrides, "source options").source
