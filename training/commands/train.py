# SPDX-License-Identifier: Apache-2.0
"""``vmloc train``."""

from __future__ import annotations

import argparse
import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.commands import add_command
from training.commands.options import (
    add_allow_truncated,
    add_cache,
    add_checkpoint_out,
    add_device,
    add_overwrite,
    add_split,
)
from vmloc_ros.core.errors import ConfigError

if TYPE_CHECKING:
    from training.trainer.timetable import Timetable

logger = logging.getLogger(__name__)


def add_train(commands: Any) -> None:
    """``vmloc train``."""
    parser = add_command(commands, "train", _train, "Train a model on bags or a dataset.")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="YAML file, see config/train; can be repeated, later ones win (default: a plan, made for the recordings; "
        "the paper's settings are config/train/paper.yaml)",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="bags, folders of bags or datasets")
    add_split(parser, "train")
    parser.add_argument("--val-data", type=Path, nargs="+", help="validate on these instead of held-out blocks")
    add_checkpoint_out(parser)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, such as optimizer.epochs=20")
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="without --config: time for the whole training, that the plan keeps to",
    )
    parser.add_argument(
        "--plan-only", action="store_true", help="without --config: survey the data, write OUT.plan.yaml and stop"
    )
    add_allow_truncated(parser)
    add_device(parser)
    add_cache(parser)
    parser.add_argument("--no-cache", action="store_true", help="hold prepared frames in memory, write none to disk")
    parser.add_argument("--tensorboard", action="store_true", help="write OUT.tensorboard beside OUT")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from where OUT's training stopped")
    add_overwrite(existing, "OUT if it exists")


def _train(options: argparse.Namespace) -> None:
    from training.evaluation.tables import Row, errors_table
    from training.sources.caching import default_cache
    from training.trainer.run_files import RunFiles
    from training.trainer.train import train

    config, timetable = _settings(options)
    if options.plan_only:
        return
    try:
        metrics = train(
            config_files=config,
            overrides=options.set,
            data=options.data,
            split=options.split,
            validation_data=options.val_data,
            out=options.out,
            device=options.device,
            resume=options.resume,
            overwrite=options.overwrite,
            cache=None if options.no_cache else options.cache or default_cache(),
            tensorboard=options.tensorboard,
            timetable=timetable,
        )
    except KeyboardInterrupt:
        if RunFiles(options.out).state.exists():
            options.interrupt_hint = "; go on with --resume"
        raise
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes; the first one prints
        return
    name = "validation" if metrics.pop("held_out") else "training data"
    print(errors_table({name: Row(metrics, {})}))
    print(f"wrote {options.out}")


def _settings(options: argparse.Namespace) -> tuple[list[Path], Timetable | None]:
    """Configuration files: those given, of a training that is resumed its own, otherwise a new plan."""
    from training.trainer.planned import plan_training
    from training.trainer.run_files import RunFiles

    if options.config:
        if options.plan_only:
            raise ConfigError("--plan-only plans, and --config gives a plan: leave one of them out")
        return options.config, None
    if options.resume:
        return [own] if (own := RunFiles(options.out).config).is_file() else [], None
    if any(text.startswith("model.name=") for text in options.set or []):
        if options.plan_only:
            raise ConfigError("--plan-only chooses the system: leave out --set model.name=...")
        logger.info("--set model.name chooses the system: no plan is made, settings that are not given are defaults")
        return [], None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("plan once, with --plan-only and without torchrun; then give OUT.plan.yaml by --config")
    file, timetable = plan_training(
        options.data,
        options.out,
        split=options.split,
        validation_data=options.val_data,
        overrides=options.set or [],
        minutes=options.minutes,
        device=options.device,
        overwrite=options.overwrite,
        say=functools.partial(print, flush=True),
    )
    if options.plan_only:
        print(f"wrote {file}")
    return [file], timetable
