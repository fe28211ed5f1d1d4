# SPDX-License-Identifier: Apache-2.0
"""Result files: text, CSV and PNG, each written whole or not at all; and tables as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from vmloc_ros.core.files import write_aside


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text. Raises OutputError: the file cannot be written."""
    with write_aside(file) as path:
        path.write_text(text, encoding="utf-8")


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under a line of column names; absent values are empty. Raises OutputError: it cannot be written.

    Args:
        rows: values by column name; columns are all keys, in the order of their first use.
    """
    with write_aside(file) as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_figure(file: Path, figure: Figure) -> None:
    """Write a figure as PNG, without a display. Raises OutputError: the file cannot be written."""
    canvas = FigureCanvasAgg(figure)  # in place of pyplot, which keeps every figure and may look for a display
    with write_aside(file) as path, path.open("wb") as stream:
        canvas.print_png(stream)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, labels: int | None = None) -> str:
    """A Markdown table with padded columns; cells are written as ``str`` gives them.

    Args:
        rows: a cell for each title.
        labels: the columns after so many are numbers, which are aligned to the right; None: all columns are labels.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    split = len(titles) if labels is None else labels
    alignment = ["left"] * split + ["right"] * (len(titles) - split)
    # Without rows, older versions of tabulate know no columns to align.
    return tabulate(cells, titles, "pipe", disable_numparse=True, colalign=alignment if cells else None)


def text_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for terminals; cells may have several lines."""
    cells = [[str(cell) for cell in row] for row in rows]
    return tabulate(cells, titles, "simple", disable_numparse=True)
