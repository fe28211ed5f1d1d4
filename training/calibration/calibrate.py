# SPDX-License-Identifier: Apache-2.0
"""Calibrate a checkpoint on held-out frames: its metrics, its covariance and its confidence."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.calibration.confidence import fit_confidence, fit_reference_features
from training.calibration.covariance import calibrate_header
from training.calibration.held_out import EstimatesBySensors, predict_held_out
from training.config import checkpoint_source_options
from training.data.cache import load_dataset
from training.data.dataset import PreparedDataset
from training.data.splits import Split, ValidationConfig
from training.sources.factory import announce, open_sources
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.config import from_mapping
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.models import PoseModel
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.reference_features import ReferenceFeatures


def save_calibrated(
    path: Path,
    header: CheckpointHeader,
    model: PoseModel,
    data: PreparedDataset,
    held_out: EstimatesBySensors,
    references: Mapping[str, ReferenceFeatures],
    *,
    on_held_out: bool = True,
) -> CheckpointHeader:
    """Write the model with metrics, covariance and confidence fitted to held-out estimates; return the new header.

    Args:
        data: what the estimates are rows of, with the true poses.
        references: features of training frames by modality, which the confidence compares frames with.
        on_held_out: False if training has seen these frames; stored as the metric ``held_out``, 1 or 0.

    Raises:
        OutputError: the checkpoint cannot be written.
    """
    confidence = fit_confidence(references, data, held_out)
    fitted = calibrate_header(header, data, held_out, confidence)
    fitted = replace(fitted, metrics={**fitted.metrics, "held_out": float(on_held_out)})
    save_checkpoint(path, fitted, model.state_dict(), confidence)
    return fitted


def recalibrate(
    checkpoint: Path,
    data: Sequence[Path],
    out: Path,
    *,
    split: str = "all",
    train_data: Sequence[Path] = (),
    train_split: str = "train",
    overrides: list[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    cache: Path | None = None,
    progress: bool = True,
) -> CheckpointHeader:
    """Write a checkpoint with the same weights, calibrated on ``data``; return its header.

    Args:
        data: drives that training has not seen; without any, the blocks of ``train_data`` that training held out.
        train_data: what the model was trained on; without any, the confidence keeps the features the checkpoint stores.
        overrides: ``source.KEY=VALUE``, of how data are read.
        cache: where prepared frames are kept from run to run; None holds them in memory.

    Raises:
        VmlocError: checkpoint, data or output are at fault.
    """
    _check_request(data, train_data, out, overwrite)
    torch_device = select_device(device)
    header, model = load_checkpoint(checkpoint, torch_device)
    load = functools.partial(_load, header, overrides=overrides, cache=cache, progress=progress)
    training_data = load(train_data, train_split) if train_data else None
    held_out = load(data, split) if data else training_data
    if data:
        train_rows, rows = (torch.arange(len(frames or ())) for frames in (training_data, held_out))
    else:
        train_rows, rows = _training_split(header, held_out.poses)
    references = _stored_features(checkpoint)
    if training_data is not None:
        references = fit_reference_features(header, model, training_data, train_rows, torch_device)
    estimates = predict_held_out(
        header, model, held_out, rows, torch_device, references, "predictions" if progress else ""
    )
    return save_calibrated(out, header, model, held_out, estimates, references)


def _check_request(data: Sequence[Path], train_data: Sequence[Path], out: Path, overwrite: bool) -> None:
    if out.suffix != ".safetensors":
        raise OutputError(f"a checkpoint is named *.safetensors, got {out}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; add --overwrite to replace it, or choose another name")
    if not data and not train_data:
        raise ConfigError("there is nothing to calibrate with: give --data, --train-data or both")


def _load(
    header: CheckpointHeader,
    paths: Sequence[Path],
    split: str,
    *,
    overrides: list[str] | None,
    cache: Path | None,
    progress: bool,
) -> PreparedDataset:
    """Frames of the checkpoint's modalities, prepared for it. Raises DataError: poses are of another body."""
    options, preprocessor = checkpoint_source_options(header, overrides), Preprocessor(header.preprocess)
    modalities = header.preprocess.modalities
    sources = [source for path in paths for source in open_sources(path, split, options, modalities)]
    announce(sources)
    for source in sources:
        if source.body_frame != header.body_frame:
            raise DataError(
                f"{source.name} has poses of {source.body_frame!r}, the checkpoint predicts {header.body_frame!r}"
            )
    return load_dataset(sources, preprocessor, cache, progress)


def _stored_features(checkpoint: Path) -> dict[str, ReferenceFeatures]:
    """Features of training frames that the checkpoint's confidence holds, by modality; empty without a confidence."""
    confidence = load_confidence(checkpoint)
    return {} if confidence is None else dict(confidence.references)


def _training_split(header: CheckpointHeader, poses: Sequence[Pose]) -> tuple[Tensor, Tensor]:
    """Rows that were trained on and rows that were held out, by the split that the checkpoint records.

    Raises:
        DataError: none was held out.
    """
    recorded = header.training.get("config", {}).get("validation", {})
    validation = from_mapping(ValidationConfig, recorded, "the checkpoint's record of its validation")
    split = Split.of(validation, poses, None)
    if not len(split.held_out):
        raise DataError("training held out none of its data: give others with --data")
    return split.train, split.held_out
