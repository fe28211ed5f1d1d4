# SPDX-License-Identifier: Apache-2.0
"""Confidence where some good answers are good by luck alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from confidence_builders import CPU, SMALL, drive, prepared
from helpers import ListSource
from training.calibration.confidence import fit_confidence, fit_tails, remember
from training.calibration.held_out import predict_held_out
from training.data.dataset import prepare_dataset
from training.evaluation.metrics import LIMIT
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.confidence import neg_log_p_value
from vmloc_ros.core.preprocessing import Preprocessor


def confidence(tails, cues: np.ndarray) -> np.ndarray:
    return np.exp(tails[-1].log_p_value(neg_log_p_value(cues, tails[:-1])))


def answers(unlike: int, alike: int, luck: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two cues and which answers are wrong: the second cue is high, and luck decides, where places look alike."""
    twin = np.repeat([False, True], [unlike, alike])
    cues = np.stack([rng.exponential(1.0, len(twin)), np.where(twin, 0.95, 0.2) + rng.normal(0, 0.02, len(twin))], 1)
    return cues, twin & (rng.random(len(twin)) >= luck)


@pytest.mark.parametrize("alike", [100, 300, 1500])
def test_answers_that_are_right_by_luck_are_withheld_with_those_that_are_not(
    alike: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(alike)
    with caplog.at_level(logging.WARNING):
        tails = fit_tails(*answers(300, alike, 0.6, rng), "image and lidar")
    assert "image and lidar: " in caplog.text
    cues, _ = answers(2000, 2000, 0.6, rng)
    judged = confidence(tails, cues)
    assert np.mean(judged[:2000] < LIMIT) < 0.08
    assert np.mean(judged[2000:] < LIMIT) > 0.995


def test_where_places_look_alike_but_answers_are_right_none_is_withheld_for_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(1)
    with caplog.at_level(logging.WARNING):
        tails = fit_tails(*answers(1000, 1000, 1.0, rng), "image")
    assert not caplog.text
    judged = confidence(tails, answers(2000, 2000, 1.0, rng)[0])
    assert np.mean(judged[2000:] < LIMIT) == pytest.approx(0.05, abs=0.04)


def test_a_few_wrong_answers_do_not_silence_their_likes(caplog: pytest.LogCaptureFixture) -> None:
    cues, wrong = answers(1000, 0, 1.0, np.random.default_rng(2))
    wrong[:10] = True
    with caplog.at_level(logging.WARNING):
        tails = fit_tails(cues, wrong, "image")
    assert not caplog.text
    assert np.mean(confidence(tails, cues) < LIMIT) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("unlike", [0, 30])
def test_where_nothing_tells_right_from_wrong_nothing_goes_out(unlike: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(3)
    with caplog.at_level(logging.WARNING):
        tails = fit_tails(*answers(unlike, 400, 0.5, rng), "depth")
    assert "confidence of zero" in caplog.text
    cues, _ = answers(500, 500, 0.5, rng)
    assert confidence(tails, cues).max() == 0.0


def test_wrong_answers_that_the_cues_tell_leave_the_good_ones_as_they_are() -> None:
    rng = np.random.default_rng(4)
    cues, wrong = answers(1000, 300, 0.0, rng)
    tails, without = fit_tails(cues, wrong, "image"), fit_tails(cues[~wrong], wrong[~wrong], "image")
    np.testing.assert_array_equal(confidence(tails, cues), confidence(without, cues))


def test_systems_without_features_and_too_few_frames_give_no_confidence(tmp_path: Path) -> None:
    samples = drive(60)
    for sample in samples:
        assert sample.frame.image is not None
    write_random_checkpoint(tmp_path / "atloc.safetensors", ("image",), system="atloc", backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "atloc.safetensors")
    data = prepare_dataset([ListSource(samples)], Preprocessor(header.preprocess), progress=False)
    assert remember(header, model, data, torch.arange(60), CPU) == {}
    assert fit_confidence({}, data, predict_held_out(header, model, data, torch.arange(60), CPU, {})) is None
    write_random_checkpoint(tmp_path / "vmloc.safetensors", preprocess=SMALL, backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "vmloc.safetensors")
    memories = remember(header, model, prepared(samples), torch.arange(60), CPU)
    assert set(memories) == {"image", "lidar"}
    assert (
        fit_confidence(
            memories,
            prepared(samples),
            predict_held_out(header, model, prepared(samples), torch.arange(20), CPU, memories),
        )
        is None
    )
