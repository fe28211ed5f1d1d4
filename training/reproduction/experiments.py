# SPDX-License-Identifier: Apache-2.0
"""Experiments behind the tables: the paper's with its figures (VMLoc, Tables 1 to 4), and two of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from training.evaluation.corruption import MASKED, MISSING, ZEROED
from vmloc_ros.core.errors import ConfigError
from vmloc_ros.core.models import REGISTRY

CLEAN = "clean"
# The paper's "LIDAR": the depth image or cloud, whichever the data have.
RANGE = "range"

Errors = tuple[float, float | None]  # metres, degrees; None where the paper has "NA"


class InputCorruption(NamedTuple):
    """Corruption of the image or of :data:`RANGE`; levels are those of :class:`Corruption`."""

    modality: Literal["image", "range"]
    level: int


Condition = InputCorruption | None  # of the input; None is clean


@dataclass(frozen=True, slots=True)
class Variant:
    """A system with settings of its own, trained under a name.

    Attributes:
        system: entry of the registry; its configuration is ``config/train/systems/<system>.yaml``.
        settings: overrides that make it this variant, over all other settings.
        recipes: for a system that the paper's settings are not made for: a file of ``config/train`` by kind of scene,
            which goes over the user's files, but not over what all systems of a table have in common: how large their
            pictures are, and the backbone and its weights.
    """

    name: str
    system: str
    settings: tuple[str, ...] = ()
    recipes: Mapping[str, str] = field(default_factory=dict, hash=False)


class Comparison(NamedTuple):
    """A comparison: errors of the first divided by those of the second, each a variant and its input."""

    question: str
    first: tuple[str, Condition]
    second: tuple[str, Condition]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table.

    Attributes:
        statistic: of a sequence's errors, as the paper reports them.
        variants: in the order of the table.
        kind: of the scenes in the paper's table; None: any.
        inputs: that each variant is tested with.
        extra_inputs: more inputs for the variants named.
        paper: the paper's figures by row, variant and input.
        notes: explanations below the table; ``paper_notes`` where the paper's figures stand beside ours.
        tail: whether the table has the 95th percentile of the errors, too.
    """

    title: str
    statistic: Literal["median", "mean"]
    variants: tuple[str, ...]
    kind: str | None = None
    inputs: tuple[Condition, ...] = (None,)
    extra_inputs: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    paper: Mapping[tuple[str, str, Condition], Errors] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    paper_notes: tuple[str, ...] = ()
    tail: bool = False

    @property
    def paper_rows(self) -> tuple[str, ...]:
        """Scenes or sequences with figures in the paper."""
        return tuple(dict.fromkeys(row for row, _, _ in self.paper))

    def inputs_of(self, variant: str) -> tuple[Condition, ...]:
        """Inputs that a variant is tested with."""
        return (*self.inputs, *self.extra_inputs.get(variant, ()))

    def inputs_of_all(self, variants: Sequence[Variant]) -> tuple[Condition, ...]:
        """Inputs that any of the variants is tested with, in the order of the table."""
        return tuple(dict.fromkeys(condition for variant in variants for condition in self.inputs_of(variant.name)))


_DENSE = tuple(name for name, system in REGISTRY.items() if system.objective == "cells")
_DENSE_RECIPES = {"7scenes": "dense_rgbd.yaml", "bags": "dense_street.yaml", "robotcar": "dense_town.yaml"}

# config/train/paper.yaml, as overrides
LETTER = (
    "model.rotation=log_quaternion",
    "model.log_variance_range=[-8, 8]",
    "augment.modality_dropout=0.4",
    "objective.estimator=dreg",
    "objective.modality_dropout=drawn",
    "optimizer.balance_rate=1.0",
    "optimizer.clip=whole",
)

