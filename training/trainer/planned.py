# SPDX-License-Identifier: Apache-2.0
"""Plan a training: survey the data, choose settings, measure costs, write the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.config import parse_source_options
from training.planning import Plan, make_plan, schedule
from training.survey import describe, survey
from training.trainer.costs import measure_costs
from training.trainer.run_files import RunFiles
from training.trainer.timetable import Timetable
from training.trainer.train import check_output
from vmloc_ros.core.errors import ConfigError, OutputError
from vmloc_ros.core.localizer import select_device

logger = logging.getLogger(__name__)

_LEAST_MINUTES = 0.1


def plan_training(
    data: Sequence[Path],
    out: Path,
    *,
    split: str = "train",
    validation_data: Sequence[Path] | None = None,
    overrides: Sequence[str] = (),
    minutes: float = 15.0,
    device: str = "auto",
    overwrite: bool = False,
    say: Callable[[str], None] = logger.info,
) -> tuple[Path, Timetable]:
    """Plan a training and write the plan to ``OUT.plan.yaml``, which is a configuration for it.

    Args:
        data: as of :func:`training.trainer.train.train`, and so are the others.
        overrides: ``KEY=VALUE``, which the plan takes into account but does not contain.
        minutes: for the whole training.
        say: takes the lines of survey and plan.

    Returns:
        The file, and the estimate of the time.

    Raises:
        VmlocError: data, overrides or output are at fault.
    """
    if not minutes >= _LEAST_MINUTES:
        raise ConfigError(f"--minutes must be at least {_LEAST_MINUTES:g}, got {minutes:g}")
    check_output(out, may_exist=overwrite)
    file = RunFiles(out).plan
    if file.exists() and not overwrite:
        raise OutputError(
            f"{file} exists, and may have been edited: train by it with --config {file}, or plan anew with --overwrite"
        )
    # The plan is beneath the user's own choices: --set says what to read and where the weights are.
    options = parse_source_options(_reading(data), [text for text in overrides if text.startswith("source.")])
    modalities = _modalities(overrides)
    found = survey(data, split, options, modalities)
    for line in describe(found):
        say(line)
    others = survey(validation_data, split, options, modalities or found.modalities) if validation_data else None
    torch_device = select_device(device)
    draft = make_plan(found, overrides=overrides, validation=others, gpu=torch_device.type == "cuda")
    costs = measure_costs(draft.config, found.sample, found.mounts, found.read_s, torch_device)
    plan, stages = schedule(draft, costs, minutes)
    _say_plan(plan, file, say)
    plan.write(file, _heading(data, out))
    return file, Timetable(stages)


def _say_plan(plan: Plan, file: Path, say: Callable[[str], None]) -> None:
    say("")
    say(f"plan ({file}: edit it and give it back by --config; --set KEY=VALUE goes on top):")
    for line in plan.lines():
        say(f"  {line}")
    say("")


def _heading(data: Sequence[Path], out: Path) -> list[str]:
    paths = " ".join(map(str, data))
    return [
        "Planned by vmloc train from the recordings; settings that are not here have their defaults.",
        f"  vmloc train --config {RunFiles(out).plan} --data {paths} --out {out}",
    ]


def _modalities(overrides: Sequence[str]) -> tuple[str, ...] | None:
    """The modalities that the user asks for; None where he does not."""
    asked: Any = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "preprocess.modalities":
            asked = yaml.safe_load(value)
    if asked is None:
        return None
    if not isinstance(asked, list) or not asked or not all(isinstance(name, str) for name in asked):
        raise ConfigError(f"preprocess.modalities is a list of image, depth and lidar, got {asked!r}")
    return tuple(asked)


def _reading(data: Sequence[Path]) -> dict[str, Any]:
    """How the data are read where their kind asks for it, before it is known what they hold."""
    from training.sources.seven_scenes import is_scene
    from training.sources.tum import is_tum

    values: dict[str, Any] = {}
    if any(path.exists() and is_scene(path) for path in data):
        values["register_depth"] = True
    if any(path.exists() and is_tum(path) for path in data):
        values["slop_s"] = 0.02
    return values
