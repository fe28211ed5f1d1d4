# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from vmloc_ros.core.models.dense import gauss_newton
from vmloc_ros.core.models.dense.correspondences import Correspondences, log_ratio
from vmloc_ros.core.models.dense.hypotheses import from_points, from_rays
from vmloc_ros.core.models.dense.solver import refine, solve

pytestmark = pytest.mark.numeric

KINDS = ("ranged", "rays", "mixed")
CENTRE_M = np.array([0.3, -0.1, 0.5])  # of the camera in the body
SPREAD_M = 10.0


def correspondences(map_points, std, points, rays, ranged, valid=None):
    """From arrays without a batch dimension, or with one."""
    arrays = [np.asarray(array) for array in (map_points, std, points, rays, ranged)]
    arrays.append(np.ones_like(arrays[4]) if valid is None else np.asarray(valid))
    tensors = [torch.from_numpy(array if array.dtype == bool else array.astype(np.float32)) for array in arrays]
    return Correspondences(*(tensor if tensors[1].dim() == 2 else tensor.unsqueeze(0) for tensor in tensors))


def joined(*parts):
    """The correspondences of all, frame by frame."""
    return Correspondences(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in FIELDS))


def information(c, rotations, translations):
    """Inverse covariances at given poses: those of a refinement without steps."""
    solution = refine(c, rotations, translations, 0, spread_m=SPREAD_M)
    assert solution.solved.all()
    return torch.linalg.inv(solution.covariances)


def scene(kind, *, cells=200, std=0.0, outliers=0.0, seed=0, batch=1, noisy=True):
    """Points seen by a camera whose optical axis is the body's y axis, in frames at random poses.

    Returns the correspondences, rotations ``(B, 3, 3)`` and positions ``(B, 3)``. ``std``: a number, or one per cell;
    0 gives exact predictions with a stated standard deviation of a centimetre.
    """
    rng = np.random.default_rng(seed)
    R = Rotation.random(batch, random_state=seed).as_matrix().reshape(batch, 3, 3)
    t = rng.uniform(-2, 2, (batch, 3))
    rays = rng.uniform([-0.6, 0, -0.5], [0.6, 0, 0.5], (batch, cells, 3))
    rays[..., 1] += 1
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    body = CENTRE_M + rays * rng.uniform(1, 4, (batch, cells, 1))
    placed = np.einsum("bij,bmj->bmi", R, body) + t[:, None]
    deviation = np.broadcast_to(np.asarray(std, float), (batch, cells))
    if noisy:
        placed = placed + deviation[..., None] * rng.normal(size=placed.shape)
    wrong = np.arange(cells) < outliers * cells
    placed[:, wrong] = rng.uniform(-5, 5, (batch, wrong.sum(), 3))
    ranged = np.broadcast_to({"ranged": True, "rays": False, "mixed": np.arange(cells) % 2 == 0}[kind], (batch, cells))
    stated = np.where(deviation > 0, deviation, 0.01)
    points = np.where(ranged[..., None], body, CENTRE_M)
    return correspondences(placed, stated, points, rays, ranged.copy()), R, t


def rows(c, select):
    """Some cells of all frames."""
    return Correspondences(*(getattr(c, name)[:, select] for name in FIELDS))


def replaced(c, **changes):
    return Correspondences(*(changes.get(name, getattr(c, name)) for name in FIELDS))


FIELDS = ("map_points_m", "std_m", "points_m", "rays", "ranged", "valid")


def deviations(solution, R, t):
    """``(B, 6)``: position, and rotation vector about the fixed map axes."""
    turn = Rotation.from_matrix(solution.rotations.detach().numpy() @ np.swapaxes(R, -1, -2)).as_rotvec()
    return np.concatenate([solution.translations.detach().numpy() - t, turn], axis=1)


def tensors(R, t):
    return torch.from_numpy(np.asarray(R)), torch.from_numpy(np.asarray(t))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_free_correspondences_give_the_exact_pose(kind):
    c, R, t = scene(kind, batch=3)
    solution = solve(c, spread_m=SPREAD_M)
    assert solution.solved.all()
    np.testing.assert_allclose(deviations(solution, R, t), 0, atol=2e-6)
    np.testing.assert_allclose(solution.inlier_share, 1)
    np.testing.assert_allclose(solution.residual, 0, atol=1e-3)
    np.testing.assert_allclose(torch.linalg.det(solution.rotations), 1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(KINDS), cells=st.integers(12, 60))
