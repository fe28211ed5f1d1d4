# SPDX-License-Identifier: Apache-2.0
"""Scene-coordinate systems: poses from correct predictions with outliers, and feature pyramids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from rooms import (
    CAMERA,
    CODEC,
    CPU,
    LIDAR,
    MOUNTS,
    ORIGIN_M,
    PREPROCESS,
    TINY,
    in_room,
    input_of,
    prepared,
    room_data,
    room_frame,
    room_point,
)
from training.prediction import predict
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import MODALITIES, PointCloud, Sample
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import DenseModel, Prediction, build_model
from vmloc_ros.core.models.dense.cell_features import CellFeatures
from vmloc_ros.core.models.encoder import Pyramid, make_trunk
from vmloc_ros.core.preprocessing import Preprocessor

pytestmark = pytest.mark.numeric


class Knowing(DenseModel):
    """Predicts the truth, with noise of its own standard deviation; a share of cells are outliers.

    Attributes:
        truth: of the batch, in the map.
    """

    truth: Sequence[Pose]
    std_m = 0.02
    outliers = 0.3

    def predict(self, name: str, look: CellFeatures, *_: Any) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        predicted = []
        for number, row in enumerate(look.rows.tolist()):
            pose = self.truth[row]
            cells = [x[number].double().numpy() for x in (look.cells.points_m, look.cells.rays)]
            rotation, position = pose.rotation, pose.position_m - np.asarray(ORIGIN_M)
            hit = room_point(position + cells[0] @ rotation.T, cells[1] @ rotation.T)
            ranged = look.cells.ranged[number].numpy()[:, None]
            exact = torch.from_numpy(np.where(ranged, position + cells[0] @ rotation.T, hit)).float()
            noise = self.std_m * torch.randn(exact.shape, generator=generator)
            anywhere = 10 * torch.randn(exact.shape, generator=generator)
            wrong = torch.rand(len(exact), 1, generator=generator) < self.outliers
            predicted.append(torch.where(wrong, anywhere, exact + noise))
        points = torch.stack(predicted)
        return points, torch.full(points.shape[:2], math.log(max(self.std_m, 1e-3)))


def knowing(names: Sequence[str], **changes: Any) -> Knowing:
    torch.manual_seed(0)
    channels = Preprocessor(PREPROCESS).channels
    model = Knowing(replace(TINY, **changes), {name: channels[name] for name in names}).eval()
    model.set_mounts(MOUNTS)
    model.set_extent(torch.zeros(3), torch.tensor(10.0))
    return model


def assert_poses(prediction: Prediction, truth: Sequence[Pose], position_m: float, rotation_deg: float) -> None:
    assert prediction.lost is not None
    assert not prediction.lost.any()
    for row, pose in enumerate(truth):
        np.testing.assert_allclose(prediction.positions_m[row], pose.position_m, rtol=0, atol=position_m)
        found = Pose(prediction.positions_m[row], prediction.quaternions_wxyz[row])
        turn = np.degrees(Rotation.from_matrix(pose.rotation.T @ found.rotation).magnitude())
        assert turn < rotation_deg


# --- poses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "position_m", "rotation_deg"),
    [
        (("image", "depth"), 0.02, 0.2),
        (("depth",), 0.02, 0.2),
        (("image",), 0.1, 0.6),
        (("lidar",), 0.02, 0.2),
        (("image", "lidar"), 0.02, 0.2),
        (MODALITIES, 0.02, 0.2),
    ],
)
def test_the_pose_is_solved_from_correct_predictions_in_a_map_of_utm_coordinates(
    names: tuple[str, ...], position_m: float, rotation_deg: float
) -> None:
    preprocess = replace(PREPROCESS, modalities=names)
    data = room_data([names] * 4, preprocess)
    model = knowing(names)
    model.truth = data.poses
    prediction = model.locate(input_of(data, preprocess), CODEC)
    assert_poses(prediction, data.poses, position_m, rotation_deg)
    assert prediction.covariances is not None
    assert prediction.outlier_scores is not None
    assert (np.linalg.eigvalsh(prediction.covariances) > 0).all()
    assert prediction.positions_m.dtype == np.float64
    np.testing.assert_allclose(prediction.outlier_scores[:, 0], 0.3, atol=0.1)  # share of outliers
    np.testing.assert_allclose(prediction.outlier_scores[:, 1], 1.0, atol=0.15)  # residual in sigma
    for row, pose in enumerate(data.poses):
        deviations = (prediction.positions_m[row] - pose.position_m) / np.sqrt(np.diag(prediction.covariances[row])[:3])
        assert np.abs(deviations).max() < 4.5


SUBSETS = [("image",), ("depth",), ("lidar",), ("image", "depth"), ("image", "lidar"), ("depth", "lidar"), MODALITIES]


def test_each_row_of_a_batch_is_localized_from_its_own_sensors_whatever_the_other_rows() -> None:
    data = room_data(SUBSETS)
    model = knowing(MODALITIES)
    model.std_m, model.outliers = 0.0, 0.0
    model.truth = data.poses
    together = model.locate(input_of(data, PREPROCESS), CODEC)
    assert_poses(together, data.poses, 0.01, 0.1)
    for row, names in enumerate(SUBSETS):
        model.truth = [data.poses[row]]
        alone = model.locate(input_of(data, PREPROCESS, [row]), CODEC)
        np.testing.assert_allclose(alone.positions_m[0], together.positions_m[row], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.quaternions_wxyz[0], together.quaternions_wxyz[row], atol=1e-6)
        np.testing.assert_allclose(alone.covariances[0], together.covariances[row], rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(alone.outlier_scores[0], together.outlier_scores[row], atol=1e-4)
        for name in names:
            torch.testing.assert_close(alone.features[name][0], together.features[name][row], rtol=1e-4, atol=1e-4)


def test_geometry_is_that_of_the_networks_cells() -> None:
    model, batch = knowing(MODALITIES), input_of(room_data(SUBSETS), PREPROCESS)
    looks = list(model.cell_features(batch).values())
    for look, (rows, cells) in zip(looks, model.geometry(batch), strict=True):
        assert torch.equal(rows, look.rows)
        for field in fields(cells):
            torch.testing.assert_close(getattr(cells, field.name), getattr(look.cells, field.name), rtol=0, atol=0)


def test_predictions_of_batches_with_different_sensors_can_be_joined() -> None:
    """65 frames with all sensors, then some without depth: two batches, of which one knows no depth."""
    data = room_data([("image", "depth")] * 2 + [("image",)], replace(PREPROCESS, modalities=("image", "depth")))
    rows = torch.tensor([0, 1] * 32 + [2])
    model = knowing(("image", "depth"))
    model.truth = [data.poses[i] for i in rows.tolist()]
    model.std_m, model.outliers = 0.0, 0.0
    model.truth = [data.poses[0], data.poses[1]] * 32
    preprocessor = Preprocessor(replace(PREPROCESS, modalities=("image", "depth")))
    for order in (rows, rows.flip(0)):
        prediction = predict(model, data, order, preprocessor, CODEC, CPU)
        assert {name: len(x) for name, x in prediction.features.items()} == {"image": 65, "depth": 65}


def test_more_sensors_leave_less_uncertainty() -> None:
    data = room_data([MODALITIES] * 2)
    model = knowing(MODALITIES)
    model.truth = data.poses
    batch = input_of(data, PREPROCESS)

    def spread(*names: str) -> np.ndarray:
        present = {name: x & (name in names) for name, x in batch.present.items()}
        covariances = model.locate(replace(batch, present=present), CODEC).covariances
        return np.trace(covariances[:, :3, :3], axis1=1, axis2=2)

    whole = spread(*MODALITIES)
    assert (whole < spread("depth")).all()
    assert (whole < spread("lidar")).all()
    assert (spread("depth", "lidar") < spread("lidar")).all()
    assert (spread("image", "depth") < spread("image")).all()


def test_a_frame_whose_cells_agree_on_nothing_is_lost_and_its_estimate_has_no_confidence() -> None:
    data = room_data([MODALITIES] * 2)
    model = knowing(MODALITIES)
    model.truth, model.outliers = data.poses, 1.0
    prediction = model.locate(input_of(data, PREPROCESS), CODEC)
    assert prediction.lost is not None
    assert prediction.lost.all()
    np.testing.assert_allclose(prediction.positions_m, np.tile(ORIGIN_M, (2, 1)), atol=1e-6)
    assert (np.linalg.eigvalsh(prediction.covariances) > 0).all()
    assert (prediction.covariances[:, 0, 0] > 50).all()
    localizer = Localizer(CheckpointHeader(TINY, PREPROCESS, CODEC, "map", "base_link"), model)
    model.truth = [data.poses[0]]
    estimate = localizer.localize(room_frame(data.poses[0]))
    assert estimate.confidence == 0.0
    model.outliers = 0.0
    assert localizer.localize(room_frame(data.poses[0])).confidence is None  # there are no null distributions


def test_pictures_of_an_unknown_camera_are_missing_and_the_lidar_answers() -> None:
    pose = in_room(0)
    frame = replace(room_frame(pose), camera=None)
    localizer = Localizer(CheckpointHeader(TINY, PREPROCESS, CODEC, "map", "base_link"), knowing(MODALITIES))
    localizer.model.truth = [pose]
    estimate = localizer.localize(frame)
    np.testing.assert_allclose(estimate.map_from_body.position_m, pose.position_m, rtol=0, atol=0.03)
    assert estimate.modalities == ("lidar",)
    with pytest.raises(ModelError, match=r"the camera of image and depth is not known, and the model needs it"):
        localizer.localize(replace(frame, cloud=None))


def test_a_lidars_points_give_the_image_its_distances_through_both_mounts() -> None:
    preprocess = replace(PREPROCESS, modalities=("image", "lidar"))
    data = room_data([("image", "lidar")] * 2, preprocess)
    cells = knowing(("image", "lidar")).cell_features(input_of(data, preprocess))["image"].cells
    for row, pose in enumerate(data.poses):
        seen = cells.ranged[row]
        assert 5 < int(seen.sum()) < len(seen)
        local = pose.position_m - np.asarray(ORIGIN_M) + cells.points_m[row, seen].double().numpy() @ pose.rotation.T
        on_wall = np.abs(np.abs(local) / [12.0, 8.0, 3.0] - 1).min(axis=1)
        np.testing.assert_allclose(on_wall, 0.0, atol=1e-3)
        towards = cells.points_m[row, seen] - torch.from_numpy(CAMERA.position_m).float()
        cosine = (torch.nn.functional.normalize(towards, dim=1) * cells.rays[row, seen]).sum(dim=1)
        assert float(cosine.min()) > math.cos(2 / (0.9 * 64))  # within a pixel in rows and columns


def test_a_scan_of_a_moving_body_is_deskewed_before_it_is_projected_to_the_camera() -> None:
    """A turning body: the image's cells get the points that lie on their rays at the stamp."""
    pose, twist = in_room(1), torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0, 1.5])
    still = room_frame(pose, ("image", "lidar"))
    times = np.random.default_rng(0).uniform(0.0, 0.1, len(still.cloud)).astype(np.float32)
    points = still.cloud.xyz_m @ LIDAR.rotation.T + LIDAR.position_m
    # To first order what the sensor measures later; body p at the stamp is p - t (v + w x p) then.
    velocity = twist[:3].numpy() + np.cross(twist[3:].numpy(), points)
    measured = ((points - times[:, None] * velocity) - LIDAR.position_m) @ LIDAR.rotation
    frame = replace(still, cloud=PointCloud(measured.astype(np.float32), still.cloud.intensity, times))
    preprocess, model = replace(PREPROCESS, modalities=("image", "lidar")), knowing(("image", "lidar"))
    batches = []
    for shown in (frame, still):
        data = prepared([Sample(shown, pose)], preprocess)
        batches.append(replace(input_of(data, preprocess), twists=twist.unsqueeze(0)))
    moved, expected = (model.cell_features(batch)["image"].cells for batch in batches)
    both = (moved.ranged & expected.ranged)[0]
    assert int(both.sum()) > 5
    error = (moved.points_m - expected.points_m)[0, both].norm(dim=1)
    assert float(error.median()) < 0.1
    as_measured = model.cell_features(replace(batches[0], twists=None))["image"].cells
    assert float((as_measured.points_m - expected.points_m)[0, both].norm(dim=1).median()) > 0.3
    model.set_usual_twist(twist, torch.ones(6))  # all that a robot knows
    assert torch.equal(model.cell_features(replace(batches[0], twists=None))["image"].cells.points_m, moved.points_m)