VARIANTS: dict[str, Variant] = {
    **{name: Variant(name, name, recipes=_DENSE_RECIPES if name in _DENSE else {}) for name in REGISTRY},
    # The camera's rays alone give no points for a map.
    "dense_image": Variant("dense_image", "dense_image", ("model.map_voxel_m=0",), _DENSE_RECIPES),
} | {
    name: Variant(name, "vmloc", settings)
    for name, settings in {
        "vmloc_k1": ("objective.samples=1",),
        "vmloc_iwae": ("objective.estimator=iwae",),
        "vmloc_dreg": ("objective.estimator=dreg",),
        "vmloc_drawn": ("objective.modality_dropout=drawn",),
        "vmloc_rarer": ("augment.modality_dropout=0.4",),
        "vmloc_no_dropout": ("augment.modality_dropout=0.0",),
        "vmloc_zeroed": ("augment.dropped=zeroed", "objective.modality_dropout=drawn"),
        "vmloc_slow_balance": ("optimizer.balance_rate=1.0",),
        "vmloc_clipped_whole": ("optimizer.clip=whole",),
        "vmloc_unbounded": ("model.log_variance_range=[-14, 8]", "model.log_variance_start=-10"),
        "vmloc_unbounded_wide": ("model.log_variance_range=[-8, 8]",),
        "vmloc_slow_and_wide": ("optimizer.balance_rate=1.0", "model.log_variance_range=[-8, 8]"),
        "vmloc_log_quaternion": ("model.rotation=log_quaternion",),
        "vmloc_letter": LETTER,
        "vmloc_letter_k1": (*LETTER, "objective.samples=1"),
    }.items()
}


def select_variants(experiment: Experiment, names: Sequence[str] | None) -> list[Variant]:
    """The named variants, or the table's own. Raises ConfigError: a name is unknown."""
    for name in names or ():
        if name not in VARIANTS:
            raise ConfigError(f"system {name!r} is unknown; known: {', '.join(VARIANTS)}")
    return [VARIANTS[name] for name in names or experiment.variants]


def _figures(systems: Sequence[str], rows: Mapping[str, Sequence[Errors]]) -> dict[tuple[str, str, Condition], Errors]:
    return {
        (row, system, None): errors
        for row, figures in rows.items()
        for system, errors in zip(systems, figures, strict=True)
    }


_TABLE_1 = _figures(
    ("hourglass", "posenet_plus", "vidloc", "mapnet", "atloc", "vmloc"),
    {
        "chess": [(0.15, 6.17), (0.13, 4.48), (0.16, None), (0.08, 3.25), (0.10, 4.07), (0.10, 3.70)],
        "fire": [(0.27, 10.8), (0.27, 11.3), (0.19, None), (0.27, 11.7), (0.25, 11.4), (0.25, 10.5)],
        "heads": [(0.19, 11.6), (0.17, 13.0), (0.13, None), (0.18, 13.2), (0.16, 11.8), (0.15, 10.8)],
        "office": [(0.21, 8.48), (0.19, 5.55), (0.24, None), (0.17, 5.15), (0.17, 5.34), (0.16, 5.08)],
        "pumpkin": [(0.25, 7.01), (0.26, 4.75), (0.33, None), (0.22, 4.02), (0.21, 4.37), (0.20, 4.01)],
        "redkitchen": [(0.27, 10.2), (0.23, 5.35), (0.28, None), (0.23, 4.93), (0.23, 5.42), (0.21, 5.01)],
        "stairs": [(0.29, 12.5), (0.35, 12.4), (0.24, None), (0.30, 12.1), (0.26, 10.5), (0.24, 10.0)],
    },
)
_TABLE_2 = _figures(
    ("mapnet", "atloc", "vmloc"),
    {
        "LOOP1": [(8.76, 3.46), (8.61, 4.58), (7.70, 3.23)],
        "LOOP2": [(9.84, 3.96), (8.86, 4.67), (7.76, 3.16)],
        "FULL1": [(41.4, 12.5), (29.6, 12.4), (19.5, 4.32)],
        "FULL2": [(59.3, 14.8), (48.2, 11.1), (35.2, 8.99)],
    },
)
_TABLE_3 = _figures(
    ("image_vmloc", "attention_vmloc", "poe_vmloc", "vmloc"),
    {
        "LOOP1": [(8.60, 4.57), (9.16, 4.96), (8.57, 3.98), (7.70, 3.23)],
        "LOOP2": [(8.50, 3.90), (9.78, 5.66), (8.99, 3.79), (7.76, 3.16)],
        "FULL1": [(30.1, 10.8), (31.2, 6.04), (30.0, 7.54), (19.5, 4.32)],
        "FULL2": [(48.1, 9.61), (46.5, 10.1), (45.9, 10.5), (35.2, 8.99)],
    },
)
_IMAGE_MASKED, _IMAGE_MISSING, _IMAGE_ZEROED = (InputCorruption("image", level) for level in (MASKED, MISSING, ZEROED))
_RANGE_MASKED, _RANGE_MISSING, _RANGE_ZEROED = (InputCorruption("range", level) for level in (MASKED, MISSING, ZEROED))
_FUSED = ("attention_vmloc", "poe_vmloc", "vmloc")
_TABLE_4: dict[tuple[str, str, Condition], Errors] = {
    ("FULL2", "atloc", None): (48.2, 11.1),
    ("FULL2", "atloc", _IMAGE_MASKED): (314.3, 53.1),
} | {
    ("FULL2", system, condition): errors
    for condition, figures in {
        None: [(46.1, 9.50), (45.8, 11.50), (35.2, 8.99)],
        _IMAGE_MASKED: [(229.1, 46.7), (235.5, 41.5), (241.9, 48.9)],
        _IMAGE_MISSING: [(484.7, 85.8), (478.0, 85.2), (464.7, 85.5)],
        _RANGE_MASKED: [(47.9, 9.6), (49.7, 12.1), (36.5, 8.95)],
        _RANGE_MISSING: [(53.9, 9.29), (87.1, 36.3), (38.7, 9.70)],
    }.items()
    for system, errors in zip(_FUSED, figures, strict=True)
}
_ABSENCE = (_IMAGE_ZEROED, _RANGE_ZEROED)
_LOST = (_IMAGE_MISSING, _RANGE_MISSING)

