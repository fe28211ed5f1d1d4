# SPDX-License-Identifier: Apache-2.0
"""Null distributions of the confidence, where some estimates are correct by chance alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from confidence_builders import CPU, SMALL, drive, prepared
from helpers import ListSource
from training.calibration.confidence import fit_confidence, fit_null_distributions, fit_reference_features
from training.calibration.held_out import predict_held_out
from training.data.dataset import prepare_dataset
from training.evaluation.metrics import CONFIDENCE_LIMIT
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.confidence import neg_log_p_value
from vmloc_ros.core.preprocessing import Preprocessor


def confidence(tails, scores: np.ndarray) -> np.ndarray:
    return np.exp(tails[-1].log_p_value(neg_log_p_value(scores, tails[:-1])))


def estimates(distinct: int, alike: int, correct: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outlier scores ``(N, 2)`` and gross errors ``(N,)``: in places that look alike, with a high second score.

    Args:
        distinct: number of frames in places that no other resembles; all of them are estimated correctly.
        alike: number of frames in places that look like another.
        correct: probability that the estimate of such a frame is correct.
    """
    ambiguous = np.repeat([False, True], [distinct, alike])
    count = len(ambiguous)
    scores = np.stack([rng.exponential(1.0, count), np.where(ambiguous, 0.95, 0.2) + rng.normal(0, 0.02, count)], 1)
    return scores, ambiguous & (rng.random(count) >= correct)


@pytest.mark.parametrize("alike", [100, 300, 1500])
def test_estimates_that_are_correct_by_chance_are_withheld_with_the_gross_errors(
    alike: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(alike)
    with caplog.at_level(logging.WARNING):
        tails = fit_null_distributions(*estimates(300, alike, 0.6, rng), "image and lidar")
    assert "image and lidar: " in caplog.text
    scores, _ = estimates(2000, 2000, 0.6, rng)
    found = confidence(tails, scores)
    assert np.mean(found[:2000] < CONFIDENCE_LIMIT) < 0.08
    assert np.mean(found[2000:] < CONFIDENCE_LIMIT) > 0.995


def test_where_places_look_alike_but_estimates_are_correct_none_is_withheld_for_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(1)
    with caplog.at_level(logging.WARNING):
        tails = fit_null_distributions(*estimates(1000, 1000, 1.0, rng), "image")
    assert not caplog.text
    found = confidence(tails, estimates(2000, 2000, 1.0, rng)[0])
    assert np.mean(found[2000:] < CONFIDENCE_LIMIT) == pytest.approx(0.05, abs=0.04)


def test_a_few_gross_errors_do_not_withhold_estimates_with_the_same_cues(caplog: pytest.LogCaptureFixture) -> None:
    scores, gross = estimates(1000, 0, 1.0, np.random.default_rng(2))
    gross[:10] = True
    with caplog.at_level(logging.WARNING):
        tails = fit_null_distributions(scores, gross, "image")
    assert not caplog.text
    assert np.mean(confidence(tails, scores) < CONFIDENCE_LIMIT) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("distinct", [0, 30])
def test_where_no_cue_separates_gross_errors_all_estimates_are_withheld(
    distinct: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(3)
    with caplog.at_level(logging.WARNING):
        tails = fit_null_distributions(*estimates(distinct, 400, 0.5, rng), "depth")
    assert "confidence of zero" in caplog.text
    scores, _ = estimates(500, 500, 0.5, rng)
    assert confidence(tails, scores).max() == 0.0


def test_gross_errors_that_the_cues_separate_do_not_change_the_null_distributions() -> None:
    rng = np.random.default_rng(4)
    scores, gross = estimates(1000, 300, 0.0, rng)
    tails, without = (
        fit_null_distributions(scores, gross, "image"),
        fit_null_distributions(scores[~gross], gross[~gross], "image"),
    )
    np.testing.assert_array_equal(confidence(tails, scores), confidence(without, scores))


def test_systems_without_features_and_too_few_frames_give_no_confidence(tmp_path: Path) -> None:
    samples = drive(60)
    for sample in samples:
        assert sample.frame.image is not None
    write_random_checkpoint(tmp_path / "atloc.safetensors", ("image",), system="atloc", backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "atloc.safetensors")
    data = prepare_dataset([ListSource(samples)], Preprocessor(header.preprocess), progress=False)
    assert fit_reference_features(header, model, data, torch.arange(60), CPU) == {}
    assert fit_confidence({}, data, predict_held_out(header, model, data, torch.arange(60), CPU, {})) is None
    write_random_checkpoint(tmp_path / "vmloc.safetensors", preprocess=SMALL, backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "vmloc.safetensors")
    references = fit_reference_features(header, model, prepared(samples), torch.arange(60), CPU)
    assert set(references) == {"image", "lidar"}
    assert (
        fit_confidence(
            references,
            prepared(samples),
            predict_held_out(header, model, prepared(samples), torch.arange(20), CPU, references),
        )
        is None
    )
