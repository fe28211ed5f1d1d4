# SPDX-License-Identifier: Apache-2.0
"""``vmloc demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_device


def add_demo(commands: Any) -> None:
    """``vmloc demo``."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        "Drive an unseen simulated traversal, replay it into the node, report how well it localizes.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the traversal, any number; never one used in training")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for results")
    parser.add_argument(
        "--checkpoint", type=Path, help="default: dense_street.safetensors, which ships with the package"
    )
    parser.add_argument("--beams", type=int, default=16, help="beams of the lidar, as many as in training")
    parser.add_argument("--rate", type=float, default=1.0, help="replay speed")
    add_device(parser)


def _demo(options: argparse.Namespace) -> None:
    from training.demo import run_demo

    report = run_demo(
        seed=options.seed,
        out=options.out,
        checkpoint=options.checkpoint,
        beams=options.beams,
        rate=options.rate,
        device=options.device,
    )
    print(report.text())
