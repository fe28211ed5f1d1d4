# SPDX-License-Identifier: Apache-2.0
"""Pictures that augmentation turns and scales, with cameras that fit them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rooms import CPU, MOUNTS, PREPROCESS, TINY, room_data
from training.data.augment import AugmentConfig, move_pixels
from training.data.model_input import training_input
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.models import build_model
from vmloc_ros.core.models.dense.cells import camera_cells
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric

RGBD = replace(PREPROCESS, modalities=("image", "depth"))


MOVING = AugmentConfig(0.0, 0.0, 0.0, rotation_deg=30.0, zoom=1.5)


def sloping(count: int = 5, size: tuple[int, int] = (40, 56)) -> tuple[dict[str, Tensor], Tensor]:
    """A plane's depth, and an image that holds each pixel's own ray (x and y where z is 1)."""
    v, u = torch.meshgrid(torch.arange(size[0]).float(), torch.arange(size[1]).float(), indexing="ij")
    intrinsics = torch.tensor([[50.0, 0.0, 26.0], [0.0, 45.0, 21.0], [0.0, 0.0, 1.0]])
    x, y = (u - 26) / 50, (v - 21) / 45
    depth = 4 / (1 + 0.3 * x - 0.2 * y)  # of the plane z + 0.3 x - 0.2 y = 4
    image = torch.stack([x, y, torch.ones_like(x)])
    pictures = {"image": image, "depth": torch.stack([depth, torch.ones_like(depth)])}
    return {name: p.repeat(count, 1, 1, 1) for name, p in pictures.items()}, intrinsics.repeat(count, 1, 1)


def test_moved_pictures_show_the_same_points_through_their_new_cameras() -> None:
    pictures, intrinsics = sloping()
    moved, cameras, old = move_pixels(pictures, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert not torch.allclose(cameras[0], cameras[1])
    cells = camera_cells(cameras, torch.eye(4, dtype=torch.float64), (40, 56), 1, moved["depth"])
    inside = cells.ranged.unflatten(1, (40, 56))
    assert 0.5 < float(inside.float().mean()) < 1
    normal = torch.tensor([0.3, -0.2, 1.0])
    beside_m = (cells.points_m @ normal - 4)[cells.ranged].abs()
    assert float(beside_m.max()) < 0.05  # the nearest old pixel is within 0.71 pixels: 1.5 cm of depth each
    rays = cells.rays / cells.rays[..., 2:]
    interior = torch.nn.functional.avg_pool2d(inside.float(), 5, 1, 2) > 0.99
    shown = moved["image"].flatten(2).mT[interior.flatten(1)]
    torch.testing.assert_close(shown, rays[interior.flatten(1)], rtol=0, atol=1e-4)
    assert not bool(moved["depth"][:, 0][moved["depth"][:, 1] == 0].any())
    assert old is not None
    assert torch.equal(old, inside)  # the whole plane was measured


def test_an_unknown_camera_stays_unknown_and_a_range_image_stays_as_it_is() -> None:
    pictures, intrinsics = sloping(2)
    intrinsics[1] = torch.nan
    scans = torch.rand(2, 6, 16, 40)
    moved, cameras, _ = move_pixels({**pictures, "lidar": scans}, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert torch.equal(moved["lidar"], scans)
    assert cameras.isfinite().flatten(1).all(dim=1).tolist() == [True, False]


def test_a_lidar_in_the_cameras_view_moves_with_it() -> None:
    pictures, intrinsics = sloping()
    both = {"image": pictures["image"], "lidar": pictures["depth"]}
    moved, _, _ = move_pixels(both, intrinsics, MOVING, torch.Generator().manual_seed(0))
    expected, _, _ = move_pixels(pictures, intrinsics, MOVING, torch.Generator().manual_seed(0))
    assert torch.equal(moved["lidar"], expected["depth"])


def test_pictures_of_two_sizes_cannot_be_moved_together() -> None:
    pictures, intrinsics = sloping()
    pictures["depth"] = pictures["depth"][..., :50]
    with pytest.raises(DataError, match=r"differ in size after scaling \(image 40x56, depth 40x50\)"):
        move_pixels(pictures, intrinsics, MOVING, torch.Generator())


def test_cells_that_were_turned_out_of_the_picture_are_invalid_and_nothing_else_changes() -> None:
    """Of a room whose every pixel was measured: what has no depth afterwards shows nothing. Cropped, too."""
    preprocess = replace(RGBD, crop=(40, 44))
    data, rows = room_data([("image", "depth")] * 4, preprocess), torch.arange(4)
    batch = training_input(
        *data.batch(rows, CPU), MOVING, Preprocessor(preprocess), torch.Generator(), data.intrinsics(rows, CPU)
    )
    assert batch.shown is not None
    assert batch.measured is not None
    assert torch.equal(batch.shown, batch.measured["depth"][:, 1] > 0)
    torch.manual_seed(0)
    model = build_model(TINY, {"image": 3, "depth": 2}).eval()
    model.set_mounts(MOUNTS)
    looks, before = model.cell_features(batch), model.cell_features(replace(batch, shown=None))
    shown = batch.shown[:, ::4, ::4].flatten(1)
    assert 0.5 < float(shown.float().mean()) < 1
    for name, look in looks.items():
        assert bool(before[name].cells.valid.all())
        assert torch.equal(look.cells.valid, shown)
        assert torch.equal(look.cells.ranged, before[name].cells.ranged)
        assert torch.equal(look.cells.points_m, before[name].cells.points_m)
        assert torch.equal(look.cells.rays, before[name].cells.rays)
        assert torch.equal(look.features, before[name].features)


def test_what_is_not_moved_shows_everything() -> None:
    pictures, intrinsics = sloping()
    still, cameras, shown = move_pixels(pictures, intrinsics, AugmentConfig(0.0, 0.0, 0.0), torch.Generator())
    assert shown is None
    assert torch.equal(cameras, intrinsics)
    assert all(torch.equal(still[name], picture) for name, picture in pictures.items())
