# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the check of numbers that options give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmloc_ros.core.errors import ConfigError

# A parser, or a group of one.
Parser = Any


def add_data(parser: Parser, more: str = "") -> None:
    """``data``: one path or several."""
    parser.add_argument("data", type=Path, nargs="+", help=f"bags, folders of bags or datasets{more}")


def add_split(parser: Parser, default: str, of: str = "of datasets that have splits", name: str = "--split") -> None:
    """``--split``: which part of a dataset that comes in parts."""
    parser.add_argument(name, choices=["train", "test", "all"], default=default, help=of)


def add_source_overrides(parser: Parser) -> None:
    """``--set source.KEY=VALUE``, for commands that can override how data are read and nothing else."""
    parser.add_argument("--set", action="append", metavar="source.KEY=VALUE", help="override how data are read")
    add_allow_truncated(parser)


def add_allow_truncated(parser: Parser) -> None:
    """``--allow-truncated``: short for an item of ``--set``."""
    parser.add_argument(
        "--allow-truncated",
        action="append_const",
        dest="set",
        const="source.allow_truncated=true",
        help="use what is there of bags that were cut off",
    )


def add_device(parser: Parser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_checkpoint_out(parser: Parser) -> None:
    """``--out``, for commands that write a checkpoint."""
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")


def add_overwrite(parser: Parser, what: str) -> None:
    """``--overwrite``: without it, an existing output is an error."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_cache(parser: Parser) -> None:
    """``--cache``; the default is that of :func:`training.sources.caching.default_cache`."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep prepared frames here (default: $VMLOC_CACHE, or vmloc_ros in $XDG_CACHE_HOME or ~/.cache)",
    )


def check_positive(option: str, number: int) -> None:
    """Raises ConfigError: the number is below 1."""
    if number < 1:
        raise ConfigError(f"{option} must be at least 1, got {number}")
