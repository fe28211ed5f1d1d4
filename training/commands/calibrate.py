# SPDX-License-Identifier: Apache-2.0
"""``vmloc calibrate``: covariance and confidence anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command


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
        help="drives that training has not seen; without, the blocks of --train-data that training held out",
    )
    parser.add_argument(
        "--split", choices=["train", "test", "all"], default="all", help="of --data, where it has splits"
    )
    parser.add_argument(
        "--train-data",
        type=Path,
        nargs="+",
        default=[],
        help="what it was trained on, for the confidence; without, what the checkpoint remembers of it",
    )
    parser.add_argument(
        "--train-split", choices=["train", "test", "all"], default="train", help="of --train-data, where it has splits"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep prepared frames here (default: $VMLOC_CACHE, or vmloc_ros in $XDG_CACHE_HOME or ~/.cache)",
    )


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
