# SPDX-License-Identifier: Apache-2.0
"""Registry of the localization systems, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vmloc_ros.core.config import from_mapping
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, MODALITIES
from vmloc_ros.core.models.base import (
    ClipModel,
    FusingModel,
    MemoryModel,
    PoseModel,
    RegressionModel,
    VariationalModel,
)
from vmloc_ros.core.models.baselines import (
    AtLoc,
    AtLocConfig,
    AttentionVMLoc,
    FeatureConfig,
    MapNet,
    MapNetConfig,
    PoseNetPlus,
    RegressorConfig,
)
from vmloc_ros.core.models.config import LatentConfig, ModelConfig, VariationalConfig
from vmloc_ros.core.models.dense.config import DenseConfig
from vmloc_ros.core.models.dense.model import DenseModel
from vmloc_ros.core.models.hourglass import Hourglass
from vmloc_ros.core.models.input_output import ModelInput, Posterior, Prediction
from vmloc_ros.core.models.nearest import NearestImage
from vmloc_ros.core.models.vidloc import VidLoc, VidLocConfig
from vmloc_ros.core.models.vmloc import VMLoc


@dataclass(frozen=True, slots=True)
class System:
    """An entry of the registry: all that the rest of the project needs to know of a system.

    Attributes:
        build: builds the model from its configuration, channels per modality and ``pretrained`` (see
            :func:`vmloc_ros.core.models.encoder.make_trunk`).
        takes: the modalities that it can use.
        summary: description in one line.
        config: type of its settings, the ``model`` section of a configuration.
        objective: name in ``training.objectives.OBJECTIVES`` of what training minimises; it also selects the
            :class:`training.trainer.lifecycle.Lifecycle`. None: the system is not trained by gradients.
    """

    build: Callable[[Any, Mapping[str, int], bool | str], PoseModel]
    takes: tuple[str, ...]
    summary: str
    config: type[ModelConfig] = ModelConfig
    objective: str | None = "pose"

    @property
    def needs_geometry(self) -> bool:
        """See :class:`PoseModel`; False where a function builds the model that does not say so."""
        return bool(getattr(self.build, "needs_geometry", False))


DEFAULT_SYSTEM = "vmloc"

REGISTRY: dict[str, System] = {
    "vmloc": System(
        VMLoc,
        MODALITIES,
        "product of experts, importance-weighted bound, attention (the paper's)",
        VariationalConfig,
        "bound",
    ),
    "image_vmloc": System(VMLoc, (IMAGE,), "vmloc with the camera's expert alone", VariationalConfig, "bound"),
    "depth_vmloc": System(
        VMLoc, (DEPTH, LIDAR), "vmloc with the depth camera's or the lidar's expert alone", VariationalConfig, "bound"
    ),
    "attention_vmloc": System(
        AttentionVMLoc, MODALITIES, "features side by side, attention; no posterior", LatentConfig, "fused_pose"
    ),
    "poe_vmloc": System(
        VMLoc, MODALITIES, "product of experts with the plain single-sample ELBO (MVAE)", VariationalConfig, "elbo"
    ),
    "atloc": System(AtLoc, (IMAGE,), "one image, self-attention on its features", AtLocConfig),
    "mapnet": System(
        MapNet, (IMAGE,), "one image; trained on absolute and relative poses of clips", MapNetConfig, "relative_pose"
    ),
    "posenet_plus": System(
        PoseNetPlus,
        (IMAGE,),
        "one image, unit quaternion, learned homoscedastic weights",
        FeatureConfig,
        "homoscedastic",
    ),
    "hourglass": System(Hourglass, (IMAGE,), "one image, encoder and decoder with skip connections", RegressorConfig),
    "vidloc": System(
        VidLoc, MODALITIES, "a clip: modalities as channels of one picture, LSTM over the frames", VidLocConfig, "clip"
    ),
    "vmloc_dense": System(
        DenseModel,
        MODALITIES,
        "map coordinates of every cell, a solver, product of experts on the pose",
        DenseConfig,
        "cells",
    ),
    "dense_image": System(DenseModel, (IMAGE,), "vmloc_dense with the camera alone", DenseConfig, "cells"),
    "dense_lidar": System(
        DenseModel, (DEPTH, LIDAR), "vmloc_dense with the depth camera or the lidar alone", DenseConfig, "cells"
    ),
    "nearest": System(
        NearestImage, (IMAGE,), "image retrieval: the pose of the nearest training image", objective=None
    ),
}


def find_system(name: str) -> System:
    """The registry entry of a system. Raises ModelError: the name is not in the registry."""
    if not isinstance(name, str) or name not in REGISTRY:  # names come from files
        raise ModelError(f"model {name!r} is not in the registry; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def model_config(name: str = DEFAULT_SYSTEM, backbone: str = "resnet34", **settings: Any) -> ModelConfig:
    """The configuration of the named system.

    Raises:
        ModelError: the name is not in the registry.
        ConfigError: the system lacks a setting, or a value is out of range.
    """
    values = {"name": name, "backbone": backbone, **settings}
    return from_mapping(find_system(name).config, values, name)


def config_types(values: Any) -> dict[str, type]:
    """Type of the ``model`` section of a mapping, which depends on the system that the section names.

    For ``field_types`` of dataclasses with such a section; see :func:`vmloc_ros.core.config.from_mapping`.

    Raises:
        ModelError: the name is not in the registry.
    """
    section = values.get("model", {})
    name = section.get("name", DEFAULT_SYSTEM) if isinstance(section, Mapping) else DEFAULT_SYSTEM
    return {"model": find_system(name).config if isinstance(name, str) else ModelConfig}


def own_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model`` section without the settings that only other systems have.

    For files that several systems share, and for old checkpoints, which hold the settings of all systems.

    Raises:
        ModelError: the section names a system that is not in the registry.
    """
    own = _setting_names(find_system(values.get("name", DEFAULT_SYSTEM)))
    others = {name for system in REGISTRY.values() for name in _setting_names(system)}
    return {key: value for key, value in values.items() if key in own or key not in others}


