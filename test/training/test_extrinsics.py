# SPDX-License-Identifier: Apache-2.0
"""Mounts recovered from scenes rendered here and from the simulated street, where they are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from helpers import ListSource
from training.config import parse_config
from training.extrinsics import report as extrinsics_report
from training.extrinsics.edges import depth_edges, scan_edges
from training.extrinsics.estimate import EdgeFrame, estimate_correction
from training.extrinsics.report import estimate_mount, instructions
from training.simulation import Rates, Traversal, simulate
from training.simulation.traversal import BASE_FROM_CAMERA, BASE_FROM_LIDAR
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from training.sources.seven_scenes import SevenScenesSource
from vmloc_ros.core.errors import ConfigError, DataError
from vmloc_ros.core.frame import Frame, PinholeCamera, Sample
from vmloc_ros.core.geometry import Pose, quaternion_exp, rotation_angle_deg

COLOUR_FROM_DEPTH = Pose.from_xyz_rpy([-0.026, 0.003, -0.002], np.radians([0.4, -0.2, 0.5]))
WIDTH, HEIGHT = 240, 180


def apart(first: Pose, second: Pose) -> tuple[float, float]:
    """Metres and degrees."""
    distance = float(np.linalg.norm(first.position_m - second.position_m))
    return distance, float(rotation_angle_deg(first.quaternion_wxyz, second.quaternion_wxyz))


def render(map_from_camera: Pose, focal_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Colour and depth (mm) of upright boards before a wall at z = 4 m, without noise."""
    rng = np.random.default_rng(0)
    focal = focal_length * WIDTH / 640
    v, u = np.indices((HEIGHT, WIDTH))
    rays = np.stack([(u - WIDTH / 2) / focal, (v - HEIGHT / 2) / focal, np.ones((HEIGHT, WIDTH))], axis=-1)
    towards, eye = rays @ map_from_camera.rotation.T, map_from_camera.position_m
    image, depth = np.full((HEIGHT, WIDTH, 3), 128, np.uint8), np.full((HEIGHT, WIDTH), np.inf)
    for number in range(25):
        z = 4.0 if number == 0 else rng.uniform(0.8, 3.0)
        middle, half = rng.uniform(-1, 1, 2) * [0.5, 0.35] * z, rng.uniform(0.04, 0.09, 2) * z
        colour = rng.integers(0, 256, 3) if number else [128, 128, 128]
        steps = (z - eye[2]) / towards[..., 2]
        x, y = np.moveaxis((eye + steps[..., None] * towards)[..., :2] - middle, -1, 0)
        hit = (steps < depth) & ((number == 0) | ((np.abs(x) < half[0]) & (np.abs(y) < half[1])))
        image[hit], depth = colour, np.where(hit, steps, depth)
    return image, np.rint(1000 * depth).astype(np.uint16)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 7-Scenes folder of a colour camera that is not where the depth camera is."""
    folder = tmp_path_factory.mktemp("boards") / "seq-01"
    folder.mkdir()
    (folder.parent / "TrainSplit.txt").write_text("sequence1\n")
    rng = np.random.default_rng(1)
    for frame in range(24):
        depth_pose = Pose.from_xyz_rpy(rng.uniform(-0.15, 0.15, 3), rng.normal(0, 0.1, 3))
        image, _ = render(depth_pose @ COLOUR_FROM_DEPTH.inverse(), 525)
        cv2.imwrite(str(folder / f"frame-{frame:06d}.color.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"frame-{frame:06d}.depth.png"), render(depth_pose, 585)[1])
        np.savetxt(folder / f"frame-{frame:06d}.pose.txt", depth_pose.matrix)
    return folder.parent


def test_the_option_it_prints_puts_depth_where_the_colour_camera_would_measure_it(boards: Path) -> None:
    found = estimate_mount([boards], split="train", options=SourceOptions(), frames=24)
    assert (found.sensor, found.correction.better) == ("depth", True)
    distance_m, angle_deg = apart(found.camera_from_sensor, COLOUR_FROM_DEPTH)
    assert distance_m < 0.005
    assert angle_deg < 0.15
    options = parse_config(yaml.safe_load(found.text.splitlines()[-1]), None, "printed").source
    assert apart(options.colour_from_depth, found.camera_from_sensor)[0] < 1e-4
    assert apart(options.colour_from_depth, found.camera_from_sensor)[1] < 0.01
    source = SevenScenesSource(boards, "train", options)
    plain = SevenScenesSource(boards, "train", SourceOptions(register_depth=True))
    wrong = []
    for chosen in (source, plain):
        _, registered = chosen.read(5)
        _, seen = render(chosen.poses()[5] @ COLOUR_FROM_DEPTH.inverse(), 525)
        wrong.append((np.abs(registered.astype(int) - seen)[registered > 0] > 60).mean())
    assert wrong[0] < 0.01 < 0.04 < wrong[1]
    # The search goes on from what is set, and what is right is left alone.
    again = estimate_mount([boards], split="train", options=options, frames=24)
    assert not again.correction.better
    assert "keep the present mount" in again.text
    assert apart(again.camera_from_sensor, found.camera_from_sensor)[0] < 0.003


def test_a_lidars_mount_on_the_simulated_street_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans are taken while driving, and 40 ms after their images."""
    turn = Pose(np.array([0.03, -0.03, 0.03]), quaternion_exp(np.radians([0.5, -0.6, 0.6]) / 2))
    disturbed = BASE_FROM_CAMERA.inverse() @ (turn @ BASE_FROM_LIDAR)
    drive = Traversal(3, image_size=(200, 150), rates=Rates(), beams=16)
    rng = np.random.default_rng(0)
    samples = []
    for start_s in np.linspace(1, drive.duration_s - 1, 40):
        for time_s in (start_s - 0.1, start_s, start_s + 0.1):  # neighbours, for the velocity
            cloud = drive.scan(time_s + 0.04, rng)[0].delayed(0.04) if time_s == start_s else None
            image = drive.image(time_s, rng) if time_s == start_s else None
            frame = Frame(drive.stamp_ns(time_s), image, None, cloud, drive.camera.intrinsics, disturbed)
            samples.append(Sample(frame, drive.trajectory.pose(time_s)))
    source = ListSource(samples, mounts={"image": BASE_FROM_CAMERA, "lidar": turn @ BASE_FROM_LIDAR})
    monkeypatch.setattr(extrinsics_report, "open_sources", lambda *_: [source])
    found = estimate_mount([Path()], split="train", options=SourceOptions(), frames=120, sensor="lidar")
    assert found.correction.better
    truth = BASE_FROM_CAMERA.inverse() @ BASE_FROM_LIDAR
    assert apart(disturbed, truth)[0] > 0.05
    distance_m, angle_deg = apart(found.camera_from_sensor, truth)
    assert distance_m < 0.03
    assert angle_deg < 0.3


