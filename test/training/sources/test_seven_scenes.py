# SPDX-License-Identifier: Apache-2.0
"""The 7-Scenes source on scenes written here, on broken ones, and on the real recording if present."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.sources import open_sources
from training.sources.options import SourceOptions
from training.sources.seven_scenes import SevenScenesSource, register_depth
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import Pose, rotation_angle_deg

SIZE = (6, 8)
FRAMES = {1: [0, 1, 2, 3, 4], 2: [10, 11], 12: [0, 3]}


def pose_of(sequence: int, frame: int) -> Pose:
    return Pose.from_xyz_rpy([sequence, frame / 10, 0.5], [0.01 * frame, -0.02 * sequence, 0.3])


def color_of(sequence: int, frame: int) -> np.ndarray:
    return np.random.default_rng([sequence, frame]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def depth_mm_of(sequence: int, frame: int) -> np.ndarray:
    depth = np.random.default_rng([sequence, frame, 1]).integers(300, 9000, SIZE, dtype=np.uint16)
    depth[0, :3] = [0, 65535, 65534]
    return depth


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Sequences 1 and 12 to train on, 2 to test on; PNG colour."""
    root = tmp_path / "chess"
    for sequence, frames in FRAMES.items():
        folder = root / f"seq-{sequence:02d}"
        folder.mkdir(parents=True)
        for frame in frames:
            stem = str(folder / f"frame-{frame:06d}")
            cv2.imwrite(f"{stem}.color.png", color_of(sequence, frame)[..., ::-1])
            cv2.imwrite(f"{stem}.depth.png", depth_mm_of(sequence, frame))
            np.savetxt(f"{stem}.pose.txt", pose_of(sequence, frame).matrix)
        (folder / "Thumbs.db").touch()  # the official archives have one
    (root / "TrainSplit.txt").write_text("sequence1\nsequence12\n")
    (root / "TestSplit.txt").write_text("sequence2\r\n")
    return root


def frames_of(source: SevenScenesSource) -> list[tuple[int, int]]:
    """Sequence and frame number of every sample, from its true position."""
    return [(round(pose.position_m[0]), round(pose.position_m[1] * 10)) for pose in source.poses()]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (12, 0), (12, 3)]),
        ("test", [(2, 10), (2, 11)]),
        ("all", [(s, f) for s, frames in FRAMES.items() for f in frames]),
    ],
)
def test_split_decides_the_sequences(scene: Path, split: str, expected: list[tuple[int, int]]) -> None:
    source = SevenScenesSource(scene, split)
    assert frames_of(source) == expected
    assert len(source) == len(expected)
    assert source.report == {"frames": len(expected), "frames without a valid pose": 0}
    assert (source.name, source.map_frame, source.body_frame) == (
        f"chess/{split}",
        "map",
        "camera_optical_frame",
    )


def test_samples_carry_the_files_content(scene: Path) -> None:
    source = SevenScenesSource(scene, "train")
    samples = list(source)
    assert source.modalities == samples[0].frame.modalities == ("image", "depth")
    assert {name: pose.matrix.tolist() for name, pose in source.mounts.items()} == dict.fromkeys(
        source.modalities, np.eye(4).tolist()
    )
    for (sequence, frame), sample, stamp in zip(frames_of(source), samples, source.stamps_ns(), strict=True):
        np.testing.assert_array_equal(sample.frame.image, color_of(sequence, frame))
        depth_m = depth_mm_of(sequence, frame) / 1000
        depth_m[0, 1] = 0  # 65535 is "no measurement"
        assert sample.frame.depth_m is not None
        assert sample.frame.depth_m.dtype == np.float32
        np.testing.assert_array_equal(sample.frame.depth_m, depth_m.astype(np.float32))
        truth = pose_of(sequence, frame)
        np.testing.assert_allclose(sample.map_from_body.position_m, truth.position_m)
        assert rotation_angle_deg(sample.map_from_body.quaternion_wxyz, truth.quaternion_wxyz) < 1e-6
        assert sample.frame.stamp_ns == stamp


