#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes CHANGELOG.rst, which bloom reads for a release into a ROS distribution, from CHANGELOG.md.

scripts/changelog.py            write it
scripts/changelog.py --check    exit with 1 if it is not up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "CHANGELOG.md", ROOT / "CHANGELOG.rst"
_RELEASE = re.compile(r"\[(?P<name>[^]]+)](?: - (?P<date>\d{4}-\d{2}-\d{2}))?")


def to_rst(markdown: str) -> str:
    """The changelog in the form of REP-132: a title for each version, and one list below it."""
    title = "Changelog for package vmloc_ros"
    lines = [f".. Made from CHANGELOG.md by {Path(__file__).name}.", "", "^" * len(title), title, "^" * len(title)]
    kind = ""
    for part in re.split(r"\n(?=## |### |- )", markdown):
        mark, _, text = part.partition(" ")
        if mark == "##":
            lines += ["", *_heading(text)]
        elif mark == "###":
            kind = text.strip()
        elif mark == "-":
            lines.append(f"* {kind}: {_inline(' '.join(text.split()))}")
    return "\n".join(lines) + "\n"


def _heading(text: str) -> list[str]:
    match = _RELEASE.match(text)
    if match is None:
        raise ValueError(f"{SOURCE.name}: expected '## [VERSION] - YYYY-MM-DD' or '## [Unreleased]', got '## {text}'")
    name = "Forthcoming" if match["name"] == "Unreleased" else f"{match['name']} ({match['date']})"
    return [name, "-" * len(name)]


def _inline(text: str) -> str:
    """Code as literals, links and emphasis as their text, everything else escaped."""
    text = re.sub(r"\[([^]]+)]\([^)]+\)", r"\1", text).replace("**", "")
    plain = re.split(r"`([^`]*)`", text)
    return "".join(f"``{x}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", x) for i, x in enumerate(plain))


def main() -> int:
    text = to_rst(SOURCE.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--check"]:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET.name} is not up to date: run scripts/changelog.py", file=sys.stderr)
        return 1
    temporary = TARGET.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(TARGET)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
