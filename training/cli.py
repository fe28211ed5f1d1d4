# SPDX-License-Identifier: Apache-2.0
"""The ``vmloc`` command line: parses, calls the libraries, prints; errors become one line and exit code 1."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmloc_ros import __version__
from vmloc_ros.core.errors import ConfigError, VmlocError

# Commands import what they need when they run: `vmloc --help` answers at once and without torch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit code."""
    # Before torch is imported: spinning OpenMP threads make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except VmlocError as error:
        print(f"vmloc {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; go on with --resume" if options.command == "train" else ""
        print(f"vmloc {options.command}: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vmloc info ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # the machine's: a full disk, a folder without permission
        print(f"vmloc {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmloc", description=__doc__.split(":")[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_simulate,
        _add_convert,
        _add_show,
        _add_train,
        _add_evaluate,
        _add_replay,
        _add_models,
        _add_info,
        _add_demo,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_simulate(commands: Any) -> None:
    parser = _command(
        commands, "simulate", _simulate, "Drive a simulated street loop; write one rosbag2 per traversal."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the bags: OUT/seed_N")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first traversal; the next ones count up")
    parser.add_argument("--traversals", type=int, default=1, help="how many to drive")
    parser.add_argument("--laps", type=float, default=1.0, help="rounds of the loop in each traversal")
    parser.add_argument("--jobs", type=int, default=1, help="how many to drive at the same time, each on one core")
    parser.add_argument("--world-seed", type=int, default=0, help="another seed is another street")
    parser.add_argument("--overwrite", action="store_true", help="replace bags that exist")


def _simulate(options: argparse.Namespace) -> None:
    from training.simulation import simulate_many

    for folder in simulate_many(
        options.out,
        seeds=range(options.seed, options.seed + options.traversals),
        world_seed=options.world_seed,
        laps=options.laps,
        jobs=options.jobs,
        overwrite=options.overwrite,
    ):
        print(f"wrote {folder}")


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", _convert, "Write a public dataset as a rosbag2.")
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
    from training.convert import convert_kitti, convert_seven_scenes, convert_tum
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
    from training.convert_robotcar import convert_robotcar
    from training.sources.options import SourceOptions
    from training.sources.robotcar_options import RobotCarOptions

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


def _add_show(commands: Any) -> None:
    parser = _command(
        commands, "show", _show, "Draw some frames and all poses of data, to see topics and extrinsics before training."
    )
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or datasets")
    parser.add_argument("--split", choices=["train", "test", "all"], default="all", help="of datasets that have splits")
    parser.add_argument("--frames", type=int, default=4, help="how many to draw")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    parser.add_argument("--out", type=Path, default=Path("show.png"), help="picture to write")


def _show(options: argparse.Namespace) -> None:
    from training.run import parse_source_options
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


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "Fit a model to bags or a dataset.")
    parser.add_argument("--config", type=Path, help="YAML file; see config/train")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="bags, folders of bags or 7-Scenes scenes")
    parser.add_argument(
        "--split", choices=["train", "test", "all"], default="train", help="of datasets that have splits"
    )
    parser.add_argument("--val-data", type=Path, nargs="+", help="validate on these instead of held-out blocks")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, such as optimizer.epochs=20")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep prepared frames here (default: $VMLOC_CACHE or ~/.cache/vmloc_ros)",
    )
    parser.add_argument("--no-cache", action="store_true", help="hold prepared frames in memory, write none to disk")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from OUT's last epoch")
    existing.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _train(options: argparse.Namespace) -> None:
    from training.cache import default_cache
    from training.run import train

    metrics = train(
        config_file=options.config,
        overrides=options.set,
        data=options.data,
        split=options.split,
        validation_data=options.val_data,
        out=options.out,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
        cache=None if options.no_cache else options.cache or default_cache(),
    )
    _print_metrics("validation" if metrics.pop("held_out") else "training data", metrics)
    print(f"wrote {options.out}")


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "Localize every frame of some data; print errors, write tables, trajectories and pictures.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or 7-Scenes scenes")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="another one that differs in its seed: mean and standard deviation are reported; can be repeated",
    )
    parser.add_argument(
        "--split", choices=["train", "test", "all"], default="test", help="of datasets that have splits"
    )
    parser.add_argument("--out", type=Path, help="folder for results (default: evaluation/CHECKPOINT)")
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--nearest", type=Path, nargs="+", metavar="DATA", help="also answer with the nearest image of these"
    )
    parser.add_argument("--nearest-backbone", default="resnet34", help="network whose features --nearest compares")
    parser.add_argument("--nearest-weights", help="its state-dict file (default: torchvision's ImageNet weights)")
    parser.add_argument(
        "--lookahead", type=int, default=0, metavar="N", help="answer N frames late (models that read clips: vidloc)"
    )
    parser.add_argument(
        "--corrupt",
        action="append",
        default=[],
        metavar="MODALITY=LEVEL",
        help="damage the input as in the paper's Table 4: 1 masks a square of it, 2 takes it away; can be repeated",
    )
    parser.add_argument("--corruption-seed", type=int, default=0, metavar="N", help="of the masks' places")


