# SPDX-License-Identifier: Apache-2.0
"""Error, size and training time of a dense system by the length of road in its map, as a Markdown table.

town="--beams 16 --image-size 160x120 --camera-rate 5 --streets 33 --jobs 2"
vmloc simulate $town --seed 1 --traversals 6 --out town/train
vmloc simulate $town --seed 101 --out town/val
vmloc simulate $town --seed 1000007 --out town/test
python benchmarks/dense_scale.py town --out town/runs --streets 1 7 33 --epochs 24 8 3
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from training.config import load_config
from training.simulation.street import LENGTH_M
from vmloc_ros.core.checkpoint import read_header

CONFIG = Path(__file__).parents[1] / "config/train/dense_town.yaml"
MOST_STREETS = 12  # for validation and test, evenly spread
SENSORS = {"camera and lidar": None, "lidar alone": "image=2", "camera alone": "lidar=2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("town", type=Path, help="folder with train, val and test, each with bags street_K_seed_N")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints; existing ones are kept")
    parser.add_argument("--streets", type=int, nargs="+", default=[1, 7, 33])
    parser.add_argument(
        "--epochs", type=int, nargs="+", help="for each number of streets; default: the configuration's"
    )
    parser.add_argument("--regions", type=int, default=3, help="of each street; 0: one set of coordinates for all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of vmloc train")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        "| road (m) | regions | training frames | visits | CPU min | checkpoint (MB) | sensors | median "
        "| 95th percentile | within 0.5 m, 5 deg | withheld | far off and published | published: 95th percentile "
        "| published: truth inside the 95 % ellipsoid (position / rotation) |"
    )
    print("|---:|---:|---:|---:|---:|---:|---|---|---|---:|---:|---:|---|---|")
    epochs = options.epochs or [load_config([CONFIG]).optimizer.epochs] * len(options.streets)
    for streets, visits in zip(options.streets, epochs, strict=True):
        regions = max(1, streets * options.regions)
        checkpoint = options.out / f"streets_{streets}_regions_{regions}.safetensors"
        train, val, test = (bags_of(options.town / part, streets) for part in ("train", "val", "test"))
        val, test = (bags[:: -(-len(bags) // MOST_STREETS)] for bags in (val, test))
        settings = [f"model.regions={regions}", f"optimizer.epochs={visits}", *options.set]
        seconds = trained_in(checkpoint, settings, train, val)
        frames, size = read_header(checkpoint).training["frames"], checkpoint.stat().st_size / 1e6
        known = f"| {streets * LENGTH_M:.0f} | {regions} | {frames} | {visits} | {seconds / 60:.0f} | {size:.1f} "
        for sensors, corruption in SENSORS.items():
            folder = options.out / f"{checkpoint.stem}_{sensors.replace(' ', '_')}"
            run("evaluate", checkpoint, *test, "--out", folder, *(["--corrupt", corruption] if corruption else []))
            print(f"{known}| {sensors} {cells(json.loads((folder / 'metrics.json').read_text()))}", flush=True)


def trained_in(checkpoint: Path, settings: list[str], train: list[Path], val: list[Path]) -> float:
    """Train the checkpoint unless it exists; return the CPU seconds that it took."""
    took = checkpoint.with_suffix(".seconds")
    if not took.exists():
        flags = [word for setting in settings for word in ("--set", setting)]
        data = "--data", *train, "--val-data", *val
        took.write_text(f"{run('train', '--config', CONFIG, *flags, *data, '--out', checkpoint):.0f}\n")
    return float(took.read_text())


def cells(m: dict[str, float]) -> str:
    """Metrics of an evaluation as cells of the table."""
    published = "– | –"  # where everything is withheld
    if "out_frames" in m:
        published = (
            f"{m['out_p95_position_m']:.3f} m, {m['out_p95_rotation_deg']:.2f} deg "
            f"| {m['out_coverage95_position']:.0%} / {m['out_coverage95_rotation']:.0%}"
        )
    return (
        f"| {m['median_position_m']:.3f} m, {m['median_rotation_deg']:.2f} deg "
        f"| {m['p95_position_m']:.3f} m, {m['p95_rotation_deg']:.2f} deg | {m['within_0.5m_5deg']:.1%} "
        f"| {m['withheld']:.1%} | {m['far_off_and_out']:.1%} | {published} |"
    )


def bags_of(folder: Path, streets: int) -> list[Path]:
    """The bags of the first ``streets`` streets."""
    numbers = {
        bag: int(found[1]) for bag in folder.iterdir() if (found := re.fullmatch(r"street_(\d+)_seed_\d+", bag.name))
    }
    return sorted(bag for bag, number in numbers.items() if number < streets)


def run(*command: object) -> float:
    """Run ``vmloc`` with arguments; return the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "training.cli", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"vmloc {command[0]}: {time.monotonic() - started:.0f} s, {used:.0f} s of CPU", file=sys.stderr)
    return used


if __name__ == "__main__":
    main()
