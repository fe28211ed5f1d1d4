# SPDX-License-Identifier: Apache-2.0
"""``vmloc convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands import add_command
from training.commands.options import add_overwrite, add_split, check_positive


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
    add_split(parser, "test", "7scenes: sequences to write")
    parser.add_argument("--out", type=Path, required=True, help="bag folder to write")
    parser.add_argument("--stride", type=int, default=1, help="use every STRIDE-th frame")
    parser.add_argument("--skip-invalid", action="store_true", help="7scenes: skip frames with an invalid pose")
    add_overwrite(parser, "a bag that exists")
    robotcar = parser.add_argument_group("robotcar")
    robotcar.add_argument("--compressed", action="store_true", help="write images as JPEG")
    robotcar.add_argument("--no-undistort", action="store_true", help="keep images distorted; needs no lookup table")
    for folder in ("extrinsics", "models"):
        text = f"of the dataset's SDK; without, {folder} in the sequence's folder or the one above"
        robotcar.add_argument(f"--{folder}", metavar="DIR", help=text)
    robotcar.add_argument(
        "--lidar",
        choices=["lms_front", "lms_rear", "ldmrs", "velodyne_left", "velodyne_right", "none"],
        default="lms_front",
        help="lidar whose scans are converted",
    )


def _convert(options: argparse.Namespace) -> None:
    from training.conversion.datasets import convert_kitti, convert_seven_scenes, convert_tum
    from training.sources.options import SourceOptions

    check_positive("--stride", options.stride)
    source = SourceOptions(stride=options.stride, skip_invalid=options.skip_invalid)
    if options.dataset == "7scenes":
        convert_seven_scenes(options.path, options.split, options.out, options=source, overwrite=options.overwrite)
    elif options.dataset == "robotcar":
        _convert_robotcar(options)
    else:
        convert = {"kitti": convert_kitti, "tum": convert_tum}[options.dataset]
        convert(options.path, options.out, options=source, overwrite=options.overwrite)
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
