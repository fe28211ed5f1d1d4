# SPDX-License-Identifier: Apache-2.0
"""The jobs behind ``vmloc train`` and ``vmloc evaluate``: open data, run, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from training.config import TrainConfig, load_config
from training.data.cache import load_dataset
from training.data.dataset import PreparedDataset
from training.sources.base import Source
from training.sources.factory import open_all
from training.trainer.distributed import join_processes
from training.trainer.logbook import check_tensorboard
from training.trainer.run_files import RunFiles
from training.trainer.trainer import Trainer
from vmloc_ros.core.errors import DataError, OutputError
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.models import select_modalities
from vmloc_ros.core.preprocessing import Preprocessor

logger = logging.getLogger(__name__)


def train(
    *,
    config_files: Sequence[Path],
    overrides: list[str] | None,
    data: Sequence[Path],
    split: str = "train",
    validation_data: Sequence[Path] | None = None,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Fit a model and write its checkpoint; return its validation metrics.

    Started by ``torchrun``, the processes train together, on files that all of them see.

    Args:
        cache: where prepared frames are kept from run to run; None holds them in memory.
        tensorboard: write event files too.

    Raises:
        VmlocError: configuration, data, model or output are at fault; the message says which.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"a checkpoint is named *.safetensors, got {out}")
    if out.exists() and not (resume or overwrite):
        raise OutputError(f"{out} exists; add --resume to go on, --overwrite to replace it, or choose another name")
    try:  # before hours of reading and training, not after
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error}") from error
    if tensorboard:
        check_tensorboard()
    config = _for_system(load_config(config_files, overrides))
    RunFiles(out).check_config(config, config_files)
    with join_processes(select_device(device)) as (processes, own_device):
        progress = progress and processes.first
        sources = open_all(data, split, config.source, config.preprocess.modalities)
        validation_sources = open_all(validation_data or [], split, config.source, config.preprocess.modalities)
        map_frame, body_frame = _common_frames([*sources, *validation_sources])
        trainer = Trainer(
            config,
            _load(sources, config, cache, progress),
            out,
            map_frame=map_frame,
            body_frame=body_frame,
            device=own_device,
            validation=_load(validation_sources, config, cache, progress) if validation_sources else None,
            record=training_record(sources),
            processes=processes,
            tensorboard=tensorboard,
        )
        if resume:
            trainer.resume()
        return trainer.run(progress)


def training_record(sources: Sequence[Source]) -> dict[str, Any]:
    """What a checkpoint remembers of its data; the node compares its own extrinsics with those of the first frame."""
    data = [{"name": source.name, "frames": len(source), **source.report} for source in sources]
    first = next(iter(sources[0]), None)
    pose = None if first is None else first.frame.camera_from_lidar
    if pose is None:
        return {"data": data}
    values = {"position_m": pose.position_m.tolist(), "quaternion_wxyz": pose.quaternion_wxyz.tolist()}
    return {"data": data, "extrinsics": {"camera_from_lidar": values}}


def _load(sources: Sequence[Source], config: TrainConfig, cache: Path | None, progress: bool) -> PreparedDataset:
    return load_dataset(sources, Preprocessor(config.preprocess), cache, progress)


def _for_system(config: TrainConfig) -> TrainConfig:
    """The configuration without the modalities that the system cannot use, so that none is read in vain."""
    modalities = select_modalities(config.model.name, config.preprocess.modalities)
    return replace(config, preprocess=replace(config.preprocess, modalities=modalities))


def _common_frames(sources: Sequence[Source]) -> tuple[str, str]:
    frames = {(source.map_frame, source.body_frame) for source in sources}
    if len(frames) != 1:
        listing = "; ".join(f"{source.name}: {source.map_frame} -> {source.body_frame}" for source in sources)
        raise DataError(f"the sources' poses are of different frames ({listing}); train on one map and one body")
    return frames.pop()
