# SPDX-License-Identifier: Apache-2.0
"""``vmloc simulate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_overwrite


def add_simulate(commands: Any) -> None:
    """``vmloc simulate``."""
    parser = add_command(
        commands, "simulate", _simulate, "Drive a simulated street loop; write one rosbag2 per traversal."
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the bags: OUT/seed_N, of several streets OUT/street_K_seed_N",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the first traversal; the next ones count up")
    parser.add_argument("--traversals", type=int, default=1, help="how many to drive")
    parser.add_argument("--laps", type=float, default=1.0, help="rounds of the loop in each traversal")
    parser.add_argument(
        "--streets",
        type=int,
        default=1,
        help="loops of 150 m that every traversal drives, side by side in one map; each has its own world seed",
    )
    parser.add_argument(
        "--image-size", type=_image_size, default="320x240", metavar="WxH", help="of the camera, in pixels"
    )
    parser.add_argument("--camera-rate", type=float, default=10.0, metavar="HZ", help="images a second")
    parser.add_argument("--beams", type=int, default=32, help="of the lidar, evenly spread from -20 to 12 degrees")
    parser.add_argument("--light", default="day", help="day, dusk or night; changes images, not scans")
    parser.add_argument("--jobs", type=int, default=1, help="how many to drive at the same time, each on one core")
    parser.add_argument("--world-seed", type=int, default=0, help="another seed is another street")
    add_overwrite(parser, "bags that exist")


def _image_size(text: str) -> tuple[int, int]:
    """Width and height of ``WxH``, such as ``320x240``."""
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTHxHEIGHT, such as 320x240") from None
    return width, height


def _simulate(options: argparse.Namespace) -> None:
    from training.simulation import simulate_many

    for folder in simulate_many(
        options.out,
        seeds=range(options.seed, options.seed + options.traversals),
        world_seed=options.world_seed,
        laps=options.laps,
        streets=options.streets,
        image_size=options.image_size,
        camera_rate_hz=options.camera_rate,
        beams=options.beams,
        light=options.light,
        jobs=options.jobs,
        overwrite=options.overwrite,
    ):
        print(f"wrote {folder}")
