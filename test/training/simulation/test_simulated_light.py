# SPDX-License-Identifier: Apache-2.0
"""What the simulated camera sees by: days, dusk, and the lamps of the night against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.simulation import Traversal, simulate
from training.simulation.camera import CameraRenderer
from training.simulation.light import LIGHTS, Light
from training.simulation.mesh import MeshBuilder
from training.simulation.scene import Scene
from training.simulation.styles import PLAIN, Style, StyleTable
from training.simulation.textures import Noise, Textures
from vmloc_ros.bags.files import open_bag
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose

GREY = 0.8  # sRGB
LOOKS_AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # map from camera; x is ahead
LOOKS_DOWN = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1]])
CAMERA = PinholeCamera(161, 161, 80.0, 80.0, 80.0, 80.0)


def light(**lamps: float) -> Light:
    """Lamps alone, and a camera without noise, haze or colour."""
    black = np.zeros(3, np.float32)
    night = Light.draw(np.random.default_rng(0), "night")
    dark = replace(night, ambient=black, zenith=black, horizon=black, cloud=black, street_lamps=0.0, headlamps=0.0)
    return replace(dark, white_balance=black + 1, haze_per_m=0.0, exposure=1.0, noise=0.0, **lamps)


def irradiance(corners: list[np.ndarray], matrix: np.ndarray, shown: Light, lamps_m: np.ndarray) -> np.ndarray:
    """Of grey polygons in each pixel's red channel ``(H, W)``: the camera's curve and vignette undone."""
    builder, noise = MeshBuilder(), Noise(np.random.default_rng(0))
    for polygon in corners:
        builder.polygon(polygon, 0)
    textures = Textures(
        StyleTable([Style(PLAIN, (GREY,) * 3, roughness=0.0)]), noise, lambda hits: (np.zeros((0, 3)), np.zeros(0))
    )
    renderer = CameraRenderer(CAMERA, textures, noise, shown, lamps_m)
    image = renderer.render(Scene(builder.build(), []), Pose.from_matrix(matrix), np.random.default_rng(0))
    exposed = np.linspace(0, 20, 100_001)
    tone = exposed * (1 + exposed / 6) / (1 + exposed)
    v, u = np.indices((CAMERA.height, CAMERA.width))
    vignette = 1 - 0.28 * (((u - CAMERA.cx) / CAMERA.width) ** 2 + ((v - CAMERA.cy) / CAMERA.width) ** 2)
    return np.interp((image[..., 0] / 255) ** 2.2, tone, exposed) / vignette / GREY**2.2


def rectangle(half_m: float, z_m: float, centre_m: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float) * half_m
    return corners + np.array([*centre_m, z_m])


def test_below_a_street_lamp_light_falls_with_the_fourth_power_of_the_distance_and_not_into_shadow() -> None:
    """``I h^2 / d^4``: its own cosine, the ground's, and the square of the distance."""
    lamp = np.array([[0.0, 0.0, 5.0]])
    board = rectangle(0.5, 2.0, (1.5, 0.0))  # its shadow falls on x = 1.67 to 3.33
    seen = irradiance([rectangle(30, 0.0), board], LOOKS_DOWN, light(street_lamps=25.0), lamp)
    for y in (0.0, 1.0, 2.0, 3.5):
        expected = 25 * 25 / (25 + y**2) ** 2
        assert seen[80 - round(20 * y), 80] == pytest.approx(expected, rel=0.03)
    assert seen[80, 80 + round(20 * 1.8)] == 0  # in the board's shadow; the board itself hides x = 2 to 4
    assert seen[80, 80 - round(20 * 1.8)] > 0.3


@pytest.mark.parametrize("distance_m", [10.0, 20.0])
def test_dipped_headlamps_light_what_is_below_the_horizon_by_the_inverse_square(distance_m: float) -> None:
    """Of a wall across the road: half of the beam's middle 0.05 rad below, a twenty-fifth of it anywhere above."""
    ahead = distance_m + 1.2
    wall = np.array([[ahead, 9, -5], [ahead, -9, -5], [ahead, -9, 9], [ahead, 9, 9]])
    matrix = LOOKS_AHEAD.copy()
    matrix[2, 3] = 1.5
    lamps_only = light(headlamps=300.0)
    seen = irradiance([wall], matrix, lamps_only, np.zeros((0, 3)))
    lamp_row = 80 + 80 * 0.85 / ahead
    for angle, share in ((-0.1, 0.04), (0.05, 0.5), (0.1, 0.2)):
        row = round(lamp_row + 80 * distance_m * np.tan(angle) / ahead)
        exact = np.arctan((row - lamp_row) * ahead / 80 / distance_m)
        share = share if angle < 0 else 1 / (1 + (exact / 0.05) ** 2)
        assert seen[row, 80] == pytest.approx(300 * share * np.cos(exact) ** 3 / distance_m**2, rel=0.06)
    assert seen[100, 20] < 0.5 * seen[100, 80]


def test_a_light_changes_the_images_and_nothing_else(tmp_path) -> None:
    bags = {}
    for name in LIGHTS:
        simulate(tmp_path / name, seed=1, beams=4, image_size=(48, 36), duration_s=1.6, light=name, progress=False)
        with open_bag(tmp_path / name) as reader:
            bags[name] = [(c.topic, log_ns, bytes(data)) for c, log_ns, data in reader.messages()]
    kept = {name: [record for record in bag if record[0] != "/camera/image_raw"] for name, bag in bags.items()}
    assert kept["day"] == kept["dusk"] == kept["night"]
    assert len({tuple(record[2] for record in bag if record not in kept[name]) for name, bag in bags.items()}) == 3


@pytest.mark.parametrize("seed", [3, 4])
def test_dusk_is_darker_than_day_and_night_darker_still(seed: int) -> None:
    means = []
    for name in LIGHTS:
        traversal = Traversal(seed, image_size=(64, 48), light=name)
        rng = np.random.default_rng(0)
        means.append(np.mean([traversal.image(time_s, rng) for time_s in (2.0, 8.0, 14.0)]))
    day, dusk, night = means
    assert night < 0.8 * dusk
    assert dusk < 0.9 * day


def test_an_unknown_light_is_rejected(tmp_path) -> None:
    with pytest.raises(ConfigError, match="light must be one of day, dusk, night, got 'noon'"):
        simulate(tmp_path / "bag", seed=1, light="noon", progress=False)
