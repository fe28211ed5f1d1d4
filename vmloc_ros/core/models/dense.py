# SPDX-License-Identifier: Apache-2.0
"""Dense map coordinates: every cell of a feature map says where in the map it looks, and a solver finds the pose.

Scene coordinate regression (Shotton et al. 2013; Brachmann and Rother 2021, DSAC*; Brachmann et al. 2023, ACE) under
VMLoc's product of experts: each cell is a Gaussian expert on the pose, a modality's expert is their product, and the
joint answer is the product over the modalities that are present (see :mod:`vmloc_ros.core.solver`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from vmloc_ros.core.cells import Cells, camera_cells, cylinder_cells, seen_by_camera
from vmloc_ros.core.errors import ModelError
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.geometry import Pose, quaternion_from_matrix
from vmloc_ros.core.models.base import ModelConfig, ModelInput, PoseModel, Prediction, require_modality
from vmloc_ros.core.models.cell_predictor import CellPredictor
from vmloc_ros.core.models.encoder import ImagenetScale, Pyramid, make_trunk
from vmloc_ros.core.models.regions import Regions
from vmloc_ros.core.point_map import PointMap
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.solver import Correspondences, Solution, solve

_LEAST_STD_M = 0.005
_CYLINDER_CHANNELS = 6  # of a prepared cylindrical picture
_IN_CAMERA_CHANNELS = 2  # of a lidar's picture in the camera's view
_NO_DOUBT = math.log(1e-3)  # a second region that is less likely is not looked into
_ELSEWHERE = 0.1  # of a region's extent: answers of two regions that are closer together are one


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


class DenseModel(PoseModel):
    """``vmloc_dense``, and with one modality ``dense_image`` or ``dense_lidar``.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    needs_geometry = True
    mounts: Tensor  # (M, 4, 4) float64, body from sensor
    centre_m: Tensor  # (3,) mean of what training frames look at, from the map's origin
    extent_m: Tensor  # () its standard deviation
    usual_twist: Tensor  # (6,) of the body in its own axes, m/s and rad/s
    twist_std: Tensor  # (6,) how much it varies

    def __init__(self, config: ModelConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(tuple(channels))
        self.hypotheses, self.frozen = config.hypotheses, config.frozen
        self.scale = ImagenetScale()
        self._lidar_in_camera = channels.get(LIDAR) == _IN_CAMERA_CHANNELS
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
        contexts = {name: self._predictor(name).pyramid.context_channels for name in channels}
        self.regions = Regions(config.regions, contexts) if config.regions > 1 else None
        self.map = PointMap(config.map_voxel_m) if config.map_voxel_m else None
        self.register_buffer("mounts", torch.full((len(channels), 4, 4), torch.nan, dtype=torch.float64))
        self.register_buffer("centre_m", torch.zeros(3))
        self.register_buffer("extent_m", torch.ones(()))
        self.register_buffer("usual_twist", torch.zeros(6))
        self.register_buffer("twist_std", torch.ones(6))

    def train(self, mode: bool = True) -> DenseModel:
        super().train(mode)
        if self.frozen:
            self._pyramids(lambda pyramid: pyramid.eval())  # or batch statistics would change them
        return self

    def set_mounts(self, mounts: Mapping[str, Pose]) -> None:
        sensors = {name: IMAGE if name == LIDAR and self._lidar_in_camera else name for name in self.modalities}
        if missing := [name for name, sensor in sensors.items() if sensor not in mounts]:
            raise ModelError(
                f"where the sensor of {', '.join(missing)} is mounted is not known, and dense systems need it: "
                "/tf_static must lead from source.body_frame to the frame of the messages"
            )
        self.mounts.copy_(torch.stack([torch.from_numpy(mounts[sensor].matrix) for sensor in sensors.values()]))

    def set_usual_twist(self, twist: Tensor, deviation: Tensor) -> None:
        self.usual_twist.copy_(twist)
        self.twist_std.copy_(deviation)

    def set_extent(self, centre_m: Tensor, extent_m: Tensor) -> None:
        """Learn, before training, where frames look: mean ``(3,)`` from the map's origin, and deviation."""
        self.centre_m.copy_(centre_m)
        self.extent_m.copy_(extent_m.clamp(min=2 * _LEAST_STD_M))  # a robot that never moved looks somewhere, too

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
                with torch.autocast(features.device.type, enabled=False):  # geometry needs all of float32
                    cells = self._cells(name, batch, rows, features.shape[-2:], self._strides[name])
                looks[name] = Look(rows, features, context, cells)
        return looks

    def predict(self, name: str, look: Look, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates ``(R, N, 3)`` in metres from the map's origin, and log standard deviations ``(R, N)``.

        Args:
            regions: ``(R,)`` numbers of the regions that each picture is taken to look at, where the map has such.
        """
        shape = look.features.shape[-2:]
        points = torch.where(look.cells.ranged.unsqueeze(-1), look.cells.points_m, 0.0).mT.reshape(-1, 3, *shape)
        output = self._predictor(name)(look.features, look.context, points, regions).flatten(2)
        centre, extent = self.centre_m, self.extent_m
        if self.regions is not None:
            centre, extent = self.regions.centres_m[regions], self.regions.extents_m[regions]
        centre, extent = centre.view(-1, 1, 3), extent.view(-1, 1)
        # Deviations begin at the map's extent, as large as the errors then are.
        low = math.log(_LEAST_STD_M)
        span = torch.log(4 * extent) - low
        log_std = low + span * torch.sigmoid(output[:, 3] + torch.logit(1 - math.log(4) / span))
        return centre + extent.unsqueeze(-1) * output[:, :3].mT, log_std

    def correspond(
        self, looks: Mapping[str, Look], count: int, regions: Tensor | None = None
    ) -> tuple[Correspondences, Tensor]:
        """Every cell's prediction beside what was measured, of all modalities, and times ``(B, M)`` of measurement.

        Args:
            looks: of :meth:`look`.
            count: B.
            regions: ``(B,)`` as in :meth:`predict`.
        """
        parts = []
        for name, look in looks.items():
            points, log_std = self.predict(name, look, None if regions is None else regions[look.rows])
            cells = look.cells
            part = points, torch.exp(log_std), cells.points_m, cells.rays, cells.ranged, cells.valid, cells.times_s
            parts.append([_spread(x, look.rows, count) for x in part])
        *joined, times_s = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
        return Correspondences(*joined), times_s

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """The pose that all cells agree on; its covariance is the inverse Hessian of their product.

        A frame whose cells agree on none is answered with the map's middle and a covariance as wide as the map, and is
        marked as lost.
        """
        looks = self.look(batch)
        c, times_s, solution, ambiguity = self._solve(looks, len(batch))
        pose = solution.rotations, solution.translations, solution.covariances
        oddities = [1 - solution.inlier_share, solution.residual]
        if ambiguity is not None:
            oddities.append(ambiguity)
        if self.map is not None and len(self.map):
            ranged = c.ranged & c.valid & solution.solved.unsqueeze(1)
            registered = self.map.register_scan(c.points_m, times_s, ranged, *pose, self.twist_std)
            pose = registered.rotations, registered.translations, registered.covariances
            # What measured nothing cannot lie beside the map.
            oddities.append(torch.where(ranged.any(dim=1), 1 - registered.share, 0.0))
        return Prediction(
            pose[1].cpu().numpy() + codec.origin_m,
            quaternion_from_matrix(pose[0].cpu().numpy()),
            covariances=pose[2].cpu().numpy(),
            features=self._contexts(looks, len(batch)),
            oddities=torch.stack([x.double() for x in oddities], dim=1).cpu().numpy(),
            lost=(~solution.solved).cpu().numpy(),
        )

    def _solve(self, looks: Mapping[str, Look], count: int) -> tuple[Correspondences, Tensor, Solution, Tensor | None]:
        """Correspondences, their times, the answer of the likeliest region, and how nearly another one is as good.

        The last is the runner-up's share of inliers, of the answer's, where it lies elsewhere: 1 where two places look
        the same.
        """
        if self.regions is None:
            c, times_s = self.correspond(looks, count)
            return c, times_s, solve(c, hypotheses=self.hypotheses, spread_m=float(self.extent_m)), None
        opinions = [
            _spread(self.regions.log_probabilities(name, look.context), look.rows, count)
            for name, look in looks.items()
        ]
        likely, regions = torch.log_softmax(torch.stack(opinions).sum(dim=0), dim=1).topk(2, dim=1)
        spread_m = float(self.regions.extents_m.max())
        c, times_s = self.correspond(looks, count, regions[:, 0])
        best = solve(c, hypotheses=self.hypotheses, spread_m=spread_m)
        doubt = likely[:, 1] > _NO_DOUBT
        ambiguity = torch.zeros_like(best.inlier_share)
        if bool(doubt.any()):
            other = solve(
                self.correspond(looks, count, regions[:, 1])[0], hypotheses=self.hypotheses, spread_m=spread_m
            )
            scores = [answer.log_ratio + likely[:, place] for place, answer in enumerate((best, other))]
            swapped = doubt & other.solved & (~best.solved | (scores[1] > scores[0]))
            best, other = best.where(~swapped, other), other.where(~swapped, best)
            elsewhere = (best.translations - other.translations).norm(dim=1) > _ELSEWHERE * spread_m
            rival = doubt & best.solved & other.solved & elsewhere
            ambiguity = torch.where(rival, (other.inlier_share / best.inlier_share).clamp(max=1), 0.0)
        # What no region explains may be anywhere in the map.
        wide = best.covariances.new_tensor([float(self.extent_m) ** 2] * 3 + [math.pi**2] * 3).diag()
        best = replace(best, covariances=torch.where(best.solved[:, None, None], best.covariances, wide))
        return c, times_s, best, ambiguity

    def _contexts(self, looks: Mapping[str, Look], count: int) -> dict[str, Tensor]:
        """``(count, G)`` of every modality, zeros where it is absent."""
        widths = {name: self._predictor(name).pyramid.context_channels for name in self.modalities}
        contexts = {name: self.centre_m.new_zeros(count, width) for name, width in widths.items()}
        return contexts | {name: _spread(look.context, look.rows, count) for name, look in looks.items()}

    def geometry(self, batch: ModelInput) -> Iterator[tuple[Tensor, Cells]]:
        """Of each modality, rows of the batch that have it, and their cells as in :meth:`look`, without a network."""
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if len(rows):
                stride = self._strides[name]
                height, width = (-(-side // stride) for side in batch.tensors[name].shape[-2:])
                yield rows, self._cells(name, batch, rows, (height, width), stride)

    def measured_points(self, batch: ModelInput, step: int) -> Iterator[tuple[Tensor, Cells]]:
        """Of each modality that measures, rows of the batch and every ``step``-th pixel; of range images, all."""
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if name != IMAGE and len(rows) and batch.measured is not None:
                height, width = (-(-side // step) for side in batch.measured[name].shape[-2:])
                own = 1 if _is_cylinder(batch.measured[name]) else step
                cells = self._cells(name, batch, rows, (height, width), own)
                yield rows, cells

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

    def _cells(self, name: str, batch: ModelInput, rows: Tensor, shape: tuple[int, int], stride: int) -> Cells:
        """Rows' cells as they would have been measured at the stamp."""
        measured, intrinsics = batch.measured, batch.intrinsics
        if measured is None or intrinsics is None:
            raise ModelError("dense systems need measurements and camera matrices (ModelInput.measured, intrinsics)")
        if name == LIDAR and _is_cylinder(measured[name]):
            picture = measured[name][rows, :, : stride * shape[0], : stride * shape[1]]
            return cylinder_cells(picture, self._mount(name), stride).moved(self._twists(batch)[rows])
        # An image's cells have the depth camera's measurements, too, or those of a lidar that was projected into it.
        source = name if name != IMAGE else DEPTH if DEPTH in self.modalities else LIDAR
        depth = None
        if (
            source in self.modalities
            and not _is_cylinder(measured[source])
            and bool((here := batch.present[source][rows]).any())
        ):
            depth = measured[source][rows] * here.view(-1, 1, 1, 1)
            (height, width), (rows_px, columns_px) = depth.shape[-2:], measured[name].shape[-2:]
            if (height, width) != (rows_px, columns_px):
                raise ModelError(
                    f"{source} is {height}x{width} after scaling, but {name} {rows_px}x{columns_px}; dense systems "
                    "need pictures of the camera's view to be of one aspect ratio"
                )
            depth = depth[..., : stride * shape[0], : stride * shape[1]]
        cells = camera_cells(intrinsics[rows], self._mount(name), shape, stride, depth)
        if name == IMAGE and LIDAR in self.modalities and _is_cylinder(measured[LIDAR]):
            # From where it was at the stamp, the camera saw the points.
            scan = cylinder_cells(measured[LIDAR][rows], self._mount(LIDAR), 1).moved(self._twists(batch)[rows])
            scan = replace(scan, valid=scan.valid & batch.present[LIDAR][rows].unsqueeze(1))
            return _ranged_by(scan, cells, intrinsics[rows], self._mount(IMAGE), shape, stride)
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
