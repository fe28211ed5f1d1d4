# SPDX-License-Identifier: Apache-2.0
"""The regions of a large map, and which of them a frame looks at.

One network's coordinates of a whole town are as coarse as the town is large. Each region has coordinates of its own,
about its own middle (Li et al. 2020, hierarchical scene coordinates; Brachmann and Rother 2019, expert sample
consensus). Each modality is a categorical expert on the region, and like Gaussian ones these multiply.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_WIDTH = 256
_OVERLAP = 1 / 3  # of the usual distance between regions: a frame between two is shown to both in training


class Regions(nn.Module):
    """K regions.

    Args:
        count: K.
        contexts: width of each modality's context vector.
    """

    places_m: Tensor  # (K, 3) mean position of the region's training frames, from the map's origin
    centres_m: Tensor  # (K, 3) mean of what they look at
    extents_m: Tensor  # (K,) its standard deviation

    def __init__(self, count: int, contexts: Mapping[str, int]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, count))
                for name, width in contexts.items()
            }
        )
        self.register_buffer("places_m", torch.zeros(count, 3))
        self.register_buffer("centres_m", torch.zeros(count, 3))
        self.register_buffer("extents_m", torch.ones(count))

    def __len__(self) -> int:
        return len(self.places_m)

    def log_probabilities(self, name: str, context: Tensor) -> Tensor:
        """One modality's opinion ``(R, K)`` of contexts ``(R, G)``."""
        return torch.log_softmax(self.classifiers[name](context.float()).float(), dim=1)

    def shares(self, positions_m: Tensor) -> Tensor:
        """How much frames at positions ``(B, 3)`` belong to each region: ``(B, K)``, of sum 1."""
        apart = torch.cdist(self.places_m, self.places_m).fill_diagonal_(torch.inf).amin(dim=1).median()
        squared = (positions_m.to(self.places_m).unsqueeze(1) - self.places_m).square().sum(dim=2)
        return torch.softmax(-squared / (2 * (_OVERLAP * apart).square()), dim=1)
