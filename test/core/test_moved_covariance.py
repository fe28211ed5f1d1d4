# SPDX-License-Identifier: Apache-2.0
"""What a lever arm does to a pose's covariance."""

from __future__ import annotations

import numpy as np

from vmloc_ros.core.geometry import Pose, quaternion_exp, quaternion_multiply, rotation_vector_from_quaternion
from vmloc_ros.core.uncertainty import moved_covariance

COUNT = 3_000


def test_moved_covariance_agrees_with_sampled_poses():
    """Monte Carlo: disturb the body's pose, move every sample rigidly, compare the samples' covariance."""
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(6, 6)) * np.array([0.03] * 3 + [0.01] * 3)[:, None]
    covariance = factor @ factor.T
    map_from_body = Pose(rng.normal(0, 2, 3), rng.normal(size=4))
    body_from_base = Pose(np.array([1.5, -0.7, 2.0]), rng.normal(size=4))
    map_from_base = map_from_body @ body_from_base
    base_from_map = map_from_base.inverse()
    deviations = []
    for noise in rng.multivariate_normal(np.zeros(6), covariance, size=COUNT, method="cholesky"):
        turned = quaternion_multiply(quaternion_exp(noise[3:] / 2), map_from_body.quaternion_wxyz)
        sample = Pose(map_from_body.position_m + noise[:3], turned) @ body_from_base
        turn = quaternion_multiply(sample.quaternion_wxyz, base_from_map.quaternion_wxyz)
        shift_m = sample.position_m - map_from_base.position_m
        deviations.append([*shift_m, *rotation_vector_from_quaternion(turn)])
    sampled = np.cov(np.array(deviations).T)
    predicted = moved_covariance(covariance, map_from_base.position_m - map_from_body.position_m)
    scale = np.sqrt(np.outer(np.diag(predicted), np.diag(predicted)))
    np.testing.assert_allclose(sampled / scale, predicted / scale, rtol=0, atol=5 * np.sqrt(2 / COUNT))  # 5 deviations
    assert np.abs((predicted - covariance) / scale).max() > 0.3  # the arm matters here
