# SPDX-License-Identifier: Apache-2.0
"""Text and record of a reproduced table: data, hardware, settings that differ from the paper's, and the results."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from training.config import flatten, load_config
from training.reproduction.experiments import Experiment, Variant
from training.reproduction.runs import NEAREST, Run, Settings, data_config, system_files
from training.reproduction.scenes import FoundScenes, SceneData, TableScene, describe
from training.reproduction.tables import Line, comparisons_table, scene_table
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.localizer import select_device
from vmloc_ros.core.resources import share_path

_OF_THE_DATA = ("preprocess.", "source.robotcar.scene", "seed", "model.name")
_SIZE = "preprocess.shortest_side"


def table_record(
    name: str,
    experiment: Experiment,
    found: FoundScenes,
    data: Mapping[str, SceneData],
    variants: Sequence[Variant],
    settings: Settings,
) -> dict[str, Any]:
    """All about a table but its results, for ``<name>.json``."""
    return {
        "table": name,
        "title": experiment.title,
        "statistic": experiment.statistic,
        "date": timestamp(),
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
    """Training settings that differ from the paper's, by key.

    The paper's are the defaults, with the files of the scene, of the system and of the paper's letter over them.
    """
    differing: dict[str, str] = {}
    of_scene = [] if scene.kind == "bags" else [share_path("config", "train", scene.config)]
    for variant in variants:
        if variant.system == NEAREST or scene.kind in variant.recipes:
            continue
        files = [*of_scene, *system_files(variant), share_path("config", "train", "paper.yaml")]
        paper = flatten(to_mapping(load_config(files, [*variant.settings, f"model.name={variant.system}"])))
        ours = flatten(to_mapping(Run(scene, variant, 0).config(settings)))
        for key, value in ours.items():
            if value != paper[key] and (key == _SIZE or not key.startswith(_OF_THE_DATA)):
                differing[key] = f"{value}, not {paper[key]}"
    return differing


def hardware(device: str) -> dict[str, str]:
    """Device that computes, and versions of Python and PyTorch."""
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


def table_text(
    experiment: Experiment, found: FoundScenes, lines: Sequence[Line], record: Mapping[str, Any], settings: Settings
) -> str:
    """The table as Markdown, with data, settings and notes."""
    parts = [
        f"# {experiment.title}",
        f"{heading(record)} Errors are the {experiment.statistic} over the frames of a row's data; ± is the standard "
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
        return "Settings are the paper's, except that some frames are held out of training to choose the epoch."
    listing = ", ".join(f"`{key}` {text}" for key, text in differing.items())
    return f"NOT the paper's settings: {listing}."


def _recipes(scene: TableScene, variants: Sequence[Variant], settings: Settings) -> dict[str, dict[str, Any]]:
    """For each variant with a recipe for the scene: the recipe's file, and the settings that differ from it."""
    found = {}
    for variant in variants:
        if file := variant.recipes.get(scene.kind):
            recipe = flatten(to_mapping(load_config([share_path("config", "train", file)])))
            ours = flatten(to_mapping(Run(scene, variant, 0).config(settings)))
            but = {k: value for k, value in ours.items() if value != recipe[k] and not k.startswith(_OF_THE_DATA)}
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


def heading(record: Mapping[str, Any]) -> str:
    """Date, hardware and PyTorch's version, as a sentence."""
    return f"{record['date'][:16].replace('T', ' ')}, {record['hardware']}, torch {record['torch']}."


def timestamp() -> str:
    """Local time with its offset, in ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
