# SPDX-License-Identifier: Apache-2.0
"""The simulated bag: reproducible, consistent between sensors, geometry and truth, stamped like real sensors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh

from simulated_bags import CAMERA, LIDAR, POINT, SMALL, Messages, mounts, raw, read, stamp_ns, truth
from training.simulation import Traversal, simulate, street
from training.simulation.camera import CameraRenderer
from training.simulation.light import Light
from training.simulation.mesh import MeshBuilder
from training.simulation.scene import Scene
from training.simulation.styles import PLAIN, Style, StyleTable
from training.simulation.textures import Noise, Textures
from training.simulation.traversal import BASE_FROM_CAMERA, BASE_FROM_LIDAR
from training.simulation.world import World, build_world
from vmloc_ros.core.frame import PinholeCamera
from vmloc_ros.core.geometry import Pose, interpolate_poses, rotation_angle_deg


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("simulation") / "seed1"
    simulate(path, seed=1, **SMALL)
    return path


@pytest.fixture(scope="module")
def messages(bag) -> Messages:
    return read(bag)


# --- the bag ---


def test_topics_types_and_frames(messages):
    assert {topic: entries[0][1].__msgtype__ for topic, entries in messages.items()} == {
        "/tf_static": "tf2_msgs/msg/TFMessage",
        "/camera/image_raw": "sensor_msgs/msg/Image",
        "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
        "/lidar/points": "sensor_msgs/msg/PointCloud2",
        "/odom": "nav_msgs/msg/Odometry",
        "/ground_truth/pose": "geometry_msgs/msg/PoseStamped",
    }
    frames = {topic: m[0][1].header.frame_id for topic, m in messages.items() if topic != "/tf_static"}
    assert frames == {
        "/camera/image_raw": CAMERA,
        "/camera/camera_info": CAMERA,
        "/lidar/points": LIDAR,
        "/odom": "odom",
        "/ground_truth/pose": "map",
    }
    assert messages["/odom"][0][1].child_frame_id == "base_link"
    assert mounts(messages).keys() == {CAMERA, LIDAR}


def test_static_transforms_come_first_and_messages_in_order_of_reception(bag):
    received = raw(bag)
    assert received[0][0] == "/tf_static"
    logs = [log_ns for _, log_ns, _ in received]
    assert logs == sorted(logs)


def test_images_and_intrinsics_belong_together(messages):
    images, infos = messages["/camera/image_raw"], messages["/camera/camera_info"]
    assert [stamp_ns(m) for _, m in images] == [stamp_ns(m) for _, m in infos]
    image, info = images[0][1], infos[0][1]
    assert (image.width, image.height, image.encoding) == (64, 48, "rgb8") == (info.width, info.height, "rgb8")
    assert 2 * np.degrees(np.arctan(info.width / 2 / info.k[0])) == pytest.approx(90)
    pixels = np.stack([m.data.reshape(48, 64, 3) for _, m in images])
    assert 40 < pixels.mean() < 215
    assert pixels.std() > 20


def test_sensors_are_not_in_step_and_jitter(messages):
    image = np.array([stamp_ns(m) for _, m in messages["/camera/image_raw"]])
    cloud = np.array([stamp_ns(m) for _, m in messages["/lidar/points"]])
    assert np.diff(image).mean() == pytest.approx(1e8, rel=0.01)
    assert np.diff(cloud).mean() == pytest.approx(1e8 / 0.997, rel=0.002)
    assert 1e4 < np.diff(image).std() < 4e6
    assert not set(image) & set(cloud)


def test_transport_takes_time(messages):
    delays_ms = {
        topic: np.array([log_ns - stamp_ns(m) for log_ns, m in entries]) / 1e6
        for topic, entries in messages.items()
        if topic != "/tf_static"
    }
    half_turn_ms = 50 / 0.997
    limits = {"/camera/image_raw": (5, 20), "/lidar/points": (half_turn_ms + 10, half_turn_ms + 30)}
    for topic, (low, high) in limits.items():
        assert delays_ms[topic].min() >= low
        assert delays_ms[topic].max() <= high
        assert delays_ms[topic].std() > 1
    assert delays_ms["/odom"].min() > 0


def test_truth_spans_every_exposure_and_every_point(messages):
    stamps, _ = truth(messages)
    times = [stamp_ns(m) for _, m in messages["/camera/image_raw"]]
    for _, message in messages["/lidar/points"]:
        offsets = message.data.view(POINT)["time"]
        times += [stamp_ns(message) + int(t * 1e9) for t in (offsets.min(), offsets.max())]
    assert stamps[0] < min(times)
    assert max(times) < stamps[-1]


# --- geometry ---


def test_interpolated_truth_is_exact_to_a_millimetre(messages):
    traversal = Traversal(1, image_size=(64, 48), duration_s=2.5)
    stamps, poses = truth(messages)
    query = [stamp_ns(m) for _, m in messages["/camera/image_raw"]]
    for query_ns, pose in zip(query, interpolate_poses(stamps, poses, query), strict=True):
        exact = traversal.trajectory.pose((query_ns - traversal.start_ns) / 1e9)
        assert np.linalg.norm(pose.position_m - exact.position_m) < 1e-3
        assert rotation_angle_deg(pose.quaternion_wxyz, exact.quaternion_wxyz) < 0.02


def points_in_map(messages: Messages, index: int, own_time: bool) -> np.ndarray:
    """The points of a scan, placed by the true poses at their own times or all at the scan's stamp."""
    stamps, poses = truth(messages)
    message = messages["/lidar/points"][index][1]
    points = message.data.view(POINT)
    offset_ns = (points["time"].astype(float) * 1e9).astype(np.int64) * own_time
    times, column = np.unique(offset_ns, return_inverse=True)
    at_times = interpolate_poses(stamps, poses, stamp_ns(message) + times)
    matrices = np.stack([(pose @ mounts(messages)[LIDAR]).matrix for pose in at_times])[column]
    xyz = np.stack([points["x"], points["y"], points["z"], np.ones(len(points))], -1)
    return np.einsum("nij,nj->ni", matrices, xyz)[:, :3]


