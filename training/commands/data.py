# SPDX-License-Identifier: Apache-2.0
"""``vmloc simulate``, ``convert`` and ``show``: make and look at data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from vmloc_ros.core.errors import ConfigError


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
        "--image-size", type=image_size, default="320x240", metavar="WxH", help="of the camera, in pixels"
    )
    parser.add_argument("--camera-rate", type=float, default=10.0, metavar="HZ", help="images a second")
    parser.add_argument("--beams", type=int, default=32, help="of the lidar, evenly spread from -20 to 12 degrees")
    parser.add_argument(
        "--light", default="day", help="day, dusk or night: what the camera sees by; the lidar brings its own light"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many to drive at the same time, each on one core")
    parser.add_argument("--world-seed", type=int, default=0, help="another seed is another street")
    parser.add_argument("--overwrite", action="store_true", help="replace bags that exist")


def image_size(text: str) -> tuple[int, int]:
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


def add_convert(commands: Any) -> None:
    """``vmloc convert``."""
    parser = add_command(commands, "convert", _convert, "Write a public dataset as a rosbag2.")
    parser.add_argument("dataset", choices=["7scenes", "kitti", "robotcar", "tum"])
    parser.add_argument(
        "path",
        type=Path,
        help="folder: a 7-Scenes scene, KITTI's sequences/NN or raw DATE_drive_NNNN_sync, "
        "a RobotCar or TUM RGB-D sequence",
    )
    parser.add_argument("--split", choices=["train", "test", "all"], default="test", help="7scenes: sequences to write")
    parser.add_argument("--out", type=Path, required=True, help="bag folder to write")
    parser.add_argument("--stride", type=int, default=1, help="use every STRIDE-th frame")
    parser.add_argument("--skip-invalid", action="store_true", help="7scenes: skip frames with an invalid pose")
    parser.add_argument("--overwrite", action="store_true", help="replace a bag that exists")
    robotcar = parser.add_argument_group("robotcar")
    robotcar.add_argument("--compressed", action="store_true", help="write images as JPEG")
    robotcar.add_argument("--no-undistort", action="store_true", help="leave images as they are; needs no lookup table")
    for folder in ("extrinsics", "models"):
        text = f"of the dataset's SDK; without, {folder} in the sequence's folder or the one above"
        robotcar.add_argument(f"--{folder}", metavar="DIR", help=text)
    robotcar.add_argument(
        "--lidar",
        choices=["lms_front", "lms_rear", "ldmrs", "velodyne_left", "velodyne_right", "none"],
        default="lms_front",
        help="whose scans become clouds",
    )


def _convert(options: argparse.Namespace) -> None:
    from training.conversion.datasets import convert_kitti, convert_seven_scenes, convert_tum
    from training.sources.options import SourceOptions

    if options.stride < 1:
        raise ConfigError(f"--stride must be at least 1, got {options.stride}")
    if options.dataset == "7scenes":
        convert_seven_scenes(
            options.path,
            options.split,
            options.out,
            stride=options.stride,
            overwrite=options.overwrite,
            skip_invalid=options.skip_invalid,
        )
    elif options.dataset == "robotcar":
        _convert_robotcar(options)
    else:
        convert = {"kitti": convert_kitti, "tum": convert_tum}[options.dataset]
        convert(options.path, options.out, options=SourceOptions(stride=options.stride), overwrite=options.overwrite)
    print(f"wrote {options.out}")


def _convert_robotcar(options: argparse.Namespace) -> None:
    from training.conversion.robotcar import convert_robotcar
    from training.sources.options import RobotCarOptions, SourceOptions

    with_lidar = options.lidar != "none"
    robotcar = RobotCarOptions(
        lidar=options.lidar if with_lidar else "lms_front",
        undistort=not options.no_undistort,
        extrinsics=options.extrinsics or "",
        models=options.models or "",
    )
    convert_robotcar(
        options.path,
        options.out,
        options=SourceOptions(stride=options.stride, robotcar=robotcar),
        modalities=("image", "lidar") if with_lidar else ("image",),
        compressed=options.compressed,
        overwrite=options.overwrite,
    )


def add_show(commands: Any) -> None:
    """``vmloc show``."""
    parser = add_command(
        commands, "show", _show, "Draw some frames and all poses of data, to see topics and extrinsics before training."
    )
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or datasets")
    parser.add_argument("--split", choices=["train", "test", "all"], default="all", help="of datasets that have splits")
    parser.add_argument("--frames", type=int, default=4, help="how many to draw")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    parser.add_argument("--out", type=Path, default=Path("show.png"), help="picture to write")


def _show(options: argparse.Namespace) -> None:
    from training.config import parse_source_options
    from training.show import show

    if options.frames < 1:
        raise ConfigError(f"--frames must be at least 1, got {options.frames}")
    counts = show(
        options.data,
        options.out,
        split=options.split,
        options=parse_source_options({}, options.set),
        frames=options.frames,
    )
    print("\n".join(f"{name}: {count} frames" for name, count in counts.items()))
    print(f"wrote {options.out}")
