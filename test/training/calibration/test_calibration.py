# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from helpers import ListSource, random_frame, yaw_pose
from training.calibration import calibrate as recalibrate_module
from training.calibration.calibrate import recalibrate
from training.calibration.covariance import calibrate_header
from training.calibration.error_fits import fit_coupling, fit_floor, fit_inflation, fit_margin
from training.calibration.held_out import gross_errors, predict_held_out
from training.data.dataset import PreparedDataset, prepare_dataset
from training.evaluation.consistency import (
    calibration_summary,
    confidence_levels,
    effective_sample_size,
    map_errors,
    nees,
    pose_nees,
)
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.frame import Estimate, Sample
from vmloc_ros.core.geometry import Pose, quaternion_exp
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ModelInput, RegressionModel, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.uncertainty import growth_factors, inflated_covariance, residual_covariance

COUNT = 10_000
STANDARD_ERROR_OF_NEES = {"pose": np.sqrt(12 / COUNT), "position": np.sqrt(6 / COUNT), "rotation": np.sqrt(6 / COUNT)}
RESIDUAL_STD = np.array([0.5, 0.05, 0.1, 0.01, 0.02, 0.1])


def random_poses(count: int, seed: int = 0) -> list[Pose]:
    rng = np.random.default_rng(seed)
    quaternions = Rotation.random(count, random_state=seed).as_quat()[:, [3, 0, 1, 2]]
    return [Pose(p, q) for p, q in zip(rng.normal(scale=1e3, size=(count, 3)), quaternions, strict=True)]


def moved_in_map(pose: Pose, error: np.ndarray) -> Pose:
    """Shifted along and turned about the map's fixed axes, by scipy."""
    turned = Rotation.from_rotvec(error[3:]) * Rotation.from_quat(pose.quaternion_wxyz[[1, 2, 3, 0]])
    return Pose(pose.position_m + error[:3], turned.as_quat()[[3, 0, 1, 2]])


def drawn(scale: float = 1.0, count: int = COUNT) -> tuple[list[Pose], list[Estimate]]:
    """Truths drawn from the estimates' covariances: correlated, another for each; ``scale`` times too small."""
    rng = np.random.default_rng(1)
    roots = np.tril(rng.normal(size=(count, 6, 6))) * np.array([2.0] * 3 + [0.05] * 3)[:, None]
    roots += np.eye(6) * 0.02
    errors = np.einsum("nij,nj->ni", roots, rng.normal(size=(count, 6)))
    poses = random_poses(count)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    covariances = roots @ np.swapaxes(roots, 1, 2) * scale
    return truth, [Estimate(i, p, c, ("image",)) for i, (p, c) in enumerate(zip(poses, covariances, strict=True))]


# --- errors and NEES ---------------------------------------------------------------------------------------------


def test_errors_lead_from_the_estimate_to_the_truth_about_the_maps_axes() -> None:
    rng = np.random.default_rng(2)
    errors = rng.normal(size=(50, 6)) * [10, 10, 10, 0.8, 0.8, 0.8]
    poses = random_poses(50)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    np.testing.assert_allclose(map_errors(truth, poses), errors, atol=1e-9)


def test_nees_is_the_squared_error_over_the_variance_of_a_diagonal() -> None:
    values = nees([[1.0, 0.0], [3.0, 4.0]], [np.diag([4.0, 1.0]), np.diag([9.0, 2.0])])
    np.testing.assert_allclose(values, [0.25, 9.0])


def test_nees_measures_an_error_along_the_axes_of_the_covariance() -> None:
    """An error of 2 m to the east, 2 m uncertain to the east and 0.1 m to the north; heading north."""
    covariance = np.diag([4.0, 0.01, 1.0, 0.01, 0.01, 0.01])
    estimate = Estimate(0, yaw_pose(0.0, 0.0, 90.0), covariance, ("image",))
    assert pose_nees([yaw_pose(2.0, 0.0, 90.0)], [estimate])["position"] == pytest.approx(1.0)
    assert pose_nees([yaw_pose(0.0, 2.0, 90.0)], [estimate])["position"] == pytest.approx(400.0)