def distance_to_mesh(points: np.ndarray, world: World) -> np.ndarray:
    """Distances by brute force over all triangles."""
    triangles = world.mesh.vertices_m[world.mesh.faces]
    distances = []
    for point in points:
        nearest = trimesh.triangles.closest_point(triangles, np.broadcast_to(point, (len(triangles), 3)))
        distances.append(np.linalg.norm(nearest - point, axis=1).min())
    return np.array(distances)


def test_clouds_lie_on_the_world_s_surfaces(messages, world):
    rng = np.random.default_rng(0)
    points = points_in_map(messages, 5, own_time=True)
    points = points[points[:, 2] > 0.3]  # off the ground, which is right whatever the heading
    sample = points[rng.choice(len(points), 150, replace=False)]
    distance = distance_to_mesh(sample, world)
    assert np.median(distance) < 0.02
    # The rest is on cars and people, which are not part of the world.
    assert (distance < 0.08).mean() > 0.8


def test_points_must_be_placed_at_their_own_times(messages, world):
    scan = messages["/lidar/points"][5][1].data.view(POINT)
    late = np.flatnonzero(np.abs(scan["time"]) > 0.03)[::60]
    own, shared = (points_in_map(messages, 5, own_time)[late] for own_time in (True, False))
    walls = own[:, 2] > 0.5
    assert (distance_to_mesh(own[walls], world) > 0.1).mean() < 0.2
    assert (distance_to_mesh(shared[walls], world) > 0.1).mean() > 0.35


