# SPDX-License-Identifier: Apache-2.0
"""Features of frozen trunks, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from training.data.augment import AugmentConfig
from training.data.dataset import PreparedDataset
from training.data.model_input import training_input
from vmloc_ros.core.models import DenseModel
from vmloc_ros.core.models.dense.cells import Cells
from vmloc_ros.core.models.dense.model import CellFeatures
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import progress_bar

_BATCH = 16


@dataclass(frozen=True, slots=True)
class FrozenConfig:
    """What is computed once of each frame where ``model.frozen`` is set, and then trained on.

    Attributes:
        views: of each frame: the first as it is, the others augmented.
        cells: of each view that are kept, drawn anew for each: memory is ``frames x views x cells x 2`` bytes times the
            number of features; 0 keeps all.
    """

    views: int = 4
    cells: int = 400

    def __post_init__(self) -> None:
        if self.views < 1 or self.cells < 0:
            raise ValueError(f"views >= 1 and cells >= 0, got {self}")


@dataclass(frozen=True, slots=True)
class PrecomputedFeatures:
    """A batch whose features are there already."""

    looks: Mapping[str, CellFeatures]

    def __len__(self) -> int:
        return max(len(look.rows) for look in self.looks.values())


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
        self._views, self._rows = config.views, rows
        self.poses = [data.poses[i] for i in rows.tolist()] * config.views
        self.sequences = data.sequences[rows].repeat(config.views)
        generator = torch.Generator().manual_seed(seed)
        stores: dict[str, dict[str, Tensor]] = {}
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
                    for name, look in model.look(batch).items():
                        self._keep(stores, name, look, start, config.cells, generator)
                    bar.update(len(chunk))
        self._stores = stores

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As :meth:`PreparedDataset.batch`: everything by ``modality.what``, for :meth:`step_input`."""
        flat = {f"{name}.{what}": x for name, store in self._stores.items() for what, x in store.items()}
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
        looks = {}
        for name, here in present.items():
            rows = torch.nonzero(here).flatten()
            if len(rows):
                cells = Cells(*(tensors[f"{name}.{field.name}"][rows] for field in fields(Cells)))
                features, context = tensors[f"{name}.features"][rows], tensors[f"{name}.context"][rows]
                looks[name] = CellFeatures(rows, features.unsqueeze(-1), context, cells)
        return PrecomputedFeatures(looks)

    def _keep(
        self,
        stores: dict[str, dict[str, Tensor]],
        name: str,
        look: CellFeatures,
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