# Settings that files of earlier versions lack, with the values that those versions used.
_FORMER_SETTINGS = {"log_variance_range": [-8.0, 8.0], "rotation": "log_quaternion"}


def with_former_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A complete ``model`` section of this or an earlier version, with the settings that the earlier one lacks.

    Raises:
        ModelError: the section names a system that is not in the registry.
    """
    names = _setting_names(find_system(values.get("name", DEFAULT_SYSTEM)))
    return {**{key: x for key, x in _FORMER_SETTINGS.items() if key in names}, **values}


def _setting_names(system: System) -> set[str]:
    return {field.name for field in fields(system.config)}


def select_modalities(name: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """The offered modalities that the system takes, in the order offered.

    Raises:
        ModelError: the name is unknown, or the system takes none of them.
    """
    takes = find_system(name).takes
    selected = tuple(modality for modality in offered if modality in takes)
    if not selected:
        raise ModelError(
            f"model {name!r} takes {' or '.join(takes)}, but preprocess.modalities is {', '.join(offered)}"
        )
    return selected


def build_model(config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> PoseModel:
    """Build the system that ``config.name`` names; touches the network only where ``pretrained`` is True.

    Args:
        channels: input channels per modality, of modalities that the system takes.

    Raises:
        ModelError: the name or the backbone is unknown, a modality does not fit, or pretrained weights are missing.
    """
    system = find_system(config.name)
    foreign = [name for name in channels if name not in system.takes]
    if foreign:
        raise ModelError(f"model {config.name!r} takes {' or '.join(system.takes)}, not {', '.join(foreign)}")
    return system.build(config, channels, pretrained)


__all__ = [
    "DEFAULT_SYSTEM",
    "REGISTRY",
    "ClipModel",
    "DenseModel",
    "FusingModel",
    "MemoryModel",
    "ModelConfig",
    "ModelInput",
    "PoseModel",
    "Posterior",
    "Prediction",
    "RegressionModel",
    "System",
    "VMLoc",
    "VariationalModel",
    "build_model",
    "config_types",
    "find_system",
    "model_config",
    "own_settings",
    "select_modalities",
    "with_former_settings",
]
