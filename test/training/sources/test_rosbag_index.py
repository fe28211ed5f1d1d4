# SPDX-License-Identifier: Apache-2.0
"""What opening a bag finds out is kept; splits by time choose among it."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bag_builders import MS, T0, calibration, clouds, images, poses, source, write_bag
from training.sources import open_sources
from training.sources.caching import default_cache
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from vmloc_ros.bags.messages import image_message
from vmloc_ros.core.errors import DataError

BOTH = ("image", "lidar")


def indexed(path: Path, folder: Path | None, split: str = "all", **options: Any) -> RosbagSource:
    return RosbagSource(path, SourceOptions(**options), BOTH, split, folder)


def assert_same(first: RosbagSource, second: RosbagSource) -> None:
    assert first.stamps_ns() == second.stamps_ns()
    assert first.report == second.report
    assert (first.map_frame, first.body_frame, first.modalities) == (
        second.map_frame,
        second.body_frame,
        second.modalities,
    )
    for ours, theirs in zip(first.poses(), second.poses(), strict=True):
        np.testing.assert_array_equal(ours.matrix, theirs.matrix)
    assert first.mounts.keys() == second.mounts.keys() == {"image", "lidar"}
    for name, mount in first.mounts.items():
        np.testing.assert_array_equal(mount.matrix, second.mounts[name].matrix)
    assert first.fingerprint() == second.fingerprint()


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images over 5.9 s, with poses from 0.35 s to 4.83 s, none from 2.03 s to 3.43 s."""
    known = [m for m in poses(first=5, last=70) if not T0 + 2_050 * MS < m[2] < T0 + 3_400 * MS]
    path = tmp_path_factory.mktemp("recording") / "bag"
    return write_bag(path, images(60), clouds(60), known, calibration())


def blank(path: Path) -> None:
    """Take the content away without changing what a listing of the folder shows."""
    [file] = path.glob("*.mcap")
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- the index ---------------------------------------------------------------------------------------------------


def test_an_index_spares_reading_the_bag_and_leaves_its_folder_alone(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "data" / "bag", images(), clouds(), poses(first=2), calibration())
    before = sorted(tmp_path.joinpath("data").rglob("*"))
    first = indexed(path, tmp_path / "index")
    assert [len(list(source.map_points(3))) for source in (first, indexed(path, tmp_path / "index"))] == [15, 15]
    assert sorted(tmp_path.joinpath("data").rglob("*")) == before
    blank(path)
    assert_same(indexed(path, tmp_path / "index"), first)
    with pytest.raises(DataError, match="cannot read bag"):
        indexed(path, None)
    os.utime(next(path.glob("*.mcap")))  # now it shows
    with pytest.raises(DataError, match="cannot read bag"):
        indexed(path, tmp_path / "index")


def test_frames_read_through_an_index_are_those_of_the_first_reading(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(3), clouds(), poses(), calibration())
    for ours, theirs in zip(indexed(path, tmp_path / "i"), indexed(path, tmp_path / "i"), strict=True):
        assert ours.frame.stamp_ns == theirs.frame.stamp_ns
        assert ours.frame.modalities == theirs.frame.modalities
        np.testing.assert_array_equal(ours.frame.camera_from_lidar.matrix, theirs.frame.camera_from_lidar.matrix)
        np.testing.assert_array_equal(ours.map_from_body.matrix, theirs.map_from_body.matrix)


def test_options_that_choose_among_frames_share_an_index_and_others_do_not(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    for options in ({}, {"stride": 3}, {"test_from_s": 0.5}, {"test_every": 3, "test_block_s": 0.2}):
        indexed(path, tmp_path / "index", **options)
    assert len(list((tmp_path / "index").iterdir())) == 1
    indexed(path, tmp_path / "index", pose_gap_s=0.5)
    RosbagSource(path, SourceOptions(), ("image",), index_folder=tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "foreign"])
