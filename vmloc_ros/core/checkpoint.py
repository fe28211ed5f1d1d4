# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a safetensors file with the weights and, as metadata, everything needed to use them; no pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import vmloc_ros
from vmloc_ros.core.confidence import Confidence
from vmloc_ros.core.config import from_mapping, to_mapping
from vmloc_ros.core.errors import CheckpointError, ConfigError, ModelError
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.models import (
    REGISTRY,
    ModelConfig,
    PoseModel,
    build_model,
    config_types,
    own_settings,
    with_former_settings,
)
from vmloc_ros.core.names import frame_name
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

FORMAT = "vmloc_ros-checkpoint"
VERSION = 1
_ONCE_NULL = ("clip_length", "clip_spacing")  # settings for which older headers hold null: the system's own default
_CONFIDENCE = "confidence."  # prefix of tensors that belong to the confidence, not to the weights


@dataclass(frozen=True, slots=True)
class Residuals:
    """Error model of one set of sensors, fitted to held-out frames, in addition to the system's own covariance.

    Attributes:
        residual_std: standard deviations ``(x, y, z, rot_x, rot_y, rot_z)`` in metres and radians along the axes of
            the body.
        inflation: factors ``(position, rotation)`` on standard deviations, so that the 95 % ellipsoids hold 95 % of the
            held-out errors, whose distribution has heavier tails than a normal one.
        modalities: the sensors that the estimates used.
        coupling: factor on the correlations between position and rotation, so that the ellipsoid of all six dimensions
            holds 95 %, too; a solver that treats dependent measurements as independent overestimates them.
        growth: increase of the logarithms of the standard deviations ``(position, rotation)`` per unit of
            :meth:`vmloc_ros.core.confidence.Confidence.neg_log_p_value`.
    """

    residual_std: tuple[float, float, float, float, float, float]
    inflation: tuple[float, float]
    modalities: tuple[str, ...]
    coupling: float = 1.0
    growth: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if min(self.residual_std) <= 0 or min(self.inflation) < 1 or not 0 <= self.coupling <= 1:
            raise ValueError(f"residuals must be positive, inflation at least 1 and coupling in [0, 1], got {self}")
        if min(self.growth) < 0:
            raise ValueError(f"growth must not be negative, got {self}")


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Error models for all sets of sensors, and the number of posterior samples.

    Attributes:
        residual_std: see :class:`Residuals`; for estimates from all sensors, as inflation, coupling and growth.
        samples: posterior samples drawn for each estimate.
        inflation: see :class:`Residuals`.
        missing: error models for estimates with sensors missing, one for each set of remaining sensors.
        coupling: see :class:`Residuals`.
        growth: see :class:`Residuals`.
    """

    residual_std: tuple[float, float, float, float, float, float] = (1.0, 1.0, 1.0, 0.2, 0.2, 0.2)
    samples: int = 32
    inflation: tuple[float, float] = (1.0, 1.0)
    missing: tuple[Residuals, ...] = ()
    coupling: float = 1.0
    growth: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self}")
        self.residuals(())

    def residuals(self, modalities: tuple[str, ...]) -> Residuals:
        """Error model of estimates from these sensors; if none was fitted for them, that of all sensors."""
        for fitted in self.missing:
            if set(fitted.modalities) == set(modalities):
                return fitted
        return Residuals(self.residual_std, self.inflation, modalities, self.coupling, self.growth)


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """Contents of a checkpoint except weights and confidence; frames are without a leading slash.

    Attributes:
        map_frame: frame in which poses are estimated.
        body_frame: frame whose pose is estimated.
        training: record of the training: data, configuration, library versions.
        metrics: validation metrics, by name.
    """

    model: ModelConfig
    preprocess: PreprocessConfig
    pose_codec: PoseCodec
    map_frame: str
    body_frame: str
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("map_frame", "body_frame"):
            object.__setattr__(self, name, frame_name(getattr(self, name)))
        # Checkpoints of earlier versions lack `undistort`: geometry is only right for pinhole cameras, which these
        # versions took all cameras to be; systems without geometry saw the pictures as they came.
        system = REGISTRY.get(self.model.name)
        decided = self.preprocess.for_system(system is not None and system.needs_geometry)
        object.__setattr__(self, "preprocess", decided)

    @classmethod
    def field_types(cls, values: Mapping[str, Any]) -> dict[str, type]:
        """Type of the section ``model``, which depends on the system."""
        return config_types(values)


def save_checkpoint(
    path: Path, header: CheckpointHeader, weights: Mapping[str, Tensor], confidence: Confidence | None = None
) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the complete new one.

    Args:
        confidence: stored with the weights; None: estimates will have no confidence.

    Raises:
        OutputError: the folder cannot be written or the disk is full; an existing file stays as it was.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "vmloc_ros": vmloc_ros.__version__,
        "header": json.dumps(to_mapping(header)),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    arrays = {} if confidence is None else confidence.to_tensors()
    tensors |= {_CONFIDENCE + name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    with write_aside(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_header(path: Path) -> CheckpointHeader:
    """Read the header without the weights.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or of another version.
    """
    with _open(path) as file:
        return _parse_header(path, file.metadata() or {})


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[CheckpointHeader, PoseModel]:
    """Rebuild the model in evaluation mode; never touches the network.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, of another version, or its weights do not fit.
    """
    with _open(path) as file:
        header = _parse_header(path, file.metadata() or {})
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_CONFIDENCE)}
    try:
        model = build_model(header.model, Preprocessor(header.preprocess).channels)
        model.load_state_dict(weights)
    except ModelError as error:
        raise CheckpointError(
            f"{path} needs a model that this vmloc_ros {vmloc_ros.__version__} lacks: {error}"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: weights do not fit model {header.model.name!r}: {reason}") from error
    return header, model.to(device).eval()


def load_confidence(path: Path) -> Confidence | None:
    """Read the confidence; None if the checkpoint has none.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or damaged.
    """
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(_CONFIDENCE)]  # noqa: SIM118 (not a dict)
        arrays = {name.removeprefix(_CONFIDENCE): file.get_tensor(name).numpy() for name in names}
    try:
        return Confidence.from_tensors(arrays) if arrays else None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; train one with `vmloc train` or correct the path")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a vmloc_ros checkpoint: {error}") from error


def _parse_header(path: Path, metadata: Mapping[str, str]) -> CheckpointHeader:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but not a vmloc_ros checkpoint; make one with `vmloc train`"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} has checkpoint version {metadata.get('version')}, this is vmloc_ros {vmloc_ros.__version__} which "
            f"reads version {VERSION}; install the vmloc_ros that wrote it ({metadata.get('vmloc_ros')}) or train again"
        )
    try:
        return from_mapping(CheckpointHeader, _own_model_settings(json.loads(metadata["header"])), "header")
    except ModelError as error:
        raise CheckpointError(
            f"{path} needs a model that this vmloc_ros {vmloc_ros.__version__} lacks: {error}"
        ) from error
    except (KeyError, json.JSONDecodeError, ConfigError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error


def _own_model_settings(header: Any) -> Any:
    """The header without settings that only other systems have (in old files), and with those that old files lack.

    A malformed header comes back as it is.
    """
    model = header.get("model") if isinstance(header, Mapping) else None
    if not isinstance(model, Mapping):
        return header
    own = {key: x for key, x in own_settings(model).items() if x is not None or key not in _ONCE_NULL}
    return {**header, "model": with_former_settings(own)}
