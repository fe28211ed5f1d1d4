# SPDX-License-Identifier: Apache-2.0
"""Frames per second of a data source on one core, compared with plain reading of its files, as a Markdown table.

    python benchmarks/sources.py DATA... [--split all] [--shortest-side 256] [--modalities image depth]

read      frames of the source: decoded and paired, with their poses
prepared  the same, resized and projected, as in the first epoch of a first training
cached    prepared frames drawn at random in batches of 32 from the cache, as in every later epoch
plain     cv2.imread of the same picture files, or the bag's messages copied from disk without decoding any
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import cv2
import torch

from training.data.cache import load_dataset
from training.sources import Source, open_sources
from training.sources.options import SourceOptions
from training.sources.rosbag.source import is_bag
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

BATCH = 32
PICTURES = (".png", ".jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--split", default="all")
    parser.add_argument("--shortest-side", type=int, default=256)
    parser.add_argument("--modalities", nargs="+", default=["image", "depth"])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    preprocessor = Preprocessor(
        PreprocessConfig(modalities=tuple(options.modalities), shortest_side=options.shortest_side)
    )
    print("| source | frames | read | prepared | cached | plain | read / plain | cached / plain |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for path in options.data:
        for source in open_sources(path, options.split, SourceOptions(), tuple(options.modalities)):
            _plain(path)  # into the page cache, so that all four read from memory
            plain = _rate(len(source), lambda path=path: _plain(path))
            read = _rate(len(source), lambda source=source: _read(source, None))
            prepared = _rate(len(source), lambda source=source: _read(source, preprocessor))
            cached = _cached_rate(source, preprocessor)
            print(
                f"| {source.name} | {len(source)} | {read:.0f}/s | {prepared:.0f}/s | {cached:.0f}/s | {plain:.0f}/s | "
                f"{read / plain:.2f} | {cached / plain:.1f} |"
            )


def _rate(count: int, job: Callable[[], None]) -> float:
    started = time.perf_counter()
    job()
    return count / (time.perf_counter() - started)


def _read(source: Source, preprocessor: Preprocessor | None) -> None:
    for sample in source:
        if preprocessor is not None:
            preprocessor.prepare(sample.frame)


def _plain(path: Path) -> None:
    if is_bag(path):
        with open_bag(path) as reader:
            for _ in reader.messages():
                pass
        return
    for file in sorted(path.rglob("*")):
        if file.suffix in PICTURES:
            cv2.imread(str(file), cv2.IMREAD_UNCHANGED)


def _cached_rate(source: Source, preprocessor: Preprocessor) -> float:
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset([source], preprocessor, Path(folder), progress=False)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))

        def epoch() -> None:
            for rows in order.split(BATCH):
                data.batch(rows, torch.device("cpu"))

        epoch()
        return _rate(len(data), epoch)


if __name__ == "__main__":
    main()
