# SPDX-License-Identifier: Apache-2.0
"""Zstandard from where the ``rosbags`` library has it: Python's own module, its backport, or an older package."""

from __future__ import annotations

from functools import cache
from typing import Any

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decompress(data: bytes) -> bytes:
    """All of the data unpacked; raises the package's own error where they are not whole."""
    return bytes(_module().decompress(data))


def decompressor() -> Any:
    """An object whose ``decompress`` takes data in parts, until its ``eof``, and gives what they hold so far."""
    module = _module()
    return module.ZstdDecompressor() if hasattr(module, "ZstdFile") else module.ZstdDecompressor().decompressobj()


@cache
def _module() -> Any:
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            import zstandard as zstd
    return zstd
