# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from helpers import yaw_pose
from training.calibration.error_fits import fit_coupling, fit_floor, fit_inflation, fit_margin
from training.calibration.held_out import gross_errors
from training.evaluation.consistency import (
    map_errors,
    nees,
)
from vmloc_ros.core.geometry import Pose, quaternion_exp
from vmloc_ros.core.uncertainty import growth_factors, inflated_covariance


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
