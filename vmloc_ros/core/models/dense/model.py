# SPDX-License-Identifier: Apache-2.0
"""Dense scene coordinates: each cell of a feature map predicts its point in the map, and a solver finds the pose.

Scene coordinate regression (Shotton et al. 2013; Brachmann and Rother 2021, DSAC*; Brachmann et al. 2023, ACE) under
VMLoc's product of experts: each cell is a Gaussian expert on the pose, a modality's expert is the product of its cells,
and the joint estimate is the product over the modalities that are present (see
:mod:`vmloc_ros.core.models.dense.solver`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmloc_ros.core.frame import IMAGE
from vmloc_ros.core.geometry import quaternion_from_matrix
from vmloc_ros.core.models.base import require_modality
from vmloc_ros.core.models.dense.cell_features import CellFeatures, correspondences, scatter_rows
from vmloc_ros.core.models.dense.cell_geometry import CellGeometry
from vmloc_ros.core.models.dense.cell_predictor import CellPredictor
from vmloc_ros.core.models.dense.config import DenseConfig
from vmloc_ros.core.models.dense.correspondences import Correspondences
from vmloc_ros.core.models.dense.point_map import PointMap
from vmloc_ros.core.models.dense.pose_set import PoseSet
from vmloc_ros.core.models.dense.regions import Regions
from vmloc_ros.core.models.dense.solver import solve
from vmloc_ros.core.models.encoder import ImagenetScale, Pyramid, make_trunk
from vmloc_ros.core.models.input_output import ModelInput, Prediction
from vmloc_ros.core.pose_codec import PoseCodec

_LEAST_STD_M = 0.005
_CANDIDATES = 3  # likeliest regions in which a pose is solved for
_LEAST_LOG_PROBABILITY = math.log(1e-3)  # of a candidate region beside the likeliest
_SAME_PLACE = 0.1  # of the largest region's extent: poses that are closer together are one hypothesis


class _Alternative(NamedTuple):
    """Poses that were solved in a region but not kept.

    Attributes:
        rows: ``(n,)`` indices in the batch.
        poses: of these n frames.
        log_probability: ``(n,)`` of the regions that they were solved in.
    """

    rows: Tensor
    poses: PoseSet
    log_probability: Tensor


class DenseModel(CellGeometry):
    """``vmloc_dense``, and with one modality ``dense_image`` or ``dense_lidar``.

    Args:
        config: sizes.
        channels: input channels per modality, in the order of the modalities.
        pretrained: see :func:`vmloc_ros.core.models.encoder.make_trunk`.
    """

    centre_m: Tensor  # (3,) mean of the points that training frames observe, from the map's origin
    extent_m: Tensor  # () standard deviation of these points

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
            self._pyramids(lambda pyramid: pyramid.eval())  # in training mode batch norm's statistics would change
        return self

    def set_extent(self, centre_m: Tensor, extent_m: Tensor) -> None:
        """Set, before training, mean ``(3,)`` from the map's origin and deviation ``()`` of the observed points."""
        self.centre_m.copy_(centre_m)
        self.extent_m.copy_(extent_m.clamp(min=2 * _LEAST_STD_M))  # also where the robot never moved

    def cell_features(self, batch: ModelInput) -> dict[str, CellFeatures]:
        """Features and geometry of the cells, by modality, without the modalities that no sample has.

        Raises:
            ModelError: a sample has no modality.
        """
        require_modality(batch, self.modalities)
        by_modality = {}
        for name in self.modalities:
            rows = torch.nonzero(batch.present[name]).flatten()
            if len(rows):
                images = batch.tensors[name][rows]
                images = self.scale(images) if name == IMAGE else images
                features, context = self._predictor(name).pyramid(images)
                with torch.autocast(features.device.type, enabled=False):  # geometry needs all of float32
                    cells = self._cells(name, batch, rows, features.shape[-2:], self._strides[name])
                by_modality[name] = CellFeatures(rows, features, context, cells)
        return by_modality

    def predict(self, name: str, features: CellFeatures, regions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map coordinates ``(R, N, 3)`` in metres from the map's origin, and log standard deviations ``(R, N)``.

        Args:
            name: the modality.
            regions: ``(R,)`` index of the region that each sample is taken to observe, where the map has regions.
        """
        shape, cells = features.features.shape[-2:], features.cells
        points = torch.where(cells.ranged.unsqueeze(-1), cells.points_m, 0.0).mT.reshape(-1, 3, *shape)
        output = self._predictor(name)(features.features, features.context, points, regions).flatten(2)
        centre, extent = self.centre_m, self.extent_m
        if self.regions is not None:
            centre, extent = self.regions.centres_m[regions], self.regions.extents_m[regions]
        centre, extent = centre.view(-1, 1, 3), extent.view(-1, 1)
        # An untrained network gives about the map's extent as deviation: its errors are that large.
        low = math.log(_LEAST_STD_M)
        span = torch.log(4 * extent) - low
        log_std = low + span * torch.sigmoid(output[:, 3] + torch.logit(1 - math.log(4) / span))
        return centre + extent.unsqueeze(-1) * output[:, :3].mT, log_std

    def locate(self, batch: ModelInput, codec: PoseCodec, samples: int = 0) -> Prediction:
        """Poses that maximise the product of all cells' experts; covariances are the inverse Hessian there.

        Where the solver finds no pose, the frame is marked as lost: the position is the map's origin, and the
        covariance is as wide as the map.
        """
        features, count = self.cell_features(batch), len(batch)
        poses = self._solve(features, count) if self.regions is None else self._solve_in_regions(features, count)
        return Prediction(
            poses.translations.cpu().numpy() + codec.origin_m,
            quaternion_from_matrix(poses.rotations.cpu().numpy()),
            covariances=poses.covariances.cpu().numpy(),
            features=self._contexts(features, count),
            outlier_scores=torch.stack([x.double() for x in poses.outlier_scores], dim=1).cpu().numpy(),
            lost=(~poses.solved).cpu().numpy(),
        )

    def modality_features(self, batch: ModelInput) -> Mapping[str, Tensor]:
        return self._contexts(self.cell_features(batch), len(batch))

    def _solve_in_regions(self, by_modality: Mapping[str, CellFeatures], count: int) -> PoseSet:
        """Solve each frame in its likeliest regions, and keep the pose with the most evidence.

        The two outlier scores of :meth:`_alternative_scores` are appended.
        """
        assert self.regions is not None
        total = self._region_log_probabilities(by_modality, count)
        likely, regions = total.topk(min(_CANDIDATES, len(self.regions)), dim=1)
        best, log_probability = self._solve(by_modality, count, regions[:, 0]), likely[:, 0].clone()
        alternatives = []
        for place in range(1, likely.shape[1]):
            tried = likely[:, place] > _LEAST_LOG_PROBABILITY
            rows = torch.nonzero(tried).flatten()
            if not len(rows):
                break
            own = {name: x.select_samples(tried) for name, x in by_modality.items() if bool(tried[x.rows].any())}
            other, before = self._solve(own, len(rows), regions[rows, place]), best.at(rows)
            better = other.solved & (~before.solved | (other.evidence > before.evidence))
            ours, theirs = log_probability[rows], likely[rows, place]
            alternatives.append(_Alternative(rows, other.where(~better, before), torch.where(better, ours, theirs)))
            best, log_probability[rows] = (
                best.put(rows, other.where(better, before)),
                torch.where(better, theirs, ours),
            )
        scores = self._alternative_scores(best, log_probability, alternatives)
        return replace(best, outlier_scores=(*best.outlier_scores, *scores))

    def _alternative_scores(
        self, best: PoseSet, log_probability: Tensor, alternatives: Sequence[_Alternative]
    ) -> tuple[Tensor, Tensor]:
        """Outlier scores ``(B,)`` from 0 to 1: strength of the strongest alternative at another place.

        The first is the alternative's evidence as a share of the best pose's: 1 where two places measure the same. The
        second is that of its region's probability: rays agree in any region, so that there only the classifiers
        discriminate.
        """
        assert self.regions is not None
        by_evidence, by_probability = torch.zeros_like(best.evidence), torch.zeros_like(best.evidence)
        for rows, other, other_log_probability in alternatives:
            kept = best.at(rows)
            distance = (kept.translations - other.translations).norm(dim=1)
            elsewhere = distance > _SAME_PLACE * float(self.regions.extents_m.max())
            counts = kept.solved & other.solved & elsewhere
            for score, ratio in (
                (by_evidence, other.evidence / kept.evidence.clamp(min=1e-9)),
                (by_probability, torch.exp(other_log_probability - log_probability[rows]).to(by_probability)),
            ):
                score[rows] = torch.maximum(score[rows], torch.where(counts, ratio.clamp(max=1), 0.0))
        return by_evidence, by_probability

    def _region_log_probabilities(self, by_modality: Mapping[str, CellFeatures], count: int) -> Tensor:
        """Log probabilities ``(B, K)`` of the regions: product of the classifiers of the modalities present."""
        assert self.regions is not None
        experts = [
            scatter_rows(self.regions.log_probabilities(name, x.context), x.rows, count)
            for name, x in by_modality.items()
        ]
        return torch.log_softmax(torch.stack(experts).sum(dim=0), dim=1).detach()

    def _solve(self, by_modality: Mapping[str, CellFeatures], count: int, regions: Tensor | None = None) -> PoseSet:
        """Solve for the poses and register them to the point map, if there is one.

        Args:
            by_modality: of :meth:`cell_features`.
            count: B, samples of the batch.
            regions: ``(B,)`` index of the region whose coordinates are predicted, where the map has regions.
        """
        c, times_s = self._correspondences(by_modality, count, regions)
        spread_m = float(self.extent_m if self.regions is None else self.regions.extents_m.max())
        solution = solve(c, hypotheses=self.hypotheses, spread_m=spread_m)
        # A lost frame may be anywhere in the map, not only in one region.
        wide = solution.covariances.new_tensor([float(self.extent_m) ** 2] * 3 + [math.pi**2] * 3).diag()
        covariances = torch.where(solution.solved[:, None, None], solution.covariances, wide)
        pose = solution.rotations, solution.translations, covariances
        outlier_scores: tuple[Tensor, ...] = 1 - solution.inlier_share, solution.residual
        evidence = solution.inlier_share
        if self.map is not None and len(self.map):
            ranged = c.ranged & c.valid & solution.solved.unsqueeze(1)
            registered = self.map.register_scan(c.points_m, times_s, ranged, *pose, self.twist_std)
            pose = registered.rotations, registered.translations, registered.covariances
            measured = ranged.any(dim=1)  # without a measured point the map is no evidence for or against a pose
            outlier_scores = *outlier_scores, torch.where(measured, 1 - registered.share, 0.0)
            evidence = torch.where(measured, registered.share.to(evidence), evidence)
        return PoseSet(*pose, solution.solved, evidence, outlier_scores)

    def _correspondences(
        self, by_modality: Mapping[str, CellFeatures], count: int, regions: Tensor | None
    ) -> tuple[Correspondences, Tensor]:
        """Correspondences of all modalities and times of measurement ``(B, M)``; arguments as of :meth:`_solve`."""
        predicted = {
            name: self.predict(name, features, None if regions is None else regions[features.rows])
            for name, features in by_modality.items()
        }
        return correspondences(by_modality, predicted, count)

    def _contexts(self, by_modality: Mapping[str, CellFeatures], count: int) -> dict[str, Tensor]:
        """Context vectors ``(B, G)`` of every modality, zeros where it is absent."""
        widths = {name: self._predictor(name).pyramid.context_channels for name in self.modalities}
        contexts = {name: self.centre_m.new_zeros(count, width) for name, width in widths.items()}
        return contexts | {name: scatter_rows(x.context, x.rows, count) for name, x in by_modality.items()}

    def _predictor(self, name: str) -> CellPredictor:
        predictor = self.predictors[name]
        assert isinstance(predictor, CellPredictor)
        return predictor

    def _pyramids(self, change: Callable[[Pyramid], object]) -> None:
        for name in self.modalities:
            change(self._predictor(name).pyramid)
