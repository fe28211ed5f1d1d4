# SPDX-License-Identifier: Apache-2.0
"""``vmloc extrinsics``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from vmloc_ros.core.errors import ConfigError


def add_extrinsics(commands: Any) -> None:
    """``vmloc extrinsics``."""
    parser = add_command(
        commands,
        "extrinsics",
        _extrinsics,
        "Estimate from a recording, without a target, where the lidar or depth camera is, seen from the camera.",
    )
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or datasets, all of one robot")
    parser.add_argument("--split", choices=["train", "test", "all"], default="train", help="of data that have splits")
    parser.add_argument("--sensor", choices=["lidar", "depth"], help="default: the lidar, if there is one")
    parser.add_argument("--frames", type=int, default=150, help="how many to use, evenly spread")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")


def _extrinsics(options: argparse.Namespace) -> None:
    from training.config import parse_source_options
    from training.extrinsics.report import estimate_mount

    if options.frames < 1:
        raise ConfigError(f"--frames must be at least 1, got {options.frames}")
    estimate = estimate_mount(
        options.data,
        split=options.split,
        options=parse_source_options({}, options.set),
        frames=options.frames,
        sensor=options.sensor,
    )
    print(estimate.text)
