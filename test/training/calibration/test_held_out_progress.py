# SPDX-License-Identifier: Apache-2.0
"""Predicting held-out frames takes minutes on a CPU: it shows its progress."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from confidence_builders import SMALL, drive, prepared
from training.calibration.held_out import predict_held_out
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["predictions", ""])
def test_the_progress_counts_the_frames_of_every_set_of_sensors(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = write_random_checkpoint(tmp_path / "m.safetensors", preprocess=SMALL)
    model = load_checkpoint(tmp_path / "m.safetensors")[1]
    data = prepared(drive(70))
    caplog.set_level(logging.INFO)
    estimates = predict_held_out(header, model, data, torch.arange(70), CPU, name=name)
    assert [len(one) for one in estimates.values()] == [70, 70, 70]  # both sensors, and each alone
    lines = [record.getMessage() for record in caplog.records if "predictions: 100 %" in record.getMessage()]
    assert ["210 of 210 img" in line for line in lines] == ([True] if name else [])