def test_a_lidar_projected_into_the_camera_is_measured_from_the_camera() -> None:
    preprocess = replace(PREPROCESS, modalities=("image", "lidar"), lidar_projection="pinhole")
    data = room_data([("image", "lidar")] * 2, preprocess)
    torch.manual_seed(0)
    model = Knowing(TINY, Preprocessor(preprocess).channels).eval()
    model.set_mounts(MOUNTS)
    model.set_extent(torch.zeros(3), torch.tensor(10.0))
    model.truth = data.poses
    batch = input_of(data, preprocess)
    for look in model.cell_features(batch).values():
        for row, pose in enumerate(data.poses):
            seen = look.cells.ranged[row]
            assert int(seen.sum()) > 5
            local = pose.position_m - np.asarray(ORIGIN_M)
            local = local + look.cells.points_m[row, seen].double().numpy() @ pose.rotation.T
            on_wall = np.abs(np.abs(local) / [12.0, 8.0, 3.0] - 1).min(axis=1)
            assert np.median(on_wall) < 0.01  # a point lies within half a pixel of the cell's ray
    assert_poses(model.locate(batch, CODEC), data.poses, 0.05, 0.5)


@pytest.mark.parametrize("names", [("image", "depth"), ("lidar",)])
def test_a_missing_mount_is_named(names: tuple[str, ...]) -> None:
    model = build_model(
        replace(TINY, name="vmloc_dense"), {name: Preprocessor(PREPROCESS).channels[name] for name in names}
    )
    mounts = {name: mount for name, mount in MOUNTS.items() if name != names[-1]}
    typed = rf"--set source\.body_frame=FRAME; .* type --set source\.mounts\.{names[-1]}=\[x,y,z,roll,pitch,yaw\]"
    with pytest.raises(ModelError, match=rf"mounting of the sensor of {names[-1]} is not known.*tf_static.*{typed}"):
        model.set_mounts(mounts)
    model.set_mounts(MOUNTS)
    np.testing.assert_allclose(model.mounts.numpy(), np.stack([MOUNTS[name].matrix for name in names]))