def _evaluate(options: argparse.Namespace) -> None:
    from training.corruption import parse_corruption
    from training.run import evaluate_checkpoints

    report = evaluate_checkpoints(
        [options.checkpoint, *options.also],
        options.data,
        split=options.split,
        out=options.out,
        overrides=options.set,
        device=options.device,
        nearest=options.nearest,
        nearest_backbone=options.nearest_backbone,
        nearest_weights=options.nearest_weights or True,
        lookahead=options.lookahead,
        corruption=parse_corruption(options.corrupt, options.corruption_seed),
    )
    print(report.text)
    print(f"wrote {report.folder}")


def _add_replay(commands: Any) -> None:
    parser = _command(commands, "replay", _replay, "Play a bag into the ROS graph, and record topics, without rosbag2.")
    parser.add_argument("bag", type=Path)
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 is real time")
    parser.add_argument("--loop", action="store_true", help="start over at the end until interrupted")
    parser.add_argument("--clock", action="store_true", help="publish /clock (for use_sim_time)")
    parser.add_argument("--topics", nargs="+", help="play only these")
    parser.add_argument("--wait-for", nargs="+", metavar="TOPIC", help="start when these have a subscriber")
    parser.add_argument("--record", type=Path, help="bag folder for recorded topics")
    parser.add_argument("--record-topics", nargs="+", default=[], metavar="TOPIC", help="what to record")
    parser.add_argument("--overwrite", action="store_true", help="replace a recording that exists")


def _replay(options: argparse.Namespace) -> None:
    from vmloc_ros.replay import replay

    report = replay(
        options.bag,
        rate=options.rate,
        loop=options.loop,
        clock=options.clock,
        topics=options.topics,
        wait_for=options.wait_for or [],
        record=options.record,
        record_topics=options.record_topics,
        overwrite=options.overwrite,
    )
    for topic, reason in report.skipped.items():
        print(f"not played: {topic}: {reason}", file=sys.stderr)
    print(f"played {sum(report.published.values())} messages, at most {1e3 * report.largest_lag_s:.0f} ms late")
    if options.record:
        counts = ", ".join(f"{count} of {topic}" for topic, count in report.recorded.items())
        print(f"wrote {options.record}: {counts or 'nothing was received'}")


def _add_models(commands: Any) -> None:
    _command(commands, "models", _models, "List the systems that `model.name` in a configuration can choose.")


def _models(_: argparse.Namespace) -> None:
    from training.report import systems_text
    from vmloc_ros.core.models import REGISTRY

    print(systems_text(REGISTRY))


def _add_info(commands: Any) -> None:
    parser = _command(commands, "info", _info, "Print what a checkpoint holds.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", action="store_true", help="for programs: the header alone, as JSON")


def _info(options: argparse.Namespace) -> None:
    from training.report import checkpoint_text
    from vmloc_ros.core.checkpoint import read_header
    from vmloc_ros.core.config import to_mapping

    if options.json:
        print(json.dumps(to_mapping(read_header(options.checkpoint)), indent=2))
    else:
        print(checkpoint_text(options.checkpoint))


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "Drive an unseen simulated traversal, replay it into the node, report how well it localizes.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the traversal, any number; never one used in training")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for results")
    parser.add_argument("--checkpoint", type=Path, help="default: the one that ships with the package")
    parser.add_argument("--rate", type=float, default=1.0, help="replay speed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _demo(options: argparse.Namespace) -> None:
    from training.demo import run_demo

    report = run_demo(
        seed=options.seed, out=options.out, checkpoint=options.checkpoint, rate=options.rate, device=options.device
    )
    print(report.text())


def _print_metrics(name: str, metrics: dict[str, float]) -> None:
    from training.metrics import format_table

    print(format_table({name: metrics}))


if __name__ == "__main__":
    sys.exit(main())
