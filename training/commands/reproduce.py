# SPDX-License-Identifier: Apache-2.0
"""``vmloc reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_allow_truncated, add_device
from vmloc_ros.core.errors import ConfigError

_TABLES = ("table1", "table2", "table3", "table4", "cost", "claims", "recipe", "ablation", "systems")


def add_reproduce(commands: Any) -> None:
    """``vmloc reproduce``."""
    parser = add_command(
        commands,
        "reproduce",
        _reproduce,
        "Make a table, the paper's or ours: train what is missing, evaluate, print our figures beside the paper's.",
    )
    parser.add_argument(
        "table",
        choices=_TABLES,
        help="1: 7-Scenes, 2: RobotCar, 3: ways to fuse, 4: damaged input; ours: cost of importance weighting, "
        "the paper's claims (k = 10, fusion, a missing sensor), parts of VMLoc's recipe, ablation, all systems",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="ROOT",
        help="folder of 7-Scenes scenes, RobotCar sequences, or NAME/train and NAME/test with bags; not for cost",
    )
    parser.add_argument("--scenes", nargs="+", metavar="NAME", help="default: the table's own, else all that are there")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="default: the table's own")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train each N times; the paper's N is 5")
    parser.add_argument("--out", type=Path, default=Path("reproduction"), help="folder of checkpoints and results")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="YAML file that overrides the scene's and the system's own, such as config/train/reduced/street.yaml; "
        "repeatable; dense systems' own files (except images and backbone) and --set override it",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of all files")
    add_allow_truncated(parser)
    add_device(parser)
    _add_more(parser)
    parser.set_defaults(interrupt_hint="; the same command goes on from there")


def _add_more(parser: argparse.ArgumentParser) -> None:
    """Options on existing checkpoints, the system ``nearest`` and the table ``cost``."""
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--no-train", action="store_true", help="use the checkpoints that are there")
    existing.add_argument("--retrain", action="store_true", help="replace checkpoints that have other settings")
    parser.add_argument("--nearest-backbone", metavar="NAME", help="of the system nearest (default: model.backbone)")
    parser.add_argument(
        "--nearest-weights", type=Path, metavar="FILE", help="its state-dict file (default: pretrained, or ImageNet's)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="cost: how often each step is timed")


def _reproduce(options: argparse.Namespace) -> None:
    text = _cost(options) if options.table == "cost" else _table(options)
    print(text)
    print(f"wrote {options.out / options.table}.md, .csv and .json")


def _table(options: argparse.Namespace) -> str:
    from training.reproduction.reproduce import reproduce
    from training.reproduction.runs import Settings

    if options.data is None:
        raise ConfigError(f"{options.table} needs --data ROOT")
    settings = Settings(
        options.out,
        options.config,
        options.set,
        device=options.device,
        may_train=not options.no_train,
        retrain=options.retrain,
        nearest_backbone=options.nearest_backbone,
        nearest_weights=options.nearest_weights,
    )
    return reproduce(
        options.table, options.data, settings, scenes=options.scenes, systems=options.systems, seeds=options.seeds
    )


def _cost(options: argparse.Namespace) -> str:
    from training.config import load_config_for
    from training.reproduction.cost import SYSTEMS
    from training.reproduction.reproduce import reproduce_cost

    configs = {system: load_config_for(system, options.config, options.set or []) for system in SYSTEMS}
    return reproduce_cost(configs, options.out, device=options.device, repeats=options.repeats)
