# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from confidence_builders import SMALL, drive, write_judged_checkpoint
from helpers import ListSource, random_frame, without_padding, yaw_pose
from training.evaluation import confidence_study as study_module
from training.evaluation.confidence_study import detection_rate, risk_coverage, study
from training.evaluation.metrics import PoseErrors, area_under_roc
from training.testing import write_random_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Sample

# --- figures -----------------------------------------------------------------------------------------------------


def test_the_area_under_the_curve_is_mann_whitneys_statistic_with_ties_counting_half() -> None:
    rng = np.random.default_rng(0)
    nominal, outliers = rng.integers(0, 12, 60) / 11, rng.integers(0, 9, 45) / 11
    pairs = np.sign(nominal[:, None] - outliers) / 2 + 0.5
    assert area_under_roc(nominal, outliers) == pytest.approx(pairs.mean())
    assert area_under_roc(nominal, outliers) == pytest.approx(mannwhitneyu(nominal, outliers).statistic / (60 * 45))
    assert area_under_roc([1.0, 0.9], [0.1]) == 1
    assert area_under_roc([0.1], [0.9]) == 0


@pytest.mark.parametrize("allowed", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_the_detection_rate_is_the_best_of_all_limits_with_few_enough_false_alarms(allowed: float) -> None:
    rng = np.random.default_rng(1)
    nominal, outliers = rng.integers(2, 30, 100) / 30, rng.integers(0, 20, 80) / 30
    limits = np.unique(np.concatenate([nominal, outliers]))
    possible = [limit for limit in limits if np.mean(nominal < limit) <= allowed]
    assert detection_rate(nominal, outliers, allowed) == max(np.mean(outliers < limit) for limit in possible)


def test_dropping_the_least_confident_frames_leaves_the_errors_of_the_others() -> None:
    errors = PoseErrors(np.arange(20.0), np.arange(20.0) * 2)
    kept = dict(risk_coverage(np.linspace(1, 0, 20), errors))  # the larger the error, the smaller the confidence
    assert len(kept[0.0]) == 20
    np.testing.assert_array_equal(np.sort(kept[0.1].position_m), np.arange(18))
    np.testing.assert_array_equal(np.sort(kept[0.5].rotation_deg), np.arange(10) * 2)


# --- the study -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judged_checkpoint(tmp_path_factory.mktemp("confidence") / "model.safetensors")


def test_the_study_writes_tables_and_a_picture(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ListSource(drive(12))
    foreign = ListSource([Sample(random_frame(1000 + i, (40, 40)), yaw_pose(0.0)) for i in range(2)])

    def open_sources(path: Path, split: str, options: object, modalities: tuple[str, ...]) -> list[ListSource]:
        if path.name == "foreign" and "lidar" in modalities:
            raise DataError("it has no cloud topic")
        return [foreign if path.name == "foreign" else known]

    monkeypatch.setattr(study_module, "open_sources", open_sources)
    text, folder = study(
        checkpoint, [Path("known")], foreign=[Path("foreign")], out=tmp_path / "out", device="cpu", progress=False
    )
    assert (folder / "confidence.md").read_text() == text
    assert (folder / "roc.png").stat().st_size > 10_000
    with (folder / "confidence.csv").open() as file:
        rows = {row["input"]: row for row in csv.DictReader(file)}
    assert rows["good"]["frames"] == rows["covered lens"]["frames"] == "12"
    assert float(rows["covered lens"]["auc"]) > 0.9
    assert rows["foreign image"]["frames"] == "12"  # the recording without a lidar gives its images
    assert text.startswith("# Confidence of vmloc (model.safetensors)\n\n12 in-distribution frames")
    assert "| covered lens | 12 |" in without_padding(text)


def test_a_checkpoint_without_a_confidence_is_rejected_with_what_to_do(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "plain.safetensors", preprocess=SMALL, backbone="squeezenet1_1")
    with pytest.raises(ConfigError, match=r"plain\.safetensors was written without a confidence; add one with `vmloc"):
        study(tmp_path / "plain.safetensors", [Path("anything")], device="cpu")
