# SPDX-License-Identifier: Apache-2.0
"""Model registry: every system by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, MODALITIES
from vmloc_ros.core.models.base import (
    ClipModel,
    MemoryModel,
    ModelConfig,
    ModelInput,
    PoseModel,
    Posterior,
    Prediction,
    RegressionModel,
    VariationalModel,
)
from vmloc_ros.core.models.baselines import AtLoc, AttentionVMLoc, MapNet, PoseNetPlus
from vmloc_ros.core.models.dense.model import DenseModel
from vmloc_ros.core.models.hourglass import Hourglass
from vmloc_ros.core.models.nearest import NearestImage
from vmloc_ros.core.models.vidloc import VidLoc
from vmloc_ros.core.models.vmloc import VMLoc


@dataclass(frozen=True, slots=True)
class System:
    """An entry of the registry.

    Attributes:
        build: from configuration, channels per modality and ``pretrained`` (see
            :func:`vmloc_ros.core.models.encoder.make_trunk`).
        takes: the modalities that it can use.
        summary: what it is, in a line.
    """

    build: Callable[[ModelConfig, Mapping[str, int], bool | str], PoseModel]
    takes: tuple[str, ...]
    summary: str


REGISTRY: dict[str, System] = {
    "vmloc": System(VMLoc, MODALITIES, "product of experts, importance-weighted bound, attention (the paper's)"),
    "image_vmloc": System(VMLoc, (IMAGE,), "vmloc with the camera's expert alone"),
    "depth_vmloc": System(VMLoc, (DEPTH, LIDAR), "vmloc with the depth camera's or the lidar's expert alone"),
    "attention_vmloc": System(AttentionVMLoc, MODALITIES, "features side by side, attention; no posterior"),
    "poe_vmloc": System(VMLoc, MODALITIES, "product of experts with the plain single-sample ELBO (MVAE)"),
    "atloc": System(AtLoc, (IMAGE,), "one image, self-attention on its features"),
    "mapnet": System(MapNet, (IMAGE,), "one image; trained on absolute and relative poses of tuples of frames"),
    "posenet_plus": System(PoseNetPlus, (IMAGE,), "one image, unit quaternion, learned homoscedastic weights"),
    "hourglass": System(Hourglass, (IMAGE,), "one image, encoder and decoder with skip connections"),
    "vidloc": System(VidLoc, MODALITIES, "a clip: modalities as channels of one picture, LSTM over the frames"),
    "vmloc_dense": System(
        DenseModel, MODALITIES, "map coordinates of every cell, a solver, product of experts on the pose"
    ),
    "dense_image": System(DenseModel, (IMAGE,), "vmloc_dense with the camera alone"),
    "dense_lidar": System(DenseModel, (DEPTH, LIDAR), "vmloc_dense with the depth camera or the lidar alone"),
    "nearest": System(NearestImage, (IMAGE,), "image retrieval: the pose of the nearest training image"),
}


def find_system(name: str) -> System:
    """The registry's entry. Raises ModelError for a name that is not in it."""
    if name not in REGISTRY:
        raise ModelError(f"model {name!r} is not in the registry; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def select_modalities(name: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the offered modalities that the system takes, in the order offered.

    Raises:
        ModelError: the name is unknown, or it can take none of them.
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
        channels: per modality; all of them must be of those that the system takes.

    Raises:
        ModelError: the name, or the backbone, is unknown, a modality does not fit, or weights are not to be had.
    """
    system = find_system(config.name)
    foreign = [name for name in channels if name not in system.takes]
    if foreign:
        raise ModelError(f"model {config.name!r} takes {' or '.join(system.takes)}, not {', '.join(foreign)}")
    return system.build(config, channels, pretrained)


__all__ = [
    "REGISTRY",
    "ClipModel",
    "DenseModel",
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
    "find_system",
    "select_modalities",
]