def test_a_damaged_index_is_built_again_with_a_warning(
    damage: str, bag: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = indexed(bag, tmp_path)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "foreign":
        np.savez(file, texts="{}", stamps_ns=np.zeros(3))
    else:
        file.write_bytes(
            {
                "empty": b"",
                "cut": content[:middle],
                "flipped": content[:middle]
                + bytes(255 - byte for byte in content[middle : middle + 9])
                + content[middle + 9 :],
                "text": b"not an index",
            }[damage]
        )
    assert_same(indexed(bag, tmp_path), first)
    assert "cannot be used" in caplog.text
    caplog.clear()
    assert_same(indexed(bag, tmp_path), first)
    assert not caplog.text


def test_a_folder_that_cannot_be_written_only_warns(
    bag: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(indexed(bag, tmp_path / "file" / "index")) > 0
    assert "could not be written" in caplog.text
    assert "will be read through again next time" in caplog.text


def test_opening_data_keeps_the_index_in_the_cache(bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path))
    open_sources(bag, "all", SourceOptions(), BOTH)
    assert [file.suffix for file in (default_cache() / "index").iterdir()] == [".npz"]


def test_what_changes_frames_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", images(), clouds(), poses())
    fingerprints = {
        indexed(path, None, **options).fingerprint()
        for options in ({}, {"stride": 2}, {"pose_gap_s": 0.5}, {"test_from_s": 0.5}, {"split": "test"})
    }
    assert len(fingerprints) == 4  # without a split in the options, test is all
    split = {indexed(path, None, split, test_from_s=0.5).fingerprint() for split in ("train", "test", "all")}
    assert len(split) == 3
    plain = indexed(path, None).fingerprint()
    os.utime(next(path.glob("*.mcap")), ns=(1, 1))
    assert indexed(path, None).fingerprint() != plain


# --- splits ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    by=st.one_of(
        st.fixed_dictionaries({"test_from_s": st.floats(0.01, 6)}),
        st.fixed_dictionaries({"test_every": st.integers(2, 6), "test_block_s": st.floats(0.001, 3)}),
    ),
    stride=st.integers(1, 5),
)
def test_train_and_test_never_overlap_and_together_are_all(bag: Path, by: dict[str, Any], stride: int) -> None:
    folder = default_cache() / "splits"
    train, test, every = (indexed(bag, folder, split, stride=stride, **by) for split in ("train", "test", "all"))
    assert sorted(train.stamps_ns() + test.stamps_ns()) == every.stamps_ns()
    for part in (train, test, every):
        missing = ("frames outside the poses' time span", "frames in a gap between poses", "frames of the other split")
        assert len(part) + sum(part.report[name] for name in missing) == len(range(0, 60, stride))
    assert every.report["frames of the other split"] == 0
    for stamp in every.stamps_ns():
        seconds = (stamp - T0) / 1e9  # the bag begins with a frame that has no pose
        if "test_from_s" in by:
            assert abs(seconds - by["test_from_s"]) < 1e-6 or (stamp in test.stamps_ns()) == (
                seconds > by["test_from_s"]
            )
        else:
            block, into = divmod(seconds, by["test_block_s"])
            at_edge = min(into, by["test_block_s"] - into) < 1e-6
            assert at_edge or (stamp in test.stamps_ns()) == (block % by["test_every"] == by["test_every"] - 1)


def test_iterating_a_split_gives_its_own_images(bag: Path) -> None:
    pixels = {
        split: [int(s.frame.image[0, 0, 0]) for s in indexed(bag, None, split, test_every=3, test_block_s=0.5)]
        for split in ("train", "test")
    }
    assert pixels["test"] == [*range(10, 15), *range(40, 45)]
    assert sorted(pixels["train"] + pixels["test"]) == [*range(4, 21), *range(35, 49)]


def test_bags_without_a_split_are_all_in_both(bag: Path) -> None:
    assert indexed(bag, None, "train").stamps_ns() == indexed(bag, None, "test").stamps_ns()


def test_bags_too_short_for_a_test_split_are_left_out_of_it(tmp_path: Path) -> None:
    for name, count in (("long", 30), ("short", 10)):
        write_bag(tmp_path / "bags" / name, images(count), poses(last=60))
    options = SourceOptions(test_from_s=2.0)
    assert [s.name for s in open_sources(tmp_path / "bags", "train", options, ("image",))] == ["long", "short"]
    [test] = open_sources(tmp_path / "bags", "test", options, ("image",))
    assert (test.name, len(test), test.report["frames of the other split"]) == ("long", 10, 20)
    with pytest.raises(DataError, match=r"short: no frame is in the test split; see source\.test_from_s"):
        open_sources(tmp_path / "bags" / "short", "test", options, ("image",))


@pytest.mark.parametrize(
    "options",
    [{"test_from_s": -1.0}, {"test_every": 1}, {"test_every": -2}, {"test_block_s": 0.0}],
)
def test_splits_that_make_no_sense_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="test_from_s >= 0, test_every 0 or >= 2 and test_block_s > 0"):
        SourceOptions(**options)


def test_one_way_to_split_excludes_the_other() -> None:
    with pytest.raises(ValueError, match="test_from_s or test_every, not both"):
        SourceOptions(test_from_s=10.0, test_every=5)


# --- memory ------------------------------------------------------------------------------------------------------


def test_opening_and_iterating_hold_a_small_part_of_the_bag_in_memory(tmp_path: Path) -> None:
    """30 MB of images; the library's chunk of 1 MB, the decoded frame and bookkeeping are all that is needed."""
    stamps = [T0 + i * 50 * MS for i in range(100)]
    pixels = np.zeros((250, 400, 3), np.uint8)
    write_bag(
        tmp_path / "bag", ((("/image", image_message(t, "c", pixels, "rgb8"), t)) for t in stamps), poses(last=80)
    )
    assert sum(file.stat().st_size for file in (tmp_path / "bag").iterdir()) > 30e6
    tracemalloc.start()
    try:
        assert sum(1 for _ in source(tmp_path / "bag", ("image",))) == 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6