def test_rings_times_and_intensities_are_those_of_a_spinning_lidar(messages):
    for _, message in messages["/lidar/points"][:3]:
        points = message.data.view(POINT)
        assert 10_000 < len(points) <= 25_000
        radius = np.sqrt(points["x"] ** 2 + points["y"] ** 2 + points["z"] ** 2)
        assert radius.min() > 0.9
        assert radius.max() < 80
        elevation = np.degrees(np.arcsin(points["z"] / radius))
        np.testing.assert_allclose(elevation, -20 + points["ring"] * 32 / 31, atol=0.01)
        assert set(points["ring"]) == set(range(32))
        # One counter-clockwise turn; the stamp is its middle, straight ahead.
        turn = points["time"] * 9.97 * 2 * np.pi
        np.testing.assert_allclose(np.arctan2(points["y"], points["x"]), turn, atol=1e-3)
        assert np.all(np.diff(points["time"]) >= 0)
        assert 0 <= points["intensity"].min() < 20
        assert 100 < points["intensity"].max() <= 255


def test_camera_sees_a_known_panel_where_projection_puts_it():
    rng = np.random.default_rng(0)
    corners = np.array([[6.0, 1.5, 0.6], [6.3, -1.0, 0.6], [6.3, -1.0, 2.4], [6.0, 1.5, 2.4]])
    builder = MeshBuilder()
    builder.polygon(corners, 0)
    noise = Noise(rng)
    table = StyleTable([Style(PLAIN, (0.9, 0.05, 0.05), roughness=0.0)])
    textures = Textures(table, noise, ground=lambda hits: (np.zeros((0, 3)), np.zeros(0)))
    intrinsics = PinholeCamera(160, 120, 90.0, 95.0, 77.0, 62.0)
    renderer = CameraRenderer(intrinsics, textures, noise, Light.draw(rng))
    map_from_camera = Pose.from_xyz_rpy([0.4, 0.2, 1.5], [-1.6, 0.05, -1.5])
    image = renderer.render(Scene(builder.build(), []), map_from_camera, rng).astype(int)
    red = image[..., 0] - image[..., 2] > 60

    camera_from_map = map_from_camera.inverse()
    k = np.array([[90.0, 0, 77.0], [0, 95.0, 62.0], [0, 0, 1]])
    rotation_vector, _ = cv2.Rodrigues(camera_from_map.rotation)
    projected, _ = cv2.projectPoints(corners, rotation_vector, camera_from_map.position_m, k, None)
    expected = np.zeros((120, 160), np.uint8)
    cv2.fillConvexPoly(expected, np.round(projected[:, 0] * 16).astype(np.int32), 1, shift=4)
    assert 500 < expected.sum() < 15_000
    wrong = np.logical_xor(red, expected > 0)
    rim = cv2.dilate(expected, np.ones((3, 3))) - cv2.erode(expected, np.ones((3, 3)))
    assert not np.any(wrong & (rim == 0))


def test_lidar_points_meet_the_pixels_that_show_them():
    """A painted line is bright to both: the extrinsics, stamps and poses of the two sensors agree."""
    traversal = Traversal(2, image_size=(320, 240), duration_s=8)
    rng = np.random.default_rng(0)
    agreement = []
    for time_s in np.arange(1.0, 7.5, 0.5):
        image = traversal.image(time_s, rng).astype(float).mean(-1)
        cloud, _ = traversal.scan(time_s, rng)
        base_from_map = traversal.trajectory.pose(time_s).inverse()
        position, rotation = traversal.trajectory.at(time_s + cloud.time_s.astype(float))
        in_base = BASE_FROM_LIDAR.transform(cloud.xyz_m)
        xyz = base_from_map.transform(np.einsum("nij,nj->ni", rotation, in_base) + position)
        in_camera = BASE_FROM_CAMERA.inverse().transform(xyz)
        road = (np.abs(xyz[:, 2]) < 0.1) & (in_camera[:, 2] > 1) & (in_camera[:, 2] < 9)
        camera = traversal.camera.intrinsics
        u = camera.fx * in_camera[:, 0] / in_camera[:, 2] + camera.cx
        v = camera.fy * in_camera[:, 1] / in_camera[:, 2] + camera.cy
        seen = road & (u > 0) & (u < 319) & (v > 0) & (v < 239)
        shade = image[np.round(v[seen]).astype(int), np.round(u[seen]).astype(int)]
        paint = cloud.intensity[seen] > 70
        if 5 < paint.sum() < len(paint) - 5:
            agreement.append(np.median(shade[paint]) - np.median(shade[~paint]))
    assert len(agreement) >= 5
    assert np.median(agreement) > 30