_FUSION = (
    Comparison("fusion against the image alone", ("vmloc", None), ("image_vmloc", None)),
    Comparison("fusion against depth or lidar alone", ("vmloc", None), ("depth_vmloc", None)),
    Comparison(
        "image lost: fusion against the expert that never had it", ("vmloc", _IMAGE_MISSING), ("depth_vmloc", None)
    ),
    Comparison(
        "depth or lidar lost: fusion against the expert that never had it",
        ("vmloc", _RANGE_MISSING),
        ("image_vmloc", None),
    ),
)

EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Table 1: 7-Scenes",
        "median",
        ("hourglass", "posenet_plus", "vidloc", "mapnet", "atloc", "vmloc", "nearest"),
        "7scenes",
        paper=_TABLE_1,
        paper_notes=("The paper prints 0.23 m as vidloc's average; the mean of its rows is 0.22 m.",),
    ),
    "table2": Experiment(
        "Table 2: Oxford RobotCar", "mean", ("mapnet", "atloc", "vmloc", "nearest"), "robotcar", paper=_TABLE_2
    ),
    "table3": Experiment(
        "Table 3: ways to fuse",
        "mean",
        ("image_vmloc", "depth_vmloc", *_FUSED),
        "robotcar",
        paper=_TABLE_3,
        paper_notes=(
            "The paper prints 23.9 m as image_vmloc's average, 19.3 m, 5.35 deg as attention_vmloc's and 18.7 m, "
            "5.16 deg as poe_vmloc's; the means of its rows are 23.8 m, 24.2 m, 6.69 deg and 23.4 m, 6.45 deg. It has "
            "no depth_vmloc.",
        ),
    ),
    "table4": Experiment(
        "Table 4: masked and missing input",
        "mean",
        ("atloc", *_FUSED),
        "robotcar",
        (None, _IMAGE_MASKED, _IMAGE_MISSING, _RANGE_MASKED, _RANGE_MISSING),
        paper=_TABLE_4,
        notes=("The corruption of an input does not change a system without that input.",),
        paper_notes=(
            "The paper does not say on which sequence; its clean figures of atloc and vmloc are those of FULL2. It "
            "prints a dash where a system does not take the input.",
        ),
    ),
    "claims": Experiment(
        "The paper's claims: importance weighting, fusion, a missing sensor (not in the paper)",
        "median",
        ("vmloc", "vmloc_k1", "poe_vmloc", "attention_vmloc", "image_vmloc", "depth_vmloc"),
        None,
        extra_inputs=dict.fromkeys(("vmloc", "vmloc_k1", "poe_vmloc", "attention_vmloc"), _LOST),
        comparisons=(
            Comparison("k = 10 against k = 1", ("vmloc", None), ("vmloc_k1", None)),
            Comparison("vmloc against poe_vmloc", ("vmloc", None), ("poe_vmloc", None)),
            Comparison("vmloc against attention_vmloc", ("vmloc", None), ("attention_vmloc", None)),
            *_FUSION,
        ),
        notes=("All systems have the same recipe, as far as it applies to them.",),
    ),
    "recipe": Experiment(
        "What each part of VMLoc's recipe contributes (not in the paper)",
        "median",
        (
            "vmloc",
            "vmloc_drawn",
            "vmloc_rarer",
            "vmloc_slow_balance",
            "vmloc_clipped_whole",
            "vmloc_unbounded",
            "vmloc_unbounded_wide",
            "vmloc_slow_and_wide",
            "vmloc_dreg",
            "vmloc_iwae",
            "vmloc_log_quaternion",
            "vmloc_letter_k1",
            "vmloc_letter",
        ),
        None,
        (None, _IMAGE_MISSING, _RANGE_MISSING),
        notes=(
            "Each variant differs from vmloc in one part: modality dropout is drawn; it has the paper's 2/5 instead of "
            "2/3; beta and gamma learn at the network's rate; gradients are clipped as one vector; the log-variance "
            "may rise to 8 (and starts at 0: wide); slow balance and wide together; other estimators; rotations as "
            "log-quaternions. The letter is config/train/paper.yaml, with k = 1 and 10.",
        ),
    ),
    "ablation": Experiment(
        "Ablation of VMLoc (not in the paper)",
        "mean",
        (
            "vmloc",
            "vmloc_iwae",
            "vmloc_k1",
            "vmloc_no_dropout",
            "vmloc_zeroed",
            "image_vmloc",
            "depth_vmloc",
        ),
        None,
        (None, _IMAGE_MISSING, _RANGE_MISSING),
        {"vmloc": _ABSENCE, "vmloc_zeroed": _ABSENCE},
        comparisons=(
            Comparison("dreg_lambda against iwae", ("vmloc", None), ("vmloc_iwae", None)),
            Comparison("k = 10 against k = 1", ("vmloc", None), ("vmloc_k1", None)),
            Comparison("cost of modality dropout on clean input", ("vmloc", None), ("vmloc_no_dropout", None)),
            Comparison(
                "image lost: real absence against zeros, each trained so",
                ("vmloc", _IMAGE_MISSING),
                ("vmloc_zeroed", _IMAGE_ZEROED),
            ),
            Comparison(
                "depth or lidar lost: real absence against zeros, each trained so",
                ("vmloc", _RANGE_MISSING),
                ("vmloc_zeroed", _RANGE_ZEROED),
            ),
            *_FUSION,
        ),
        notes=(
            "vmloc is trained with dreg_lambda and k = 10; each variant differs from it only in what its name says. "
            "Zeros need modality dropout to be drawn, vmloc takes its expectation.",
        ),
    ),
    "systems": Experiment(
        "All systems on the same data (not in the paper)",
        "median",
        (
            *_DENSE,
            "vmloc",
            "vmloc_k1",
            "image_vmloc",
            "depth_vmloc",
            "attention_vmloc",
            "poe_vmloc",
            "hourglass",
            "atloc",
            "mapnet",
            "posenet_plus",
            "vidloc",
            "nearest",
        ),
        extra_inputs=dict.fromkeys(("vmloc_dense", "vmloc", "vmloc_k1", "attention_vmloc", "poe_vmloc"), _LOST),
        tail=True,
    ),
}