def test_draws_from_the_covariance_have_the_nominal_nees_and_coverage() -> None:
    """Means within five standard errors of 6, 3 and 3; shares within five of the nominal ones."""
    truth, estimates = drawn()
    summary = calibration_summary(truth, estimates)
    for part, expected in (("pose", 6), ("position", 3), ("rotation", 3)):
        assert abs(summary[f"nees_{part}"] - expected) < 5 * STANDARD_ERROR_OF_NEES[part]
        for share in (0.5, 0.9, 0.95):
            deviation = np.sqrt(share * (1 - share) / COUNT)
            assert abs(summary[f"coverage{100 * share:.0f}_{part}"] - share) < 5 * deviation


def test_residuals_of_the_body_are_calibrated_after_their_turn_into_the_map() -> None:
    """Deviations along the body's axes, as in the localizer's covariance, but turned by scipy."""
    errors = np.random.default_rng(3).normal(size=(COUNT, 6)) * RESIDUAL_STD
    poses = random_poses(COUNT, 4)
    turns = Rotation.from_rotvec(errors[:, 3:]).as_quat()[:, [3, 0, 1, 2]]
    truth = [pose @ Pose(error[:3], turn) for pose, error, turn in zip(poses, errors, turns, strict=True)]
    estimates = [Estimate(0, pose, residual_covariance(pose, RESIDUAL_STD), ("image",)) for pose in poses]
    for part, values in pose_nees(truth, estimates).items():
        assert abs(values.mean() - (6 if part == "pose" else 3)) < 5 * STANDARD_ERROR_OF_NEES[part]


def test_covariances_four_times_too_small_or_large_show_in_nees_and_coverage() -> None:
    small, large = (calibration_summary(*drawn(scale, 2000)) for scale in (0.25, 4.0))
    assert small["nees_pose"] == pytest.approx(24, rel=0.1)
    assert large["nees_pose"] == pytest.approx(1.5, rel=0.1)
    for part, dimensions in (("pose", 6), ("position", 3), ("rotation", 3)):
        for share in (0.5, 0.9, 0.95):
            radius = chi2.ppf(share, dimensions)
            for summary, factor in ((small, 0.25), (large, 4.0)):
                expected = chi2.cdf(factor * radius, dimensions)
                assert summary[f"coverage{100 * share:.0f}_{part}"] == pytest.approx(expected, abs=0.05)


def test_the_confidence_level_is_the_probability_of_the_ellipsoid_through_the_truth() -> None:
    radius = np.sqrt(chi2.ppf([0.5, 0.95], 3))
    estimates = [Estimate(0, yaw_pose(0.0), np.diag([4.0, 4.0, 4.0, 0.01, 0.01, 0.01]), ("image",))] * 2
    levels = confidence_levels([yaw_pose(0.0, 2 * radius[0]), yaw_pose(-2 * radius[1])], estimates)
    np.testing.assert_allclose(levels["position"], [0.5, 0.95])
    np.testing.assert_allclose(levels["rotation"], 0)
    np.testing.assert_allclose(levels["pose"], chi2.cdf(radius**2, 6))


def heavy_tailed(count: int, seed: int) -> tuple[list[Pose], list[Pose], np.ndarray]:
    """Truth, estimates whose errors are Student-t of 3 degrees of freedom and unit variance, and unit covariances."""
    rng = np.random.default_rng(seed)
    errors = rng.standard_t(3, (count, 6)) / np.sqrt(3) * np.repeat([1.0, 0.05], 3)
    estimates = [Pose.identity()] * count
    truth = [Pose(error[:3], quaternion_exp(error[3:] / 2)) for error in errors]
    return truth, estimates, np.tile(np.diag(np.repeat([1.0, 0.05**2], 3)), (count, 1, 1))


