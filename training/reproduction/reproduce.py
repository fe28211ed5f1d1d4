# SPDX-License-Identifier: Apache-2.0
"""One table of the paper from data to figures: train what is missing, evaluate, set ours beside the paper's."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from training.config import TrainConfig, flatten, load_config
from training.evaluation.tables import Metrics
from training.output import write_csv, write_text
from training.reproduction.cost import cost_rows, cost_table, measure_cost
from training.reproduction.experiments import EXPERIMENTS, Experiment, Input, Variant, select_variants
from training.reproduction.runs import (
    NEAREST,
    Run,
    Settings,
    State,
    carry_out,
    corruption_of,
    data_config,
    examine,
    kept_metrics,
    measure,
    system_files,
)
from training.reproduction.scenes import Found, SceneData, TableScene, describe, find_scenes, read_scene
from training.reproduction.tables import Line, averages, comparisons_table, scene_table, write_table
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.models import DEFAULT_SYSTEM
from vmloc_ros.core.resources import share_path

logger = logging.getLogger(__name__)

_OF_THE_DATA = ("preprocess.", "source.robotcar.scene", "seed", "model.name")
_SIZE = "preprocess.shortest_side"


def reproduce(
    name: str,
    root: Path,
    settings: Settings,
    *,
    scenes: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    seeds: int = 1,
) -> str:
    """Make a table of :data:`EXPERIMENTS`; what is there already is used again.

    Checkpoints are ``OUT/<scene>/<variant>_seed<N>.safetensors``, evaluations are in ``OUT/<scene>/evaluation``, and
    the table is ``OUT/<name>.md``, ``.csv`` and ``.json``.

    Returns:
        The table as Markdown.

    Raises:
        VmlocError: settings, data, a model or output are at fault; before anything is trained, where that can be.
    """
    if seeds < 1:
        raise ConfigError(f"the number of seeds must be at least 1, got {seeds}")
    experiment = EXPERIMENTS[name]
    variants = select_variants(experiment, systems)
    found = find_scenes(root, experiment.kind, scenes)
    data = {scene.name: read_scene(scene, data_config(scene, settings)) for scene in found.scenes}
    runs = _plan(found.scenes, variants, seeds)
    runs = _train(runs, data, settings)
    results = _evaluate(runs, experiment, data, settings)
    lines = [
        _line(scene, row, variant, damage, results)
        for scene in found.scenes
        for row in scene.rows
        for damage in experiment.inputs_of_all(variants)
        for variant in variants
        if damage in experiment.inputs_of(variant.name)
    ]
    lines += averages([line for line in lines if _kind(found, line) == experiment.kind])
    record = _record(name, experiment, found, data, variants, settings)
    text = _text(experiment, found, lines, record, settings)
    write_table(settings.out, name, text, lines, experiment, record)
    return text


def _plan(scenes: Sequence[TableScene], variants: Sequence[Variant], seeds: int) -> list[Run]:
    """Retrieval first, in which nothing is random: if its weights are not to be had, no time has been lost."""
    return [
        Run(scene, variant, seed)
        for scene in scenes
        for variant in sorted(variants, key=lambda variant: variant.system != NEAREST)
        for seed in range(1 if variant.system == NEAREST else seeds)
    ]


def _train(runs: Sequence[Run], data: Mapping[str, SceneData], settings: Settings) -> list[Run]:
    """The runs that have a finished checkpoint, after training the others where that is allowed."""
    states = {run: examine(run, data[run.scene.name], settings) for run in runs}
    missing = [run for run in runs if states[run] is not State.FINISHED]
    if not settings.may_train:
        return [run for run in runs if run not in missing]
    for number, run in enumerate(missing, start=1):
        logger.info("training %d of %d: %s", number, len(missing), run)
        carry_out(run, states[run], settings)
    return list(runs)


Results = dict[tuple[str, str, Input], dict[int, dict[str, Any] | None]]


def _evaluate(
    runs: Sequence[Run], experiment: Experiment, data: Mapping[str, SceneData], settings: Settings
) -> Results:
    """Metrics by scene, variant, input and seed; None where the input leaves the system nothing."""
    results: Results = {}
    todo = [(run, damage) for run in runs for damage in experiment.inputs_of(run.variant.name)]
    for number, (run, damage) in enumerate(todo, start=1):
        corruption, of_scene = corruption_of(run, damage, settings), data[run.scene.name]
        metrics = None
        if corruption is not None:
            metrics = kept_metrics(run, corruption, of_scene, settings)
            if metrics is None:
                what = f" with {corruption}" if corruption.tag else ""
                logger.info("evaluating %d of %d: %s%s", number, len(todo), run, what)
                metrics = measure(run, corruption, of_scene, settings)
        results.setdefault((run.scene.name, run.variant.name, damage), {})[run.seed] = metrics
    return results


def _line(scene: TableScene, row: str, variant: Variant, damage: Input, results: Results) -> Line:
    found = results.get((scene.name, variant.name, damage), {})
    answered = {seed: metrics for seed, metrics in found.items() if metrics is not None}
    why_not = "" if answered else "no input left" if found else "not trained"
    metrics = tuple(_summary(metrics, scene.rows[row]) for metrics in answered.values())
    return Line(scene.name, row, variant.name, damage, tuple(answered), metrics, why_not)


def _summary(metrics: Mapping[str, Any], sequence: str | None) -> Metrics:
    values = metrics if sequence is None else metrics["sequences"][sequence]
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _kind(found: Found, line: Line) -> str:
    return next(scene.kind for scene in found.scenes if scene.name == line.scene)


def _record(
    name: str,
    experiment: Experiment,
    found: Found,
    data: Mapping[str, SceneData],
    variants: Sequence[Variant],
    settings: Settings,
) -> dict[str, Any]:
    return {
        "table": name,
        "title": experiment.title,
        "statistic": experiment.statistic,
        "date": _now(),
        **hardware(settings.device),
        "scenes": {
            scene.name: {
                "data": describe(scene, data[scene.name]),
                "simulated": scene.simulated,
                "train": dict(data[scene.name].train),
                "test": dict(data[scene.name].test),
                "differs_from_the_paper": _differences(scene, variants, settings),
                "recipes": _recipes(scene, variants, settings),
            }
            for scene in found.scenes
        },
        "missing": list(found.missing),
    }


def _differences(scene: TableScene, variants: Sequence[Variant], settings: Settings) -> dict[str, str]:
    """Settings of training that are not the paper's: the defaults with those of its scenes' and systems' own files."""
    differing: dict[str, str] = {}
    of_scene = [] if scene.kind == "bags" else [share_path("config", "train", scene.config)]
    for variant in variants:
        if variant.system == NEAREST or scene.kind in variant.recipes:
            continue
        paper = flatten(
            to_mapping(
                load_config([*of_scene, *system_files(variant)], [*variant.settings, f"model.name={variant.system}"])
            )
        )
        ours = flatten(to_mapping(Run(scene, variant, 0).config(settings)))
        for key, value in ours.items():
            if value != paper[key] and (key == _SIZE or not key.startswith(_OF_THE_DATA)):
                differing[key] = f"{value}, not {paper[key]}"
    return differing


