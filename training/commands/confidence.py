# SPDX-License-Identifier: Apache-2.0
"""``vmloc confidence``: how well confidence tells good frames from bad ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from vmloc_ros.core.errors import ConfigError


def add_confidence(commands: Any) -> None:
    """``vmloc confidence``."""
    parser = add_command(
        commands,
        "confidence",
        _confidence,
        "Measure how well a checkpoint's confidence tells good frames from bad ones; write tables and ROC curves.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or datasets that the map holds")
    parser.add_argument(
        "--foreign", type=Path, nargs="+", default=[], metavar="DATA", help="recordings of places outside of the map"
    )
    parser.add_argument("--split", choices=["train", "test", "all"], default="test", help="of data that have splits")
    parser.add_argument("--frames", type=int, default=1000, help="about how many of the data to use, evenly spread")
    parser.add_argument("--out", type=Path, help="folder for results (default: confidence/CHECKPOINT)")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _confidence(options: argparse.Namespace) -> None:
    if options.frames < 1:
        raise ConfigError(f"--frames must be at least 1, got {options.frames}")
    from training.evaluation.confidence_study import study

    text, folder = study(
        options.checkpoint,
        options.data,
        foreign=options.foreign,
        split=options.split,
        frames=options.frames,
        out=options.out,
        overrides=options.set,
        device=options.device,
    )
    print(text)
    print(f"wrote {folder}")
