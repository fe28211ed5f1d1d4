# SPDX-License-Identifier: Apache-2.0
"""The TUM RGB-D source on sequences written here, on broken ones, and through a bag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from training.cli import main
from training.conversion.datasets import convert_tum
from training.sources import open_sources
from training.sources.files import parse_stamp_ns
from training.sources.options import SourceOptions
from training.sources.rosbag.source import RosbagSource
from training.sources.tum import TumSource, associate
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.geometry import rotation_angle_deg

START_S = 1305031102
SIZE = (6, 8)
# Microseconds after START_S. Colour 2 has no depth; depth 3 (150 ms) has no colour.
COLOR_US = [0, 33_175, 66_350, 300_000, 333_333, 366_666]
DEPTH_US = [4_407, 30_000, 150_000, 309_000, 330_001, 370_000]
PAIRS = [(0, 0), (1, 1), (3, 3), (4, 4), (5, 5)]
TRUTH_US = list(range(-20_000, 400_000, 10_000))
NARROW = SourceOptions(slop_s=0.02)


def color_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def depth_of(index: int) -> np.ndarray:
    depth = np.random.default_rng([index, 1]).integers(2, 65535, SIZE, dtype=np.uint16)
    depth[0, :3] = [0, 65535, 5000]
    return depth


def position_of(time_us: float) -> np.ndarray:
    return np.array([time_us * 1e-6, -2.0, 1.5])


def rotation_of(time_us: float) -> Rotation:
    return Rotation.from_euler("zyx", [0.3 + time_us * 2e-6, 0.2, -1.4])


def text_of(time_us: int) -> str:
    seconds, rest = divmod(START_S * 1_000_000 + time_us, 1_000_000)
    return f"{seconds}.{rest:06d}"


def ns_of(time_us: int) -> int:
    return (START_S * 1_000_000 + time_us) * 1000


def write_sequence(root: Path) -> Path:
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
    for i, time in enumerate(COLOR_US):
        cv2.imwrite(str(root / "rgb" / f"{text_of(time)}.png"), color_of(i)[..., ::-1])
    for i, time in enumerate(DEPTH_US):
        cv2.imwrite(str(root / "depth" / f"{text_of(time)}.png"), depth_of(i))
    for name, times in (("rgb", COLOR_US), ("depth", DEPTH_US)):
        lines = [f"{text_of(t)} {name}/{text_of(t)}.png" for t in times]
        (root / f"{name}.txt").write_text("\n".join(["# colour images", "# timestamp filename", *lines, ""]))
    write_truth(root, TRUTH_US)
    return root


def write_truth(root: Path, times: list[int]) -> None:
    lines = [
        " ".join([text_of(t), *(f"{value:.9f}" for value in (*position_of(t), *rotation_of(t).as_quat()))])
        for t in times
    ]
    (root / "groundtruth.txt").write_text("\n".join(["# ground truth trajectory", *lines, ""]))


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "rgbd_dataset_freiburg1_desk")


# --- frames -------------------------------------------------------------------------------------------------------


def test_frames_pair_colour_with_the_nearest_depth_and_carry_the_files_content(sequence: Path) -> None:
    source = TumSource(sequence, NARROW)
    samples = list(source)
    assert len(samples) == len(source) == len(PAIRS)
    assert source.stamps_ns() == [ns_of(COLOR_US[i]) for i, _ in PAIRS]
    assert source.report == {
        "frames": 5,
        "images without depth": 1,
        "depth images without an image": 1,
        "frames outside the poses' time span": 0,
        "frames in a gap between poses": 0,
        "repeated poses": 0,
    }
    assert (source.name, source.map_frame, source.body_frame) == (sequence.name, "map", "camera_optical_frame")
    assert source.modalities == ("image", "depth")
    assert {name: pose.matrix.tolist() for name, pose in source.mounts.items()} == dict.fromkeys(
        source.modalities, np.eye(4).tolist()
    )
    for (color, depth), sample, stamp in zip(PAIRS, samples, source.stamps_ns(), strict=True):
        frame = sample.frame
        assert frame.stamp_ns == stamp
        assert frame.depth_m is not None
        assert frame.depth_m.dtype == np.float32
        np.testing.assert_array_equal(frame.image, color_of(color))
        np.testing.assert_allclose(frame.depth_m, depth_of(depth) / 5000, rtol=1e-7)
        np.testing.assert_array_equal(frame.depth_m[0, :3], np.float32([0, 13.107, 1]))


def test_poses_are_interpolated_at_the_colour_images_stamps(sequence: Path) -> None:
    source = TumSource(sequence, NARROW)
    slerp = Slerp(TRUTH_US, Rotation.concatenate([rotation_of(t) for t in TRUTH_US]))
    for (color, _), pose in zip(PAIRS, source.poses(), strict=True):
        np.testing.assert_allclose(pose.position_m, position_of(COLOR_US[color]), atol=1e-8)
        expected = np.roll(slerp(COLOR_US[color]).as_quat(), 1)
        assert rotation_angle_deg(pose.quaternion_wxyz, expected) < 1e-6


def test_a_wide_tolerance_pairs_what_is_left_over(sequence: Path) -> None:
    source = TumSource(sequence, SourceOptions(slop_s=0.1))
    assert len(source) == 6
    assert source.report["images without depth"] == 0
    depth_m = list(source)[2].frame.depth_m
    assert depth_m is not None
    np.testing.assert_allclose(depth_m, depth_of(2) / 5000, rtol=1e-7)


@pytest.mark.parametrize(("modality", "times"), [("image", COLOR_US), ("depth", DEPTH_US)])
def test_one_modality_alone_needs_no_partner(sequence: Path, modality: str, times: list[int]) -> None:
    (sequence / ("depth.txt" if modality == "image" else "rgb.txt")).unlink()
    source = TumSource(sequence, NARROW, (modality,))
    assert source.modalities == (modality,)
    assert source.stamps_ns() == [ns_of(t) for t in times]
    assert {sample.frame.modalities for sample in source} == {(modality,)}


def test_a_modality_that_the_dataset_lacks_is_rejected(sequence: Path) -> None:
    with pytest.raises(DataError, match="TUM RGB-D has image and depth, no lidar"):
        TumSource(sequence, modalities=("image", "lidar"))


def test_stride_keeps_every_nth_pair(sequence: Path) -> None:
    source = TumSource(sequence, SourceOptions(stride=2, slop_s=0.02))
    assert source.stamps_ns() == [ns_of(COLOR_US[i]) for i, _ in PAIRS[::2]]


def test_frames_without_a_pose_nearby_are_dropped_and_counted(sequence: Path) -> None:
    write_truth(sequence, [10_000, 20_000, 40_000, 310_000, 340_000])
    source = TumSource(sequence, SourceOptions(slop_s=0.02, pose_gap_s=0.1))
    assert source.stamps_ns() == [ns_of(COLOR_US[i]) for i in (1, 4)]
    assert source.report["frames outside the poses' time span"] == 2
    assert source.report["frames in a gap between poses"] == 1
    write_truth(sequence, [500_000, 510_000])
    with pytest.raises(DataError, match=r"no frame has all of image, depth and a pose \(.*5 frames outside"):
        TumSource(sequence, NARROW)


def test_a_pose_that_repeats_a_stamp_is_dropped_and_counted(sequence: Path) -> None:
    """Line 10863 of the real freiburg2_desk does so."""
    expected = TumSource(sequence, NARROW).poses()
    truth = sequence / "groundtruth.txt"
    lines = truth.read_text().splitlines()
    lines.insert(4, lines[3].replace(" -2.0", " -2.1"))
    truth.write_text("\n".join(lines))
    source = TumSource(sequence, NARROW)
    assert source.report["repeated poses"] == 1
    for pose, other in zip(source.poses(), expected, strict=True):
        np.testing.assert_array_equal(pose.matrix, other.matrix)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("rgbd_dataset_freiburg1_desk", (517.3, 516.5, 318.6, 255.3)),
        ("rgbd_dataset_freiburg2_pioneer_360", (520.9, 521.0, 325.1, 249.7)),
        ("rgbd_dataset_freiburg3_long_office_household", (535.4, 539.2, 320.1, 247.6)),
        ("my_own_kinect", (525.0, 525.0, 319.5, 239.5)),
        ("freiburg12", (525.0, 525.0, 319.5, 239.5)),
    ],
)
def test_intrinsics_follow_the_folders_name(
    tmp_path: Path, folder: str, expected: tuple[float, float, float, float]
) -> None:
    source = TumSource(write_sequence(tmp_path / folder), NARROW)
    camera = next(iter(source)).frame.camera
    assert camera is not None
    assert (camera.width, camera.height) == (8, 6)
    # The pictures are 80 times smaller; a pixel's centre is half a pixel from its edge.
    known = (camera.fx * 80, camera.fy * 80, (camera.cx + 0.5) * 80 - 0.5, (camera.cy + 0.5) * 80 - 0.5)
    np.testing.assert_allclose(known, expected)


def test_the_folder_is_recognised_as_a_source(sequence: Path) -> None:
    (source,) = open_sources(sequence, "train", NARROW, ("image",))
    assert isinstance(source, TumSource)
    assert source.modalities == ("image",)


def test_the_fingerprint_changes_with_what_is_read(sequence: Path) -> None:
    original = TumSource(sequence, NARROW).fingerprint()
    assert TumSource(sequence, NARROW).fingerprint() == original
    assert TumSource(sequence, SourceOptions(slop_s=0.1)).fingerprint() != original
    assert TumSource(sequence, NARROW, ("image",)).fingerprint() != original
    for name in ("groundtruth.txt", "depth.txt", "rgb.txt"):
        before = TumSource(sequence, NARROW).fingerprint()
        (sequence / name).write_text((sequence / name).read_text() + "\n")
        assert TumSource(sequence, NARROW).fingerprint() != before


# --- stamps and association ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.integers(0, 999_999_999), st.integers(0, 9))
def test_stamps_keep_every_digit(seconds: int, nanoseconds: int, digits: int) -> None:
    kept = nanoseconds // 10 ** (9 - digits) * 10 ** (9 - digits)
    text = f"{seconds}.{nanoseconds:09d}"[: len(str(seconds)) + 1 + digits]
    assert parse_stamp_ns(Path("rgb.txt"), 1, text) == seconds * 1_000_000_000 + kept


@pytest.mark.parametrize("text", ["nan", "-1", "inf", "1e99999", "2147483648", "noon", "", "1,5"])
def test_a_word_that_is_no_stamp_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"rgb.txt:7: expected a stamp in seconds from 0 to 2\^31, got "):
        parse_stamp_ns(Path("rgb.txt"), 7, text)


@given(
    st.sets(st.integers(0, 300)).map(sorted),
    st.sets(st.integers(0, 300)).map(sorted),
    st.integers(0, 40),
)
def test_association_is_that_of_taking_the_nearest_pair_again_and_again(
    first: list[int], second: list[int], slop: int
) -> None:
    expected, free_first, free_second = [], set(range(len(first))), set(range(len(second)))
    while True:
        distances = [(abs(first[i] - second[j]), i, j) for i in free_first for j in free_second]
        if not distances or min(distances)[0] > slop:
            break
        _, i, j = min(distances)
        expected.append((i, j))
        free_first.remove(i)
        free_second.remove(j)
    assert associate(first, second, slop) == sorted(expected)


# --- broken sequences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "words", "text"),
    [
        ("rgb.txt", [*"tf", "more"], r"rgb.txt:4: expected 2 columns \(stamp file\), got 3"),
        ("depth.txt", ["t"], r"depth.txt:4: expected 2 columns \(stamp file\), got 1"),
        ("rgb.txt", ["12:30", "f"], r"rgb.txt:4: expected a stamp in seconds from 0 to 2\^31, got '12:30'"),
        ("rgb.txt", ["1305031101.9", "f"], r"rgb.txt:4: 1305031101900000000 ns does not come after 13050311020{9} ns"),
        ("rgb.txt", ["1305031102", "f"], r"rgb.txt:4: .* does not come after .* of line 3"),
        ("rgb.txt", ["t", "rgb/none.png"], r"rgb.txt:4: \S*none.png is missing"),
        ("groundtruth.txt", ["t", *"1230001", "0"], r"groundtruth.txt:4: expected 8 columns .* got 9"),
        ("groundtruth.txt", ["t", "1", "nan", *"30001"], r"groundtruth.txt:4: expected finite numbers, got 1 nan 3"),
        ("groundtruth.txt", ["t", "1", "2.0.0", *"30001"], r"groundtruth.txt:4: could not convert .*'2.0.0'"),
        ("groundtruth.txt", ["t", *"1230002"], r"groundtruth.txt:4: .* unit quaternion, its norm is 2"),
        ("groundtruth.txt", ["1305031101.9", *"1230001"], r"groundtruth.txt:4: .* does not come after .* of line 3"),
    ],
)
def test_a_malformed_line_is_named(sequence: Path, file: str, words: list[str], text: str) -> None:
    """Words ``t`` and ``f`` stand for those of the sound line."""
    lines = (sequence / file).read_text().splitlines()
    sound = dict(zip("tf", lines[3].split(), strict=False))
    lines[3] = " ".join(sound.get(word, word) for word in words)
    (sequence / file).write_text("\n".join(lines))
    with pytest.raises(DataError, match=text) as caught:
        TumSource(sequence, NARROW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["rgb.txt", "depth.txt", "groundtruth.txt"])
def test_a_missing_or_empty_list_is_named(sequence: Path, file: str) -> None:
    (sequence / file).write_text("# nothing\n")
    with pytest.raises(DataError, match=rf"{file} is empty; expected lines of"):
        TumSource(sequence)
    (sequence / file).unlink()
    with pytest.raises(DataError, match=rf"{file} is missing"):
        TumSource(sequence)


def as_depth(path: Path) -> None:
    cv2.imwrite(str(path), depth_of(0))


def as_color(path: Path) -> None:
    cv2.imwrite(str(path), color_of(0))


@pytest.mark.parametrize(
    ("folder", "damage", "text"),
    [
        ("rgb", as_depth, r"an image must have 8 bits per channel, got uint16 \(6, 8\)"),
        ("depth", as_color, r"depth must be a 16-bit single-channel PNG, got uint8 \(6, 8, 3\)"),
        ("depth", lambda path: cv2.imwrite(str(path), color_of(0)[..., 0]), r"got uint8 \(6, 8\)"),
        ("rgb", lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated"),
        ("depth", lambda path: path.write_bytes(b""), "neither JPEG nor PNG.*: 0 bytes"),
        ("depth", Path.unlink, "is missing"),
    ],
)
def test_a_wrong_picture_is_named_when_it_is_read(
    sequence: Path, folder: str, damage: Callable[[Path], object], text: str
) -> None:
    source = TumSource(sequence, NARROW)
    path = sequence / folder / f"{text_of((COLOR_US if folder == 'rgb' else DEPTH_US)[1])}.png"
    damage(path)
    samples = iter(source)
    next(samples)
    with pytest.raises(DataError, match=rf"{path.name}:? .*{text}|{path.name} {text}"):
        next(samples)


WORDS = st.one_of(
    st.text(max_size=6),
    st.floats().map(repr),
    st.sampled_from(["#", "\n", "1305031102.1", "rgb/1305031102.000000.png", "0", "1", "nan"]),
)


def refusal(root: Path) -> str | None:
    """The error of reading a sequence, if there is one."""
    try:
        TumSource(root)
    except DataError as error:
        return str(error)
    return None


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["rgb.txt", "depth.txt", "groundtruth.txt"]),
    st.one_of(st.binary(max_size=80), st.lists(WORDS, max_size=24).map(" ".join).map(str.encode)),
)
def test_whatever_a_list_holds_it_is_read_or_rejected_in_one_line(sequence: Path, file: str, content: bytes) -> None:
    sound = (sequence / file).read_bytes()
    (sequence / file).write_bytes(content)
    message = refusal(sequence)
    (sequence / file).write_bytes(sound)
    if message is not None:
        assert file in message or "no frame has all of image, depth and a pose" in message
        assert len(message.splitlines()) == 1


# --- conversion ---------------------------------------------------------------------------------------------------


def test_a_converted_bag_gives_the_frames_of_the_folder(sequence: Path, tmp_path: Path) -> None:
    convert_tum(sequence, tmp_path / "bag", options=NARROW, progress=False)
    options = SourceOptions(body_frame="camera_optical_frame")
    from_bag = list(RosbagSource(tmp_path / "bag", options, ("image", "depth")))
    from_folder = list(TumSource(sequence, NARROW))
    assert len(from_bag) == len(from_folder) == 5
    for bag, folder in zip(from_bag, from_folder, strict=True):
        assert bag.frame.stamp_ns == folder.frame.stamp_ns
        assert bag.frame.camera == folder.frame.camera
        assert folder.frame.depth_m is not None
        np.testing.assert_array_equal(bag.frame.image, folder.frame.image)
        np.testing.assert_allclose(bag.frame.depth_m, folder.frame.depth_m, rtol=0, atol=0.000501)
        np.testing.assert_array_equal(bag.frame.depth_m[0, :3], np.float32([0, 13.107, 1]))
        np.testing.assert_allclose(bag.map_from_body.matrix, folder.map_from_body.matrix, atol=1e-12)


def test_the_command_line_converts_and_rejects(
    sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "tum", str(sequence), "--out", str(tmp_path / "bag"), "--stride", "3"]) == 0
    assert len(RosbagSource(tmp_path / "bag", SourceOptions(), ("image", "depth"))) == 2
    (sequence / "depth" / f"{text_of(DEPTH_US[3])}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    capsys.readouterr()
    assert main(["convert", "tum", str(sequence), "--out", str(tmp_path / "broken")]) == 1
    assert "truncated" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", sequence.name]
