# SPDX-License-Identifier: Apache-2.0
"""``vmloc reproduce``: train what is missing, evaluate, and write our figures beside the paper's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.evaluation.tables import Metrics
from training.output import write_csv, write_text
from training.reproduction.cost import measure_cost
from training.reproduction.cost_table import cost_rows, cost_table
from training.reproduction.experiments import EXPERIMENTS, Condition, Experiment, Variant, select_variants
from training.reproduction.report import hardware, heading, table_record, table_text, timestamp
from training.reproduction.runs import (
    NEAREST,
    Run,
    Settings,
    State,
    carry_out,
    corruption_of,
    data_config,
    examine,
    measure,
    stored_metrics,
)
from training.reproduction.scenes import SceneData, TableScene, find_scenes, read_scene
from training.reproduction.tables import Line, averages, write_table
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.models import DEFAULT_SYSTEM

logger = logging.getLogger(__name__)

# By scene, variant and input, then by seed; None where the corruption removes all input.
MetricsOfRuns = dict[tuple[str, str, Condition], dict[int, dict[str, Any] | None]]


def reproduce(
    name: str,
    root: Path,
    settings: Settings,
    *,
    scenes: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    seeds: int = 1,
) -> str:
    """Make a table of :data:`EXPERIMENTS`; existing checkpoints and evaluations are used again.

    Checkpoints are ``OUT/<scene>/<variant>_seed<N>.safetensors``, evaluations are in ``OUT/<scene>/evaluation``, and
    the table is ``OUT/<name>.md``, ``.csv`` and ``.json``.

    Returns:
        The table as Markdown.

    Raises:
        VmlocError: settings, data, a model or output are at fault; where possible, before anything is trained.
    """
    if seeds < 1:
        raise ConfigError(f"the number of seeds must be at least 1, got {seeds}")
    experiment = EXPERIMENTS[name]
    variants = select_variants(experiment, systems)
    found = find_scenes(root, experiment.kind, scenes)
    data = {scene.name: read_scene(scene, data_config(scene, settings)) for scene in found.scenes}
    runs = _train(_plan(found.scenes, variants, seeds), data, settings)
    results = _evaluate(runs, experiment, data, settings)
    lines = _lines(found.scenes, variants, experiment, results)
    of_the_paper = {scene.name for scene in found.scenes if scene.kind == experiment.kind}
    lines += averages([line for line in lines if line.scene in of_the_paper])
    record = table_record(name, experiment, found, data, variants, settings)
    text = table_text(experiment, found, lines, record, settings)
    write_table(settings.out, name, text, lines, experiment, record)
    return text


def _plan(scenes: Sequence[TableScene], variants: Sequence[Variant], seeds: int) -> list[Run]:
    """All runs, retrieval first: if its weights are missing, that shows before hours of training. It has one seed."""
    return [
        Run(scene, variant, seed)
        for scene in scenes
        for variant in sorted(variants, key=lambda variant: variant.system != NEAREST)
        for seed in range(1 if variant.system == NEAREST else seeds)
    ]


def _train(runs: Sequence[Run], data: Mapping[str, SceneData], settings: Settings) -> list[Run]:
    """The runs that have a finished checkpoint; the others are trained first where the settings allow it."""
    states = {run: examine(run, data[run.scene.name], settings) for run in runs}
    missing = [run for run in runs if states[run] is not State.FINISHED]
    if not settings.may_train:
        return [run for run in runs if run not in missing]
    for number, run in enumerate(missing, start=1):
        logger.info("training %d of %d: %s", number, len(missing), run)
        carry_out(run, states[run], settings)
    return list(runs)


def _evaluate(
    runs: Sequence[Run], experiment: Experiment, data: Mapping[str, SceneData], settings: Settings
) -> MetricsOfRuns:
    """Metrics of all runs with all of their inputs."""
    results: MetricsOfRuns = {}
    todo = [(run, condition) for run in runs for condition in experiment.inputs_of(run.variant.name)]
    for number, (run, condition) in enumerate(todo, start=1):
        corruption, of_scene = corruption_of(run, condition, settings), data[run.scene.name]
        metrics = None
        if corruption is not None:
            metrics = stored_metrics(run, corruption, of_scene, settings)
            if metrics is None:
                what = f" with {corruption}" if corruption.tag else ""
                logger.info("evaluating %d of %d: %s%s", number, len(todo), run, what)
                metrics = measure(run, corruption, of_scene, settings)
        results.setdefault((run.scene.name, run.variant.name, condition), {})[run.seed] = metrics
    return results


def _lines(
    scenes: Sequence[TableScene], variants: Sequence[Variant], experiment: Experiment, results: MetricsOfRuns
) -> list[Line]:
    """Lines of the table, by scene, row, input and variant."""
    return [
        _line(scene, row, variant, condition, results)
        for scene in scenes
        for row in scene.rows
        for condition in experiment.inputs_of_all(variants)
        for variant in variants
        if condition in experiment.inputs_of(variant.name)
    ]


def _line(scene: TableScene, row: str, variant: Variant, condition: Condition, results: MetricsOfRuns) -> Line:
    found = results.get((scene.name, variant.name, condition), {})
    evaluated = {seed: metrics for seed, metrics in found.items() if metrics is not None}
    why_not = "" if evaluated else "no input left" if found else "not trained"
    metrics = tuple(_sequence_metrics(metrics, scene.rows[row]) for metrics in evaluated.values())
    return Line(scene.name, row, variant.name, condition, tuple(evaluated), metrics, why_not)


def _sequence_metrics(metrics: Mapping[str, Any], sequence: str | None) -> Metrics:
    values = metrics if sequence is None else metrics["sequences"][sequence]
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def reproduce_cost(configs: Mapping[str, TrainConfig], out: Path, *, device: str = "auto", repeats: int = 20) -> str:
    """Time training steps and predictions; write ``OUT/cost.md``, ``.csv`` and ``.json``, and return the first.

    Args:
        configs: see :func:`training.reproduction.cost.measure_cost`.

    Raises:
        VmlocError: settings, device or output are at fault.
    """
    rows = cost_rows(measure_cost(configs, select_device(device), repeats))
    record = {"table": "cost", "date": timestamp(), **hardware(device)}
    config = configs[DEFAULT_SYSTEM]
    shape = f"{config.model.backbone}, {config.preprocess.shortest_side} pixels, batch {config.optimizer.batch_size}"
    text = "\n\n".join(
        [
            "# What importance weighting costs",
            f"{heading(record)} {shape}, image and depth of random numbers, {repeats} turns; in brackets quartiles. "
            "The paper reports nearly equal times for predictions.",
            cost_table(rows),
        ]
    )
    write_text(out / "cost.md", text + "\n")
    write_text(out / "cost.json", json.dumps({**record, "settings": shape, "results": rows}, indent=2) + "\n")
    write_csv(out / "cost.csv", rows)
    return text + "\n"
