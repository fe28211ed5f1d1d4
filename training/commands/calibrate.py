# SPDX-License-Identifier: Apache-2.0
"""``vmloc calibrate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import (
    add_cache,
    add_checkpoint_out,
    add_device,
    add_overwrite,
    add_source_overrides,
    add_split,
)


def add_calibrate(commands: Any) -> None:
    """``vmloc calibrate``."""
    parser = add_command(
        commands,
        "calibrate",
        _calibrate,
        "Fit covariance and confidence of a trained checkpoint anew, on your own data; write another checkpoint.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        help="recordings not used in training (default: the blocks of --train-data that training held out)",
    )
    add_split(parser, "all", "of --data, where it has splits")
    parser.add_argument(
        "--train-data",
        type=Path,
        nargs="+",
        default=[],
        help="training data, for the confidence (default: the reference features stored in the checkpoint)",
    )
    add_split(parser, "train", "of --train-data, where it has splits", name="--train-split")
    add_checkpoint_out(parser)
    add_source_overrides(parser)
    add_device(parser)
    add_overwrite(parser, "OUT if it exists")
    add_cache(parser)


def _calibrate(options: argparse.Namespace) -> None:
    from training.calibration.calibrate import recalibrate
    from training.info import uncertainty_text
    from training.sources.caching import default_cache

    header = recalibrate(
        options.checkpoint,
        options.data,
        options.out,
        split=options.split,
        train_data=options.train_data,
        train_split=options.train_split,
        overrides=options.set,
        device=options.device,
        overwrite=options.overwrite,
        cache=options.cache or default_cache(),
    )
    print(uncertainty_text(header.uncertainty))
    print(f"wrote {options.out}")