def test_any_pose_is_found_from_a_dozen_points(seed, kind, cells):
    c, R, t = scene(kind, cells=cells, seed=seed)
    np.testing.assert_allclose(deviations(solve(c, spread_m=SPREAD_M), R, t), 0, atol=1e-4)


def test_measured_points_agree_with_weighted_kabsch():
    std = np.random.default_rng(1).uniform(0.02, 0.3, 150)
    c, _, _ = scene("ranged", cells=150, std=std)
    solution = solve(c, spread_m=SPREAD_M, gate=30.0)  # nothing is an outlier
    weights = 1 / std**2
    mean = {name: np.average(getattr(c, name)[0], axis=0, weights=weights) for name in ("map_points_m", "points_m")}
    expected, _ = Rotation.align_vectors(
        c.map_points_m[0].numpy() - mean["map_points_m"], c.points_m[0].numpy() - mean["points_m"], weights=weights
    )
    np.testing.assert_allclose(solution.rotations[0], expected.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(
        solution.translations[0], mean["map_points_m"] - expected.apply(mean["points_m"]), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["rays", "mixed"])
def test_rays_agree_with_least_squares(kind):
    std = np.random.default_rng(2).uniform(0.02, 0.1, 80)
    c, R, t = scene(kind, cells=80, std=std)
    solution = solve(c, spread_m=SPREAD_M, gate=30.0)

    def residuals(pose):
        body = Rotation.from_rotvec(pose[3:]).inv().apply(c.map_points_m[0].numpy() - pose[:3])
        error = body - c.points_m[0].numpy()
        ray = np.where(c.ranged[0, :, None], 0, c.rays[0])
        return ((error - ray * (ray * error).sum(1, keepdims=True)) / std[:, None]).ravel()

    start = np.concatenate([t[0], Rotation.from_matrix(R[0]).as_rotvec()])
    expected = least_squares(residuals, start, xtol=1e-14, ftol=1e-14).x
    assert np.abs(expected - start).max() > 1e-3  # the noise moved the solution
    np.testing.assert_allclose(
        deviations(solution, Rotation.from_rotvec(expected[None, 3:]).as_matrix(), expected[None, :3]), 0, atol=1e-5
    )


def test_rays_to_exact_points_agree_with_opencv():
    c, _, _ = scene("rays", cells=60)
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # camera from body
    pixels = c.rays[0].numpy() @ axes.T
    found, turn, move = cv2.solvePnP(
        c.map_points_m[0].numpy(), pixels[:, :2] / pixels[:, 2:], np.eye(3), None, flags=cv2.SOLVEPNP_SQPNP
    )
    assert found
    rotation = cv2.Rodrigues(turn)[0]
    expected = rotation.T @ axes
    solution = solve(c, spread_m=SPREAD_M)
    np.testing.assert_allclose(solution.rotations[0], expected, atol=1e-5)
    np.testing.assert_allclose(solution.translations[0], -rotation.T @ move[:, 0] - expected @ CENTRE_M, atol=1e-5)


@pytest.mark.parametrize(("kind", "outliers"), [("ranged", 0.6), ("rays", 0.4), ("mixed", 0.5)])
def test_outliers_do_not_move_the_pose(kind, outliers):
    c, R, t = scene(kind, cells=300, std=0.03, outliers=outliers, batch=12)
    solution = solve(c, spread_m=SPREAD_M)
    assert solution.solved.all()
    assert np.abs(deviations(solution, R, t)).max() < 0.04
    np.testing.assert_allclose(solution.inlier_share, 1 - outliers, atol=0.03)
    np.testing.assert_allclose(solution.residual, 1, atol=0.15)  # four standard errors of the root of 360 squares' mean


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_that_of_the_estimates_in_map_axes(kind):
    frames, cells = 1500, 40
    std = np.random.default_rng(3).uniform(0.01, 0.06, cells)
    exact, R, t = scene(kind, cells=cells, std=std, noisy=False)
    noise = torch.randn((frames, cells, 3), generator=torch.Generator().manual_seed(0)) * exact.std_m[..., None]
    c = Correspondences(*(getattr(exact, name).expand(frames, *getattr(exact, name).shape[1:]) for name in FIELDS))
    c = replaced(c, map_points_m=c.map_points_m + noise)
    rotations, translations = tensors(np.repeat(R, frames, 0), np.repeat(t, frames, 0))
    solution = refine(c, rotations, translations, spread_m=SPREAD_M)
    error = deviations(solution, np.repeat(R, frames, 0), np.repeat(t, frames, 0))
    whitened = np.linalg.solve(np.linalg.cholesky(solution.covariances.numpy()), error[..., None])[..., 0]
    np.testing.assert_allclose(whitened.T @ whitened / frames, np.eye(6), atol=0.15)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_knowing_the_cells_standard_deviations_makes_the_pose_better(kind):
    std = np.where(np.arange(120) % 3 == 0, 0.01, 0.15)
    c, R, t = scene(kind, cells=120, std=std, batch=30)
    rotations, translations = tensors(R, t)
    equal = replaced(c, std_m=torch.full_like(c.std_m, 0.12))
    knowing = deviations(refine(c, rotations, translations, spread_m=SPREAD_M), R, t)
    ignorant = deviations(refine(equal, rotations, translations, spread_m=SPREAD_M), R, t)
    assert np.square(knowing).mean() < 0.1 * np.square(ignorant).mean()


def test_a_frame_has_the_same_solution_in_any_batch_and_with_padding():
    c, _, _ = scene("mixed", cells=100, std=0.03, outliers=0.4, batch=4)
    c = replaced(c, ranged=c.ranged & torch.tensor([True, False, True, True])[:, None])  # one frame of rays alone
    together, again = solve(c, spread_m=SPREAD_M), solve(c, spread_m=SPREAD_M)
    padding = torch.zeros(4, 17, dtype=torch.bool)
    padded = Correspondences(
        *(
            torch.cat([getattr(c, name), torch.full((4, 17, *getattr(c, name).shape[2:]), float("nan"))], dim=1)
            for name in FIELDS[:4]
        ),
        torch.cat([c.ranged, padding], dim=1),
        torch.cat([c.valid, padding], dim=1),
    )
    filled = solve(padded, spread_m=SPREAD_M)
    for name in ("rotations", "translations", "covariances", "inlier_share", "residual", "solved"):
        assert torch.equal(getattr(together, name), getattr(again, name))
        np.testing.assert_allclose(getattr(filled, name), getattr(together, name), rtol=1e-5, atol=1e-6)
        for row in range(4):
            alone = solve(c.at(torch.tensor([row])), spread_m=SPREAD_M)
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-5, atol=1e-6)


