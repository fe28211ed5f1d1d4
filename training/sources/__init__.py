# SPDX-License-Identifier: Apache-2.0
"""Data sources: one file or folder per dataset, behind one protocol."""

from training.sources.base import Source
from training.sources.factory import open_sources

__all__ = ["Source", "open_sources"]
