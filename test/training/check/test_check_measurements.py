# SPDX-License-Identifier: Apache-2.0
"""What pictures and scans say about motion, light and sharpness, where the truth is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rooms import room_point
from training.check.image_motion import grey_of, turn_between
from training.check.pictures import blur_of, look_of, picture_findings
from training.check.registration import depth_points, register, surface_of
from vmloc_ros.core.frame import Frame, PinholeCamera
from vmloc_ros.core.geometry import Pose, rotation_angle_deg, rotation_vector_from_quaternion

CAMERA = PinholeCamera(320, 240, 260.0, 260.0, 159.5, 119.5)


def texture(seed: int = 0, size: tuple[int, int] = (240, 320), detail_px: float = 1.5) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), detail_px)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def turned(picture: np.ndarray, first_from_second: Pose) -> np.ndarray:
    """The picture that the camera takes after it has turned, of things far away."""
    K = np.array([[CAMERA.fx, 0, CAMERA.cx], [0, CAMERA.fy, CAMERA.cy], [0, 0, 1]])
    return cv2.warpPerspective(picture, K @ first_from_second.rotation.T @ np.linalg.inv(K), picture.shape[::-1])


@pytest.mark.parametrize("rpy_deg", [(0, 0, 0), (2, -3, 1), (0, 6, 0)])
def test_the_turn_between_two_pictures_is_measured(rpy_deg: tuple[float, float, float]) -> None:
    truth = Pose.from_xyz_rpy([0, 0, 0], np.radians(rpy_deg))
    first = texture()
    found = turn_between(first, turned(first, truth), CAMERA)
    error = rotation_vector_from_quaternion(
        Pose.from_matrix(_matrix(found.rotation @ truth.rotation.T)).quaternion_wxyz
    )
    assert np.linalg.norm(error) < 1e-3  # a quarter of a pixel
    assert np.sqrt(np.diag(found.covariance)).max() < 2e-3


def _matrix(rotation: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    return matrix


def test_a_moving_cameras_turn_is_told_from_its_motion() -> None:
    """Two boards at 2 and 5 m, seen from 20 cm farther ahead and 2 deg to the side."""
    motion = Pose.from_xyz_rpy([0.05, 0.0, 0.2], np.radians([0.5, 2.0, 0.3]))
    pictures = [_boards(Pose.identity()), _boards(motion)]
    found = turn_between(*pictures, CAMERA)
    error = Pose.from_matrix(_matrix(found.rotation @ motion.rotation.T))
    assert rotation_angle_deg(error.quaternion_wxyz, Pose.identity().quaternion_wxyz) < 0.15


def _boards(pose: Pose) -> np.ndarray:
    v, u = np.indices((240, 320))
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones(u.shape)], -1) @ pose.rotation.T
    picture = np.zeros((240, 320), np.uint8)
    for seed, (z, low, high) in enumerate([(5.0, -9.0, 9.0), (2.0, -0.7, 0.1)]):
        steps = (z - pose.position_m[2]) / rays[..., 2]
        x, y = np.moveaxis((pose.position_m + steps[..., None] * rays)[..., :2], -1, 0)
        surface = texture(seed, (1200, 1200))
        place = [((a / z + 1.2) * 500).astype(np.float32) for a in (x, y)]
        seen = cv2.remap(surface, *place, cv2.INTER_LINEAR)
        picture = np.where((x > low) & (x < high), seen, picture)
    return picture


def test_blank_pictures_give_no_turn() -> None:
    blank = np.full((240, 320), 90, np.uint8)
    assert turn_between(blank, blank, CAMERA) is None


def test_large_pictures_are_scaled_for_tracking() -> None:
    assert grey_of(np.zeros((1080, 1920, 3), np.uint8)).shape == (480, 853)
    assert grey_of(np.zeros((100, 120, 3), np.uint8)).shape == (100, 120)


def room_scan(pose: Pose, seed: int) -> np.ndarray:
    """5000 points of a box of 24 x 16 x 6 m, with 1 cm of noise."""
    rng = np.random.default_rng(seed)
    beams = rng.normal(0, [1, 1, 0.3], (5000, 3))
    beams /= np.linalg.norm(beams, axis=1, keepdims=True)
    hits = room_point(pose.position_m, beams @ pose.rotation.T)
    return (hits - pose.position_m) @ pose.rotation + rng.normal(0, 0.01, (5000, 3))


def test_the_motion_between_two_scans_is_measured() -> None:
    first, second = (
        Pose.from_xyz_rpy(xyz, rpy) for xyz, rpy in (([1, 2, 0], [0, 0, 0.3]), ([1.5, 1.8, 0], [0, 0, 0.4]))
    )
    surfaces = [surface_of(room_scan(pose, seed)) for seed, pose in enumerate((first, second))]
    truth = first.inverse() @ second
    start = truth @ Pose.from_xyz_rpy([0.3, -0.2, 0.1], [0.01, 0.02, 0.04])
    found = register(*surfaces, start)
    error = truth.inverse() @ found.first_from_second
    assert np.linalg.norm(error.position_m) < 0.01
    assert np.linalg.norm(rotation_vector_from_quaternion(error.quaternion_wxyz)) < 0.002
    assert found.share > 0.8
    assert np.sqrt(np.diag(found.covariance)).max() < 0.01


def test_a_corridor_leaves_its_direction_open() -> None:
    rng = np.random.default_rng(0)
    walls = np.stack([rng.uniform(-20, 20, 6000), rng.choice([-1.0, 1.0], 6000), rng.uniform(0, 2, 6000)], axis=1)
    floor = np.stack([rng.uniform(-20, 20, 3000), rng.uniform(-1, 1, 3000), np.zeros(3000)], axis=1)
    surface = surface_of(np.concatenate([walls, floor]))
    found = register(surface, surface, Pose.identity())
    along, across = np.sqrt(np.diag(found.covariance))[:2]
    assert along > 10 * across


def test_too_few_points_are_no_surface() -> None:
    assert surface_of(np.zeros((10, 3))) is None


def test_depth_images_become_points_whatever_the_pictures_size() -> None:
    depth = np.zeros((240, 320), np.float32)
    depth[60, 80] = 2.0
    camera = PinholeCamera(640, 480, 500.0, 500.0, 319.5, 239.5)
    [point] = depth_points(Frame(0, None, depth, camera=camera))
    np.testing.assert_allclose(point, [(160.5 - 319.5) / 500 * 2, (120.5 - 239.5) / 500 * 2, 2.0])


@pytest.mark.parametrize("blur_px", [1.0, 2.0, 4.0])
def test_the_blur_of_an_edge_is_measured(blur_px: float) -> None:
    """A step, blurred: its gradient is a Gaussian of that deviation."""
    step = np.where(np.arange(320) < 160, 60, 190).astype(np.float32)
    blurred = cv2.GaussianBlur(np.tile(step, (240, 1)), (0, 0), blur_px)
    noise = np.random.default_rng(0).normal(0, 1, blurred.shape)
    assert blur_of((blurred + noise).round().astype(np.uint8)) == pytest.approx(blur_px, rel=0.15, abs=0.1)


def test_pictures_are_judged_by_light_contrast_and_sharpness() -> None:
    sharp = texture()
    flat = np.full_like(sharp, 128)
    white = np.where(np.arange(320) < 200, 255, sharp).astype(np.uint8)
    blurred = cv2.GaussianBlur(np.where(np.indices(sharp.shape).sum(0) % 80 < 40, 20, 220).astype(np.uint8), (0, 0), 5)
    pictures = {"": sharp, "dark": (sharp * 0.15).astype(np.uint8), "without contrast": flat, "overexposed": white}
    pictures["blurred"] = blurred
    for what, picture in pictures.items():
        [finding] = picture_findings([look_of(i, picture) for i in range(5)], "drive")
        assert finding.level == ("warning" if what else "ok"), what
        assert what in finding.text
        assert bool(finding.remedy) == bool(what)


def test_a_few_bad_pictures_are_no_matter() -> None:
    looks = [look_of(i, texture() // (8 if i == 3 else 1)) for i in range(20)]
    assert [finding.level for finding in picture_findings(looks, "")] == ["ok"]
    assert picture_findings([], "") == []
