# SPDX-License-Identifier: Apache-2.0
"""The commands of ``vmloc``, each with its options and the call to the library that does the work.

Commands import what they need when they run, so that ``vmloc --help`` is fast and needs no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Run = Callable[[argparse.Namespace], None]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends defaults to help texts, except empty ones and where the text states its own."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default == [] or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_command(commands: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    """A subparser whose options are given to ``run``."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
    parser.set_defaults(run=run)
    return parser
