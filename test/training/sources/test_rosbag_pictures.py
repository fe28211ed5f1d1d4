# SPDX-License-Identifier: Apache-2.0
"""Pictures and depth of bags: bad ones among good ones, cameras of 10 and 12 bits, units of depth."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from bag_builders import MS, T0, Message, calibration, clouds, depths, images, poses, source, write_bag
from training.config import checkpoint_source_options
from training.sources.factory import open_all
from training.sources.options import SourceOptions
from vmloc_ros.bags.messages import image_message, typestore
from vmloc_ros.core.errors import DataError

TOPIC = "/camera/image_raw"


def grey_images(brightest: list[int], encoding: str = "mono16") -> list[Message]:
    """Images of 16 bits, of which one pixel has the given value and the others half of it."""
    made = []
    for i, value in enumerate(brightest):
        pixels = np.full((6, 8), value // 2, np.uint16)
        pixels[2, 3] = value
        stamp = T0 + i * 100 * MS
        made.append((TOPIC, image_message(stamp, "camera_optical_frame", pixels, encoding), stamp))
    return made


def compressed_images(count: int = 10) -> list[Message]:
    types, made = typestore().types, []
    for _, message, stamp in images(count):
        data = cv2.imencode(".png", np.asarray(message.data).reshape(6, 8, 3)[..., ::-1])[1].reshape(-1)
        compressed = types["sensor_msgs/msg/CompressedImage"](header=message.header, format="png", data=data)
        made.append((f"{TOPIC}/compressed", compressed, stamp))
    return made


# --- messages that cannot be decoded -----------------------------------------------------------------------------


def test_a_picture_that_cannot_be_decoded_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = images()
    for i in (3, 7):
        broken[i][1].encoding = "sepia"
    opened = source(write_bag(tmp_path / "bag", broken, clouds(), poses(), calibration()))
    caplog.set_level("INFO")
    for _ in range(2):
        frames = [sample.frame for sample in opened]
        assert [frame.stamp_ns for frame in frames] == opened.stamps_ns()
        assert [frame.image is None for frame in frames] == [i in (3, 7) for i in range(10)]
        assert all(frame.camera_from_lidar is not None for frame in frames)
        np.testing.assert_allclose(frames[3].cloud.time_s, 0.03, atol=1e-7)  # still since the image's stamp
        assert opened.report["image messages that cannot be decoded"] == 2
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"{TOPIC}: at {T0 + 300 * MS} ns: image encoding 'sepia' is not supported" in warning.getMessage()
    assert caplog.text.count(f"2 of 10 messages of {TOPIC} cannot be decoded") == 1


def test_a_truncated_compressed_picture_is_a_missing_one(tmp_path: Path) -> None:
    broken = compressed_images()
    broken[4][1].data = broken[4][1].data[:-20]
    broken[5][1].data = broken[5][1].data[:0]
    frames = [sample.frame for sample in source(write_bag(tmp_path / "bag", broken, clouds(), poses()))]
    assert [frame.modalities for frame in frames[3:7]] == [
        ("image", "lidar"),
        ("lidar",),
        ("lidar",),
        ("image", "lidar"),
    ]
    assert [int(frame.image[0, 0, 0]) for frame in frames if frame.image is not None] == [0, 1, 2, 3, 6, 7, 8, 9]


def test_a_frame_of_which_nothing_can_be_decoded_is_left_out(tmp_path: Path) -> None:
    broken = images()
    broken[3][1].encoding = "sepia"
    opened = source(write_bag(tmp_path / "bag", broken, poses()), ("image",))
    assert [sample.frame.stamp_ns for sample in opened] == [t for i, t in enumerate(opened.stamps_ns()) if i != 3]


def test_depth_images_and_clouds_that_cannot_be_decoded_are_missing_ones(tmp_path: Path) -> None:
    broken_depths, broken_clouds = depths(), clouds()
    broken_depths[2][1].encoding = "rgb8"
    broken_clouds[5][1].data = broken_clouds[5][1].data[:8]
    path = write_bag(tmp_path / "bag", images(), broken_depths, broken_clouds, poses())
    opened = source(path, ("image", "depth", "lidar"))
    frames = [sample.frame for sample in opened]
    assert [frame.depth_m is None for frame in frames] == [i == 2 for i in range(10)]
    assert [frame.cloud is None for frame in frames] == [i == 5 for i in range(10)]
    assert opened.report["depth messages that cannot be decoded"] == 1
    assert opened.report["lidar messages that cannot be decoded"] == 1


def test_a_recording_in_an_unknown_encoding_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    broken = images()
    for _, message, _ in broken:
        message.encoding = "sepia"
    path = write_bag(tmp_path / "bag", broken, clouds(), poses())
    text = rf"none of the first 10 messages of {TOPIC} can be decoded: .*'sepia' is not supported; supported: rgb8.*"
    with pytest.raises(DataError, match=text + r"source\.image_topic, or leave image out of preprocess\.modalities"):
        source(path)
    assert len(source(path, ("lidar",))) == 10


def test_a_camera_that_starts_with_bad_pictures_is_no_error(tmp_path: Path) -> None:
    broken = images(30)
    for _, message, _ in broken[:12]:
        message.data = message.data[:5]
    opened = source(write_bag(tmp_path / "bag", broken, clouds(30), poses(last=60)))
    assert [sample.frame.image is None for sample in opened] == [i < 12 for i in range(30)]


def test_a_recording_whose_pictures_are_mostly_undecodable_is_refused(tmp_path: Path) -> None:
    broken = images(30)
    for _, message, _ in broken[5:]:
        message.data = message.data[:5]
    opened = source(write_bag(tmp_path / "bag", broken, clouds(30), poses(last=60)))
    with pytest.raises(
        DataError, match=rf"15 of 20 messages of {TOPIC} cannot be decoded, the first at {T0 + 500 * MS}"
    ):
        list(opened)


def test_the_map_goes_on_without_a_cloud_that_cannot_be_decoded(tmp_path: Path) -> None:
    broken = clouds()
    broken[1][1].fields.clear()
    opened = source(write_bag(tmp_path / "bag", images(), broken, poses(), calibration()))
    assert len(opened.map_points(every=1)) == 9 * 5


# --- pictures of 16 bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("brightest", "bits"), [(1000, 10), (4095, 12), (60000, 16)])
def test_pictures_are_scaled_by_the_recordings_range(
    tmp_path: Path, brightest: int, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_bag(tmp_path / "bag", grey_images([200, brightest, 300, 100]), poses())
    with caplog.at_level("INFO"):
        opened = source(path, ("image",))
    assert opened.readings["image_bits"] == bits
    assert f"pictures of 16 bits are read as of {bits} bits" in caplog.text
    values = [int(sample.frame.image[2, 3, 0]) for sample in opened]
    assert values == [x >> (bits - 8) for x in (200, brightest, 300, 100)]


def test_pictures_of_eight_bits_have_no_range(tmp_path: Path) -> None:
    assert "image_bits" not in source(write_bag(tmp_path / "bag", images(), poses()), ("image",)).readings


def test_the_range_of_a_drive_that_begins_in_the_dark_is_that_of_its_later_pictures(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", grey_images([200] * 25 + [4000] * 5), poses(last=60))
    opened = source(path, ("image",))
    assert [int(sample.frame.image[2, 3, 0]) for sample in opened] == [200 >> 4] * 25 + [4000 >> 4] * 5


def test_a_single_brighter_picture_is_cut_off_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_bag(tmp_path / "bag", grey_images([1000] * 12 + [2000] + [1000] * 3), poses(last=60))
    values = [int(sample.frame.image[2, 3, 0]) for sample in source(path, ("image",))]
    assert values == [250] * 12 + [255] + [250] * 3
    assert "values up to 2000, more than the 10 bits so far: they are cut off" in caplog.text


def test_all_recordings_of_one_training_have_one_range(tmp_path: Path) -> None:
    for name, brightest in (("a", 900), ("b", 4000)):
        write_bag(tmp_path / "bags" / name, grey_images([brightest] * 3), poses())
    before = [source(tmp_path / "bags" / name, ("image",)).fingerprint() for name in "ab"]
    opened = open_all([tmp_path / "bags"], "all", SourceOptions(), ("image",))
    assert [bag.readings["image_bits"] for bag in opened] == [12, 12]
    assert [int(next(iter(bag)).frame.image[2, 3, 0]) for bag in opened] == [900 >> 4, 4000 >> 4]
    assert [bag.fingerprint() == key for bag, key in zip(opened, before, strict=True)] == [False, True]


def test_evaluation_reads_pictures_by_the_range_of_the_training(tmp_path: Path) -> None:
    training = {"config": {}, "inputs": {"image_bits": 12}}
    header = SimpleNamespace(training=training, body_frame="base_link")
    options = checkpoint_source_options(header, None)
    assert options.image_bits == 12
    assert checkpoint_source_options(header, ["source.image_bits=14"]).image_bits == 14
    path = write_bag(tmp_path / "bag", grey_images([900] * 3), poses())
    assert [int(sample.frame.image[2, 3, 0]) for sample in source(path, ("image",), image_bits=12)] == [900 >> 4] * 3


@pytest.mark.parametrize(("name", "value"), [("image_bits", 11), ("depth_unit_m", -0.001), ("depth_unit_m", np.inf)])
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        SourceOptions(**{name: value})


# --- units of depth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit_m", "expected"), [(0.0, 0.001), (0.0002, 0.0002)])
def test_depth_has_the_options_unit_and_the_checkpoint_remembers_it(
    tmp_path: Path, unit_m: float, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_bag(tmp_path / "bag", depths(), poses())
    with caplog.at_level("INFO"):
        opened = source(path, ("depth",), depth_unit_m=unit_m)
    assert opened.readings == {"depth_units_m": {"integer": expected}}
    assert f"depth of integer values is read in units of {expected:g} m" in caplog.text
    for i, sample in enumerate(opened):
        np.testing.assert_allclose(sample.frame.depth_m, np.full((6, 8), (1000 + i) * expected), rtol=1e-6)


def test_depth_of_an_implausible_unit_is_warned_of_with_the_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = [
        (topic, image_message(stamp, "camera", np.full((6, 8), 2500, np.float32), "32FC1"), stamp)
        for topic, _, stamp in depths()
    ]
    list(source(write_bag(tmp_path / "bag", made, poses(), calibration()), ("depth",)))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the median depth is 2500 m in units of 1 m" in warning
    assert "set source.depth_unit_m" in warning