def test_inflated_covariances_hold_95_percent_of_other_errors_of_the_same_kind() -> None:
    inflation = fit_inflation(*heavy_tailed(20_000, 0))
    assert min(inflation) > 1.05
    truth, estimates, covariances = heavy_tailed(20_000, 1)
    errors = map_errors(truth, estimates)
    for rows in (slice(0, 3), slice(3, 6)):
        before, after = (
            chi2.cdf(nees(errors[:, rows], matrices[:, rows, rows]), 3)
            for matrices in (covariances, inflated_covariance(covariances, inflation))
        )
        assert np.mean(before <= 0.95) < 0.94
        assert np.mean(after <= 0.95) == pytest.approx(0.95, abs=0.005)  # three standard errors of both draws


def test_covariances_are_never_made_smaller() -> None:
    truth, estimates, covariances = heavy_tailed(100, 0)
    assert fit_inflation(truth, estimates, 100 * covariances) == (1.0, 1.0)


def drives(count: int, spread: float, rng: np.random.Generator) -> tuple[list[Pose], list[Pose], np.ndarray]:
    """Drives of 40 frames with unit covariances; errors of each are normal, of a scale of its own."""
    scales = np.repeat(np.exp(rng.normal(0, spread, (count, 2))), 40, axis=0)
    errors = rng.normal(size=(40 * count, 6)) * np.repeat(scales, 3, axis=1) * np.repeat([1.0, 0.05], 3)
    truth = [Pose(error[:3], quaternion_exp(error[3:] / 2)) for error in errors]
    return truth, [Pose.identity()] * len(truth), np.tile(np.diag(np.repeat([1.0, 0.05**2], 3)), (len(truth), 1, 1))


def test_with_the_margin_ellipsoids_hold_the_nominal_share_of_new_drives_though_errors_of_one_are_correlated() -> None:
    rng = np.random.default_rng(0)
    truth, estimates, covariances = drives(200, 0.5, rng)
    errors = map_errors(truth, estimates)
    coverage: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(60):
        seen = drives(8, 0.5, rng)
        inflation, margin = fit_inflation(*seen), fit_margin(*seen)
        for name, factors in {"without": (1.0, 1.0), "with": margin}.items():
            matrices = inflated_covariance(covariances, (inflation[0] * factors[0], inflation[1] * factors[1]))
            for rows in (slice(0, 3), slice(3, 6)):
                levels = chi2.cdf(nees(errors[:, rows], matrices[:, rows, rows]), 3)
                coverage[name].append(float(np.mean(levels <= 0.95)))
    assert np.mean(coverage["without"]) < 0.935
    assert np.mean(coverage["with"]) == pytest.approx(0.95, abs=0.015)


def test_frames_with_independent_errors_need_next_to_no_margin() -> None:
    assert max(fit_margin(*drives(200, 0.0, np.random.default_rng(1)))) < 1.02
    assert fit_margin(*drives(1, 0.0, np.random.default_rng(2))) == (1.0, 1.0)  # 40 frames are too few


def wandering(correlation: float, count: int, seed: int) -> tuple[list[Pose], list[Pose], np.ndarray]:
    """Errors of a first-order autoregressive process, in units of covariances that differ from frame to frame."""
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(count, 6))
    for step in range(1, count):
        units[step] = correlation * units[step - 1] + math.sqrt(1 - correlation**2) * units[step]
    mixing = rng.normal(size=(count, 6, 6)) * 0.1
    roots = mixing @ np.swapaxes(mixing, 1, 2) + np.eye(6) * 0.02  # symmetric
    poses = random_poses(count, seed)
    errors = np.einsum("nij,nj->ni", roots, units)
    truth = [moved_in_map(pose, error) for pose, error in zip(poses, errors, strict=True)]
    return truth, poses, roots @ roots


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_correlated_errors_have_a_smaller_effective_sample_size(correlation: float) -> None:
    """Against the closed form for an autoregressive process."""
    truth, poses, covariances = wandering(correlation, 8000, 1)
    expected = 8000 * (1 - correlation) / (1 + correlation)
    for scale in (1.0, 1e-3):
        assert effective_sample_size(truth, poses, scale * covariances) == pytest.approx(expected, rel=0.15)


