# SPDX-License-Identifier: Apache-2.0
"""Training of dense map coordinates: their likelihood, and features of frozen trunks computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from tqdm import tqdm

from training.augment import AugmentConfig
from training.config import FrozenConfig, ObjectiveConfig
from training.dataset import PreparedDataset
from training.objective import Objective, Terms
from training.sampler import training_input
from training.solver_loss import solver_loss
from vmloc_ros.core.models import DenseModel, ModelInput
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.model import Look, correspondences
from vmloc_ros.core.models.rotation import quaternion_exp, quaternion_product, rotation_matrix
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor

_BATCH = 16
_LEAST_DEPTH_M = 0.1
# Mean length of a standard normal vector: a cell's deviation is so that of a coordinate, whatever the likelihood.
_MEAN_LENGTH = {3: 1.5958, 2: 1.2533}


@dataclass(frozen=True, slots=True)
class Looks:
    """A batch whose features are there already."""

    looks: Mapping[str, Look]

    def __len__(self) -> int:
        return max(len(look.rows) for look in self.looks.values())


class DenseObjective(Objective):
    """Heteroscedastic likelihood of every cell's coordinates, robust: a Laplace distribution of the residual's length.

    A cell with a measured point has residual ``e = R^T (X - t) - p`` (3 dimensions, k = 3), one with a ray alone the
    part of it that is across the ray (k = 2). The negative log-likelihood is, up to a constant,
    ``k |e| / (m_k sigma) + k log sigma``, with m_k the mean length of a standard normal vector. What a ray alone tells
    is a direction, whose density is that of the point across the ray times the squared depth: ``- 2 log depth`` more.
    Without it, points at the camera's own place would be the likeliest. Mean over the cells, sum over the modalities.

    Where the map has regions, each frame is taken to look at one, drawn by how much it belongs to each, and every
    modality's classifier pays the cross-entropy to these shares. Where the configuration gives it a weight,
    :func:`training.solver_loss.solver_loss` of a frame's cells together is added.

    Args:
        config: says how many cells of each picture a step looks at.
        codec: of the map.
    """

    def __init__(self, config: ObjectiveConfig, codec: PoseCodec) -> None:
        super().__init__()
        self._cells, self._solver_weight, self._codec = config.cells, config.solver_weight, codec

    def terms(self, model: DenseModel, batch: ModelInput | Looks, target: Tensor) -> Terms:
        rotation, translation = true_poses(target, self._codec)
        looks = dict(batch.looks if isinstance(batch, Looks) else model.look(batch))
        losses, watched, predicted = [], {}, {}
        shares = None if model.regions is None else model.regions.shares(translation)
        drawn = None if shares is None else torch.multinomial(shares, 1).squeeze(1)
        for name, look in looks.items():
            if model.regions is not None and shares is not None:
                opinion = model.regions.log_probabilities(name, look.context)
                losses.append(-(shares[look.rows] * opinion).sum(dim=1).mean())
                watched[f"region_{name}"] = (opinion.argmax(dim=1) == shares[look.rows].argmax(dim=1)).float().mean()
            count = look.cells.valid.shape[1]
            if 0 < self._cells < count:
                look = looks[name] = look.some(torch.randperm(count, device=target.device)[: self._cells])
            points, log_std = predicted[name] = model.predict(name, look, None if drawn is None else drawn[look.rows])
            length, depth = residual_lengths(points, look.cells, rotation[look.rows], translation[look.rows])
            dimensions = torch.where(look.cells.ranged, 3, 2)
            unit = torch.where(look.cells.ranged, _MEAN_LENGTH[3], _MEAN_LENGTH[2])
            loss = dimensions * (length / unit * torch.exp(-log_std) + log_std)
            loss = loss - torch.where(look.cells.ranged, 0.0, 2 * torch.log(depth))
            weight = look.cells.valid / look.cells.valid.sum().clamp(min=1)
            losses.append((loss * weight).sum())
            watched[f"error_{name}_m"] = (length.detach() * weight).sum()
        loss = torch.stack(losses).sum()
        if self._solver_weight:
            c, _ = correspondences(looks, predicted, len(target))
            together, of_solver = solver_loss(c, rotation, translation, float(model.extent_m))
            loss, watched = loss + self._solver_weight * together, watched | of_solver
        return {"loss": loss, **watched}


def residual_lengths(points_m: Tensor, cells: Cells, rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """How far predicted points are from what the cells measured, and from the sensor, seen from the true pose.

    Args:
        points_m: ``(B, N, 3)`` predicted, in the map.
        rotation: ``(B, 3, 3)`` map from body.
        translation: ``(B, 3)``.

    Returns:
        Lengths ``(B, N)`` in metres, and depths along the rays ``(B, N)``. A ray begins a decimetre before the sensor.
    """
    with torch.autocast(points_m.device.type, enabled=False):  # half precision would round to decimetres
        residual = (points_m - translation.unsqueeze(1)) @ rotation - cells.points_m
    along = (residual * cells.rays).sum(dim=-1, keepdim=True).clamp(min=_LEAST_DEPTH_M)
    across = residual - along * cells.rays
    chosen = torch.where(cells.ranged.unsqueeze(-1), residual, across)
    length = torch.sqrt(chosen.square().sum(dim=-1) + 1e-8)  # the root's slope at zero is infinite
    return length, along.squeeze(-1)


def true_poses(target: Tensor, codec: PoseCodec) -> tuple[Tensor, Tensor]:
    """Rotations ``(B, 3, 3)`` and translations ``(B, 3)``, metres from the map's origin, of pose vectors ``(B, 6)``."""
    reference = torch.tensor(codec.reference_wxyz, dtype=target.dtype, device=target.device).expand(len(target), -1)
    return rotation_matrix(quaternion_product(reference, quaternion_exp(target[:, 3:]))), target[:, :3] * codec.scale_m


