# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from helpers import random_frame, yaw_pose
from training.evaluation.out_of_distribution import out_of_distribution_frames
from vmloc_ros.core.frame import Frame, Sample


def kinds_of(modalities: tuple[str, ...], foreign: list[Frame], number: int = 3) -> dict[str, Frame]:
    names = tuple({"image", *modalities})
    samples = [Sample(random_frame(i, (32, 40), names), yaw_pose(10.0 * i)) for i in range(8)]
    return dict(out_of_distribution_frames(samples, number, foreign, modalities, 20.0))


def test_each_kind_changes_the_sensors_in_its_name_alone() -> None:
    other_place = random_frame(99, (50, 50))
    frame_3, frame_7 = random_frame(3, (32, 40)), random_frame(7, (32, 40))
    kinds = kinds_of(("image", "lidar"), [other_place])
    assert [*kinds] == [
        "foreign image",
        "covered lens",
        "covered lens, noise",
        "mirrored image",
        "wrong scene",
        "empty cloud",
        "shuffled pair",
    ]
    for kind, frame in kinds.items():
        assert frame.stamp_ns == frame_3.stamp_ns
        assert frame.image is not None
        assert frame.image.shape == (32, 40, 3)
        same_cloud = frame.cloud is not None and np.array_equal(frame.cloud.xyz_m, frame_3.cloud.xyz_m)
        assert same_cloud == (kind not in ("wrong scene", "empty cloud"))
        assert np.array_equal(frame.image, frame_3.image) == (kind == "empty cloud")
    assert kinds["covered lens"].image.max() == 0
    assert 0 < kinds["covered lens, noise"].image.max() < 40
    np.testing.assert_array_equal(kinds["mirrored image"].image[:, 0], frame_3.image[:, -1])
    np.testing.assert_array_equal(kinds["shuffled pair"].image, frame_7.image)
    assert len(kinds["empty cloud"].cloud) == 0
    assert kinds["wrong scene"].cloud is other_place.cloud
    np.testing.assert_array_equal(kinds["wrong scene"].image, kinds["foreign image"].image)


def test_kinds_without_the_sensors_that_they_need_are_skipped() -> None:
    assert set(kinds_of(("image",), [])) == {"covered lens", "covered lens, noise", "mirrored image"}
    with_depth = kinds_of(("image", "depth"), [random_frame(99, (64, 64), ("depth",))])
    assert "foreign image" not in with_depth
    assert not with_depth["empty depth"].depth_m.any()
    assert with_depth["wrong scene"].image is None
    assert with_depth["wrong scene"].depth_m.shape == (32, 40)
    lidar = kinds_of(("lidar",), [random_frame(99)])
    assert set(lidar) == {"wrong scene", "empty cloud"}


def test_pairs_of_the_same_place_are_not_called_shuffled() -> None:
    samples = [Sample(random_frame(i, (32, 40)), yaw_pose(0.1 * i)) for i in range(8)]
    assert "shuffled pair" not in dict(out_of_distribution_frames(samples, 0, [], ("image", "lidar"), 20.0))
