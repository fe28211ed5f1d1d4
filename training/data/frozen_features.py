# SPDX-License-Identifier: Apache-2.0
"""Features of frozen encoders, computed once before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from training.data.augment import AugmentConfig
from training.data.dataset import PreparedDataset
from training.data.model_input import training_input
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.models.dense.cell_features import CellFeatures
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar

_BATCH = 16


@dataclass(frozen=True, slots=True)
class FrozenConfig:
    """How features are precomputed where ``model.frozen`` is set.

    Attributes:
        views: views of each frame; the first is the frame itself, the others are augmented.
        cells: feature-map cells that are kept of each view, drawn at random for each; 0 keeps all. They need
            ``frames x views x cells x 2`` bytes times the number of feature channels.
    """

    views: int = 4
    cells: int = 400

    def __post_init__(self) -> None:
        if self.views < 1 or self.cells < 0:
            raise ValueError(f"views >= 1 and cells >= 0, got {self}")


@dataclass(frozen=True, slots=True)
class PrecomputedFeatures:
    """A batch of precomputed features, in place of a :class:`ModelInput`.

    Attributes:
        by_modality: features of the batch's rows that have the modality; modalities that no row has are missing.
    """

    by_modality: Mapping[str, CellFeatures]


class FrozenFeatures:
    """Features of the training frames, in several views each; training steps draw from them in place of the frames.

    Rows are ordered by view, then by frame: the first ``len(rows)`` rows are the first view of every frame.

    Args:
        model: computes the features; is left in evaluation mode.
        rows: ``(R,)`` rows of the data to compute features of.
        augmentation: of all views but the first.
        config: number of views, and of cells kept of each.
        seed: seed of the augmentation and of the choice of cells.

    Attributes:
        poses: true poses, one for each row.
        sequences: ``(N,)`` recording of each row, as in :class:`PreparedDataset`.
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
        self._views, self._rows = config.views, rows
        self.poses = [data.poses[i] for i in rows.tolist()] * config.views
        self.sequences = data.sequences[rows].repeat(config.views)
        generator = torch.Generator().manual_seed(seed)
        self._stores: dict[str, dict[str, Tensor]] = {}
        self._present = {name: torch.zeros(len(self.poses), dtype=torch.bool) for name in model.modalities}
        model.eval()
        plain = AugmentConfig(0.0, 0.0, 0.0)
        with torch.no_grad(), progress_bar(len(self.poses), "features", "img") as bar:
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
                    for name, features in model.cell_features(batch).items():
                        self._store(name, features, start, config.cells, generator)
                    bar.update(len(chunk))

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stored tensors, by ``modality.field``, and presence of the rows, on the device, for :meth:`step_input`."""
        flat = {f"{name}.{key}": x for name, store in self._stores.items() for key, x in store.items()}
        tensors = {key: x[rows].to(device, non_blocking=True) for key, x in flat.items()}
        return tensors, {name: x[rows].to(device, non_blocking=True) for name, x in self._present.items()}

    def rows_of(self, frames: Tensor) -> Tensor:
        """Rows of all views of some of the frames, which are rows of the data in increasing order."""
        places, count = torch.searchsorted(self._rows, frames), len(self._rows)
        return torch.cat([places + view * count for view in range(self._views)])

    def step_input(
        self,
        rows: Tensor,
        tensors: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> PrecomputedFeatures:
        """The features of a batch as the objective takes them; augmentation was done when they were computed."""
        found = {}
        for name, here in present.items():
            rows = torch.nonzero(here).flatten()
            if len(rows):
                cells = Cells(*(tensors[f"{name}.{field.name}"][rows] for field in fields(Cells)))
                features, context = tensors[f"{name}.features"][rows], tensors[f"{name}.context"][rows]
                found[name] = CellFeatures(rows, features.unsqueeze(-1), context, cells)
        return PrecomputedFeatures(found)

    def _store(self, name: str, features: CellFeatures, start: int, cells: int, generator: torch.Generator) -> None:
        """Store a random choice of a batch's cells, in half precision, in the rows from ``start`` on."""
        count = features.cells.valid.shape[1]
        kept = min(cells, count) if cells else count
        features = features.select_cells(torch.randperm(count, generator=generator)[:kept].to(features.features.device))
        values = {field.name: getattr(features.cells, field.name) for field in fields(Cells)}
        values |= {"features": features.features.squeeze(-1).bfloat16(), "context": features.context.bfloat16()}
        store = self._stores.setdefault(name, {})
        rows = start + features.rows.cpu()
        self._present[name][rows] = True
        for key, x in values.items():
            if key not in store:
                store[key] = torch.zeros((len(self), *x.shape[1:]), dtype=x.dtype)
            store[key][rows] = x.cpu()
