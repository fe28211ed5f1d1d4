# SPDX-License-Identifier: Apache-2.0
"""Regions of a large map, and classifiers of the region that a frame observes.

The precision of one network's coordinates falls with the extent of the map. Each region therefore has coordinates of
its own, about its own centre (Li et al. 2020, hierarchical scene coordinates; Brachmann and Rother 2019, expert sample
consensus). Each modality is a categorical expert on the region; their product is the joint distribution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_WIDTH = 256
_OVERLAP = 1 / 3  # of the median distance between regions: both of two regions train on a frame between them


class Regions(nn.Module):
    """Places of K regions, and one classifier a modality.

    Args:
        count: K.
        contexts: width G of the context vector, by modality.
    """

    places_m: Tensor  # (K, 3) mean position of the region's training frames, from the map's origin
    centres_m: Tensor  # (K, 3) mean of the points that these observe, the origin of the region's coordinates
    extents_m: Tensor  # (K,) standard deviation of these points

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
        """One modality's log probabilities ``(R, K)`` of the regions from contexts ``(R, G)``."""
        return torch.log_softmax(self.classifiers[name](context.float()).float(), dim=1)

    def shares(self, positions_m: Tensor) -> Tensor:
        """Soft assignment ``(B, K)`` of frames at positions ``(B, 3)`` to the regions; rows sum to 1."""
        apart = torch.cdist(self.places_m, self.places_m).fill_diagonal_(torch.inf).amin(dim=1).median()
        squared = (positions_m.to(self.places_m).unsqueeze(1) - self.places_m).square().sum(dim=2)
        return torch.softmax(-squared / (2 * (_OVERLAP * apart).square()), dim=1)