def test_the_transform_it_prints_for_a_robot_leads_from_body_to_lidar(tmp_path: Path) -> None:
    simulate(tmp_path / "bag", seed=1, image_size=(16, 12), duration_s=1.2, beams=2, progress=False)
    source = RosbagSource(tmp_path / "bag", SourceOptions())
    *_, line = instructions(source, "lidar", BASE_FROM_CAMERA.inverse() @ BASE_FROM_LIDAR)
    value = {name: float(number) for name, number in re.findall(r"--(q?[wxyz]) (\S+)", line)}
    pose = Pose(np.array([value[k] for k in "xyz"]), np.array([value[k] for k in ("qw", "qx", "qy", "qz")]))
    assert max(apart(pose, BASE_FROM_LIDAR)) < 1e-4
    assert line.endswith("--frame-id base_link --child-frame-id lidar_link")


def edge_frames(boards: Path) -> list[EdgeFrame]:
    options = SourceOptions(register_depth=True)
    samples = extrinsics_report.open_sources(boards, "train", options, ("image", "depth"))[0]
    return [
        extrinsics_report.edges_of(samples, sample.frame, "depth", Pose.identity(), np.zeros(6))[0]
        for sample in samples
    ]


def test_what_does_not_determine_the_mount_is_rejected(boards: Path) -> None:
    frames = edge_frames(boards)
    with pytest.raises(DataError, match="2 of 24 images are blank"):
        estimate_correction([replace(f, image=np.zeros_like(f.image)) if i < 2 else f for i, f in enumerate(frames)])
    with pytest.raises(DataError, match="only 24 edges of range are seen in 24 images"):
        estimate_correction([replace(f, points_m=f.points_m[:1]) for f in frames])
    with pytest.raises(DataError, match="7 frames are too few"):
        estimate_correction(frames[:7])
    # Edges of one direction leave the camera's motion along them open.
    stripes = np.tile(np.where(np.arange(WIDTH) % 40 < 2, np.float32(1), np.float32(0)), (HEIGHT, 1))
    column = np.repeat(np.arange(1, 5) * 40.0, 100)
    rng = np.random.default_rng(0)
    camera = PinholeCamera(WIDTH, HEIGHT, 200.0, 200.0, WIDTH / 2, HEIGHT / 2)
    posts = [
        EdgeFrame(
            stripes, np.stack([(column - camera.cx) / 200, rng.uniform(-0.4, 0.4, 400), np.ones(400)], 1) * z, camera
        )
        for z in rng.uniform(1, 5, 16)
    ]
    with pytest.raises(DataError, match=r"do not determine the mount: its (y|z|rotation about .)"):
        estimate_correction(posts)