class FrozenFeatures:
    """Training frames as frozen trunks see them, in several views each: what steps draw from in place of the frames.

    Rows are the frames' views, all frames' first before the second. The first is plain, the others are augmented.

    Args:
        model: in evaluation mode while its features are computed.
        rows: of the data.
        config: how many views of each frame, and cells of each view.
        seed: of augmentation and choice.

    Attributes:
        poses: one for each row.
        sequences: as :class:`PreparedDataset` has them.
    """

    def __init__(
        self,
        model: DenseModel,
        data: PreparedDataset,
        rows: Tensor,
        preprocessor: Preprocessor,
        augmentation: AugmentConfig,
        config: FrozenConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self._views = config.views
        self.poses = [data.poses[i] for i in rows.tolist()] * config.views
        self.sequences = data.sequences[rows].repeat(config.views)
        generator = torch.Generator().manual_seed(seed)
        stores: dict[str, dict[str, Tensor]] = {}
        self._present = {name: torch.zeros(len(self.poses), dtype=torch.bool) for name in model.modalities}
        model.eval()
        plain = AugmentConfig(0.0, 0.0, 0.0)
        with torch.no_grad(), tqdm(total=len(self.poses), desc="features", unit="img", disable=None) as bar:
            for view in range(config.views):
                for number, chunk in enumerate(rows.split(_BATCH)):
                    batch = training_input(
                        *data.batch(chunk, device),
                        augmentation if view else plain,
                        preprocessor,
                        generator,
                        data.intrinsics(chunk, device),
                        data.twists[chunk].to(device),
                    )
                    start = view * len(rows) + number * _BATCH
                    for name, look in model.look(batch).items():
                        self._keep(stores, name, look, start, config.cells, generator)
                    bar.update(len(chunk))
        self._stores = stores

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As :meth:`PreparedDataset.batch`: everything by ``modality.what``, for :meth:`looks`."""
        flat = {f"{name}.{what}": x for name, store in self._stores.items() for what, x in store.items()}
        tensors = {key: x[rows].to(device, non_blocking=True) for key, x in flat.items()}
        return tensors, {name: x[rows].to(device, non_blocking=True) for name, x in self._present.items()}

    def views_of(self, frames: Tensor) -> Tensor:
        """Rows of all views of some of the frames, which are counted as the data's rows were given."""
        count = len(self) // self._views
        return torch.cat([frames + view * count for view in range(self._views)])

    @staticmethod
    def looks(tensors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Looks:
        """The model's view of a batch."""
        looks = {}
        for name, here in present.items():
            rows = torch.nonzero(here).flatten()
            if len(rows):
                cells = Cells(*(tensors[f"{name}.{field.name}"][rows] for field in fields(Cells)))
                features, context = tensors[f"{name}.features"][rows], tensors[f"{name}.context"][rows]
                looks[name] = Look(rows, features.unsqueeze(-1), context, cells)
        return Looks(looks)

    def _keep(
        self,
        stores: dict[str, dict[str, Tensor]],
        name: str,
        look: Look,
        start: int,
        cells: int,
        generator: torch.Generator,
    ) -> None:
        count = look.cells.valid.shape[1]
        kept = min(cells, count) if cells else count
        look = look.some(torch.randperm(count, generator=generator)[:kept].to(look.features.device))
        values = {field.name: getattr(look.cells, field.name) for field in fields(Cells)}
        values |= {"features": look.features.squeeze(-1).bfloat16(), "context": look.context.bfloat16()}
        store = stores.setdefault(name, {})
        places = start + look.rows.cpu()
        self._present[name][places] = True
        for what, x in values.items():
            if what not in store:
                store[what] = torch.zeros((len(self), *x.shape[1:]), dtype=x.dtype)
            store[what][places] = x.cpu()
