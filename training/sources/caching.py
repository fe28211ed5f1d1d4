# SPDX-License-Identifier: Apache-2.0
"""The cache's default folder, and fingerprints of sources, which need no reading of their data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def fingerprint(files: Iterable[Path], *settings: object) -> str:
    """A digest of the files' paths, sizes and times of change, and of what decides how they are read.

    Args:
        files: all files that the source reads; whether one is missing changes the digest, too.
        settings: values whose ``repr`` identifies them.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except FileNotFoundError:
            state = "missing"
        digest.update(f"{path.resolve()} {state}\n".encode())
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def default_cache() -> Path:
    """``$VMLOC_CACHE``, else ``$XDG_CACHE_HOME/vmloc_ros``, else ``~/.cache/vmloc_ros``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VMLOC_CACHE") or Path(base) / "vmloc_ros")