def hardware(device: str) -> dict[str, str]:
    """What computes, and with which PyTorch."""
    chosen = select_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{os.cpu_count()} cores of {_processor()}"
    return {"hardware": name, "python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _text(
    experiment: Experiment, found: Found, lines: Sequence[Line], record: Mapping[str, Any], settings: Settings
) -> str:
    parts = [
        f"# {experiment.title}",
        f"{_heading(record)} Errors are the {experiment.statistic} over the frames of a row's data; ± is the standard "
        "deviation over seeds.",
    ]
    for scene in found.scenes:
        own = [line for line in lines if line.scene == scene.name]
        about = record["scenes"][scene.name]
        parts += [f"## {scene.name}", f"{about['data']}.", _recipe_text(about["recipes"])]
        if {line.variant for line in own} - {*about["recipes"], NEAREST}:
            parts.append(_difference_text(about["differs_from_the_paper"]))
        if experiment.paper and not set(scene.rows) & set(experiment.paper_rows):
            parts.append("The paper has no figures for these data.")
        parts.append(scene_table(own, experiment, _range_name(scene, settings)))
        parts.append(comparisons_table(own, experiment.comparisons, experiment.statistic))
    over = [line for line in lines if line.scene not in record["scenes"]]
    if over:
        rows = over[0].row.replace("+", ", ")
        parts += [f"## Average over {rows}", scene_table(over, experiment, "depth or lidar")]
    compared = {row for scene in found.scenes for row in scene.rows} & set(experiment.paper_rows)
    parts += [*experiment.notes, *(experiment.paper_notes if compared else ())]
    if found.missing:
        parts += ["Not in the data:", "\n".join(f"* {text}" for text in found.missing)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _difference_text(differing: Mapping[str, str]) -> str:
    if not differing:
        return "Settings are the paper's, but for the frames held out of training to choose the epoch."
    listing = ", ".join(f"`{key}` {text}" for key, text in differing.items())
    return f"NOT the paper's settings: {listing}."


def _recipes(scene: TableScene, variants: Sequence[Variant], settings: Settings) -> dict[str, dict[str, Any]]:
    """Of the variants that have a recipe for the scene its file, and their settings that are not the file's."""
    found = {}
    for variant in variants:
        if file := variant.recipes.get(scene.kind):
            recipe = flatten(to_mapping(load_config([share_path("config", "train", file)])))
            ours = flatten(to_mapping(Run(scene, variant, 0).config(settings)))
            but = {
                key: value for key, value in ours.items() if value != recipe[key] and not key.startswith(_OF_THE_DATA)
            }
            found[variant.name] = {"file": file, "but": but}
    return found


def _recipe_text(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, recipe in recipes.items():
        but = ", ".join(f"`{key}` {value}" for key, value in recipe["but"].items())
        lines.append(f"* {name} has the settings of `config/train/{recipe['file']}`{f', but for {but}' if but else ''}")
    return "\n".join(["None of these are the paper's:", "", *lines]) if lines else ""


def _range_name(scene: TableScene, settings: Settings) -> str:
    names = [name for name in data_config(scene, settings).preprocess.modalities if name != IMAGE]
    return " and ".join(names)


def reproduce_cost(configs: Mapping[str, TrainConfig], out: Path, *, device: str = "auto", repeats: int = 20) -> str:
    """Time training steps and answers; ``OUT/cost.md``, ``.csv`` and ``.json``.

    Args:
        configs: see :func:`training.reproduction.cost.measure_cost`.

    Raises:
        VmlocError: settings, device or output are at fault.
    """
    rows = cost_rows(measure_cost(configs, select_device(device), repeats))
    record = {"table": "cost", "date": _now(), **hardware(device)}
    config = configs[DEFAULT_SYSTEM]
    shape = f"{config.model.backbone}, {config.preprocess.shortest_side} pixels, batch {config.optimizer.batch_size}"
    text = "\n\n".join(
        [
            "# What importance weighting costs",
            f"{_heading(record)} {shape}, image and depth of random numbers, {repeats} turns; in brackets quartiles. "
            "The paper says of answers that they take almost the same time.",
            cost_table(rows),
        ]
    )
    write_text(out / "cost.md", text + "\n")
    write_text(out / "cost.json", json.dumps({**record, "settings": shape, "results": rows}, indent=2) + "\n")
    write_csv(out / "cost.csv", rows)
    return text + "\n"


def _heading(record: Mapping[str, Any]) -> str:
    return f"{record['date'][:16].replace('T', ' ')}, {record['hardware']}, torch {record['torch']}."


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
