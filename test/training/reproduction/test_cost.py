# SPDX-License-Identifier: Apache-2.0
"""Measurement of costs in turns, and their table; no time is asserted on."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import without_padding
from training.cli import main
from training.config import TrainConfig, parse_config
from training.reproduction import cost
from training.reproduction.cost import SUBJECTS, Cost, measure_cost
from training.reproduction.cost_table import cost_rows, cost_table
from vmloc_ros.core.errors import ConfigError

TINY = {
    "shared_by_systems": True,
    "model": {"backbone": "squeezenet1_1", "latent_dim": 16, "hidden_dim": 16, "feature_dim": 16},
    "preprocess": {"shortest_side": 32},
    "optimizer": {"batch_size": 2},
}


def tiny_configs() -> dict[str, TrainConfig]:
    return {
        name: parse_config({**TINY, "model": {**TINY["model"], "name": name}}, None, "test") for name in cost.SYSTEMS
    }


def known_costs() -> dict[str, Cost]:
    """System number i takes i + 1 times as long as the first, in every turn, however long a turn is."""
    turns = np.array([1.0, 2.0, 4.0])
    return {key: Cost(turns * (i + 1), 0.1 * turns * (i + 1), 100.0 * (i + 1)) for i, key in enumerate(SUBJECTS)}


def test_ratios_are_taken_within_a_turn() -> None:
    rows = {row["system"]: row for row in cost_rows(known_costs())}
    assert list(rows) == list(SUBJECTS)
    assert rows["vmloc, k = 10"]["step_per_poe_vmloc"] == pytest.approx(2 / 4)
    assert rows["vmloc, k = 10"]["step_per_attention_vmloc"] == pytest.approx(2 / 5)
    assert rows["atloc"]["answer_per_poe_vmloc"] == pytest.approx(6 / 4)
    assert rows["vmloc, k = 50"]["step_ms"] == pytest.approx(6000)
    assert rows["vmloc, k = 50"]["answer_ms"] == pytest.approx(600)


def test_quartiles_are_of_the_ratios() -> None:
    costs = known_costs()
    uneven = Cost(np.array([4.0, 16.0, 48.0]), costs["atloc"].predictions_s, None)  # 1, 2, 3 times poe_vmloc's
    row = cost_rows({**costs, "atloc": uneven})[-1]
    assert [row[f"step_per_poe_vmloc{rank}"] for rank in ("_q25", "", "_q75")] == pytest.approx([1.5, 2.0, 2.5])


def test_the_papers_ratios_stand_beside_ours_and_nowhere_else() -> None:
    lines = without_padding(cost_table(cost_rows(known_costs()))).splitlines()
    cells = "vmloc, k = 10 | 4000 | 0.50 (0.50-0.50) | 1.23 | 0.40 (0.40-0.40) | 1.02 | 200 | 400.0 | 0.50 (0.50-0.50)"
    assert lines[3] == f"| {cells} |"
    assert lines[5].startswith("| poe_vmloc | 8000 | 1 | – |")
    assert sum(("1.23" in line) or ("1.02" in line) for line in lines) == 1


def test_memory_that_is_not_reported_is_a_dash() -> None:
    costs = {key: Cost(value.steps_s, value.predictions_s, None) for key, value in known_costs().items()}
    assert "| – | 400.0 |" in without_padding(cost_table(cost_rows(costs)))


def test_every_subject_is_measured_with_the_configured_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, ...]] = []
    original = cost._batch

    def spy(channels, count, size, device):
        batches.append((len(channels), count, size))
        return original(channels, count, size, device)

    monkeypatch.setattr(cost, "_batch", spy)
    monkeypatch.setattr(cost, "_in_fresh_process", lambda *_: 5.0)
    costs = measure_cost(tiny_configs(), torch.device("cpu"), repeats=2, progress=False)
    assert list(costs) == list(SUBJECTS)
    assert all(len(c.steps_s) == 2 and len(c.predictions_s) == 10 and c.memory_mb == 5.0 for c in costs.values())
    assert all((c.steps_s > 0).all() and (c.predictions_s > 0).all() for c in costs.values())
    assert batches == [(m, n, 32) for key in SUBJECTS for m in ((1,) if key == "atloc" else (2,)) for n in (2, 1)]


def test_zero_turns_are_rejected() -> None:
    with pytest.raises(ConfigError, match="repeats must be at least 1, got 0"):
        measure_cost({}, torch.device("cpu"), repeats=0)


def test_the_allocators_setting_is_for_the_new_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "123"):
        if before is None:
            monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
        else:
            monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", before)
        with cost._prompt_allocator():
            assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "65536"
        assert os.environ.get("MALLOC_MMAP_THRESHOLD_") == before


def test_peak_memory_holds_at_least_gradients_and_moments() -> None:
    """Three steps need a gradient and two moments for every parameter, four bytes each."""
    sizes = {"name": "poe_vmloc", "latent_dim": 1024, "hidden_dim": 1024}
    config = parse_config({**TINY, "model": {**TINY["model"], **sizes}}, None, "test")
    subject = cost._Subject("poe_vmloc", config, torch.device("cpu"))
    least_mb = 3 * 4 * sum(x.numel() for x in subject._model.parameters()) / 1e6
    measured = cost._in_fresh_process("poe_vmloc", config, torch.device("cpu"))
    if measured is None:
        pytest.skip("this system does not report how much memory a process has")
    assert least_mb < measured < 4 * least_mb


def test_the_command_writes_the_table_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(
        "training.reproduction.reproduce.measure_cost", lambda *given: seen.append(given) or known_costs()
    )
    arguments = ["--set", "preprocess.shortest_side=40", "--set", "optimizer.batch_size=3", "--repeats", "7"]
    assert main(["reproduce", "cost", "--out", str(tmp_path), "--device", "cpu", *arguments]) == 0
    configs, device, repeats = seen[0]
    config = configs["atloc"]
    assert (config.preprocess.shortest_side, config.optimizer.batch_size, device.type, repeats) == (40, 3, "cpu", 7)
    printed = capsys.readouterr().out
    assert "resnet34, 40 pixels, batch 3" in printed
    assert (tmp_path / "cost.md").read_text() in printed
    record = json.loads((tmp_path / "cost.json").read_text())
    assert record["results"][1]["paper_step_per_poe_vmloc"] == 1.23
    assert record["torch"] == torch.__version__
    with (tmp_path / "cost.csv").open() as file:
        assert [row["system"] for row in csv.DictReader(file)] == list(SUBJECTS)
