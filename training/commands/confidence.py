# SPDX-License-Identifier: Apache-2.0
"""``vmloc confidence``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_data, add_device, add_source_overrides, add_split, check_positive


def add_confidence(commands: Any) -> None:
    """``vmloc confidence``."""
    parser = add_command(
        commands,
        "confidence",
        _confidence,
        "Measure how well a checkpoint's confidence detects gross errors, corrupted input and unknown places; write "
        "tables and ROC curves.",
    )
    parser.add_argument("checkpoint", type=Path)
    add_data(parser, " that the map holds")
    parser.add_argument(
        "--foreign", type=Path, nargs="+", default=[], metavar="DATA", help="recordings of places outside of the map"
    )
    add_split(parser, "test", "of data that have splits")
    parser.add_argument("--frames", type=int, default=1000, help="about how many frames to use, evenly spread")
    parser.add_argument("--out", type=Path, help="folder for results (default: confidence/CHECKPOINT)")
    add_source_overrides(parser)
    add_device(parser)


def _confidence(options: argparse.Namespace) -> None:
    check_positive("--frames", options.frames)
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
