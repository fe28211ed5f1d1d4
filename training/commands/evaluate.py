# SPDX-License-Identifier: Apache-2.0
"""``vmloc evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_data, add_device, add_source_overrides, add_split


def add_evaluate(commands: Any) -> None:
    """``vmloc evaluate``."""
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "Localize every frame of some data; print errors, write tables, trajectories and pictures.",
    )
    parser.add_argument("checkpoint", type=Path)
    add_data(parser)
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="another checkpoint that differs in its seed: mean and standard deviation are reported; can be repeated",
    )
    add_split(parser, "test")
    parser.add_argument("--out", type=Path, help="folder for results (default: evaluation/CHECKPOINT)")
    add_source_overrides(parser)
    add_device(parser)
    _add_nearest(parser)
    parser.add_argument(
        "--lookahead",
        type=int,
        default=0,
        metavar="N",
        help="use N later frames, too (models of clips: vidloc)",
    )
    _add_corruption(parser)
    parser.add_argument(
        "--all-sensors",
        action="store_true",
        help="use every sensor, as the paper's systems do; by default, checkpoints with a confidence drop a sensor "
        "whose input is an outlier, as the node does",
    )


def _add_nearest(parser: argparse.ArgumentParser) -> None:
    """Options of the retrieval baseline."""
    parser.add_argument(
        "--nearest",
        type=Path,
        nargs="+",
        metavar="DATA",
        help="also evaluate retrieval of the nearest of these images",
    )
    parser.add_argument("--nearest-backbone", default="resnet34", help="network whose features --nearest compares")
    parser.add_argument("--nearest-weights", help="its state-dict file (default: torchvision's ImageNet weights)")


def _add_corruption(parser: argparse.ArgumentParser) -> None:
    """Options of corrupted input."""
    parser.add_argument(
        "--corrupt",
        action="append",
        default=[],
        metavar="MODALITY=LEVEL",
        help="corrupt the input as in the paper's Table 4: 1 masks a square of it, 2 removes it (3 keeps it, but "
        "black or empty, as published code does); can be repeated",
    )
    parser.add_argument("--corruption-seed", type=int, default=0, metavar="N", help="of the masks' positions")


def _evaluate(options: argparse.Namespace) -> None:
    from training.evaluation.corruption import parse_corruption
    from training.evaluation.evaluate import evaluate_checkpoints

    report = evaluate_checkpoints(
        [options.checkpoint, *options.also],
        options.data,
        split=options.split,
        out=options.out,
        overrides=options.set,
        device=options.device,
        nearest=options.nearest,
        nearest_backbone=options.nearest_backbone,
        nearest_weights=options.nearest_weights or True,
        lookahead=options.lookahead,
        corruption=parse_corruption(options.corrupt, options.corruption_seed),
        all_sensors=options.all_sensors,
    )
    print(report.text)
    print(f"wrote {report.folder}")
