# SPDX-License-Identifier: Apache-2.0
"""Make a plan from a survey, and fit its length to a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from training.config import TrainConfig, merged, parse_config
from training.planning.budget import (
    Costs,
    Length,
    Sizes,
    Stage,
    fewest_steps,
    fit_length,
    shortened,
    shortened_costs,
    stages,
    total_s,
    usable_s,
    with_length,
)
from training.planning.choices import (
    FEW_FOLDS,
    FOLDS,
    Choice,
    System,
    choose_folds,
    choose_system,
    cylinder,
    lidar_ranges,
    regions,
    shipped,
)
from training.planning.machine import has_weights, is_bf16_fast
from training.survey.facts import Survey
from vmloc_ros.core.files import write_aside
from vmloc_ros.core.frame import DEPTH, LIDAR

_DEPTH_VOXEL_M, _LARGE_VOXEL_M = 0.04, 0.25  # of dense_rgbd.yaml and dense_street.yaml
_LARGE_MAP_M = 300.0  # of road, from which voxels of 0.04 m would be too many
_ABOVE_DEPTH = 1.1  # times the usual limit of depths
_FAR_DEPTH_M = 10.0
_MOST_FACTOR = 8  # times the usual epochs, where frames are few


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train, and why.

    Attributes:
        layer: settings that differ from the defaults, as a configuration file has them.
        overrides: the user's own, which go on top.
        choices: in the order to print.
        sizes: numbers of frames.
        steps: see :class:`System`.
    """

    layer: dict[str, Any]
    overrides: tuple[str, ...]
    choices: tuple[Choice, ...]
    sizes: Sizes
    steps: int = 0

    @property
    def config(self) -> TrainConfig:
        """The configuration. Raises ConfigError: an override is wrong, or does not fit the plan."""
        return parse_config(self.layer, list(self.overrides), "the plan with --set")

    def lines(self) -> list[str]:
        """Every choice with its reason."""
        width = max(len(choice.topic) for choice in self.choices)
        return [f"{choice.topic:<{width}}  {choice.text}" for choice in self.choices]

    def write(self, path: Path, heading: Sequence[str]) -> None:
        """Write the settings, with the reasons as comments, for ``--config``.

        Args:
            heading: further comments, above them.

        Raises:
            OutputError: the file cannot be written.
        """
        with write_aside(path) as temporary:
            temporary.write_text(self.text(heading))

    def text(self, heading: Sequence[str]) -> str:
        """Content of the file."""
        comments = "".join(f"# {line}\n" for line in (*heading, *self.lines()))
        return comments + yaml.safe_dump(self.layer, sort_keys=False, default_flow_style=None, width=120)


