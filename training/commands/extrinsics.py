# SPDX-License-Identifier: Apache-2.0
"""``vmloc extrinsics``."""

from __future__ import annotations

import argparse
from typing import Any

from training.commands import add_command
from training.commands.options import add_data, add_source_overrides, add_split, check_positive


def add_extrinsics(commands: Any) -> None:
    """``vmloc extrinsics``."""
    parser = add_command(
        commands,
        "extrinsics",
        _extrinsics,
        "Estimate the pose of the lidar or depth camera in the camera's frame from a recording, without a target.",
    )
    add_data(parser, ", all of one robot")
    add_split(parser, "train", "of data that have splits")
    parser.add_argument("--sensor", choices=["lidar", "depth"], help="default: the lidar, if there is one")
    parser.add_argument("--frames", type=int, default=150, help="how many to use, evenly spread")
    add_source_overrides(parser)


def _extrinsics(options: argparse.Namespace) -> None:
    from training.config import parse_source_options
    from training.extrinsics.report import estimate_mount

    check_positive("--frames", options.frames)
    estimate = estimate_mount(
        options.data,
        split=options.split,
        options=parse_source_options({}, options.set),
        frames=options.frames,
        sensor=options.sensor,
    )
    print(estimate.text)
