# SPDX-License-Identifier: Apache-2.0
"""The jobs behind ``vmloc train`` and ``vmloc evaluate``: open data, run, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.config import TrainConfig, load_config, parse_config
from training.dataset import prepare_dataset
from training.evaluate import evaluate, write_results
from training.metrics import pose_statistics
from training.retrieval import nearest_image_errors
from training.sources import Source, open_sources
from training.sources.options import SourceOptions
from training.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.localizer import Localizer, select_device
from vmloc_ros.core.models import select_modalities
from vmloc_ros.core.preprocessing import Preprocessor

logger = logging.getLogger(__name__)


def train(
    *,
    config_file: Path | None,
    overrides: list[str] | None,
    data: Sequence[Path],
    split: str = "train",
    validation_data: Sequence[Path] | None = None,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Fit a model and write its checkpoint; return its validation metrics.

    Raises:
        VmlocError: configuration, data, model or output are at fault; the message says which.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"a checkpoint is named *.safetensors, got {out}")
    if out.exists() and not (resume or overwrite):
        raise OutputError(f"{out} exists; add --resume to go on, --overwrite to replace it, or choose another name")
    try:  # before hours of reading and training, not after
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error}") from error
    config = _for_system(load_config(config_file, overrides))
    torch_device = select_device(device)
    sources = _open_all(data, split, config.source, config.preprocess.modalities)
    validation_sources = _open_all(validation_data or [], split, config.source, config.preprocess.modalities)
    map_frame, body_frame = _common_frames([*sources, *validation_sources])
    preprocessor = Preprocessor(config.preprocess)
    prepared = prepare_dataset(sources, preprocessor, progress)
    validation = prepare_dataset(validation_sources, preprocessor, progress) if validation_sources else None
    record = {
        "data": [{"name": source.name, "frames": len(source), **source.report} for source in sources],
        "poses": pose_statistics(prepared.poses),
    }
    trainer = Trainer(
        config,
        prepared,
        out,
        map_frame=map_frame,
        body_frame=body_frame,
        device=torch_device,
        validation=validation,
        record=record,
    )
    if resume:
        trainer.resume()
    return trainer.run(progress)


def evaluate_checkpoint(
    checkpoint: Path,
    data: Sequence[Path],
    *,
    split: str = "test",
    out: Path | None = None,
    overrides: list[str] | None = None,
    device: str = "auto",
    nearest: Sequence[Path] | None = None,
    nearest_backbone: str = "resnet34",
    nearest_weights: bool | str = True,
    progress: bool = True,
) -> tuple[dict[str, dict[str, float]], Path]:
    """Evaluate a checkpoint, and the retrieval baseline where ``nearest`` names its training data.

    Returns:
        Summaries by name, and the folder with the results.

    Raises:
        VmlocError: checkpoint, data or output are at fault.
    """
    localizer = Localizer.load(checkpoint, device)
    options = _source_options(localizer.header, overrides)
    sources = _open_all(data, split, options, localizer.modalities)
    evaluation = evaluate(localizer, sources, progress)
    folder = out or Path("evaluation") / checkpoint.stem
    errors = evaluation.errors.summary()
    names = ", ".join(source.name for source in sources)
    figures = f"median {errors['median_position_m']:.2f} m, {errors['median_rotation_deg']:.1f} deg"
    write_results(evaluation, folder, f"{checkpoint.name} on {names}: {figures}")
    rows = {localizer.header.model.name: errors}
    if nearest:
        known = _open_all(nearest, "train", options, ("image",))
        asked = _open_all(data, split, options, ("image",))
        rows["nearest training image"] = nearest_image_errors(
            known, asked, nearest_backbone, nearest_weights, progress
        ).summary()
    return rows, folder


def _open_all(paths: Sequence[Path], split: str, options: SourceOptions, modalities: tuple[str, ...]) -> list[Source]:
    sources = [source for path in paths for source in open_sources(path, split, options, modalities)]
    for source in sources:
        counts = ", ".join(f"{count} {what}" for what, count in source.report.items() if count)
        logger.info("%s: %s", source.name, counts or f"{len(source)} frames")
    return sources


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
    """The options used in training, with overrides of the form ``source.key=value``."""
    wrong = [override for override in overrides or [] if not override.startswith("source.")]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: only source.KEY=VALUE can be set; the rest is in the checkpoint")
    recorded = header.training.get("config", {}).get("source", {})
    # A PoseStamped names no body: take it to be the checkpoint's.
    values = {"source": {**recorded, "body_frame": header.body_frame}}
    return parse_config(values, overrides, "source options").source
