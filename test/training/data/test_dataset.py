# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import ListSource, random_frame, yaw_pose
from training.data.dataset import PreparedDataset, common_mounts, prepare_dataset
from training.data.splits import split_blocks
from vmloc_ros.core.errors import DataError, ModelError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

pytestmark = pytest.mark.numeric

BOTH = ("image", "lidar")


def preprocessor(modalities: tuple[str, ...] = BOTH) -> Preprocessor:
    return Preprocessor(PreprocessConfig(modalities=modalities, shortest_side=32))


def sample(seed: int, names: tuple[str, ...] = BOTH, size: tuple[int, int] = (40, 60)) -> Sample:
    return Sample(random_frame(seed, size, names), yaw_pose(float(seed)))


def prepare(*sources: ListSource, modalities: tuple[str, ...] = BOTH) -> PreparedDataset:
    return prepare_dataset(sources, preprocessor(modalities), progress=False)


def rows_of(data: PreparedDataset) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return data.batch(torch.arange(len(data)), torch.device("cpu"))


def test_rows_hold_the_prepared_frames_of_all_sources_in_order_with_their_poses() -> None:
    data = prepare(ListSource([sample(0), sample(1)]), ListSource([sample(2)]))
    assert len(data) == 3
    tensors, _ = rows_of(data)
    for row in range(3):
        expected = preprocessor().prepare(sample(row).frame)
        for name in BOTH:
            assert torch.equal(tensors[name][row], expected[name])
            assert tensors[name].dtype == expected[name].dtype
    assert [pose.position_m[0] for pose in data.poses] == [0, 1, 2]


def test_absent_modalities_are_marked_and_zero() -> None:
    data = prepare(ListSource([sample(0), sample(1, ("lidar",)), sample(2, ("image",))]))
    tensors, present = rows_of(data)
    assert present["image"].tolist() == [True, False, True]
    assert present["lidar"].tolist() == [True, True, False]
    assert tensors["image"][1].abs().max() == 0
    assert tensors["lidar"][2].abs().max() == 0


def test_a_batch_holds_the_rows_asked_for_in_their_order() -> None:
    data = prepare(ListSource([sample(i, ("lidar",) if i == 2 else BOTH) for i in range(4)]))
    tensors, present = data.batch(torch.tensor([3, 0, 2]), torch.device("cpu"))
    assert torch.equal(tensors["image"], rows_of(data)[0]["image"][[3, 0, 2]])
    assert present["image"].tolist() == [True, True, False]


def test_intrinsics_are_those_of_each_rows_scaled_picture_and_nan_where_unknown() -> None:
    blind = dataclasses.replace(sample(1).frame, camera=None)
    large = sample(2, size=(80, 120))
    data = prepare(ListSource([sample(0), Sample(blind, yaw_pose(0))]), ListSource([large]))
    found = data.intrinsics(torch.tensor([2, 0, 1]), torch.device("cpu"))
    # Focal lengths are 50 pixels; 40 rows became 32, 80 rows 32; centres lie in the pictures' middle.
    torch.testing.assert_close(found[:2, 0, 0], torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(found[:2, :2, 2], torch.tensor([[23.5, 15.5], [23.5, 15.5]]))
    assert bool(found[2].isnan().all())


def test_mounts_are_those_of_the_sources_that_know_them() -> None:
    camera, lidar = yaw_pose(1.0, yaw_deg=90.0), yaw_pose(0.0, 2.0)
    first = prepare(ListSource([sample(0)], mounts={"image": camera}), ListSource([sample(1)]))
    second = prepare(ListSource([sample(2)], mounts={"lidar": lidar, "image": yaw_pose(1.005, yaw_deg=90.3)}))
    mounts = common_mounts(first, second)
    assert mounts == {"image": camera, "lidar": lidar}
    assert common_mounts(prepare(ListSource([sample(0)]))) == {}


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (yaw_pose(1.02), "b: the mount of image is 0.020 m and 0.0 deg from a's; train on data of one"),
        (yaw_pose(1.0, yaw_deg=1.0), "b: the mount of image is 0.000 m and 1.0 deg from a's"),
    ],
)
def test_sources_of_different_mounts_are_an_error_that_names_both(other: Pose, match: str) -> None:
    data = prepare(
        ListSource([sample(0)], "a", mounts={"image": yaw_pose(1.0)}),
        ListSource([sample(1)], "b", mounts={"image": other}),
    )
    with pytest.raises(DataError, match=match):
        common_mounts(data)


