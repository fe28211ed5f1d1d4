# SPDX-License-Identifier: Apache-2.0
"""Shipped files are found in a source checkout, in an installation, and not beside them."""

import sys
from pathlib import Path

import pytest

from vmloc_ros.core import resources
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.resources import share_path


def test_source_tree_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, prefix = tmp_path / "source", tmp_path / "prefix"
    for folder in (source / "config", prefix / "share" / "vmloc_ros" / "config"):
        folder.mkdir(parents=True)
        (folder / "node.yaml").touch()
    monkeypatch.setattr(resources, "_SOURCE_ROOT", source)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    assert share_path("config", "node.yaml") == prefix / "share" / "vmloc_ros" / "config" / "node.yaml"
    (source / "package.xml").touch()
    assert share_path("config", "node.yaml") == source / "config" / "node.yaml"


def test_package_of_a_sourced_workspace_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ament_index_python")
    marker = tmp_path / "share" / "ament_index" / "resource_index" / "packages" / "vmloc_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (tmp_path / "share" / "vmloc_ros").mkdir()
    (tmp_path / "share" / "vmloc_ros" / "package.xml").touch()
    monkeypatch.setattr(resources, "_SOURCE_ROOT", tmp_path / "no_source")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "no_prefix"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert share_path("package.xml") == tmp_path / "share" / "vmloc_ros" / "package.xml"


def test_a_missing_file_is_an_error_with_all_searched_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with pytest.raises(DataError, match=r"config/absent\.yaml does not ship .* looked for") as error:
        share_path("config", "absent.yaml")
    assert str(Path(sys.prefix) / "share" / "vmloc_ros" / "config" / "absent.yaml") in str(error.value)
    assert str(Path(__file__).resolve().parents[2] / "config" / "absent.yaml") in str(error.value)


def test_dds_profile_ships() -> None:
    assert share_path("config", "fastdds.xml").is_file()
