# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import ListSource, random_frame, yaw_pose
from training.data.cache import entry_key, load_dataset
from training.data.dataset import PreparedDataset, common_mounts, prepare_dataset
from training.sources.caching import default_cache, fingerprint
from vmloc_ros.core.errors import DataError, OutputError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import CylindricalConfig

CONFIG = PreprocessConfig(shortest_side=32)


def samples(count: int = 5) -> list[Sample]:
    names = [("image", "lidar"), ("lidar",)]
    return [Sample(random_frame(i, names=names[i == 2]), yaw_pose(1e6 + i / 3, yaw_deg=20.0 * i)) for i in range(count)]


class Unreadable(ListSource):
    """A source that must not be read again."""

    def __iter__(self) -> Iterator[Sample]:
        raise AssertionError("the source was read")


def load(source: ListSource, cache: Path | None, config: PreprocessConfig = CONFIG) -> PreparedDataset:
    return load_dataset([source], Preprocessor(config), cache, progress=False)


def assert_same(first: PreparedDataset, second: PreparedDataset) -> None:
    rows = torch.arange(len(first))
    for a, b in zip(first.batch(rows, torch.device("cpu")), second.batch(rows, torch.device("cpu")), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(x, b[name]) and x.dtype == b[name].dtype for name, x in a.items())
    for p, q in zip(first.poses, second.poses, strict=True):
        np.testing.assert_array_equal(p.matrix, q.matrix)
    assert torch.equal(first.sequences, second.sequences)
    ours, theirs = (data.intrinsics(rows, torch.device("cpu")) for data in (first, second))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_the_cache_gives_what_reading_gives_without_reading_again(tmp_path: Path) -> None:
    expected = prepare_dataset([ListSource(samples())], Preprocessor(CONFIG), progress=False)
    assert_same(load(ListSource(samples()), tmp_path), expected)
    assert_same(load(Unreadable(samples()), tmp_path), expected)


def test_without_a_cache_every_frame_is_read_into_memory_and_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path))
    expected = prepare_dataset([ListSource(samples())], Preprocessor(CONFIG), progress=False)
    assert_same(load(ListSource(samples()), None), expected)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="the source was read"):
        load(Unreadable(samples()), None)


def test_intrinsics_are_stored_and_mounts_are_the_present_ones_of_the_source(tmp_path: Path) -> None:
    blind = samples()
    blind[1] = Sample(replace(blind[1].frame, camera=None), blind[1].map_from_body)
    expected = prepare_dataset([ListSource(blind)], Preprocessor(CONFIG), progress=False)
    assert_same(load(ListSource(blind, mounts={"image": yaw_pose(1.0)}), tmp_path), expected)
    again = load(Unreadable(blind, mounts={"image": yaw_pose(2.0)}), tmp_path)
    assert_same(again, expected)
    assert common_mounts(again)["image"].position_m[0] == 2.0


def test_the_key_changes_with_all_that_changes_the_content_and_with_nothing_else() -> None:
    source = ListSource(samples())
    others = [
        PreprocessConfig(shortest_side=48),
        PreprocessConfig(shortest_side=32, modalities=("image",)),
        PreprocessConfig(shortest_side=32, lidar_projection="pinhole"),
        PreprocessConfig(shortest_side=32, cylinder=CylindricalConfig(16, 512, -25.0, 15.0)),
    ]
    keys = {entry_key(source, config) for config in (CONFIG, *others)}
    assert len(keys) == 5
    assert entry_key(ListSource(samples(4)), CONFIG) not in keys
    normalised = PreprocessConfig(shortest_side=32, crop=(32, 32), lidar_range_m=(0.0, 5.0))
    assert entry_key(ListSource(samples()), normalised) == entry_key(source, CONFIG)


def test_a_fingerprint_changes_with_files_their_state_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    before = fingerprint([file], 1)
    assert fingerprint([file], 1) == before
    assert fingerprint([file], 2) != before
    assert fingerprint([file, tmp_path / "missing"], 1) != before
    os.utime(file, ns=(1, 1))
    assert fingerprint([file], 1) != before


@pytest.mark.parametrize("damage", ["truncate", "remove", "labels", "short labels", "entry"])
def test_a_damaged_entry_is_built_again(damage: str, tmp_path: Path) -> None:
    expected = load(ListSource(samples()), tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    if damage == "truncate":
        os.truncate(folder / "image.npy", 200)
    elif damage == "remove":
        (folder / "lidar.npy").unlink()
    elif damage == "labels":
        (folder / "labels.npz").write_bytes(b"no archive")
    elif damage == "short labels":
        os.truncate(folder / "labels.npz", (folder / "labels.npz").stat().st_size // 2)
    else:
        (folder / "entry.json").write_text("{")
    rebuilt = load(ListSource(samples()), tmp_path)
    assert len(rebuilt) == len(expected)
    assert_same(load(Unreadable(samples()), tmp_path), rebuilt)


def test_a_source_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    class Failing(ListSource):
        def __iter__(self) -> Iterator[Sample]:
            yield self.samples[0]
            raise DataError("bad frame")

    with pytest.raises(DataError, match="bad frame"):
        load(Failing(samples()), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert len(load(ListSource(samples()), tmp_path)) == 5


class Slow(ListSource):
    """Dies, or signals that it is read, in the middle of its frames."""

    def __init__(self, die: bool, log: Path) -> None:
        super().__init__(samples())
        self.die, self.log = die, log

    def __iter__(self) -> Iterator[Sample]:
        with self.log.open("a") as file:
            file.write("read\n")
        for i, sample in enumerate(self.samples):
            if self.die and i == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample


def _load_in_process(die: bool, cache: Path, log: Path) -> None:
    load(Slow(die, log), cache)


def test_a_process_that_is_killed_while_building_leaves_nothing_that_counts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_load_in_process, args=(True, tmp_path / "cache", tmp_path / "log"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    expected = prepare_dataset([ListSource(samples())], Preprocessor(CONFIG), progress=False)
    assert_same(load(ListSource(samples()), tmp_path / "cache"), expected)
    assert not list((tmp_path / "cache").glob("*.building"))


def test_processes_that_need_the_same_entry_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (False, tmp_path / "cache", tmp_path / "log")
    processes = [context.Process(target=_load_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "read\n"


def test_changing_a_batch_changes_no_file(tmp_path: Path) -> None:
    data = load(ListSource(samples()), tmp_path)
    tensors, _ = data.batch(torch.tensor([0]), torch.device("cpu"))
    tensors["image"].fill_(0)
    expected = prepare_dataset([ListSource(samples())], Preprocessor(CONFIG), progress=False)
    assert_same(load(Unreadable(samples()), tmp_path), expected)


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written: .*; free space, choose another --cache, or use --no-c"):
        load(ListSource(samples()), tmp_path / "file")


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        load(ListSource(samples()), tmp_path)


def test_the_entry_has_a_summary(tmp_path: Path) -> None:
    load(ListSource(samples(), "garden"), tmp_path)
    (entry,) = tmp_path.glob("*/entry.json")
    assert json.loads(entry.read_text())["source"] == "garden"


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VMLOC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "vmloc_ros"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "vmloc_ros"
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
