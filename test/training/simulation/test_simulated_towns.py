# SPDX-License-Identifier: Apache-2.0
"""Arguments of the simulator, several traversals at a time, and several streets in one map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulated_bags import SMALL, raw, read, truth
from training.simulation import simulate, simulate_many, street, street_centre
from vmloc_ros.core.errors import ConfigError, DataError


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    simulate(tmp_path / "seed1", seed=1, **SMALL)
    return tmp_path / "seed1"


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"seed": 0, "world_seed": -2}, "world_seed must not be negative, got -2"),
        ({"seed": 0, "laps": 0.0}, r"laps must lie within \(0, 1000\], got 0.0"),
        ({"seed": 0, "laps": float("nan")}, "laps must lie within"),
        ({"seed": 0, "lidar_rate_hz": -10}, "lidar_rate_hz must lie within"),
        ({"seed": 0, "image_size": (320, 4)}, "image_size must be at least 8x8 pixels, got 320x4"),
        ({"seed": 0, "beams": 1}, "beams must be 2 to 128, got 1"),
        ({"seed": 0, "duration_s": 0.5}, "duration_s must be more than 1 s, got 0.5"),
    ],
)
def test_impossible_arguments_are_named_and_leave_nothing(tmp_path, arguments, text):
    with pytest.raises(ConfigError, match=text):
        simulate(tmp_path / "bag", progress=False, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_bag_is_kept_without_overwrite(bag):
    before = raw(bag)
    with pytest.raises(DataError, match="exists already"):
        simulate(bag, seed=9, **SMALL)
    assert raw(bag) == before


def test_traversals_driven_at_the_same_time_are_those_driven_one_by_one(tmp_path: Path) -> None:
    for jobs in (1, 2):
        folders = list(simulate_many(tmp_path / str(jobs), seeds=range(3, 5), laps=0.01, jobs=jobs))
        assert sorted(folder.name for folder in folders) == ["seed_3", "seed_4"]
    for seed in (3, 4):
        first, second = (tmp_path / str(jobs) / f"seed_{seed}" / f"seed_{seed}.mcap" for jobs in (1, 2))
        assert first.read_bytes() == second.read_bytes()


def test_a_traversal_that_fails_in_another_process_stops_the_rest(tmp_path: Path) -> None:
    (tmp_path / "seed_3").mkdir()
    with pytest.raises(DataError, match="seed_3 exists already"):
        list(simulate_many(tmp_path, seeds=range(3, 5), laps=0.01, jobs=2))


# --- a town ---


def test_streets_of_a_town_lie_apart_and_fill_squares():
    centres = np.array([street_centre(number) for number in range(36)])
    assert tuple(centres[0]) == (0.0, 0.0)
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(36, dtype=bool)]
    assert apart.min() > 2 * np.abs(street.centre_line(np.linspace(0, street.LENGTH_M, 200))[0]).max() + 40.0
    for side in (1, 2, 3, 6):
        assert np.ptp(centres[: side**2], axis=0).max() == (side - 1) * apart.min()


def test_a_street_of_a_town_is_the_one_of_its_world_seed_in_another_place(tmp_path: Path) -> None:
    small = {"laps": 0.01, "image_size": (32, 24), "camera_rate_hz": 5.0, "beams": 4}
    folders = list(simulate_many(tmp_path / "town", seeds=[3], world_seed=5, streets=2, **small))
    assert [folder.name for folder in folders] == ["street_0_seed_3", "street_1_seed_3"]
    for number, folder in enumerate(folders):
        simulate(tmp_path / f"alone{number}", seed=3, world_seed=5 + number, progress=False, **small)
        town, alone = raw(folder), raw(tmp_path / f"alone{number}")
        assert [entry for entry in town if "truth" not in entry[0]] == [e for e in alone if "truth" not in e[0]]
        placed, own = (truth(read(path))[1] for path in (folder, tmp_path / f"alone{number}"))
        for there, here in zip(placed, own, strict=True):
            np.testing.assert_array_equal(there.position_m[:2], here.position_m[:2] + street_centre(number))
            np.testing.assert_array_equal(there.quaternion_wxyz, here.quaternion_wxyz)
