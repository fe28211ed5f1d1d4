# SPDX-License-Identifier: Apache-2.0
"""How long the stages of a training take, and how many epochs fit in a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from training.config import TrainConfig
from training.objectives.dense import CellsConfig

_MAP_FRAMES = 2000  # that the map of points is made of, at most
_REFERENCE_FRAMES = 4000  # to which the confidence's reference features are fitted, at most
_MARGIN = 0.9  # of the time: measured costs are a little too small on a machine that others use, too
_LEAST_SHARE = 0.25  # of the usual epochs
_ENOUGH_SHARE = 0.6  # of the usual epochs; with fewer, frames are left out first, down to:
_LEAST_FRAMES = 250
_STRIDES = (1, 2, 3, 4, 5, 6, 8, 10)
SHORT_VIEWS, SHORT_CELLS = 2, 80


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds on this machine.

    Attributes:
        start_s: to build the model.
        read_s: to read and prepare a frame.
        feature_s: to compute the features of one view of a frame; 0 where the trunks are trained.
        map_s: to add a frame to the map of points; 0 without a map.
        step_s: of training, for each frame of a batch.
        predict_s: to predict a frame with every set of its sensors.
        reference_s: to compute the features that the confidence compares, of a frame.
    """

    start_s: float
    read_s: float
    feature_s: float
    map_s: float
    step_s: float
    predict_s: float
    reference_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a training.

    Attributes:
        name: description of its progress bar, or a name where it has none.
        seconds: expected.
    """

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of frames, after the stride.

    Attributes:
        by_source: of each recording.
        held_out: that the folds predict, all together.
        validation: of separate validation data.
    """

    by_source: Mapping[str, int]
    held_out: int
    validation: Mapping[str, int]

    @property
    def train(self) -> int:
        """Of all recordings."""
        return sum(self.by_source.values())