def test_an_error_that_all_frames_share_counts_once() -> None:
    covariances, poses = np.tile(np.eye(6), (300, 1, 1)), [yaw_pose(0.1 * i, 0.0, 0.0) for i in range(300)]
    truth = [yaw_pose(0.1 * i, 0.3, 0.0) for i in range(300)]
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(1.0)
    assert effective_sample_size(poses, poses, covariances) == 300  # without errors there is no correlation


def test_a_covariance_that_rounding_made_indefinite_hardly_matters() -> None:
    truth, poses, covariances = wandering(0.5, 2000, 3)
    before = effective_sample_size(truth, poses, covariances)
    covariances[7] -= 1.001 * np.linalg.eigvalsh(covariances[7])[0] * np.eye(6)  # no longer positive definite
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(before, rel=0.02)


def test_one_gross_error_does_not_hide_the_correlation_of_the_others() -> None:
    truth, poses, covariances = wandering(0.9, 4000, 2)
    before = effective_sample_size(truth, poses, covariances)
    truth[2000] = yaw_pose(1e4, 0.0, 0.0)
    assert effective_sample_size(truth, poses, covariances) == pytest.approx(before, rel=0.05)


def test_gross_errors_are_found_and_heavy_tails_are_not_taken_for_them() -> None:
    truth, estimates, covariances = heavy_tailed(2000, 5)
    assert np.mean(gross_errors(truth, estimates, 1e-4 * covariances)) < 0.03  # however small the covariances are
    for row, step, turn in ((3, 100.0, 0.0), (7, 0.0, 1.5)):
        truth[row] = yaw_pose(step, 0.0, np.degrees(turn))
        assert gross_errors(truth, estimates, 1e-4 * covariances)[row]


@pytest.mark.parametrize("real", [1.0, 0.4])
def test_correlations_that_errors_do_not_have_are_reduced(real: float) -> None:
    """Covariances have a correlation of position and rotation of 0.98, their errors a smaller one."""
    rng = np.random.default_rng(3)
    assumed, actual = (np.kron([[1.0, 0.98 * c], [0.98 * c, 1.0]], np.eye(3)) for c in (1.0, real))
    scale = np.repeat([0.1, 0.01], 3)
    errors = rng.multivariate_normal(np.zeros(6), actual, 20_000, method="cholesky") * scale
    truth = [Pose(error[:3], quaternion_exp(error[3:] / 2)) for error in errors]
    estimates, covariances = (
        [Pose.identity()] * len(errors),
        np.tile(assumed * np.outer(scale, scale), (len(errors), 1, 1)),
    )
    coupling = fit_coupling(truth, estimates, covariances)
    assert coupling == pytest.approx(real if real < 1 else 1.0, abs=0.15)
    before, after = (
        np.mean(chi2.cdf(nees(map_errors(truth, estimates), matrices), 6) <= 0.95)
        for matrices in (covariances, inflated_covariance(covariances, (1.0, 1.0), coupling))
    )
    assert after >= 0.945  # three standard errors below
    assert (before < 0.5) == (real < 1)


