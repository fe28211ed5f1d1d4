# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from training.output import markdown_table, write_csv, write_figure, write_text
from vmloc_ros.core.errors import OutputError


def test_tables_keep_cells_as_they_are_and_align_numbers_to_the_right() -> None:
    table = markdown_table(["", "error (m)"], [["vmloc", "1.50 ± 0.20"], ["0010", 7]], labels=1)
    assert table.splitlines() == [
        "|       |   error (m) |",
        "|:------|------------:|",
        "| vmloc | 1.50 ± 0.20 |",
        "| 0010  |           7 |",
    ]
    assert markdown_table(["a", "b"], [["x", "1"]]).splitlines()[1] == "|:----|:----|"


def test_a_table_without_rows_has_its_head() -> None:
    head = markdown_table(["input", "frames"], [], labels=1).splitlines()[0]
    assert [cell.strip() for cell in head.split("|")] == ["", "input", "frames", ""]


def test_csv_has_all_columns_in_the_order_of_their_first_use(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "x.csv", [{"b": 1, "a": "x, y"}, {"a": None, "c": 0.1}])
    assert (tmp_path / "new" / "x.csv").read_text() == 'b,a,c\n1,"x, y",\n,,0.1\n'


def test_figures_are_pictures(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([0, 1])
    write_figure(tmp_path / "x.png", figure)
    assert cv2.imread(str(tmp_path / "x.png")).shape == (50, 100, 3)


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        write_text(tmp_path / "file" / "x.md", "text")
