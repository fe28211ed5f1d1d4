# SPDX-License-Identifier: Apache-2.0
"""A simulated street: ray-cast camera and lidar, exact poses, reproducible by seed.

``street`` and ``world`` (with ``buildings``, ``furniture``, ``ground``) make the fixed surroundings of a
``world_seed``; ``trajectory``, ``traffic`` and ``light`` are what a traversal's ``seed`` decides;
``camera``, ``lidar`` and ``odometry`` are the sensors; ``traversal`` turns them into stamped messages.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from training.simulation.lidar import BEAMS
from training.simulation.light import LIGHTS
from training.simulation.traversal import Rates, Traversal
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.progress import progress_bar, with_progress

__all__ = ["Rates", "Traversal", "simulate", "simulate_many", "street_centre"]

_STREET_PITCH_M = 120.0  # from the middle of one street to the next: their houses do not touch


def simulate(
    out: Path,
    *,
    seed: int,
    world_seed: int = 0,
    laps: float = 1.0,
    image_size: tuple[int, int] = (320, 240),
    camera_rate_hz: float = 10.0,
    lidar_rate_hz: float = 10.0,
    duration_s: float | None = None,
    beams: int = BEAMS,
    centre_m: tuple[float, float] = (0.0, 0.0),
    light: str = "day",
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write one traversal of the street as a rosbag2 folder (MCAP).

    Args:
        out: the bag's folder; appears only when it is complete.
        seed: decides the drive, the traffic, the light and all noise.
        world_seed: decides the street; traversals of one street share it.
        laps: rounds of the street, about 150 m each.
        image_size: width and height in pixels; the camera's horizontal field of view is 90 degrees.
        camera_rate_hz, lidar_rate_hz: nominal rates; the lidar runs 0.3 % slow and out of step.
        duration_s: ends the drive earlier.
        beams: of the lidar.
        centre_m: x and y in the map of the middle of the street.
        light: ``day``, ``dusk`` or ``night``, for the camera; the lidar brings its own.
        overwrite: replace an existing bag.

    Raises:
        ConfigError: an argument is out of range.
        DataError: ``out`` exists or cannot be written.
    """
    _check(seed, world_seed, laps, image_size, camera_rate_hz, lidar_rate_hz, duration_s, beams, light)
    with BagWriter(out, overwrite=overwrite) as bag:
        rates = Rates(camera_rate_hz, lidar_rate_hz)
        traversal = Traversal(seed, world_seed, laps, image_size, rates, duration_s, beams, centre_m, light)
        _write(traversal, bag, f"simulating {Path(out).name}", progress)


def _write(traversal: Traversal, bag: BagWriter, description: str, progress: bool) -> None:
    total = len(traversal.image_times_s) + len(traversal.scan_times_s)
    with progress_bar(total, description, "scans", disable=not progress) as bar:
        for record in traversal.records(on_frame=bar.update):
            bag.write(record.topic, record.message, record.log_ns)


def simulate_many(
    out: Path,
    *,
    seeds: Sequence[int],
    world_seed: int = 0,
    laps: float = 1.0,
    streets: int = 1,
    image_size: tuple[int, int] = (320, 240),
    camera_rate_hz: float = 10.0,
    beams: int = BEAMS,
    light: str = "day",
    jobs: int = 1,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Write one traversal per seed and street, ``jobs`` of them at a time; yields each bag's folder when done.

    Bags are ``out/seed_N``, those of several streets ``out/street_K_seed_N``. Street K has the world seed
    ``world_seed + K`` and its middle at :func:`street_centre`; a seed drives all streets in the same light.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a bag exists or cannot be written; those that are complete stay.
    """
    if min(len(seeds), streets, jobs) < 1:
        raise ConfigError(f"traversals, streets and jobs must be at least 1, got {len(seeds)}, {streets} and {jobs}")
    common = {"laps": laps, "image_size": image_size, "camera_rate_hz": camera_rate_hz, "beams": beams, "light": light}
    drives = {
        out / (f"seed_{seed}" if streets == 1 else f"street_{number}_seed_{seed}"): {
            "seed": seed,
            "world_seed": world_seed + number,
            "centre_m": street_centre(number),
            "overwrite": overwrite,
            **common,
        }
        for number in range(streets)
        for seed in seeds
    }
    yield from _simulate_all(drives, jobs)


def _simulate_all(drives: Mapping[Path, Mapping[str, Any]], jobs: int) -> Iterator[Path]:
    if jobs == 1:
        for folder, drive in drives.items():
            simulate(folder, **drive)
            yield folder
        return
    # Spawned, not forked: the ray caster's threads would not survive a fork.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        tasks = {pool.submit(simulate, folder, progress=False, **drive): folder for folder, drive in drives.items()}
        try:
            for task in with_progress(as_completed(tasks), len(tasks), "simulating", "traversals"):
                task.result()
                yield tasks[task]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def street_centre(number: int) -> tuple[float, float]:
    """x and y in the map, metres, of the middle of the ``number``-th street of a town.

    The first is at the origin, and every square number of streets fills a square.
    """
    shell = math.isqrt(number)
    step = number - shell**2
    column, row = (shell, step) if step <= shell else (2 * shell - step, shell)
    return column * _STREET_PITCH_M, row * _STREET_PITCH_M


def _check(
    seed: int,
    world_seed: int,
    laps: float,
    image_size: tuple[int, int],
    camera_rate_hz: float,
    lidar_rate_hz: float,
    duration_s: float | None,
    beams: int,
    light: str,
) -> None:
    if light not in LIGHTS:
        raise ConfigError(f"light must be one of {', '.join(LIGHTS)}, got {light!r}")
    for name, number in (("seed", seed), ("world_seed", world_seed)):
        if number < 0:
            raise ConfigError(f"{name} must not be negative, got {number}")
    if min(image_size) < 8:
        raise ConfigError(f"image_size must be at least 8x8 pixels, got {image_size[0]}x{image_size[1]}")
    if not 2 <= beams <= 128:
        raise ConfigError(f"beams must be 2 to 128, got {beams}")
    positive = {"laps": laps, "camera_rate_hz": camera_rate_hz, "lidar_rate_hz": lidar_rate_hz}
    for name, value in positive.items():
        if not 0 < value <= 1000:
            raise ConfigError(f"{name} must lie within (0, 1000], got {value}")
    if duration_s is not None and not duration_s > 1:
        raise ConfigError(f"duration_s must be more than 1 s, got {duration_s}")
