# SPDX-License-Identifier: Apache-2.0
"""Zstandard from where the ``rosbags`` library has it: Python's own module, or its backport."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, decompress
else:
    from backports.zstd import ZstdDecompressor, decompress

__all__ = ["ZSTD_MAGIC", "ZstdDecompressor", "decompress"]

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
