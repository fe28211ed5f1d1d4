# SPDX-License-Identifier: Apache-2.0
"""The job behind ``vmloc evaluate``: open checkpoints and data, predict, write results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import checkpoint_source_options
from training.data.coverage import warn_of_unknown_places
from training.evaluation.corruption import NO_CORRUPTION, Corruption
from training.evaluation.results import write_comparison, write_results
from training.evaluation.retrieval import nearest_image_errors
from training.evaluation.tracks import Evaluation, evaluate
from training.sources.factory import open_all
from vmloc_ros.core.checkpoint import CheckpointHeader, read_header
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.localizer import Localizer

logger = logging.getLogger(__name__)


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
        all_sensors: answer by every sensor, even by one that is strange by itself (``Localizer.drop_outlier_sensors``).

    Raises:
        VmlocError: checkpoints, data or output are at fault.
    """
    header = _common_header(checkpoints)
    options = checkpoint_source_options(header, overrides)
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
        localizer.drop_outlier_sensors = not all_sensors
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