def make_plan(
    found: Survey,
    *,
    overrides: Sequence[str] = (),
    validation: Survey | None = None,
    gpu: bool = False,
    weights: Callable[[str], bool] = has_weights,
) -> Plan:
    """Choose everything but the length of the training; :func:`schedule` does that.

    Args:
        overrides: ``KEY=VALUE`` that the user gives; they go on top, and choices that depend on them follow.
        validation: of separate validation data; None plans folds.
        gpu: whether the model is trained on a GPU.
        weights: whether a backbone's ImageNet weights can be had.

    Raises:
        DataError: the recordings do not suffice for any system.
        ConfigError: an override is wrong.
    """
    given = _given(overrides)
    system = choose_system(found, gpu)
    layer = shipped(system.file)
    layer = merged(layer, {"model": {"name": system.name}, "preprocess": {"modalities": list(system.modalities)}})
    layer, backbone = _with_backbone(layer, system, given, weights)
    layer, precision = _with_precision(layer, given, gpu)
    choices = [*system.choices, backbone, *precision]
    for part in (_sensors(found, system, layer), _map(found, system)):
        layer = merged(layer, part[0])
        choices += part[1]
    if source := _source(found):
        layer = merged(layer, {"source": source})
    held_out = 0
    if validation is None:
        frozen = bool(layer["model"].get("frozen", False))
        folds = choose_folds(found.poses, found.path.revisited, FEW_FOLDS if not frozen and _is_dense(layer) else FOLDS)
        epochs = layer["optimizer"]["epochs"]
        values = {**folds.values, **({"fold_epochs": max(1, epochs // 2)} if folds.values["folds"] else {})}
        layer = merged({**layer, "validation": {}}, {"validation": {"interval": epochs, **values}})
        choices.append(Choice("validation", folds.text))
        held_out = folds.held_out
    else:
        layer = {**layer, "validation": {"interval": layer["optimizer"]["epochs"]}}
        choices.append(Choice("validation", f"by the {validation.frames} frames of --val-data; no folds"))
    choices += _doubts(found)
    by_source = {recording.name: recording.frames for recording in found.recordings}
    others = {} if validation is None else {r.name: r.frames for r in validation.recordings}
    sizes = Sizes(by_source, held_out, others)
    plan = Plan(layer, tuple(overrides), tuple(choices), sizes, system.steps)
    _ = plan.config  # an override that does not fit is reported now
    return plan


def schedule(plan: Plan, costs: Costs, minutes: float) -> tuple[Plan, list[Stage]]:
    """The plan with as many epochs as fit in the time, and the expected stages of the training."""
    given, config = _given(plan.overrides), plan.config
    usual = _usual_epochs(plan, config)
    config = with_length(config, usual, max(1, usual // 2) if config.validation.crosses else 0)
    fixed = "optimizer.epochs" in given
    # Where trunks are trained, steps take the time and not frames; leaving some out would only lose views.
    is_trained = hasattr(config.model, "frozen") and not config.model.frozen
    keep = fixed or is_trained or "source.stride" in given
    length = (
        Length(1, config.optimizer.epochs, config.validation.fold_epochs, 1.0, 0.0, True)
        if fixed
        else fit_length(
            config, costs, plan.sizes, minutes, keep_stride=keep, per_frame=hasattr(config.model, "map_voxel_m")
        )
    )
    if length.is_short:
        config, costs = shortened(config), shortened_costs(costs, config)
    config = with_length(config, length.epochs, length.fold_epochs)
    sizes = Sizes(
        {name: -(-count // length.stride) for name, count in plan.sizes.by_source.items()},
        -(-plan.sizes.held_out // length.stride),
        {name: -(-count // length.stride) for name, count in plan.sizes.validation.items()},
    )
    found = stages(config, costs, sizes)
    validation: dict[str, Any] = {"interval": config.validation.interval}
    if config.validation.crosses:
        validation["fold_epochs"] = length.fold_epochs
        if length.stride > 1:
            validation["block"] = max(10, config.validation.block // length.stride)
    changes: dict[str, Any] = {"optimizer": {"epochs": length.epochs}, "validation": validation}
    steps = fewest_steps(config, sizes)
    if config.optimizer.warmup_steps > steps // 4:
        changes["optimizer"]["warmup_steps"] = steps // 4  # of the shortest training, which is a fold's
    if length.is_short:
        changes |= {"frozen": {"views": config.frozen.views}, "objective": {"cells": config.objective.cells}}
    if length.stride > 1:
        changes["source"] = {"stride": length.stride}
    choices = (*plan.choices, *_length_choices(length, minutes, found, sizes.train))
    return replace(plan, layer=merged(plan.layer, changes), choices=choices, sizes=sizes), found


def _usual_epochs(plan: Plan, config: TrainConfig) -> int:
    """Epochs of the configuration that is built upon or, where its steps count, those that make as many steps."""
    epochs = config.optimizer.epochs
    if not plan.steps or "optimizer.epochs" in _given(plan.overrides):
        return epochs
    wanted = plan.steps * (1 if getattr(config.model, "regions", 1) == 1 else 3)  # dense_town.yaml: 3250 steps
    return max(epochs, min(_MOST_FACTOR * epochs, round(wanted * config.optimizer.batch_size / plan.sizes.train)))


def _length_choices(length: Length, minutes: float, found: Sequence[Stage], frames: int) -> list[Choice]:
    expected = f"about {total_s(list(found)) / 60:.0f} min, a usable checkpoint after {usable_s(list(found)) / 60:.0f}"
    folds = f", {length.fold_epochs} of each fold" if length.fold_epochs else ""
    text = f"{length.epochs} epochs{folds}: {expected}, in --minutes {minutes:g}"
    if length.share < 1:
        text += f"; more minutes give more (up to {length.epochs / length.share:.0f} epochs)"
    if length.is_short:
        text += "; two views and 80 cells a frame, the short training of docs/dense.md"
    if not length.fits:
        text += ". THIS IS LONGER THAN ASKED: fewer epochs or frames would not be worth it"
    choices = [Choice("length", text)]
    if length.stride > 1:
        choices.append(
            Choice("stride", f"one frame of {length.stride} is used, {frames} in all; neighbours show nearly the same")
        )
    return choices


def _is_dense(layer: dict[str, Any]) -> bool:
    return "map_voxel_m" in layer["model"]


# --- parts of a plan -------------------------------------------------------------------------------------------------


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, _, value in (override.partition("=") for override in overrides)}


def _with_backbone(
    layer: dict[str, Any], system: System, given: dict[str, Any], weights: Callable[[str], bool]
) -> tuple[dict[str, Any], Choice]:
    """The layer with a backbone that can be had."""
    name = given.get("model.backbone", layer["model"].get("backbone", "resnet34"))
    if layer.get("pretrained") is False:
        text = f"{name}, trained from scratch: so {system.file} was tested with lidar (ImageNet's weights were not)"
        return layer, Choice("backbone", text)
    pretrained = given.get("pretrained", True)
    if isinstance(pretrained, str) or (pretrained and weights(name)):
        kept = "kept as they are, so that features are computed once" if layer["model"].get("frozen") else "trained on"
        return layer, Choice("backbone", f"{name} with ImageNet's weights, {kept}")
    scratch = shipped("dense_street.yaml")
    hint = "--set pretrained=FILE gives them" if pretrained else "by --set pretrained=false"
    if "frozen" in layer["model"]:
        own = {key: scratch["model"][key] for key in ("backbone", "hidden_dim", "dropout")}
        model = {**{key: x for key, x in layer["model"].items() if key != "frozen"}, **own}
        preprocess = {**layer["preprocess"], "shortest_side": scratch["preprocess"]["shortest_side"]}
        optimizer = {**layer["optimizer"], **scratch["optimizer"], "epochs": layer["optimizer"]["epochs"]}
        layer = {**layer, "model": model, "preprocess": preprocess, "optimizer": optimizer}
        name = given.get("model.backbone", own["backbone"])
    why = "ImageNet's weights cannot be had here" if pretrained else "ImageNet's weights are not wanted"
    text = f"{name}, trained from scratch as dense_street.yaml: {why} ({hint}); expect worse with real pictures"
    return {**layer, "pretrained": False}, Choice("backbone", text)


def _with_precision(layer: dict[str, Any], given: dict[str, Any], gpu: bool) -> tuple[dict[str, Any], list[Choice]]:
    """The layer without bf16 where this machine computes more slowly with it."""
    wanted = layer["optimizer"].get("precision", "fp32")
    if wanted != "bf16" or gpu or "optimizer.precision" in given or is_bf16_fast():
        return layer, []
    text = "fp32: this processor multiplies matrices of bf16 more slowly (measured)"
    return merged(layer, {"optimizer": {"precision": "fp32"}}), [Choice("precision", text)]


def _sensors(found: Survey, system: System, layer: dict[str, Any]) -> tuple[dict[str, Any], list[Choice]]:
    """Section ``preprocess``."""
    values: dict[str, Any] = {}
    side = layer["preprocess"].get("shortest_side", 256)
    sizes = [facts.size for facts in (found.camera, found.depth) if facts is not None]
    choices = []
    if sizes and set(system.modalities) - {LIDAR}:
        smallest = min(min(size) for size in sizes)
        values["shortest_side"] = side = max(32, min(side, smallest))
        choices.append(Choice("picture", f"shortest side {side} of {smallest} pixels, the size that {system.file} has"))
    if LIDAR in system.modalities and found.lidar is not None:
        values["cylinder"], text = cylinder(found.lidar)
        # Only dense_street.yaml has lidar settings; regression takes the same.
        usual = {**shipped("dense_street.yaml")["preprocess"], **layer["preprocess"]}
        ranges, more = lidar_ranges(found.lidar, usual)
        values |= ranges
        choices += [Choice("cylinder", text), Choice("ranges", more)]
    if DEPTH in system.modalities and found.depth is not None:
        usual_m = float(layer["preprocess"].get("depth_range_m", [0.0, 5.0])[1])
        far = usual_m if found.depth.far_m <= _ABOVE_DEPTH * usual_m else _FAR_DEPTH_M
        values["depth_range_m"] = [0.0, far]
        choices.append(Choice("ranges", f"depth up to {far:g} m, as 99 % are within {found.depth.far_m:.1f} m"))
    return {"preprocess": values}, choices


def _map(found: Survey, system: System) -> tuple[dict[str, Any], list[Choice]]:
    """Voxels and regions of a dense system's map."""
    if not system.file.startswith("dense_"):
        return {}, []
    road = found.path.road_m
    voxel = _DEPTH_VOXEL_M if LIDAR not in system.modalities and road <= _LARGE_MAP_M else _LARGE_VOXEL_M
    count, text = regions(road)
    of = "rooms seen by a depth camera" if voxel == _DEPTH_VOXEL_M else "a lidar's ranges, or a large map"
    choices = [Choice("map", f"voxels of {voxel:g} m, for {of}"), Choice("regions", text)]
    model: dict[str, Any] = {"map_voxel_m": voxel, "regions": count}
    return {"model": {**model, "context": True} if count > 1 else model}, choices


def _source(found: Survey) -> dict[str, Any]:
    """Section ``source``: what the kind of recording needs."""
    kinds = {recording.kind for recording in found.recordings}
    values: dict[str, Any] = {}
    if "seven_scenes" in kinds:
        values["register_depth"] = True
    if "tum" in kinds:
        values["slop_s"] = shipped("tum.yaml")["source"]["slop_s"]
    return values


def _doubts(found: Survey) -> list[Choice]:
    """What the recordings lack."""
    choices = []
    if found.camera is not None and found.camera.dark_share > 0.3:
        text = f"{found.camera.dark_share:.0%} of the pictures are dark: the map will not know the place in daylight"
        choices.append(Choice("warning", text))
    if found.path.revisited < 0.2:
        text = (
            f"only {found.path.revisited:.0%} of the views were recorded more than once; a map answers where it has "
            "seen the view: drive every place twice, in both directions, with other light"
        )
        choices.append(Choice("warning", text))
    return choices
