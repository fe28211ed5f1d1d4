# SPDX-License-Identifier: Apache-2.0
"""Fit the covariance and the confidence of a trained checkpoint anew, on data of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.calibration.confidence import fit_confidence, remember
from training.calibration.covariance import calibrate
from training.calibration.held_out import predict_held_out
from training.config import parse_source_options
from training.data.cache import load_dataset
from training.data.dataset import PreparedDataset
from training.data.splits import Split, ValidationConfig
from training.sources.factory import open_sources
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.config import from_mapping
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.preprocessing import Preprocessor


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
    """Write a checkpoint with the same weights whose covariance and confidence are fitted on ``data``.

    Args:
        data: drives that training has not seen; without any, the blocks of ``train_data`` that training held out.
        train_data: what the model was trained on, which the confidence compares frames with; without any, what the
            checkpoint remembers of it, if it does.
        overrides: ``source.KEY=VALUE``, of how data are read.
        cache: where prepared frames are kept from run to run; None holds them in memory.

    Returns:
        The new checkpoint's header.

    Raises:
        VmlocError: checkpoint, data or output are at fault.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"a checkpoint is named *.safetensors, got {out}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; add --overwrite to replace it, or choose another name")
    if not data and not train_data:
        raise ConfigError("there is nothing to calibrate with: give --data, --train-data or both")
    torch_device = select_device(device)
    header, model = load_checkpoint(checkpoint, torch_device)
    preprocessor = Preprocessor(header.preprocess)
    recorded = header.training.get("config", {}).get("source", {})
    options = parse_source_options({**recorded, "body_frame": header.body_frame}, overrides)

    def load(paths: Sequence[Path], part: str) -> PreparedDataset:
        modalities = header.preprocess.modalities
        sources = [source for path in paths for source in open_sources(path, part, options, modalities)]
        for source in sources:
            if source.body_frame != header.body_frame:
                raise DataError(
                    f"{source.name} has poses of {source.body_frame!r}, the checkpoint predicts {header.body_frame!r}"
                )
        return load_dataset(sources, preprocessor, cache, progress)

    known = load(train_data, train_split) if train_data else None
    if data:
        held_out = load(data, split)
        rows = torch.arange(len(held_out))
        train_rows = torch.arange(len(known)) if known is not None else rows[:0]
    else:
        assert known is not None
        held_out, (train_rows, rows) = known, _training_split(header, known.poses)
    if known is not None:
        memories = remember(header, model, known, train_rows, torch_device)
    else:
        before = load_confidence(checkpoint)
        memories = {} if before is None else dict(before.references)
    answers = predict_held_out(header, model, held_out, rows, torch_device, memories)
    confidence = fit_confidence(memories, held_out, answers)
    fitted = calibrate(header, held_out, answers, confidence)
    fitted = replace(fitted, metrics={**fitted.metrics, "held_out": 1.0})
    save_checkpoint(out, fitted, model.state_dict(), confidence)
    return fitted


def _training_split(header: CheckpointHeader, poses: Sequence[Pose]) -> tuple[Tensor, Tensor]:
    """Rows that were trained on and that were held out, as the checkpoint has it recorded."""
    recorded = header.training.get("config", {}).get("validation", {})
    validation = from_mapping(ValidationConfig, recorded, "the checkpoint's record of its validation")
    split = Split.of(validation, poses, None)
    if not len(split.held_out):
        raise DataError("training held out none of its data: give others with --data")
    return split.train, split.held_out
