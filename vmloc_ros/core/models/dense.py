# SPDX-License-Identifier: Apache-2.0
"""Dense map coordinates: every cell of a feature map says where in the map it looks, and a solver finds the pose.

Scene coordinate regression (Shotton et al. 2013; Brachmann and Rother 2021, DSAC*; Brachmann et al. 2023, ACE) under
VMLoc's product of experts: each cell is a Gaussian expert on the pose, a modality's expert is their product, and the
joint answer is the product over the modalities that are present (see :mod:`vmloc_ros.core.solver`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from vmloc_ros.core.cells import Cells, camera_cells, cylinder_cells, seen_by_camera
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose, quaternion_from_matrix
from vmloc_ros.core.models.base import ModelConfig, ModelInput, PoseModel, Prediction, require_modality
from vmloc_ros.core.models.encoder import ImagenetScale, Pyramid, make_trunk
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.solver import Correspondences, solve

_LEAST_STD_M = 0.005
_POINT_SCALE_M = 10.0  # measured points are given to the network in this unit
_CYLINDER_CHANNELS = 6  # of a prepared cylindrical picture; one in the camera's view has 2


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """The cells of one modality, of the R samples of a batch that have it.

    Attributes:
        rows: ``(R,)`` of the batch.
        features: ``(R, F, h, w)`` of the trunk.
        context: ``(R, G)`` mean over the picture of the trunk's coarsest features.
        cells: of N = h w cells.
    """

    rows: Tensor
    features: Tensor
    context: Tensor
    cells: Cells

    def some(self, chosen: Tensor) -> Look:
        """The cells ``(n,)`` alone, as a picture of one column."""
        cells = Cells(*(getattr(self.cells, field.name)[:, chosen] for field in fields(Cells)))
        return replace(self, features=self.features.flatten(2)[:, :, chosen].unsqueeze(-1), cells=cells)


class CellPredictor(nn.Module):
    """Map coordinates of the cells of one modality: a trunk, then the same small network for every cell.

    Args:
        trunk: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
        in_channels: of the modality.
        config: sizes.
        stride: of the cells, in pixels.
        sees_points: the measured points are part of the input: cells of a lidar or depth camera know where their own
            measurement lies, those of an image do not.
    """

    def __init__(self, trunk: nn.Module, in_channels: int, config: ModelConfig, stride: int, sees_points: bool) -> None:
        super().__init__()
        self.sees_points = sees_points
        self.pyramid = Pyramid(trunk, in_channels, stride)
        width = config.hidden_dim
        self.norm = nn.BatchNorm2d(self.pyramid.channels, affine=False)
        self.dropout = nn.Dropout(config.dropout)
        self.entry = nn.Conv2d(self.pyramid.channels + (3 if sees_points else 0), width, 1)
        self.context = nn.Linear(self.pyramid.context_channels, width) if config.context else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())
            for _ in range(config.cell_blocks)
        )
        self.exit = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 4, 1))

    def forward(self, features: Tensor, context: Tensor, points: Tensor) -> Tensor:
        """Normalised coordinates and raw log standard deviation ``(B, 4, h, w)``.

        Args:
            features: ``(B, F, h, w)``, and ``context`` ``(B, G)``, of :class:`Pyramid`.
            points: ``(B, 3, h, w)`` measured, in metres in the body frame; zero where there is none.
        """
        x = self.dropout(self.norm(features.float()).to(features.dtype))
        if self.sees_points:
            x = torch.cat([x, points.to(x.dtype) / _POINT_SCALE_M], dim=1)
        x = self.entry(x)
        if self.context is not None:
            x = x + self.context(context.to(x.dtype))[:, :, None, None]
        x = torch.relu(x)
        for block in self.blocks:
            x = x + block(x)
        return self.exit(x).float()


class DenseModel(PoseModel):
    """``vmloc_dense``, and with one modality ``dense_image`` or ``dense_lidar``.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    needs_geometry = True
    mounts: Tensor  # (M, 4, 4) float64, body from sensor
    usual_twist: Tensor  # (6,) of the body in its own axes, m/s and rad/s

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.hypotheses, self.frozen = config.hypotheses, config.frozen
        self.scale = ImagenetScale()
        self._strides = {name: config.lidar_stride if name == LIDAR else config.cell_stride for name in channels}
        self.predictors = nn.ModuleDict(
            {
                name: CellPredictor(
                    make_trunk(config.backbone, count, pretrained)[0], count, config, self._strides[name], name != IMAGE
                )
                for name, count in channels.items()
            }
        )
        if config.frozen:
            self._pyramids(lambda pyramid: pyramid.requires_grad_(False))
        self.register_buffer("mounts", torch.full((len(channels), 4, 4), torch.nan, dtype=torch.float64))
        self.register_buffer("usual_twist", torch.zeros(6))

    def train(self, mode: bool = True) -> DenseModel:
        super().train(mode)
        if self.frozen:
            self._pyramids(lambda pyramid: pyramid.eval())  # or batch statistics would change them
        return self

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        if missing := [name for name in self.modalities if name not in mounts]:
            raise ModelError(
                f"where the sensor of {', '.join(missing)} is mounted is not known, and dense systems need it: "
                "/tf_static must lead from source.body_frame to the frame of the messages"
            )
        self.mounts.copy_(torch.stack([torch.from_numpy(mounts[name].matrix) for name in self.modalities]))

    def set_usual_twist(self, twist: Tensor) -> None:
        self.usual_twist.copy_(twist)

    def look(self, batch: ModelInput) -> dict[str, Look]:
        """Features and geometry of the cells, by modality; modalities that no sample has are left out.

        Raises:
            ModelError: a sample has no modality.
        """
        require_modality(batch, self.modalities)
        looks = {}
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if len(rows):
                pictures = batch.tensors[name][rows]
                pictures = self.scale(pictures) if name == IMAGE else pictures
                features, context = self._predictor(name).pyramid(pictures)
                cells = self._cells(name, batch, rows, features.shape[-2:])
                looks[name] = Look(rows, features, context, cells.moved(self._twists(batch)[rows]))
        return looks

    def predict(self, name: str, look: Look, scale_m: float) -> tuple[Tensor, Tensor]:
        """Coordinates ``(R, N, 3)`` in metres from the map's origin, and log standard deviations ``(R, N)``.

        Args:
            scale_m: the map's, of which the network's coordinates are multiples.
        """
        shape = look.features.shape[-2:]
        points = torch.where(look.cells.ranged.unsqueeze(-1), look.cells.points_m, 0.0).mT.reshape(-1, 3, *shape)
        output = self._predictor(name)(look.features, look.context, points).flatten(2)
        low, high = math.log(_LEAST_STD_M), math.log(2 * scale_m)
        # Starts near a tenth of the map; tanh keeps a gradient where a clamp would have none.
        middle, half = (low + high) / 2, (high - low) / 2
        return scale_m * output[:, :3].mT, middle + half * torch.tanh(output[:, 3] / half)

    def correspond(self, batch: ModelInput, codec: PoseCodec) -> tuple[Correspondences, dict[str, Tensor]]:
        """Every cell's prediction beside what was measured, of all modalities; and their contexts ``(B, G)``."""
        parts, contexts = [], {}
        for name, look in self.look(batch).items():
            points, log_std = self.predict(name, look, codec.scale_m)
            cells = look.cells
            part = points, torch.exp(log_std), cells.points_m, cells.rays, cells.ranged, cells.valid
            parts.append([_spread(x, look.rows, len(batch)) for x in part])
            contexts[name] = _spread(look.context, look.rows, len(batch))
        return Correspondences(*(torch.cat(x, dim=1) for x in zip(*parts, strict=True))), contexts

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """The pose that all cells agree on; its covariance is the inverse Hessian of their product.

        A frame whose cells agree on none is answered with the map's middle and a covariance as wide as the map, and is
        marked as lost.
        """
        correspondences, contexts = self.correspond(batch, codec)
        solution = solve(correspondences, hypotheses=self.hypotheses, spread_m=codec.scale_m)
        solved = solution.solved.cpu().numpy()
        return Prediction(
            solution.translations.double().cpu().numpy() + codec.origin_m,
            quaternion_from_matrix(solution.rotations.double().cpu().numpy()),
            covariances=solution.covariances.double().cpu().numpy(),
            features=contexts,
            oddities=torch.stack([1 - solution.inlier_share, solution.residual], dim=1).double().cpu().numpy(),
            lost=~solved,
        )

    def _predictor(self, name: str) -> CellPredictor:
        predictor = self.predictors[name]
        assert isinstance(predictor, CellPredictor)
        return predictor

    def _pyramids(self, change: Callable[[Pyramid], object]) -> None:
        for name in self.modalities:
            change(self._predictor(name).pyramid)

    def _twists(self, batch: ModelInput) -> Tensor:
        """``(B, 6)``; the usual one where the batch knows none."""
        usual = self.usual_twist.expand(len(batch), -1)
        return usual if batch.twists is None else torch.where(torch.isfinite(batch.twists), batch.twists, usual)

    def _cells(self, name: str, batch: ModelInput, rows: Tensor, shape: tuple[int, int]) -> Cells:
        measured, intrinsics = batch.measured, batch.intrinsics
        if measured is None or intrinsics is None:
            raise ModelError("dense systems need measurements and camera matrices (ModelInput.measured, intrinsics)")
        if name == LIDAR and _is_cylinder(measured[name]):
            return cylinder_cells(measured[name][rows], self._mount(name), self._strides[name])
        source = DEPTH if name == IMAGE else name
        depth = None
        if source in self.modalities and bool((here := batch.present[source][rows]).any()):
            # An image's cells have the depth camera's measurements, too.
            depth = measured[source][rows] * here.view(-1, 1, 1, 1)
        cells = camera_cells(intrinsics[rows], self._mount(name), shape, self._strides[name], depth)
        if name == IMAGE and LIDAR in self.modalities and _is_cylinder(measured[LIDAR]):
            scan = cylinder_cells(measured[LIDAR][rows], self._mount(LIDAR), 1)
            scan = replace(scan, valid=scan.valid & batch.present[LIDAR][rows].unsqueeze(1))
            return _ranged_by(scan, cells, intrinsics[rows], self._mount(IMAGE), shape, self._strides[IMAGE])
        return cells

    def _mount(self, name: str) -> Tensor:
        return self.mounts[self.modalities.index(name)]


def _is_cylinder(measured: Tensor) -> bool:
    """Whether these are prepared range images; absent, or in the camera's view, they are not."""
    return measured.dim() == 4 and measured.shape[1] == _CYLINDER_CHANNELS


def _ranged_by(
    scan: Cells, cells: Cells, intrinsics: Tensor, mount: Tensor, shape: tuple[int, int], stride: int
) -> Cells:
    """Cells of an image that a lidar's points fall on have these points, where nothing else measured them."""
    index, found = seen_by_camera(scan, intrinsics, mount, shape, stride, stride / 4)
    found = found & ~cells.ranged & cells.valid
    points = scan.points_m.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
    return replace(
        cells,
        points_m=torch.where(found.unsqueeze(-1), points, cells.points_m),
        ranged=cells.ranged | found,
        times_s=torch.where(found, scan.times_s.gather(1, index), cells.times_s),
    )


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values ``(R, ...)`` of some rows as ``(count, ...)``; zeros, such as "not valid", for the others."""
    if len(rows) == count:
        return values
    return values.new_zeros((count, *values.shape[1:])).index_copy(0, rows, values)