def floored(
    scale: tuple[float, float], floor: tuple[float, float], count: int, seed: int, tails: float = np.inf
) -> tuple[list[Pose], list[Pose], np.ndarray]:
    """Truth, estimates and covariances C of very different sizes; errors are of covariance ``scale^2 C + floor^2``.

    Args:
        tails: degrees of freedom of their Student distribution; by default they are Gaussian.
    """
    rng = np.random.default_rng(seed)
    sizes = np.repeat([0.02, 0.01], 3) * np.exp(rng.normal(size=(count, 1)))
    mixing = rng.normal(size=(count, 6, 6)) * sizes[:, :, None]
    covariances = mixing @ mixing.transpose(0, 2, 1) / 6
    factors, added = np.repeat(scale, 3), np.diag(np.repeat(floor, 3) ** 2)
    roots = np.linalg.cholesky(covariances * np.outer(factors, factors) + added)
    draws = rng.normal(size=(count, 6, 1)) / (np.sqrt(rng.chisquare(tails, (count, 1, 1)) / tails) if tails < 99 else 1)
    errors = (roots @ draws)[..., 0]
    truth = [Pose(error[:3], quaternion_exp(error[3:] / 2)) for error in errors]
    return truth, [Pose.identity()] * count, covariances


@pytest.mark.parametrize("tails", [np.inf, 3.0])
@pytest.mark.parametrize("scale", [(3.0, 2.0), (1.0, 6.0)])
@pytest.mark.parametrize("floor", [(0.05, 0.01), (0.01, 0.03)])
def test_floor_and_scale_of_errors_are_found_also_below_heavy_tails(
    scale: tuple[float, float], floor: tuple[float, float], tails: float
) -> None:
    fitted, growth = fit_floor(*floored(scale, floor, 4000, 0, tails), np.random.default_rng(1).exponential(size=4000))
    assert max(growth) < 0.05  # errors do not depend on this outlier score
    np.testing.assert_allclose(fitted, np.repeat(np.array(floor) / np.array(scale), 3), rtol=0.15)


def test_scale_and_floor_are_found_where_there_is_only_one_of_them() -> None:
    assert fit_floor(*floored((3.0, 3.0), (1e-6, 1e-6), 1000, 1), np.zeros(1000))[0].max() < 1e-3
    truth, estimates, covariances = floored((1e-6, 1e-6), (0.05, 0.02), 1000, 2)
    fitted, _ = fit_floor(truth, estimates, covariances * 1e-6, np.zeros(1000))
    np.testing.assert_allclose(fitted, np.repeat([0.05, 0.02], 3), rtol=0.05)


def test_growth_of_errors_with_the_outlier_score_is_found() -> None:
    truth, estimates, covariances = floored((3.0, 2.0), (0.05, 0.01), 4000, 3)
    neg_log_p = np.random.default_rng(4).exponential(size=4000)
    errors = map_errors(truth, estimates) * growth_factors(neg_log_p, (0.3, 0.1)).repeat(3, axis=1)
    truth = [Pose(error[:3], quaternion_exp(error[3:] / 2)) for error in errors]
    floor, growth = fit_floor(truth, estimates, covariances, neg_log_p)
    np.testing.assert_allclose(growth, (0.3, 0.1), atol=0.03)
    np.testing.assert_allclose(floor, np.repeat([0.05 / 3, 0.01 / 2], 3), rtol=0.2)


# --- for every set of sensors ------------------------------------------------------------------------------------


class Reader(RegressionModel):
    """Reads its position error from the image or, without an image, from the depth image."""

    SCALE_M: ClassVar[dict[str, float]] = {"image": 0.2, "depth": 5.0}

    def forward(self, batch: ModelInput) -> torch.Tensor:
        name = "image" if bool(batch.present["image"].all()) else "depth"
        return batch.tensors[name][:, 0, :1, :6].flatten(1) * self.SCALE_M[name]


PREPROCESS = PreprocessConfig(modalities=("image", "depth"), shortest_side=32)
CPU = torch.device("cpu")


def still_data(count: int, without: str = "") -> PreparedDataset:
    """A robot that stands still before noise; every frame but each third lacks a sensor, if one is named."""
    frames = [
        random_frame(i, (32, 40), [name for name in ("image", "depth") if name != without or i % 3 == 0])
        for i in range(count)
    ]
    samples = [Sample(frame, Pose.identity()) for frame in frames]
    return prepare_dataset([ListSource(samples)], Preprocessor(PREPROCESS), progress=False)


