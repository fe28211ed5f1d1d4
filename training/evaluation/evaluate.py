# SPDX-License-Identifier: Apache-2.0
"""``vmloc evaluate``: open checkpoints and data, localize, write results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import checkpoint_source_options, upgraded
from training.data.coverage import warn_of_unknown_places
from training.evaluation.corruption import NO_CORRUPTION, Corruption
from training.evaluation.results import write_comparison, write_results
from training.evaluation.retrieval import nearest_image_errors
from training.evaluation.tracks import Evaluation, evaluate
from training.sources.base import Source
from training.sources.factory import open_all
from vmloc_ros.core.checkpoint import CheckpointHeader, read_header
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.point_times import TIMES, compare_times, reading_from

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenResults:
    """Files of an evaluation: their folder, the text of ``results.md`` and the contents of ``metrics.json``."""

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
) -> WrittenResults:
    """Evaluate a checkpoint, or several of one system that were trained with different seeds, and write the results.

    Several get a folder each, beside mean and standard deviation over them. Where ``nearest`` names the training
    data, the retrieval baseline is added; its images are never corrupted. With ``all_sensors``, outlier sensors are
    not dropped (``Localizer.drop_outlier_sensors``). Raises VmlocError: checkpoints, data or output are at fault.
    """
    header = _common_header(checkpoints)
    options = checkpoint_source_options(header, overrides)
    sources = open_all(data, split, options, header.preprocess.modalities)
    baselines = {}
    if nearest:
        images = open_all(nearest, "train", options, ("image",)), open_all(data, split, options, ("image",))
        errors = nearest_image_errors(*images, nearest_backbone, nearest_weights, progress)
        baselines["nearest training image"] = errors.summary()
    folder, evaluations = out or _default_folder(checkpoints, corruption), []
    for number, path in enumerate(checkpoints, start=1):
        evaluations.append(_evaluate(path, sources, device, all_sensors, lookahead, corruption, progress))
        own = folder / f"{number}_{path.stem}" if len(checkpoints) > 1 else folder
        text = write_results(evaluations[-1], own, baselines)
    if len(evaluations) > 1:
        text = write_comparison(evaluations, folder, baselines)
    return WrittenResults(folder, text, json.loads((folder / "metrics.json").read_text()))


def _evaluate(
    checkpoint: Path,
    sources: Sequence[Source],
    device: str,
    all_sensors: bool,
    lookahead: int,
    corruption: Corruption,
    progress: bool,
) -> Evaluation:
    localizer = Localizer.load(checkpoint, device)
    localizer.drop_outlier_sensors = not all_sensors
    warn_of_unknown_places(localizer.header.training, [pose for source in sources for pose in source.poses()])
    warn_of_other_times(localizer.header.training.get("inputs", {}), sources)
    return replace(evaluate(localizer, sources, progress, lookahead, corruption), checkpoint=str(checkpoint))


def warn_of_other_times(trained: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Say where scans' points' times are read otherwise than in training, as the node does."""
    for source in sources:
        own = getattr(source, "readings", {})
        if TIMES in trained and TIMES in own:
            warning, remark = compare_times(reading_from(trained[TIMES]), reading_from(own[TIMES]))
            for log, text in ((logger.warning, warning), (logger.info, remark)):
                if text:
                    log("%s: points' times: %s", source.name, text)


def _common_header(checkpoints: Sequence[Path]) -> CheckpointHeader:
    """The first checkpoint's header, after a check that a mean over all of them is meaningful.

    Raises:
        ConfigError: a checkpoint is given twice, or they differ in model or preprocessing.
    """
    first, *others = checkpoints
    header = read_header(first)
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise ConfigError("a checkpoint is given twice, which makes the standard deviation too small; give each once")
    ours = _settings(header)
    for path in others:
        theirs = _settings(read_header(path))
        for key in sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            text = f"{path} differs from {first}: {key} is {theirs.get(key)}, not {ours.get(key)}"
            if key.startswith(("model.", "preprocess.")):
                raise ConfigError(f"{text}; average only checkpoints that differ in their seed")
            logger.warning("%s; the mean is over different trainings", text)
    return header


def _settings(header: CheckpointHeader) -> dict[str, Any]:
    """Settings that are equal in all checkpoints of one experiment, with dotted keys."""
    recorded = upgraded(header.training["config"]) if "config" in header.training else {}
    sections = {"model": to_mapping(header.model), "preprocess": to_mapping(header.preprocess)}
    sections |= {name: recorded.get(name, {}) for name in ("objective", "optimizer", "augment")}
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _default_folder(checkpoints: Sequence[Path], corruption: Corruption) -> Path:
    more = f"and_{len(checkpoints) - 1}_more" if len(checkpoints) > 1 else ""
    return Path("evaluation") / "_".join(filter(None, (checkpoints[0].stem, more, corruption.tag)))