def test_a_source_that_yields_fewer_frames_than_it_announced_leaves_no_empty_rows() -> None:
    class Short(ListSource):
        def __len__(self) -> int:
            return 10

    data = prepare(Short([sample(0), sample(1)]))
    tensors, present = rows_of(data)
    assert len(data) == len(tensors["image"]) == len(present["lidar"]) == 2


def test_batches_gather_from_all_sources_also_where_one_lacks_a_modality() -> None:
    data = prepare(ListSource([sample(0), sample(1)]), ListSource([sample(2, ("lidar",))]), ListSource([sample(3)]))
    tensors, present = data.batch(torch.tensor([3, 2, 0]), torch.device("cpu"))
    assert present["image"].tolist() == [True, False, True]
    for row, seed in ((0, 3), (2, 0)):
        assert torch.equal(tensors["image"][row], preprocessor().prepare(sample(seed).frame)["image"])
    assert torch.equal(tensors["lidar"][1], preprocessor().prepare(sample(2).frame)["lidar"])


def test_a_sequence_ends_with_its_source_at_a_gap_and_where_time_goes_back() -> None:
    def at(seconds: float) -> Sample:
        frame = dataclasses.replace(random_frame(0), stamp_ns=int(seconds * 1e9))
        return Sample(frame, yaw_pose(seconds))

    data = prepare(ListSource([at(1.0), at(1.5), at(4.0), at(4.1), at(3.9)]), ListSource([at(4.0)]))
    a, b, c, d, e, f = data.sequences.tolist()
    assert a == b
    assert c == d
    assert len({a, c, e, f}) == 4


def test_mixed_sizes_are_an_error_with_source_stamp_and_sizes() -> None:
    with pytest.raises(
        DataError, match=r"garden: image at 1700000000000000001 ns is \(3, 32, 32\) .* before it \(3, 32, 48\)"
    ):
        prepare(ListSource([sample(0), sample(1, size=(40, 40))], "garden"))
    with pytest.raises(DataError, match=r"garden: image is \(3, 32, 32\) .* that of house \(3, 32, 48\)"):
        prepare(ListSource([sample(0)], "house"), ListSource([sample(1, size=(40, 40))], "garden"))


def test_sizes_of_one_aspect_ratio_may_differ() -> None:
    assert len(prepare(ListSource([sample(0, size=(40, 60)), sample(1, size=(80, 120))]))) == 2


def test_a_modality_that_never_occurs_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="the data hold no lidar; found image"):
        prepare(ListSource([sample(0, ("image",))]))


def test_no_frames_are_an_error() -> None:
    with pytest.raises(DataError, match="the data hold no frame with a pose"):
        prepare(ListSource([]))
    with pytest.raises(DataError, match="the data hold no frame with a pose"):
        prepare()


def test_a_frame_without_any_wanted_modality_is_an_error() -> None:
    with pytest.raises(ModelError, match="the frame has lidar; the model needs at least one of image"):
        prepare(ListSource([sample(0, ("lidar",))]), modalities=("image",))


def test_preparing_leaves_the_number_of_threads_alone() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        prepare(ListSource([sample(0)]))
        assert torch.get_num_threads() == 2
        with pytest.raises(DataError, match="no frame"):
            prepare(ListSource([]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- splitting ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 50), st.integers(2, 12))
def test_blocks_split_every_row_to_one_side(count: int, block: int, every: int) -> None:
    train, held_out = split_blocks(count, block, every)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(count))
    for row in held_out.tolist():
        assert (row // block) % every == 1
    # Held-out rows come in whole blocks: only the last one may be cut by the end of the data.
    numbers, sizes = np.unique(held_out.numpy() // block, return_counts=True)
    assert all(size == min(block, count - number * block) for number, size in zip(numbers, sizes, strict=True))


def test_the_first_split_is_by_hand() -> None:
    train, held_out = split_blocks(10, block=2, every=3)
    assert held_out.tolist() == [2, 3, 8, 9]
    assert train.tolist() == [0, 1, 4, 5, 6, 7]


def test_every_zero_holds_nothing_out() -> None:
    train, held_out = split_blocks(5, 2, 0)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert len(held_out) == 0


def test_pinhole_lidar_follows_the_cameras_size() -> None:
    config = PreprocessConfig(modalities=("lidar",), shortest_side=32, lidar_projection="pinhole")
    small, large = random_frame(0, (40, 60)), random_frame(1, (80, 120))
    samples = [Sample(dataclasses.replace(frame, image=None), yaw_pose(0)) for frame in (small, large)]
    data = prepare_dataset([ListSource(samples)], Preprocessor(config), progress=False)
    assert rows_of(data)[0]["lidar"].shape == (2, 2, 32, 48)
