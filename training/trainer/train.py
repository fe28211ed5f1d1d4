# SPDX-License-Identifier: Apache-2.0
"""The job behind ``vmloc train``: open the data, train, write the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from training.config import TrainConfig, load_config
from training.data.cache import load_dataset
from training.sources.base import Source
from training.sources.factory import open_all, share_image_bits
from training.trainer.distributed import join_processes
from training.trainer.logbook import check_tensorboard
from training.trainer.record import data_record
from training.trainer.run_files import RunFiles
from training.trainer.timetable import Timetable
from training.trainer.trainer import Trainer
from vmloc_ros.core.errors import DataError, OutputError
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.models import select_modalities
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import overall_progress


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
    timetable: Timetable | None = None,
) -> dict[str, float]:
    """Train a model and write its checkpoint; return its validation metrics.

    Started by ``torchrun``, the processes train one model together; all need access to the same files.

    Args:
        out: path of the checkpoint, ``*.safetensors``.
        cache: folder of prepared frames that are kept from run to run; None holds them in memory.
        tensorboard: whether to write event files.
        timetable: estimates the time left of all stages, which progress then shows.

    Raises:
        VmlocError: an error in configuration, data, model or output.
    """
    check_output(out, may_exist=resume or overwrite)
    if tensorboard:
        check_tensorboard()
    config = _for_system(load_config(config_files, overrides))
    RunFiles(out).check_config(config, config_files)
    with overall_progress(timetable), join_processes(select_device(device)) as (processes, own_device):
        progress = progress and processes.first
        inputs = _read(config, data, validation_data or [], split, cache, progress)
        trainer = Trainer(config, out=out, device=own_device, processes=processes, tensorboard=tensorboard, **inputs)
        if resume:
            trainer.resume()
        return trainer.run(progress)


def check_output(out: Path, may_exist: bool) -> None:
    """Raise OutputError unless the checkpoint can be written; called before hours of reading and training."""
    if out.suffix != ".safetensors":
        raise OutputError(f"a checkpoint is named *.safetensors, got {out}")
    if out.exists() and not may_exist:
        raise OutputError(f"{out} exists; add --resume to go on, --overwrite to replace it, or choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error}") from error


def _read(
    config: TrainConfig,
    data: Sequence[Path],
    validation_data: Sequence[Path],
    split: str,
    cache: Path | None,
    progress: bool,
) -> dict[str, Any]:
    """Open and prepare the data; returns the arguments of :class:`Trainer` that describe them."""
    own, others = (
        open_all(paths, split, config.source, config.preprocess.modalities) for paths in (data, validation_data)
    )
    share_image_bits([*own, *others])
    map_frame, body_frame = _common_frames([*own, *others])
    preprocessor = Preprocessor(config.preprocess)
    prepared = [load_dataset(sources, preprocessor, cache, progress) if sources else None for sources in (own, others)]
    return {
        "data": prepared[0],
        "validation": prepared[1],
        "map_frame": map_frame,
        "body_frame": body_frame,
        "record": data_record(own),
    }


def _for_system(config: TrainConfig) -> TrainConfig:
    """The configuration without the modalities that the system does not take, so that they are not read."""
    modalities = select_modalities(config.model.name, config.preprocess.modalities)
    return replace(config, preprocess=replace(config.preprocess, modalities=modalities))


def _common_frames(sources: Sequence[Source]) -> tuple[str, str]:
    """Map frame and body frame of all sources. Raises DataError: they differ."""
    frames = {(source.map_frame, source.body_frame) for source in sources}
    if len(frames) != 1:
        listing = "; ".join(f"{source.name}: {source.map_frame} -> {source.body_frame}" for source in sources)
        raise DataError(
            f"the sources' poses are of different frames ({listing}); train on one map and one body; of poses "
            "that name no body, source.body_frame names it"
        )
    return frames.pop()