def test_information_of_modalities_adds_up():
    camera, R, t = scene("rays", std=0.05, seed=4)
    lidar, _, _ = scene("ranged", cells=70, std=0.1, seed=4)
    pose = tensors(R, t)
    both = information(joined(camera, lidar), *pose)
    np.testing.assert_allclose(both, information(camera, *pose) + information(lidar, *pose), rtol=1e-8, atol=1e-5)
    missing = replaced(lidar, valid=torch.zeros_like(lidar.valid))
    np.testing.assert_allclose(information(joined(camera, missing), *pose), information(camera, *pose))


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_that_at_the_solution(kind):
    c, _, _ = scene(kind, std=0.05)
    solution = solve(c, spread_m=SPREAD_M)
    H = information(c, solution.rotations, solution.translations)
    np.testing.assert_allclose((H @ solution.covariances)[0], np.eye(6), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_that_agree_by_chance_are_no_solution(kind):
    c, _, _ = scene(kind, cells=800, std=0.03, outliers=1.0, batch=3)
    assert not solve(c, spread_m=SPREAD_M).solved.any()


@pytest.mark.parametrize("kind", ["ranged", "rays"])
def test_kilometres_from_the_maps_centre_the_pose_is_as_precise(kind):
    c, R, t = scene(kind, cells=300, std=0.03, outliers=0.4, batch=4)
    far = torch.tensor([3000.0, -2000.0, 50.0])
    solution = solve(replaced(c, map_points_m=c.map_points_m + far), spread_m=10000.0)
    assert np.abs(deviations(solution, R, t + far.numpy())).max() < 0.03


def line(kind, noise):
    """Cells whose points lie on one line, in the map and in the body."""
    c, R, t = scene(kind, cells=50, noisy=False)
    along = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([1.0, 0.1, 0.2]) + torch.tensor([0.3, 3.0, 0.5])
    placed = along.double() @ torch.from_numpy(R[0]).T + torch.from_numpy(t[0])
    placed = placed + noise * torch.randn(placed.shape, generator=torch.Generator().manual_seed(0))
    rays = torch.nn.functional.normalize(along - torch.from_numpy(CENTRE_M).float(), dim=-1)
    points = torch.where(c.ranged[..., None], along, c.points_m)
    std = torch.full_like(c.std_m, max(noise, 0.01))
    return replaced(c, map_points_m=placed.float()[None], points_m=points, rays=rays[None], std_m=std)


def test_degenerate_correspondences_are_not_solved():
    usual, _, _ = scene("mixed", cells=50)
    nothing = replaced(usual, valid=torch.zeros_like(usual.valid))
    cases = {
        "nothing": nothing,
        "no cell": rows(usual, slice(0)),
        "two points": rows(scene("ranged")[0], slice(2)),
        "three rays": rows(scene("rays")[0], slice(3)),
        "all in one place": replaced(usual, map_points_m=usual.map_points_m[:, :1].expand(-1, 50, -1)),
        "not a number": replaced(usual, map_points_m=torch.full_like(usual.map_points_m, float("nan"))),
        "no deviation": replaced(usual, std_m=torch.zeros_like(usual.std_m)),
        **{f"{kind} on a line, noise {noise} m": line(kind, noise) for kind in KINDS for noise in (0.0, 0.05)},
    }
    for what, c in cases.items():
        solution = solve(c, spread_m=SPREAD_M)
        assert not solution.solved.any(), what
        np.testing.assert_array_equal(solution.rotations, np.eye(3)[None], what)
        np.testing.assert_array_equal(solution.translations, 0, what)
        np.testing.assert_allclose(solution.covariances[0].diagonal(), [SPREAD_M**2] * 3 + [np.pi**2] * 3)
        np.testing.assert_array_equal(solution.residual, 0, what)


def test_no_frames_have_no_solutions():
    c, _, _ = scene("mixed")
    assert solve(c.at(torch.zeros(0, dtype=torch.long)), spread_m=SPREAD_M).covariances.shape == (0, 6, 6)


def test_an_unsolvable_frame_neither_harms_its_neighbours_nor_their_gradients():
    c, R, t = scene("mixed", cells=60, std=0.02, batch=3)
    map_points = c.map_points_m.clone()
    map_points[1] = float("nan")
    map_points[0, 5] = float("inf")
    map_points.requires_grad_()
    std = c.std_m.clone().requires_grad_()
    solution = solve(replaced(c, map_points_m=map_points, std_m=std), spread_m=SPREAD_M)
    assert solution.solved.tolist() == [True, False, True]
    assert np.abs(deviations(solution, R, t)[[0, 2]]).max() < 0.05
    loss = solution.translations.square().sum() + solution.rotations[:, 0, 1].sum() + solution.residual.sum()
    (loss + torch.logdet(solution.covariances).sum()).backward()
    for gradient in (map_points.grad, std.grad):
        assert torch.isfinite(gradient).all()
        assert (gradient[1] == 0).all()
        assert (gradient[2] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_derivatives_of_the_solution(kind):
    c, R, t = scene(kind, cells=9, std=np.linspace(0.02, 0.08, 9), seed=6)
    c = c.to(torch.float64)
    rotations, translations = tensors(R, t)
    direction = torch.randn(13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(map_points, std):
        changed = replaced(c, map_points_m=map_points, std_m=std)
        s = refine(changed, rotations, translations, 100, spread_m=SPREAD_M, differentiable_steps=8)
        parts = [s.translations.flatten(), s.rotations.flatten(), torch.logdet(s.covariances)]
        return (torch.cat(parts) * direction).sum()

    inputs = [c.map_points_m.clone().requires_grad_(), c.std_m.clone().requires_grad_()]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-4, rtol=1e-3)


def test_gradient_descent_corrects_the_predicted_coordinates():
    c, R, t = scene("mixed", cells=40, std=0.05)
    offset = torch.zeros_like(c.map_points_m, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=2e-3)
    losses = []
    for _ in range(25):
        solution = refine(replaced(c, map_points_m=c.map_points_m + offset), *tensors(R, t), 5, spread_m=SPREAD_M)
        loss = (solution.translations - torch.from_numpy(t)).square().sum()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.05 * losses[0]


def test_training_can_follow_inference_and_mixed_precision_changes_nothing():
    for cached in (gauss_newton._from_moments, gauss_newton._crosses):
        cached.cache_clear()
    c, _, _ = scene("mixed", std=0.05)
    with torch.inference_mode():
        first = solve(c, spread_m=SPREAD_M)
    map_points = c.map_points_m.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        second = solve(replaced(c, map_points_m=map_points), spread_m=SPREAD_M)
    second.translations.sum().backward()
    np.testing.assert_allclose(second.translations.detach(), first.translations, atol=1e-6)
    assert torch.isfinite(map_points.grad).all()


def test_points_behind_the_camera_are_outliers():
    c, R, t = scene("rays", cells=100, std=0.02)
    behind = 2 * (R[0] @ CENTRE_M + t[0]) - c.map_points_m[0, :40].numpy()  # exactly on their rays, backwards
    map_points = c.map_points_m.clone()
    map_points[0, :40] = torch.from_numpy(behind)
    mixed = replaced(c, map_points_m=map_points)
    solution = solve(mixed, spread_m=SPREAD_M)
    np.testing.assert_allclose(deviations(solution, R, t), 0, atol=0.02)
    np.testing.assert_allclose(solution.inlier_share, 0.6, atol=0.02)
    pose = [x.float().unsqueeze(1) for x in tensors(R, t)]
    front = rows(mixed, slice(40, None))
    torch.testing.assert_close(log_ratio(mixed, *pose, SPREAD_M), log_ratio(front, *pose, SPREAD_M))
    torch.testing.assert_close(information(mixed, *tensors(R, t)), information(front, *tensors(R, t)))


def test_likelihood_weighs_cells_by_their_precision_and_ignores_outliers():
    c, R, t = scene("ranged", cells=20)
    pose = [x.float().unsqueeze(1) for x in tensors(R, t)]
    one = replaced(c, std_m=torch.full_like(c.std_m, 0.1))
    expected = 20 * 3 * np.log(SPREAD_M / (np.sqrt(2 * np.pi) * 0.1))
    np.testing.assert_allclose(log_ratio(one, *pose, SPREAD_M), expected, rtol=1e-4)
    assert log_ratio(c, *pose, SPREAD_M) > log_ratio(one, *pose, SPREAD_M)
    assert log_ratio(replaced(c, std_m=torch.full_like(c.std_m, 50.0)), *pose, SPREAD_M) == 0
    assert log_ratio(replaced(c, map_points_m=c.map_points_m + 5), *pose, SPREAD_M) == 0


def test_many_poses_are_scored_in_chunks(monkeypatch):
    c, _, _ = scene("mixed", std=0.05, batch=2)
    rotations = torch.from_numpy(Rotation.random(14, random_state=0).as_matrix()).float().view(2, 7, 3, 3)
    translations = torch.zeros(2, 7, 3)
    whole = log_ratio(c, rotations, translations, SPREAD_M)
    monkeypatch.setattr("vmloc_ros.core.models.dense.correspondences._CHUNK", 3 * 400 * 2)
    torch.testing.assert_close(log_ratio(c, rotations, translations, SPREAD_M), whole)


def test_hypotheses_from_exact_cells_are_the_pose():
    c, R, _ = scene("ranged")
    rotations, _, found = from_points(c, 32, seed=0)
    assert found.all()
    np.testing.assert_allclose(rotations[0], np.broadcast_to(R, (32, 3, 3)), atol=1e-4)
    c, R, t = scene("rays")
    rotations, translations, found = from_rays(c, 32, 0, torch.ones(1, dtype=torch.bool))
    errors = np.abs(rotations[0].numpy() - R).max((1, 2)), np.abs(translations[0].numpy() - t).max(1)
    right = np.maximum(*errors) < 1e-3
    assert right.sum() >= 28  # of each triple's solutions, one
    assert found.sum() > right.sum()


def test_of_two_cameras_that_with_more_rays_gives_hypotheses_and_both_refine():
    first, R, t = scene("rays", cells=120, std=0.02)
    second = rows(first, slice(0, 50))
    centre = np.array([0.8, -0.1, 0.7])
    body = np.einsum("ij,mj->mi", R[0].T, second.map_points_m[0].numpy() - t[0])
    rays = (body - centre) / np.linalg.norm(body - centre, axis=1, keepdims=True)
    second = correspondences(
        second.map_points_m[0], np.full(50, 0.02), np.tile(centre, (50, 1)), rays, np.zeros(50, bool)
    )
    solution = solve(joined(second, first), spread_m=SPREAD_M)
    np.testing.assert_allclose(deviations(solution, R, t), 0, atol=0.02)
    np.testing.assert_allclose(solution.inlier_share, 1, atol=0.02)


def test_rays_alone_are_used_where_all_measured_points_are_outliers():
    camera, R, t = scene("rays", cells=150, std=0.02)
    lidar, _, _ = scene("ranged", cells=100, std=0.02, outliers=1.0)
    solution = solve(joined(lidar, camera), spread_m=SPREAD_M)
    np.testing.assert_allclose(deviations(solution, R, t), 0, atol=0.02)
