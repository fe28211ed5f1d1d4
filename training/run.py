# SPDX-License-Identifier: Apache-2.0
"""The jobs behind ``vmloc train`` and ``vmloc evaluate``: open data, run, write."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from training.config import TrainConfig, load_config, parse_config
from training.corruption import NO_CORRUPTION, Corruption
from training.data.cache import load_dataset
from training.data.coverage import warn_of_unknown_places
from training.data.dataset import PreparedDataset, prepare_dataset
from training.distributed import join_processes
from training.evaluate import Evaluation, evaluate
from training.logbook import check_tensorboard
from training.results import write_comparison, write_results
from training.retrieval import nearest_image_errors
from training.run_files import RunFiles
from training.sources.base import Source
from training.sources.factory import open_all
from training.sources.options import SourceOptions
from training.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader, read_header
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.localizer import Localizer, select_device
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
    preprocessor = Preprocessor(config.preprocess)
    if cache is None:
        return prepare_dataset(sources, preprocessor, progress)
    return load_dataset(sources, preprocessor, cache, progress)


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation wrote: where, the text of ``results.md`` and the contents of ``metrics.json``."""

    folder: Path
    text: str
    metrics: dict[str, Any]


def evaluate_checkpoints(
    checkpoints: Sequence[Path],
    data: Sequence[Path],
    *,
    split: str = "test",
    out: Path | None = None,
    overrides: list[str] | None = None,
    device: str = "auto",
    nearest: Sequence[Path] | None = None,
    nearest_backbone: str = "resnet34",
    nearest_weights: bool | str = True,
    lookahead: int = 0,
    corruption: Corruption = NO_CORRUPTION,
    all_sensors: bool = False,
    progress: bool = True,
) -> Report:
    """Evaluate a checkpoint, or several of one system that were trained with different seeds, and write the results.

    Several get a folder each, beside mean and standard deviation over them. Where ``nearest`` names the training
    data, the retrieval baseline is added; its images are never corrupted.

    Args:
        all_sensors: answer by every sensor, even by one that is strange by itself (``Localizer.leaves_out``).

    Raises:
        VmlocError: checkpoints, data or output are at fault.
    """
    header = _common_header(checkpoints)
    options = _source_options(header, overrides)
    sources = open_all(data, split, options, header.preprocess.modalities)
    folder = out or _default_folder(checkpoints, corruption)
    baselines = {}
    if nearest:
        known = open_all(nearest, "train", options, ("image",))
        asked = open_all(data, split, options, ("image",))
        errors = nearest_image_errors(known, asked, nearest_backbone, nearest_weights, progress)
        baselines["nearest training image"] = errors.summary()
    evaluations: list[Evaluation] = []
    text = ""
    for number, checkpoint in enumerate(checkpoints, start=1):
        localizer = Localizer.load(checkpoint, device)
        localizer.leaves_out = not all_sensors
        warn_of_unknown_places(localizer.header.training, [pose for source in sources for pose in source.poses()])
        evaluation = evaluate(localizer, sources, progress, lookahead, corruption)
        evaluations.append(replace(evaluation, checkpoint=str(checkpoint)))
        own = folder / f"{number}_{checkpoint.stem}" if len(checkpoints) > 1 else folder
        text = write_results(evaluations[-1], own, baselines)
    if len(checkpoints) > 1:
        text = write_comparison(evaluations, folder, baselines)
    return Report(folder, text, json.loads((folder / "metrics.json").read_text()))


def _common_header(checkpoints: Sequence[Path]) -> CheckpointHeader:
    """The first checkpoint's, after a look whether a mean over all of them says anything."""
    first, *others = checkpoints
    header = read_header(first)
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise ConfigError("a checkpoint is given twice; the deviation over checkpoints would be too small")
    ours = _settings(header)
    for path in others:
        theirs = _settings(read_header(path))
        for key in sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            text = f"{path} differs from {first}: {key} is {theirs.get(key)}, not {ours.get(key)}"
            if key.startswith(("model.", "preprocess.")):
                raise ConfigError(f"{text}; a mean is over checkpoints that differ in their seed alone")
            logger.warning("%s; the mean is over unlike trainings", text)
    return header


def _settings(header: CheckpointHeader) -> dict[str, Any]:
    """What checkpoints of one experiment have in common, with flat keys."""
    recorded = header.training.get("config", {})
    sections = {"model": to_mapping(header.model), "preprocess": to_mapping(header.preprocess)}
    sections |= {name: recorded.get(name, {}) for name in ("objective", "optimizer", "augment")}
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _default_folder(checkpoints: Sequence[Path], corruption: Corruption) -> Path:
    more = f"and_{len(checkpoints) - 1}_more" if len(checkpoints) > 1 else ""
    return Path("evaluation") / "_".join(filter(None, (checkpoints[0].stem, more, corruption.tag)))


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


def _source_options(header: CheckpointHeader, overrides: list[str] | None) -> SourceOptions:
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