def test_intrinsics_are_the_official_ones_at_the_picture_s_size(scene: Path) -> None:
    camera = next(iter(SevenScenesSource(scene, "test"))).frame.camera
    assert camera is not None
    assert (camera.width, camera.height) == (8, 6)
    assert (camera.fx * 80, camera.fy * 80, camera.cx * 80, camera.cy * 80) == (585, 585, 320, 240)


def test_stamps_follow_frame_numbers_at_30_hz_with_a_pause_between_sequences(scene: Path) -> None:
    stamps = SevenScenesSource(scene, "all").stamps_ns()
    np.testing.assert_allclose(np.diff(stamps) / 1e9, [*[1 / 30] * 4, 2.0, 1 / 30, 2.0, 0.1], atol=1e-8)
    assert stamps[0] > 0


def test_stride_keeps_the_stamps_of_what_it_keeps(scene: Path) -> None:
    everything = SevenScenesSource(scene, "train")
    some = SevenScenesSource(scene, "train", SourceOptions(stride=2))
    assert frames_of(some) == [(1, 0), (1, 2), (1, 4), (12, 0)]
    assert some.stamps_ns() == [everything.stamps_ns()[i] for i in (0, 2, 4, 5)]


def test_jpeg_colour_is_accepted(scene: Path) -> None:
    for path in scene.glob("seq-02/*.color.png"):
        flat = np.full((*SIZE, 3), (40, 90, 200), np.uint8)  # blue, green, red
        cv2.imwrite(str(path.with_suffix(".jpg")), flat)
        path.unlink()
    image = next(iter(SevenScenesSource(scene, "test"))).frame.image
    assert image is not None
    np.testing.assert_allclose(image.astype(int), np.broadcast_to([200, 90, 40], (*SIZE, 3)), atol=4)


def test_all_needs_no_split_files(scene: Path) -> None:
    (scene / "TrainSplit.txt").unlink()
    (scene / "TestSplit.txt").unlink()
    assert len(SevenScenesSource(scene, "all")) == 9
    with pytest.raises(DataError, match=r"TrainSplit.txt is missing.*'all'"):
        SevenScenesSource(scene, "train")


BAD_POSES = {
    "nan": "nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1",
    "nan position": "1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1",
    "windows nan": "-1.#IND 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1",
    "scaled": "2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1",
    "mirrored": "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1",
    "transposed": "1 0 0 0\n0 1 0 0\n0 0 1 0\n5 6 7 1",
    "short": "1 0 0 0\n0 1 0 0\n0 0 1 0",
    "empty": "",
}


@pytest.mark.parametrize("kind", [*BAD_POSES, "missing", "binary"])
def test_bad_pose_is_named_or_skipped_and_counted(scene: Path, kind: str) -> None:
    path = scene / "seq-01" / "frame-000002.pose.txt"
    if kind == "missing":
        path.unlink()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00\x81" * 16)
    else:
        path.write_text(BAD_POSES[kind])
    with pytest.raises(DataError, match=r"^\S*frame-000002.pose.txt is .*--skip-invalid") as caught:
        SevenScenesSource(scene, "train")
    assert "\n" not in str(caught.value)
    source = SevenScenesSource(scene, "train", SourceOptions(skip_invalid=True))
    assert frames_of(source) == [(1, 0), (1, 1), (1, 3), (1, 4), (12, 0), (12, 3)]
    assert source.report == {"frames": 6, "frames without a valid pose": 1}


def test_scene_without_any_valid_pose_is_rejected(scene: Path) -> None:
    for path in scene.glob("seq-02/*.pose.txt"):
        path.write_text(BAD_POSES["nan"])
    with pytest.raises(DataError, match="no frame of the test split has a valid pose"):
        SevenScenesSource(scene, "test", SourceOptions(skip_invalid=True))