def test_images_of_other_moments_lead_to_no_mount(boards: Path) -> None:
    frames = edge_frames(boards)
    shuffled = [replace(f, image=frames[(i + 9) % len(frames)].image) for i, f in enumerate(frames)]
    with pytest.raises(DataError, match="do not determine the mount"):
        estimate_correction(shuffled)


def test_an_edge_of_depth_is_the_nearer_surface_s_border() -> None:
    """A square at 1 m before a wall at 3 m; left of it the wall was not measured, as beside a Kinect's projector."""
    depth = np.full((40, 60), 3.0, np.float32)
    depth[10:20, 25:35] = 1.0
    depth[10:20, 22:25] = 0.0
    camera = PinholeCamera(120, 80, 100.0, 100.0, 59.5, 39.5)  # of an image twice as large
    x, y, z = depth_edges(depth, camera).T
    assert set(z) == {1.0}
    assert len(z) == 40
    u, v = (100 * x + 59.5 + 0.5) / 2 - 0.5, (100 * y + 39.5 + 0.5) / 2 - 0.5
    assert {round(a, 6) for a in u[:20]} == {24.5, 34.5}
    assert {round(a, 6) for a in v[20:]} == {9.5, 19.5}


def test_an_edge_of_a_scan_lies_halfway_to_the_next_return_whatever_the_order() -> None:
    """A post over azimuths 10 to 20 deg at 2 m, a wall at 8 m, two rings; one return lost, and rows without return."""
    azimuth = np.radians(np.delete(np.arange(-60.0, 60.0), 75))
    distance = np.where((azimuth > np.radians(9.5)) & (azimuth < np.radians(20.5)), 2.0, 8.0)
    rings = [
        np.stack([np.cos(azimuth) * np.cos(e), np.sin(azimuth) * np.cos(e), np.full(len(azimuth), np.sin(e))], 1)
        * distance[:, None]
        for e in np.radians([-3.0, 4.0])
    ]
    xyz = np.concatenate([*rings, np.zeros((3, 3)), np.full((2, 3), np.nan)]).astype(np.float32)
    points, returns = scan_edges(xyz[np.random.default_rng(0).permutation(len(xyz))])
    assert len(returns) == 4
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 2, rtol=1e-5)
    found = sorted(np.degrees(np.arctan2(points[:, 1], points[:, 0])))
    np.testing.assert_allclose(found, [9.5, 9.5, 20.5, 20.5], atol=1e-3)


def test_an_offset_without_registration_is_rejected() -> None:
    with pytest.raises(ConfigError, match="depth_mount needs register_depth"):
        parse_config({"source": {"depth_mount": [0, 0, 0, 0, 0, 0]}}, None, "test")
