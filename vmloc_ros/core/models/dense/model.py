# SPDX-License-Identifier: Apache-2.0
"""Dense map coordinates: every cell of a feature map says where in the map it looks, and a solver finds the pose.

Scene coordinate regression (Shotton et al. 2013; Brachmann and Rother 2021, DSAC*; Brachmann et al. 2023, ACE) under
VMLoc's product of experts: each cell is a Gaussian expert on the pose, a modality's expert is their product, and the
joint answer is the product over the modalities that are present (see :mod:`vmloc_ros.core.models.dense.solver`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.geometry import quaternion_from_matrix
from vmloc_ros.core.models.base import ModelInput, Prediction, require_modality
from vmloc_ros.core.models.dense.cell_geometry import CellGeometry
from vmloc_ros.core.models.dense.cell_predictor import CellPredictor
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.config import DenseConfig
from vmloc_ros.core.models.dense.point_map import PointMap
from vmloc_ros.core.models.dense.regions import Regions
from vmloc_ros.core.models.dense.solver import Correspondences, solve
from vmloc_ros.core.models.encoder import ImagenetScale, Pyramid, make_trunk
from vmloc_ros.core.pose_codec import PoseCodec

_LEAST_STD_M = 0.005
_CANDIDATES = 3  # regions that are looked into, unless they are less likely than
_NO_DOUBT = math.log(1e-3)
_ELSEWHERE = 0.1  # of a region's extent: answers of two regions that are closer together are one


@dataclass(frozen=True, slots=True, eq=False)
class CellFeatures:
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

    def of(self, asked: Tensor) -> CellFeatures:
        """That of the batch's samples ``(B,)`` bool alone, which are numbered anew."""
        kept = asked[self.rows]
        cells = Cells(*(getattr(self.cells, field.name)[kept] for field in fields(Cells)))
        return CellFeatures((asked.cumsum(0) - 1)[self.rows[kept]], self.features[kept], self.context[kept], cells)

    def some(self, chosen: Tensor) -> CellFeatures:
        """The cells ``(n,)`` alone, as a picture of one column."""
        cells = Cells(*(getattr(self.cells, field.name)[:, chosen] for field in fields(Cells)))
        return replace(self, features=self.features.flatten(2)[:, :, chosen].unsqueeze(-1), cells=cells)


@dataclass(frozen=True, slots=True, eq=False)
class PoseSet:
    """Poses of B frames.

    Attributes:
        rotations: ``(B, 3, 3)`` map from body.
        translations: ``(B, 3)`` metres from the map's origin.
        covariances: ``(B, 6, 6)``.
        solved: ``(B,)`` bool.
        evidence: ``(B,)`` for it: the share of points that lie on the map or, without such, of cells that agree.
        outlier_scores: ``(B,)`` each, against it.
    """

    rotations: Tensor
    translations: Tensor
    covariances: Tensor
    solved: Tensor
    evidence: Tensor
    outlier_scores: tuple[Tensor, ...]

    def where(self, chosen: Tensor, other: PoseSet) -> PoseSet:
        """This one of the frames that are chosen ``(B,)``, the other one of the rest."""

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x, y)

        return self._map(pick, other)

    def at(self, rows: Tensor) -> PoseSet:
        """Of the frames ``(n,)`` alone."""
        return self._map(lambda x, _: x[rows], self)

    def put(self, rows: Tensor, other: PoseSet) -> PoseSet:
        """With the other one of the frames ``(n,)``."""
        return self._map(lambda x, y: x.index_copy(0, rows, y), other)

    def _map(self, function: Callable[[Tensor, Tensor], Tensor], other: PoseSet) -> PoseSet:
        names = ("rotations", "translations", "covariances", "solved", "evidence")
        return PoseSet(
            **{name: function(getattr(self, name), getattr(other, name)) for name in names},
            outlier_scores=tuple(
                function(x, y) for x, y in zip(self.outlier_scores, other.outlier_scores, strict=True)
            ),
        )