def reader_header() -> CheckpointHeader:
    codec = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
    return CheckpointHeader(model_config(), PREPROCESS, codec, "map", "camera")


def calibrated(data: PreparedDataset, rows: torch.Tensor) -> CheckpointHeader:
    header = reader_header()
    return calibrate_header(header, data, predict_held_out(header, Reader(("image", "depth")), data, rows, CPU))


def shown_std(data: PreparedDataset, name: str, rows: torch.Tensor) -> np.ndarray:
    """Root mean square ``(3,)`` of the position errors that the model reads, from the prepared data alone."""
    tensors = Preprocessor(PREPROCESS).normalise(data.batch(rows, CPU)[0])
    values = tensors[name][:, 0, 0, :3].numpy() * Reader.SCALE_M[name]
    return np.sqrt(np.mean(values**2, axis=0))


def test_a_covariance_from_a_small_effective_sample_size_is_called_a_guess(caplog: pytest.LogCaptureFixture) -> None:
    header = calibrated(still_data(60), torch.arange(60))
    assert 20 < header.metrics["independent_errors"] <= 60
    assert not caplog.text
    header = calibrated(still_data(10), torch.arange(10))
    assert header.metrics["independent_errors"] <= 10
    assert "the covariance is a guess: it is fitted to 10 frames, whose errors are so correlated" in caplog.text
    assert "fit it to more and other drives (vmloc calibrate CHECKPOINT --data DRIVES --out NEW)" in caplog.text


def test_residuals_are_fitted_for_every_set_of_sensors() -> None:
    data, rows = still_data(100), torch.arange(100)
    uncertainty = calibrate_header(
        reader_header(), data, predict_held_out(reader_header(), Reader(("image", "depth")), data, rows, CPU)
    ).uncertainty
    assert {fitted.modalities for fitted in uncertainty.missing} == {("image",), ("depth",)}
    for names, shown in ((("image", "depth"), "image"), (("image",), "image"), (("depth",), "depth")):
        # The rotation read from the same frame turns the error into the body: of no effect on its length.
        fitted = np.linalg.norm(uncertainty.residuals(names).residual_std[:3])
        assert fitted == pytest.approx(np.linalg.norm(shown_std(data, shown, rows)), rel=1e-3)


def test_covariances_are_consistent_also_with_a_sensor_missing() -> None:
    """Errors are uniform in a box: a variance that is right gives a NEES of 3, with a standard error of 0.2."""
    header = calibrate_header(
        reader_header(),
        still_data(150),
        predict_held_out(reader_header(), Reader(("image", "depth")), still_data(150), torch.arange(150), CPU),
    )
    localizer = Localizer(header, Reader(("image", "depth")))
    for names in (("image", "depth"), ("depth",)):
        estimates = [localizer.localize(random_frame(1000 + i, (32, 40), names)) for i in range(60)]
        summary = calibration_summary([Pose.identity()] * 60, estimates)
        assert summary["nees_position"] == pytest.approx(3, abs=0.6)
        assert summary["coverage95_position"] > 0.9


def test_rows_without_a_sensor_are_used_for_the_sets_that_they_have() -> None:
    data, rows = still_data(90, without="depth"), torch.arange(90)
    uncertainty = calibrate_header(
        reader_header(), data, predict_held_out(reader_header(), Reader(("image", "depth")), data, rows, CPU)
    ).uncertainty
    std = shown_std(data, "depth", rows[::3].clone())
    fitted = uncertainty.residuals(("depth",)).residual_std[:3]
    assert np.linalg.norm(fitted) == pytest.approx(np.linalg.norm(std), rel=1e-3)


def test_sets_of_sensors_that_do_not_occur_are_not_fitted() -> None:
    frames = [Sample(random_frame(i, (32, 40), ("image",)), Pose.identity()) for i in range(30)]
    frames.append(Sample(random_frame(30, (32, 40), ("image", "depth")), Pose.identity()))
    data = prepare_dataset([ListSource(frames)], Preprocessor(PREPROCESS), progress=False)
    header = calibrate_header(
        reader_header(),
        data,
        predict_held_out(reader_header(), Reader(("image", "depth")), data, torch.arange(30), CPU),
    )
    assert [fitted.modalities for fitted in header.uncertainty.missing] == [("image",)]
    assert header.uncertainty.residuals(("depth",)).residual_std == header.uncertainty.residual_std