def test_a_lidar_of_fewer_beams_spans_the_same_elevations_and_leaves_the_rest_of_the_drive_alone(bag, tmp_path):
    simulate(tmp_path / "sparse", seed=1, beams=16, **SMALL)
    points = read(tmp_path / "sparse")["/lidar/points"][0][1].data.view(POINT)
    elevation = np.degrees(np.arctan2(points["z"], np.hypot(points["x"], points["y"])))
    assert set(points["ring"]) == set(range(16))
    np.testing.assert_allclose(elevation, np.linspace(-20, 12, 16)[points["ring"]], atol=1e-3)
    others = [[record for record in raw(path) if record[0] != "/lidar/points"] for path in (bag, tmp_path / "sparse")]
    assert others[0] == others[1]


# --- seeds ---


def test_same_seed_gives_the_same_bytes(bag, tmp_path):
    simulate(tmp_path / "again", seed=1, **SMALL)
    assert raw(tmp_path / "again") == raw(bag)


def test_another_seed_shares_only_the_world(messages, tmp_path):
    simulate(tmp_path / "other", seed=2, **SMALL)
    other = read(tmp_path / "other")
    for topic in ("/camera/image_raw", "/lidar/points", "/odom", "/ground_truth/pose"):
        assert not {stamp_ns(m) for _, m in other[topic]} & {stamp_ns(m) for _, m in messages[topic]}
    first, second = (truth(m)[1][0].position_m for m in (messages, other))
    assert np.linalg.norm(first - second) > 0.1
    assert mounts(other)[LIDAR].position_m.tolist() == mounts(messages)[LIDAR].position_m.tolist()


def test_world_follows_its_own_seed(world):
    again, other = build_world(0), build_world(7)
    np.testing.assert_array_equal(again.mesh.vertices_m, world.mesh.vertices_m)
    assert again.styles == world.styles
    assert again.slots == world.slots
    assert other.mesh.vertices_m.shape != world.mesh.vertices_m.shape


def test_the_same_place_looks_different_in_another_traversal_and_different_places_differ_more():
    """Clouds reduced to range by direction: two drives past one house agree better than two houses do."""

    def skyline(seed: int, s_m: float) -> np.ndarray:
        traversal = Traversal(seed, laps=1.05, image_size=(16, 12))
        times = np.linspace(0.2, traversal.duration_s - 0.2, 2000)
        gap = np.abs((traversal.trajectory.distance(times) - s_m + 75) % street.LENGTH_M - 75)
        cloud, ring = traversal.scan(float(times[np.argmin(gap)]), np.random.default_rng(seed))
        high = cloud.xyz_m[ring > 20].astype(float)
        sector = ((np.arctan2(high[:, 1], high[:, 0]) + np.pi) / (2 * np.pi) * 36).astype(int) % 36
        radius = np.linalg.norm(high, axis=1)
        return np.array([np.median(radius[sector == i]) for i in range(36)])

    first, second, elsewhere = skyline(3, 20.0), skyline(4, 20.0), skyline(4, 55.0)
    assert np.abs(first - second).max() > 0.1
    assert np.median(np.abs(first - second)) < 0.5 * np.median(np.abs(first - elsewhere))
