# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vmloc_ros.core.errors import OutputError
from vmloc_ros.core.files import write_aside


def test_the_file_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.txt"
    with write_aside(target) as path:
        assert path.parent == target.parent  # a rename across file systems would not be atomic
        path.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("disk"), SafetensorError("io")])
def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write() -> None:
        with write_aside(target) as path:
            path.write_text("half of the n")
            raise error

    with pytest.raises(OutputError, match=r"file\.txt could not be written: .*existing file was left as it was"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_passes_through_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_aside(target):
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_has_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with write_aside(tmp_path / "file") as path:
            path.write_text("x")
        assert os.umask(0o027) == 0o027  # reading the mask did not change it
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="could not be written"),
        write_aside(tmp_path / "file" / "below") as path,
    ):
        path.write_text("never reached")


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "name" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="could not be written"), write_aside(tmp_path / "name") as path:
        path.write_text("x")
    assert [child.name for child in tmp_path.iterdir()] == ["name"]
