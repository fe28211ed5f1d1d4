# SPDX-License-Identifier: Apache-2.0
"""``vmloc models``."""

from __future__ import annotations

import argparse
from typing import Any

from training.commands import add_command


def add_models(commands: Any) -> None:
    """``vmloc models``."""
    add_command(commands, "models", _models, "List the systems that `model.name` in a configuration can choose.")


def _models(_: argparse.Namespace) -> None:
    from training.info import systems_text
    from vmloc_ros.core.models import REGISTRY

    print(systems_text(REGISTRY))