def stages(config: TrainConfig, costs: Costs, sizes: Sizes) -> list[Stage]:
    """The stages of a training in their order.

    Args:
        config: with its epochs and folds; its stride is already in the sizes.
    """
    frozen = bool(getattr(config.model, "frozen", False))
    views = config.frozen.views if frozen else 1
    read = [
        Stage(f"preparing {name}", count * costs.read_s)
        for names in (sizes.by_source, sizes.validation)
        for name, count in names.items()
    ]
    epochs, validation = config.optimizer.epochs, config.validation
    epoch_s = sizes.train * views * costs.step_s
    references = min(sizes.train, _REFERENCE_FRAMES) * costs.reference_s
    map_s = min(sizes.train, _MAP_FRAMES) * costs.map_s
    held_out = sum(sizes.validation.values())
    validations = -(-epochs // validation.interval)
    if not validation.crosses and not held_out and validation.every:
        held_out = sizes.train // validation.every
    own = [
        Stage("features", sizes.train * views * costs.feature_s),
        Stage("map of points", map_s),
        Stage(
            "training", epochs * epoch_s + (0 if validation.crosses else validations * held_out * costs.predict_s / 3)
        ),
    ]
    folds: list[Stage] = []
    count = validation.folds if validation.crosses else 0
    for number in range(1, count + 1):
        share = 1 - 1 / count
        fold_s = share * (map_s + (validation.fold_epochs or epochs) * epoch_s + references)
        folds.append(Stage(f"fold {number} of {count}", fold_s))
        folds.append(Stage(f"predictions of fold {number} of {count}", sizes.held_out / count * costs.predict_s))
    end = Stage("calibration", references + (0.0 if count else held_out * costs.predict_s))
    start = Stage("start", costs.start_s)
    return [stage for stage in (start, *read, *own, *folds, end) if stage.seconds > 0]


def total_s(found: list[Stage]) -> float:
    """Seconds of all stages."""
    return sum(stage.seconds for stage in found)


def usable_s(found: list[Stage]) -> float:
    """Seconds until the model's own training is finished; folds and calibration come after it."""
    last = max((row for row, stage in enumerate(found) if stage.name == "training"), default=-1)
    return total_s(found[: last + 1])


@dataclass(frozen=True, slots=True)
class Length:
    """How long to train.

    Attributes:
        stride: of the frames, on top of a stride that was set before.
        epochs: of the model's own training.
        fold_epochs: of each fold.
        share: of the usual epochs.
        seconds: of all stages.
        fits: whether it fits in the time.
        is_short: whether it has the settings of :func:`shortened`.
    """

    stride: int
    epochs: int
    fold_epochs: int
    share: float
    seconds: float
    fits: bool
    is_short: bool = False


def fit_length(
    config: TrainConfig,
    costs: Costs,
    sizes: Sizes,
    minutes: float,
    *,
    keep_stride: bool = False,
    per_frame: bool = False,
) -> Length:
    """The longest training that fits in the time, at most as long as the configuration's.

    Epochs are reduced first. Below 60 % of the usual ones the settings of :func:`shortened` are taken, where the system
    has them; then frames are left out, as long as 250 remain.

    Args:
        config: with the usual number of epochs for the frames in ``sizes``.
        keep_stride: leave no frames out.
        per_frame: the usual number of steps does not depend on the number of frames, so that half the frames have twice
            the epochs.
    """
    best: Length | None = None
    shapes = [(1, False), *((stride, can_shorten(config)) for stride in ((1,) if keep_stride else _STRIDES))]
    for stride, is_short in shapes:
        smaller = _strided(sizes, stride)
        if stride > 1 and smaller.train < _LEAST_FRAMES:
            break
        wanted, own = (shortened(config), shortened_costs(costs, config)) if is_short else (config, costs)
        found = replace(_epochs(wanted, own, smaller, minutes, stride, stride if per_frame else 1), is_short=is_short)
        if best is None or _is_better(found, best):
            best = found
        if found.fits and found.share >= _ENOUGH_SHARE:
            return found
    assert best is not None, "a stride of 1 is always tried"
    return best


def _is_better(one: Length, other: Length) -> bool:
    """Longer where both fit in the time, nearer to it where neither does."""
    if one.fits and other.fits:
        return one.share > other.share
    return one.fits or (not other.fits and one.seconds < other.seconds)


def can_shorten(config: TrainConfig) -> bool:
    """Whether the system has precomputed features, and more of them than a short training needs."""
    frozen = bool(getattr(config.model, "frozen", False))
    return frozen and isinstance(config.objective, CellsConfig) and config.frozen.views > SHORT_VIEWS


def shortened(config: TrainConfig) -> TrainConfig:
    """The short training that docs/dense.md has beside ``dense_rgbd.yaml``: half the epochs, views and cells."""
    assert isinstance(config.objective, CellsConfig), "only dense systems have cells"
    cells = min(config.objective.cells or SHORT_CELLS, SHORT_CELLS)
    epochs = max(1, config.optimizer.epochs // 2)
    return replace(
        with_length(config, epochs, max(1, epochs // 2) if config.validation.crosses else 0),
        frozen=replace(config.frozen, views=SHORT_VIEWS),
        objective=replace(config.objective, cells=cells),
    )


def shortened_costs(costs: Costs, config: TrainConfig) -> Costs:
    """A step's time is nearly proportional to the number of cells."""
    assert isinstance(config.objective, CellsConfig), "only dense systems have cells"
    usual = config.objective.cells or config.frozen.cells or SHORT_CELLS
    return replace(costs, step_s=costs.step_s * min(1.0, SHORT_CELLS / usual))


def _strided(sizes: Sizes, stride: int) -> Sizes:
    return Sizes(
        {name: -(-count // stride) for name, count in sizes.by_source.items()},
        -(-sizes.held_out // stride),
        {name: -(-count // stride) for name, count in sizes.validation.items()},
    )


def _epochs(config: TrainConfig, costs: Costs, sizes: Sizes, minutes: float, stride: int, factor: int) -> Length:
    usual = config.optimizer.epochs * factor
    usual_fold = (config.validation.fold_epochs or config.optimizer.epochs) * factor
    least = max(1, round(_LEAST_SHARE * usual))
    for epochs in range(usual, least - 1, -1):
        share = epochs / usual
        fold_epochs = max(1, round(share * usual_fold)) if config.validation.crosses else 0
        seconds = total_s(stages(with_length(config, epochs, fold_epochs), costs, sizes))
        if seconds <= _MARGIN * 60 * minutes:
            return Length(stride, epochs, fold_epochs, share, seconds, True)
    return Length(stride, epochs, fold_epochs, share, seconds, False)


def fewest_steps(config: TrainConfig, sizes: Sizes) -> int:
    """Optimizer steps of the model's own training or, where they are fewer, of a fold's."""
    views = config.frozen.views if getattr(config.model, "frozen", False) else 1
    rows, batch, validation = sizes.train * views, config.optimizer.batch_size, config.validation
    own = config.optimizer.epochs * max(1, rows // batch)
    if not validation.crosses:
        return own
    fold_rows = rows * (validation.folds - 1) // validation.folds
    return min(own, (validation.fold_epochs or config.optimizer.epochs) * max(1, fold_rows // batch))


def with_length(config: TrainConfig, epochs: int, fold_epochs: int) -> TrainConfig:
    """The configuration with other numbers of epochs; validated once, at the end, where it is validated at all."""
    interval = epochs if config.validation.interval > 1 else 1
    validation = replace(config.validation, fold_epochs=fold_epochs, interval=interval)
    return replace(config, optimizer=replace(config.optimizer, epochs=epochs), validation=validation)