# --- vmloc calibrate ---------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and two recordings that can be opened as ``drive`` and ``train``."""
    preprocess = PreprocessConfig(modalities=("image",), shortest_side=32)
    write_random_checkpoint(tmp_path / "old.safetensors", preprocess=preprocess, backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "old.safetensors")
    record = {"config": {"validation": {"every": 2, "block": 10}}}
    save_checkpoint(tmp_path / "old.safetensors", replace(header, training=record), model.state_dict())
    sources = {
        name: ListSource([Sample(random_frame(first + i, (32, 40), ("image",)), yaw_pose(0.2 * i)) for i in range(120)])
        for name, first in (("drive", 0), ("train", 500))
    }
    monkeypatch.setattr(recalibrate_module, "open_sources", lambda path, *_: [sources[path.name]])
    return tmp_path


def test_a_checkpoint_is_calibrated_anew_and_keeps_its_weights(trained: Path) -> None:
    old, new = trained / "old.safetensors", trained / "new.safetensors"
    recalibrate(old, [Path("drive")], new, train_data=[Path("train")], device="cpu", progress=False)
    (before, first), (after, second) = load_checkpoint(old), load_checkpoint(new)
    assert all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())
    assert after.uncertainty != before.uncertainty
    assert after.metrics["held_out"] == 1
    assert after.metrics["frames"] == 120
    localizer = Localizer.load(new, "cpu")
    frames = [random_frame(2000 + i, (32, 40), ("image",)) for i in range(60)]
    confidences = np.array([localizer.localize(frame).confidence for frame in frames])
    assert 0.2 < np.median(confidences) < 0.8


def test_without_training_data_the_stored_reference_features_are_kept(trained: Path) -> None:
    first, second = trained / "first.safetensors", trained / "second.safetensors"
    recalibrate(
        trained / "old.safetensors", [], first, train_data=[Path("train")], device="cpu", progress=False
    )  # on the blocks that training held out: 60 frames
    assert load_checkpoint(first)[0].metrics["frames"] == 60
    recalibrate(first, [Path("drive")], second, device="cpu", progress=False)
    a, b = load_confidence(first), load_confidence(second)
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.references["image"].coordinates, b.references["image"].coordinates)
    assert a.null_distributions[("image",)][-1].decay != b.null_distributions[("image",)][-1].decay


def test_training_frames_are_not_taken_for_held_out_ones(trained: Path) -> None:
    """With folds the model itself was trained on all frames, whichever the folds held out."""
    old = trained / "old.safetensors"
    header, model = load_checkpoint(old)
    record = {"config": {"validation": {"every": 2, "block": 10, "folds": 3}}}
    save_checkpoint(old, replace(header, training=record), model.state_dict())
    with pytest.raises(DataError, match="training held out none of its data: give others with --data"):
        recalibrate(old, [], trained / "new.safetensors", train_data=[Path("train")], device="cpu", progress=False)


def test_a_calibration_that_is_not_possible_raises_and_writes_nothing(trained: Path) -> None:
    old, new = trained / "old.safetensors", trained / "new.safetensors"
    with pytest.raises(ConfigError, match="there is nothing to calibrate with: give --data, --train-data or both"):
        recalibrate(old, [], new)
    with pytest.raises(OutputError, match=r"old\.safetensors exists; add --overwrite"):
        recalibrate(old, [Path("drive")], old)
    with pytest.raises(OutputError, match=r"a checkpoint is named \*\.safetensors, got new\.pt"):
        recalibrate(old, [Path("drive")], Path("new.pt"))
    assert not new.exists()