@pytest.mark.parametrize("kind", ["depth.png", "color.png"])
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_missing_picture_is_named_at_once(scene: Path, kind: str, skip_invalid: bool) -> None:
    (scene / "seq-02" / f"frame-000011.{kind}").unlink()
    with pytest.raises(DataError, match=rf"frame-000011.{kind}.* is missing"):
        SevenScenesSource(scene, "test", SourceOptions(skip_invalid=skip_invalid))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("kind", "damage", "text"),
    [
        ("color.png", truncate, "truncated"),
        ("depth.png", truncate, "truncated"),
        ("color.png", lambda path: path.write_bytes(b""), "neither JPEG nor PNG.*: 0 bytes"),
        ("depth.png", lambda path: path.write_bytes(b"hello"), "neither JPEG nor PNG"),
        ("depth.png", lambda path: cv2.imwrite(str(path), color_of(0, 0)[..., 0]), "16-bit .* got uint8"),
        ("depth.png", Path.unlink, "is missing"),
    ],
)
def test_corrupt_picture_is_named_when_it_is_read(
    scene: Path, kind: str, damage: Callable[[Path], object], text: str
) -> None:
    source = SevenScenesSource(scene, "test")
    damage(scene / "seq-02" / f"frame-000011.{kind}")
    samples = iter(source)
    next(samples)
    with pytest.raises(DataError, match=rf"frame-000011.{kind}.* {text}"):
        next(samples)


def test_unfit_folders_are_rejected(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent is not a folder"):
        SevenScenesSource(tmp_path / "absent", "train")
    with pytest.raises(DataError, match="split must be train, test or all, got 'val'"):
        SevenScenesSource(scene, "val")
    (scene / "TestSplit.txt").write_text("sequence2\nseq-03\n")
    with pytest.raises(DataError, match=r"TestSplit.txt: expected lines like 'sequence1', got 'seq-03'"):
        SevenScenesSource(scene, "test")
    (scene / "TestSplit.txt").write_text("sequence3\n")
    with pytest.raises(DataError, match=r"seq-03 does not exist$"):
        SevenScenesSource(scene, "test")
    (scene / "seq-03.zip").touch()
    with pytest.raises(DataError, match=r"seq-03 does not exist; unpack its zip file"):
        SevenScenesSource(scene, "test")
    (scene / "seq-03").mkdir()
    with pytest.raises(DataError, match=r"seq-03 holds no frame"):
        SevenScenesSource(scene, "test")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="the all split has no sequences"):
        SevenScenesSource(tmp_path / "void", "all")


def test_scene_folder_is_recognised_as_a_source(scene: Path) -> None:
    (source,) = open_sources(scene, "test", SourceOptions(stride=2), ("image", "depth"))
    assert source.name == "chess/test"
    assert len(source) == 1


def test_real_recording_is_consistent(real_data: Path) -> None:
    """A frame's points, moved to another frame, lie at its depth: depth, pose, intrinsics fit."""
    scene = real_data / "7scenes" / "redkitchen"
    assert len(SevenScenesSource(scene, "train")) == 650
    test = SevenScenesSource(scene, "test", SourceOptions(stride=5))
    assert len(test) == 40
    first, second = itertools.islice(test, 2)
    camera, depth_m, seen_m = first.frame.camera, first.frame.depth_m, second.frame.depth_m
    assert camera is not None
    assert depth_m is not None
    assert seen_m is not None
    assert first.frame.image is not None
    assert first.frame.image.shape == (480, 640, 3)
    rows, columns = np.nonzero(depth_m)
    z = depth_m[rows, columns].astype(float)
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(z))], -1)
    x, y, z = (second.map_from_body.inverse() @ first.map_from_body).transform(rays * z[:, None]).T
    u = np.round(x / z * camera.fx + camera.cx).astype(int)
    v = np.round(y / z * camera.fy + camera.cy).astype(int)
    inside = (u >= 0) & (u < 640) & (v >= 0) & (v < 480)
    seen = seen_m[v[inside], u[inside]]
    difference = np.abs(seen - z[inside])[seen > 0]
    assert len(difference) > 50_000
    assert np.median(difference) < 0.03