def test_images_in_the_cameras_view_of_different_aspect_ratios_are_rejected() -> None:
    frame = room_frame(in_room(0))
    wide = replace(frame, depth_m=np.ones((48, 96), np.float32))
    localizer = Localizer(CheckpointHeader(TINY, PREPROCESS, CODEC, "map", "base_link"), knowing(MODALITIES))
    with pytest.raises(ModelError, match="depth is 48x96 after scaling, but image 48x64"):
        localizer.localize(wide)


def test_input_without_geometry_is_rejected() -> None:
    batch = replace(input_of(room_data([MODALITIES]), PREPROCESS), measured=None)
    with pytest.raises(ModelError, match=r"need ModelInput\.measured and"):
        knowing(MODALITIES).locate(batch, CODEC)


# --- feature maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [
        ("resnet18", 8),
        ("mobilenet_v2", 16),
        ("shufflenet_v2_x0_5", 4),
        ("efficientnet_b0", 8),
        ("densenet121", 16),
        ("regnet_y_400mf", 8),
        ("vgg11", 8),
    ],
)
def test_a_pyramid_has_a_cell_for_every_stride_pixels_rounded_up(backbone: str, stride: int) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(make_trunk(backbone, 2)[0], 2, stride).eval()
    for height, width in ((64, 96), (49, 70)):
        with torch.no_grad():
            features, context = pyramid(torch.rand(2, 2, height, width))
        rows, columns = (math.ceil(side / stride) for side in (height, width))
        if backbone in ("vgg11", "densenet121"):  # they pool without padding
            rows, columns = height // stride, width // stride
        assert features.shape == (2, pyramid.channels, rows, columns)
        assert context.shape == (2, pyramid.context_channels)
        assert bool(features.isfinite().all())


@pytest.mark.parametrize(
    ("backbone", "stride", "known"), [("resnet18", 3, "2, 4, 8, 16, 32"), ("squeezenet1_1", 8, "none")]
)
def test_a_stride_that_the_backbone_has_no_map_of_is_rejected_with_those_it_has(
    backbone: str, stride: int, known: str
) -> None:
    with pytest.raises(ModelError, match=f"feature maps of strides {known}, not of {stride}"):
        Pyramid(make_trunk(backbone, 3)[0], 3, stride)


def test_the_1x1_expansion_for_a_classifier_is_dropped() -> None:
    assert Pyramid(make_trunk("mobilenet_v2", 3)[0], 3, 16).context_channels == 320
    assert Pyramid(make_trunk("shufflenet_v2_x0_5", 3)[0], 3, 8).channels == 48 + 96 + 192
