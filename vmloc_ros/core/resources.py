# SPDX-License-Identifier: Apache-2.0
"""Paths of files that are installed with the package: launch files, configurations, the demo checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vmloc_ros.core.errors import DataError

PACKAGE = "vmloc_ros"
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


def share_path(*parts: str) -> Path:
    """The path of a shipped file or folder, e.g. ``share_path("config", "node.yaml")``.

    The folders below ``share/vmloc_ros`` of an installation mirror the source tree. That tree comes first,
    since an editable installation copies none of these files.

    Raises:
        DataError: no installation has it; the message lists the paths that were searched.
    """
    tried = [root.joinpath(*parts) for root in _roots()]
    for path in tried:
        if path.exists():
            return path
    places = ", ".join(str(path) for path in tried)
    raise DataError(f"{'/'.join(parts)} does not ship with this installation of {PACKAGE}: looked for {places}")


def _roots() -> Iterator[Path]:
    if (_SOURCE_ROOT / "package.xml").is_file():
        yield _SOURCE_ROOT
    yield Path(sys.prefix) / "share" / PACKAGE
    try:
        from ament_index_python.packages import get_package_share_directory
    except ImportError:  # no ROS here
        return
    try:
        yield Path(get_package_share_directory(PACKAGE))
    except (LookupError, OSError):  # the package is in no sourced workspace, or no workspace is sourced
        return
