# SPDX-License-Identifier: Apache-2.0
"""A dense system in a map with two identical streets, as a Markdown table.

python benchmarks/repeated_structure.py FOLDER

Three simulated streets side by side; the third has the houses of the first, with other drives, traffic and parked
cars. Simulates, trains, and evaluates on drives that training has not seen; existing drives and checkpoints are kept.
"""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path

import numpy as np
from dense_scale import CONFIG, SENSORS, run

from training.evaluation.metrics import CONFIDENCE_LIMIT, THRESHOLDS
from training.simulation import simulate, street_centre
from vmloc_ros.core.progress import with_progress

STREETS = {0: "first of two identical ones", 1: "unique", 2: "second of two identical ones"}
REPEATED = {0: 0, 1: 1, 2: 0}  # world seeds
SEEDS = {"train": range(1, 7), "val": (101,), "test": (1_000_007,)}
OTHER_DRIVES = 10  # added to a seed on the third street, or its drives and traffic would be those of the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="for drives and checkpoint")
    parser.add_argument("--epochs", type=int, default=12)
    folder = (options := parser.parse_args()).folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, where no terminal draws a bar
    drives = [(part, number, seed) for part, seeds in SEEDS.items() for number in STREETS for seed in seeds]
    for part, number, seed in with_progress(drives, len(drives), "Drives", "drives"):
        drive(folder / part / f"street_{number}_seed_{seed}", number, seed)
    checkpoint = folder / "run" / "repeated.safetensors"
    if not checkpoint.exists():
        settings = ["model.regions=9", f"optimizer.epochs={options.epochs}", f"validation.interval={options.epochs}"]
        flags = [word for setting in settings for word in ("--set", setting)]
        data = "--data", folder / "train", "--val-data", folder / "val"
        run("train", "--config", CONFIG, *flags, *data, "--out", checkpoint)
    print("| sensors | street | frames | off by more than 5 m or 10 deg | withheld | off and published |")
    print("|---|---|---:|---:|---:|---:|")
    for sensors, corruption in SENSORS.items():
        out = folder / "run" / sensors.replace(" ", "_")
        flags = ["--corrupt", corruption] if corruption else []
        run("evaluate", checkpoint, folder / "test", "--out", out, *flags)
        table(sensors, out / "errors.csv")


def drive(out: Path, number: int, seed: int) -> None:
    """Simulate a drive along a street, as `vmloc simulate --streets` does, unless it exists."""
    if out.exists():
        return
    simulate(
        out,
        seed=seed + OTHER_DRIVES * (number == 2),
        world_seed=REPEATED[number],
        centre_m=street_centre(number),
        image_size=(160, 120),
        camera_rate_hz=5.0,
        beams=16,
        progress=False,
    )


def table(sensors: str, errors: Path) -> None:
    """Print a row for each street."""
    with errors.open() as file:
        rows = list(csv.DictReader(file))
    columns = ("position_m", "rotation_deg", "confidence")
    position_m, rotation_deg, confidence = np.array([[float(row[name]) for name in columns] for row in rows]).T
    (far_m, far_deg), published = THRESHOLDS[-1], confidence >= CONFIDENCE_LIMIT
    far_off = (position_m > far_m) | (rotation_deg > far_deg)
    for number, name in STREETS.items():
        here = np.array([row["sequence"].startswith(f"street_{number}_") for row in rows])
        shares = " | ".join(f"{np.mean(what[here]):.1%}" for what in (far_off, ~published, far_off & published))
        print(f"| {sensors} | {name} | {here.sum()} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