class DenseModel(CellGeometry):
    """``vmloc_dense``, and with one modality ``dense_image`` or ``dense_lidar``.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    centre_m: Tensor  # (3,) mean of what training frames look at, from the map's origin
    extent_m: Tensor  # () its standard deviation

    def __init__(self, config: DenseConfig, channels: Mapping[str, int], pretrained: bool | str = False) -> None:
        super().__init__(config, channels)
        self.hypotheses, self.frozen = config.hypotheses, config.frozen
        self.scale = ImagenetScale()
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
        self.register_buffer("centre_m", torch.zeros(3))
        self.register_buffer("extent_m", torch.ones(()))

    def train(self, mode: bool = True) -> DenseModel:
        super().train(mode)
        if self.frozen:
            self._pyramids(lambda pyramid: pyramid.eval())  # or batch statistics would change them
        return self

    def set_extent(self, centre_m: Tensor, extent_m: Tensor) -> None:
        """Learn, before training, where frames look: mean ``(3,)`` from the map's origin, and deviation."""
        self.centre_m.copy_(centre_m)
        self.extent_m.copy_(extent_m.clamp(min=2 * _LEAST_STD_M))  # a robot that never moved looks somewhere, too

    def look(self, batch: ModelInput) -> dict[str, CellFeatures]:
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
                looks[name] = CellFeatures(rows, features, context, cells)
        return looks

    def predict(self, name: str, look: CellFeatures, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        self, looks: Mapping[str, CellFeatures], count: int, regions: Tensor | None = None
    ) -> tuple[Correspondences, Tensor]:
        """Every cell's prediction beside what was measured, of all modalities, and times ``(B, M)`` of measurement.

        Args:
            looks: of :meth:`look`.
            count: B.
            regions: ``(B,)`` as in :meth:`predict`.
        """
        predicted = {
            name: self.predict(name, look, None if regions is None else regions[look.rows])
            for name, look in looks.items()
        }
        return correspondences(looks, predicted, count)

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """The pose that all cells agree on; its covariance is the inverse Hessian of their product.

        A frame whose cells agree on none is answered with the map's middle and a covariance as wide as the map, and is
        marked as lost.
        """
        looks = self.look(batch)
        answer = self._answer(looks, len(batch)) if self.regions is None else self._best_region(looks, len(batch))
        return Prediction(
            answer.translations.cpu().numpy() + codec.origin_m,
            quaternion_from_matrix(answer.rotations.cpu().numpy()),
            covariances=answer.covariances.cpu().numpy(),
            features=self._contexts(looks, len(batch)),
            outlier_scores=torch.stack([x.double() for x in answer.outlier_scores], dim=1).cpu().numpy(),
            lost=(~answer.solved).cpu().numpy(),
        )

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        return self._contexts(self.look(batch), len(batch))

    def _best_region(self, looks: Mapping[str, CellFeatures], count: int) -> PoseSet:
        """Of the likeliest regions' answers the one with the most evidence.

        Two more oddities are what speaks for a rival that lies elsewhere, as a share of what speaks for the answer: its
        evidence, and its region's probability. Of the evidence it is 1 where two places measure the same; rays agree
        in any region, and there the probability tells.
        """
        assert self.regions is not None
        opinions = [
            _spread(self.regions.log_probabilities(name, look.context), look.rows, count)
            for name, look in looks.items()
        ]
        total = torch.log_softmax(torch.stack(opinions).sum(dim=0), dim=1).detach()
        likely, regions = total.topk(min(_CANDIDATES, len(self.regions)), dim=1)
        best, believed = self._answer(looks, count, regions[:, 0]), likely[:, 0].clone()
        rivals = []
        for place in range(1, likely.shape[1]):
            asked = likely[:, place] > _NO_DOUBT
            rows = torch.nonzero(asked).flatten()
            if not len(rows):
                break
            others = {name: look.of(asked) for name, look in looks.items() if bool(asked[look.rows].any())}
            other, before = self._answer(others, len(rows), regions[rows, place]), best.at(rows)
            better = other.solved & (~before.solved | (other.evidence > before.evidence))
            ours, theirs = believed[rows], likely[rows, place]
            rivals.append((rows, other.where(~better, before), torch.where(better, ours, theirs)))
            best, believed[rows] = best.put(rows, other.where(better, before)), torch.where(better, theirs, ours)
        ambiguity, doubt = torch.zeros_like(best.evidence), torch.zeros_like(best.evidence)
        for rows, other, log_probability in rivals:
            chosen = best.at(rows)
            apart = (chosen.translations - other.translations).norm(dim=1)
            elsewhere = apart > _ELSEWHERE * float(self.regions.extents_m.max())
            rival = chosen.solved & other.solved & elsewhere
            for told, ratio in (
                (ambiguity, other.evidence / chosen.evidence.clamp(min=1e-9)),
                (doubt, torch.exp(log_probability - believed[rows]).to(doubt)),
            ):
                told[rows] = torch.maximum(told[rows], torch.where(rival, ratio.clamp(max=1), 0.0))
        return replace(best, outlier_scores=(*best.outlier_scores, ambiguity, doubt))

    def _answer(self, looks: Mapping[str, CellFeatures], count: int, regions: Tensor | None = None) -> PoseSet:
        """From the coordinates of these regions, where the map has such."""
        c, times_s = self.correspond(looks, count, regions)
        spread_m = float(self.extent_m if self.regions is None else self.regions.extents_m.max())
        solution = solve(c, hypotheses=self.hypotheses, spread_m=spread_m)
        # What is lost may be anywhere in the map, not in a region alone.
        wide = solution.covariances.new_tensor([float(self.extent_m) ** 2] * 3 + [math.pi**2] * 3).diag()
        covariances = torch.where(solution.solved[:, None, None], solution.covariances, wide)
        pose = solution.rotations, solution.translations, covariances
        outlier_scores: tuple[Tensor, ...] = 1 - solution.inlier_share, solution.residual
        evidence = solution.inlier_share
        if self.map is not None and len(self.map):
            ranged = c.ranged & c.valid & solution.solved.unsqueeze(1)
            registered = self.map.register_scan(c.points_m, times_s, ranged, *pose, self.twist_std)
            pose = registered.rotations, registered.translations, registered.covariances
            # What measured nothing cannot lie beside the map.
            some = ranged.any(dim=1)
            outlier_scores = *outlier_scores, torch.where(some, 1 - registered.share, 0.0)
            evidence = torch.where(some, registered.share.to(evidence), evidence)
        return PoseSet(*pose, solution.solved, evidence, outlier_scores)

    def _contexts(self, looks: Mapping[str, CellFeatures], count: int) -> dict[str, Tensor]:
        """``(count, G)`` of every modality, zeros where it is absent."""
        widths = {name: self._predictor(name).pyramid.context_channels for name in self.modalities}
        contexts = {name: self.centre_m.new_zeros(count, width) for name, width in widths.items()}
        return contexts | {name: _spread(look.context, look.rows, count) for name, look in looks.items()}

    def _predictor(self, name: str) -> CellPredictor:
        predictor = self.predictors[name]
        assert isinstance(predictor, CellPredictor)
        return predictor

    def _pyramids(self, change: Callable[[Pyramid], object]) -> None:
        for name in self.modalities:
            change(self._predictor(name).pyramid)


def correspondences(
    looks: Mapping[str, CellFeatures], predicted: Mapping[str, tuple[Tensor, Tensor]], count: int
) -> tuple[Correspondences, Tensor]:
    """What :meth:`DenseModel.predict` said of each modality's cells beside what was measured, and times ``(B, M)``."""
    parts = []
    for name, look in looks.items():
        points, log_std = predicted[name]
        cells = look.cells
        part = points, torch.exp(log_std), cells.points_m, cells.rays, cells.ranged, cells.valid, cells.times_s
        parts.append([_spread(x, look.rows, count) for x in part])
    *joined, times_s = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
    return Correspondences(*joined), times_s


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values ``(R, ...)`` of some rows as ``(count, ...)``; zeros, such as "not valid", for the others."""
    if len(rows) == count:
        return values
    return values.new_zeros((count, *values.shape[1:])).index_copy(0, rows, values)
