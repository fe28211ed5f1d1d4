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
    for add in (_add_simulate, _add_convert, _add_train, _add_evaluate, _add_replay, _add_info, _add_demo):
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
    parser.add_argument("--world-seed", type=int, default=0, help="another seed is another street")
    parser.add_argument("--overwrite", action="store_true", help="replace bags that exist")


def _simulate(options: argparse.Namespace) -> None:
    from training.simulation import simulate

    if options.traversals < 1:
        raise ConfigError(f"--traversals must be at least 1, got {options.traversals}")
    for seed in range(options.seed, options.seed + options.traversals):
        out = options.out / f"seed_{seed}"
        simulate(out, seed=seed, world_seed=options.world_seed, laps=options.laps, overwrite=options.overwrite)
        print(f"wrote {out}")


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", _convert, "Write a public dataset as a rosbag2.")
    parser.add_argument("dataset", choices=["7scenes"])
    parser.add_argument("path", type=Path, help="scene folder with TrainSplit.txt, TestSplit.txt and seq-XX")
    parser.add_argument("--split", choices=["train", "test", "all"], default="test", help="sequences to write")
    parser.add_argument("--out", type=Path, required=True, help="bag folder to write")
    parser.add_argument("--stride", type=int, default=1, help="use every STRIDE-th frame")
    parser.add_argument("--skip-invalid", action="store_true", help="skip frames with an invalid pose")
    parser.add_argument("--overwrite", action="store_true", help="replace a bag that exists")


def _convert(options: argparse.Namespace) -> None:
    from training.convert import convert_seven_scenes

    convert_seven_scenes(
        options.path,
        options.split,
        options.out,
        stride=options.stride,
        overwrite=options.overwrite,
        skip_invalid=options.skip_invalid,
    )
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
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from OUT's last epoch")
    existing.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _train(options: argparse.Namespace) -> None:
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
    )
    _print_metrics("validation" if metrics.pop("held_out") else "training data", metrics)
    print(f"wrote {options.out}")


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "Localize every frame of some data; print errors, write trajectory and picture.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="+", help="bags, folders of bags or 7-Scenes scenes")
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


def _evaluate(options: argparse.Namespace) -> None:
    from training.run import evaluate_checkpoint

    rows, folder = evaluate_checkpoint(
        options.checkpoint,
        options.data,
        split=options.split,
        out=options.out,
        overrides=options.set,
        device=options.device,
        nearest=options.nearest,
        nearest_backbone=options.nearest_backbone,
        nearest_weights=options.nearest_weights or True,
    )
    from training.metrics import format_table

    print(format_table(rows))
    print(f"wrote {folder}")


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


def _add_info(commands: Any) -> None:
    parser = _command(commands, "info", _info, "Print what a checkpoint holds.")
    parser.add_argument("checkpoint", type=Path)


def _info(options: argparse.Namespace) -> None:
    from vmloc_ros.core.checkpoint import read_header
    from vmloc_ros.core.config import to_mapping

    print(json.dumps(to_mapping(read_header(options.checkpoint)), indent=2))


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