def test_registered_depth_lies_where_the_colour_camera_sees_it(scene: Path) -> None:
    """The middle stays; towards the edge a surface moves inwards by the ratio of focal lengths, its depth unchanged."""
    depth_mm = np.zeros((480, 640), np.uint16)
    depth_mm[240, 320], depth_mm[100:110, 500:510] = 1500, 2000
    registered = register_depth(depth_mm)
    assert registered[240, 320] == 1500
    rows, columns = np.nonzero(registered == 2000)
    ratio = 525 / 585
    assert columns.mean() == pytest.approx(320 + (504.5 - 320) * ratio, abs=0.6)
    assert rows.mean() == pytest.approx(240 + (104.5 - 240) * ratio, abs=0.6)
    assert len(rows) == pytest.approx(100 * ratio**2, rel=0.12)
    assert set(np.unique(registered)) == {0, 1500, 2000}


def test_the_depth_camera_does_not_reach_the_colour_pictures_edge() -> None:
    registered = register_depth(np.full((480, 640), 1000, np.uint16))
    assert (registered[:, [0, -1]] == 0).all()
    assert (registered[[0, -1]] == 0).all()
    assert (registered[30:-30, 40:-40] == 1000).all()


def test_registered_frames_have_the_colour_cameras_intrinsics_and_other_cache_entries(scene: Path) -> None:
    plain, registered = (
        SevenScenesSource(scene, "train"),
        SevenScenesSource(scene, "train", SourceOptions(register_depth=True)),
    )
    first, second = next(iter(plain)).frame, next(iter(registered)).frame
    assert second.camera.fx / first.camera.fx == pytest.approx(525 / 585)
    assert (second.depth_m == 0).sum() >= (first.depth_m == 0).sum()
    assert plain.fingerprint() != registered.fingerprint()


def test_moved_depth_is_what_a_search_over_all_measurements_finds() -> None:
    """Of the measurements that a pixel of the colour camera sees, the nearest."""
    moved = Pose.from_xyz_rpy([-0.2, 0.1, 0.05], [0.05, -0.04, 0.1])
    rng = np.random.default_rng(0)
    depth_mm = rng.choice([0, 700, 1500, 4000], (30, 40)).astype(np.uint16)
    expected = np.zeros_like(depth_mm)
    for row, column in itertools.product(range(30), range(40)):
        z = depth_mm[row, column] / 1000
        focal = 585 / 16
        x, y, depth = moved.transform([(column - 20) / focal * z, (row - 15) / focal * z, z])
        if z == 0 or depth <= 0:
            continue
        u, v = round(525 / 16 * x / depth + 20), round(525 / 16 * y / depth + 15)
        seen = round(1000 * depth)
        if 0 <= u < 40 and 0 <= v < 30 and (expected[v, u] == 0 or seen < expected[v, u]):
            expected[v, u] = seen
    assert (expected > 0).sum() > 200
    np.testing.assert_array_equal(register_depth(depth_mm, moved), expected)


def test_a_colour_camera_beside_the_depth_camera_is_mounted_there(scene: Path) -> None:
    options = SourceOptions(register_depth=True, depth_mount=(-0.03, 0.0, 0.01, 0.0, 0.0, np.pi / 2))
    (source,) = open_sources(scene, "train", options, ("image", "depth"))
    plain = SevenScenesSource(scene, "train", SourceOptions(register_depth=True))
    for name in ("image", "depth"):
        np.testing.assert_allclose(source.mounts[name].transform([-0.03, 0.0, 0.01]), 0, atol=1e-12)
        np.testing.assert_allclose(source.mounts[name].rotation @ [0, 1, 0], [1, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(source.poses()[0].matrix, plain.poses()[0].matrix)
    assert source.fingerprint() != plain.fingerprint()
