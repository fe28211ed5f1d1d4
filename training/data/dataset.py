# SPDX-License-Identifier: Apache-2.0
"""Prepared frames with their poses: what training draws batches from, in memory or mapped from the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.sources.base import Source
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.geometry import (
    Pose,
    matrix_from_quaternion,
    quaternion_conjugate,
    quaternion_multiply,
    rotation_angle_deg,
    rotation_vector_from_quaternion,
)
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import ProgressBar, progress_bar

logger = logging.getLogger(__name__)

_MAX_GAP_NS = 1_000_000_000  # the same as the localizer's Stream
_LEAST_TWIST_STD = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.2])  # m/s and rad/s
_SAME_MOUNT_M, _SAME_MOUNT_DEG = 0.01, 0.5  # mounts that differ less are the same

# Allocates a zeroed tensor of a name, shape and type, in memory or in a file of the cache.
Allocate = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSource:
    """Frames of one source after :meth:`Preprocessor.prepare`.

    Attributes:
        name: name of the source.
        tensors: per modality that occurs ``(N, C, H, W)``; rows of absent measurements are zero.
        present: per modality ``(N,)`` bool.
        poses: N true poses.
        stamps_ns: N stamps, nanoseconds.
        intrinsics: ``(N, 3, 3)`` camera matrices of the prepared images, NaN where unknown; None where all are.
        mounts: see :class:`Source`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    poses: list[Pose]
    stamps_ns: list[int]
    intrinsics: Tensor | None = None
    mounts: Mapping[str, Pose] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.poses)


class PreparedDataset:
    """The frames of several sources, one after the other.

    Decoding and projection are done once, not in every epoch; augmentation works on these tensors.

    Attributes:
        parts: the sources that have frames.
        poses: N true poses.
        twists: ``(N, 6)`` velocities of the body in its own axes, m/s and rad/s; NaN for a frame without neighbours.
        sequences: ``(N,)`` int64; rows of one number are one recording without a gap, in time order.

    Raises:
        DataError: there are no frames, a modality does not occur at all, or sizes differ between sources.
    """

    def __init__(self, parts: Sequence[PreparedSource], modalities: tuple[str, ...]) -> None:
        self.parts = [part for part in parts if len(part)]
        self._shapes = _common_shapes(self.parts, modalities)
        self._starts = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)
        self._present = {name: torch.cat([part.present[name] for part in self.parts]) for name in modalities}
        self._intrinsics = torch.cat([_intrinsics(part) for part in self.parts])
        self.poses = [pose for part in self.parts for pose in part.poses]
        self.sequences = _sequences(self.parts)
        self.twists = body_twists(self.poses, [s for part in self.parts for s in part.stamps_ns], self.sequences)

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Prepared tensors and presence of the rows, on the device; copies to a GPU are queued, not waited for."""
        owners = torch.bucketize(rows, self._starts, right=True) - 1
        places = list(zip(owners.tolist(), (rows - self._starts[owners]).tolist(), strict=True))
        pinned = device.type == "cuda"
        tensors = {name: self._gather(name, places, pinned).to(device, non_blocking=True) for name in self._shapes}
        return tensors, {name: x[rows].to(device, non_blocking=True) for name, x in self._present.items()}

    def intrinsics(self, rows: Tensor, device: torch.device) -> Tensor:
        """Camera matrices ``(B, 3, 3)`` of the rows' prepared images, on the device; NaN where unknown."""
        return self._intrinsics[rows].to(device, non_blocking=True)

    def _gather(self, name: str, places: list[tuple[int, int]], pinned: bool) -> Tensor:
        """Frames ``(B, C, H, W)`` at these places (part, row); zeros where a part lacks the modality."""
        shape, dtype = self._shapes[name]
        absent = torch.zeros(shape, dtype=dtype)
        sources = [part.tensors.get(name) for part in self.parts]
        frames = [absent if (source := sources[part]) is None else source[row] for part, row in places]
        x = torch.empty((len(places), *shape), dtype=dtype, pin_memory=pinned)
        # One call, whatever the number of parts: it copies each frame once and leaves other threads the interpreter.
        return torch.stack(frames, out=x) if frames else x


def prepare_dataset(sources: Sequence[Source], preprocessor: Preprocessor, progress: bool = True) -> PreparedDataset:
    """Read every sample of the sources into memory.

    Raises:
        DataError: there are no samples, or their sizes differ.
    """
    total = sum(len(source) for source in sources)
    with progress_bar(total, "reading", "frames", disable=not progress) as bar:
        parts = [prepare_source(source, preprocessor, in_memory, bar) for source in sources]
    return PreparedDataset(parts, preprocessor.config.modalities)


def in_memory(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate in memory."""
    return torch.zeros(shape, dtype=dtype)


def prepare_source(source: Source, preprocessor: Preprocessor, allocate: Allocate, bar: ProgressBar) -> PreparedSource:
    """Prepare every sample of a source; it may yield fewer samples than its length.

    Args:
        allocate: allocates the tensors.
        bar: advances by one with every sample.

    Raises:
        DataError: the samples' sizes differ.
        ModelError: a frame has none of the wanted modalities.
    """
    capacity, names = len(source), preprocessor.config.modalities
    tensors: dict[str, Tensor] = {}
    present = {name: torch.zeros(capacity, dtype=torch.bool) for name in names}
    poses: list[Pose] = []
    stamps: list[int] = []
    intrinsics = torch.full((capacity, 3, 3), torch.nan)
    unknown = 0
    with single_threaded():
        for sample in source:
            usable = preprocessor.usable(sample.frame)
            if usable is not sample.frame and not set(usable.modalities) & set(names):
                unknown += 1
                continue
            row = len(poses)
            for name, x in preprocessor.prepare(sample.frame).items():
                if name not in tensors:
                    tensors[name] = allocate(name, (capacity, *x.shape), x.dtype)
                _check_shape(source.name, name, sample, x, tensors[name])
                tensors[name][row] = x
                present[name][row] = True
            intrinsics[row] = preprocessor.intrinsics(sample.frame)
            poses.append(sample.map_from_body)
            stamps.append(sample.frame.stamp_ns)
            bar.update()
    count = len(poses)
    if unknown:
        logger.warning("%s: %d frames left out: the camera of their pictures is not known", source.name, unknown)
    return PreparedSource(
        source.name,
        {name: tensors[name][:count] for name in names if name in tensors},
        {name: x[:count] for name, x in present.items()},
        poses,
        stamps,
        intrinsics[:count],
        source.mounts,
    )


def common_mounts(*datasets: PreparedDataset) -> dict[str, Pose]:
    """``body_from_sensor`` of each modality whose mount any source has.

    Raises:
        DataError: sources disagree on the mount of a modality.
    """
    found: dict[str, tuple[str, Pose]] = {}
    for part in (part for data in datasets for part in data.parts):
        for name, mount in part.mounts.items():
            first, expected = found.setdefault(name, (part.name, mount))
            apart_m = float(np.linalg.norm(mount.position_m - expected.position_m))
            apart_deg = rotation_angle_deg(mount.quaternion_wxyz, expected.quaternion_wxyz)
            if apart_m > _SAME_MOUNT_M or apart_deg > _SAME_MOUNT_DEG:
                raise DataError(
                    f"{part.name}: the mount of {name} is {apart_m:.3f} m and {apart_deg:.1f} deg from {first}'s; "
                    "train on data of one arrangement of sensors, or correct /tf_static or source.mounts"
                )
    return {name: mount for name, (_, mount) in found.items()}


@contextmanager
def single_threaded() -> Iterator[None]:
    """Use one torch thread: for single frames more threads gain nothing, and on a busy machine they cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_shape(source: str, name: str, sample: Sample, x: Tensor, others: Tensor) -> None:
    if x.shape != others.shape[1:]:
        raise DataError(
            f"{source}: {name} at {sample.frame.stamp_ns} ns is {tuple(x.shape)} after scaling, those before "
            f"it {tuple(others.shape[1:])}; train on data of one aspect ratio"
        )


def body_twists(poses: Sequence[Pose], stamps_ns: Sequence[int], sequences: Tensor) -> Tensor:
    """Velocities ``(N, 6)`` in the body's own axes, from each frame's neighbours in its sequence; NaN without any."""
    position = np.stack([pose.position_m for pose in poses])
    quaternion = np.stack([pose.quaternion_wxyz for pose in poses])
    numbers, rows = sequences.numpy(), np.arange(len(poses))
    before, after = np.maximum(rows - 1, 0), np.minimum(rows + 1, len(rows) - 1)
    before = np.where(numbers[before] == numbers, before, rows)
    after = np.where(numbers[after] == numbers, after, rows)
    stamps = np.asarray(stamps_ns, np.int64)
    seconds = (stamps[after] - stamps[before]) * 1e-9
    shift = np.einsum("nji,nj->ni", matrix_from_quaternion(quaternion), position[after] - position[before])
    turn = rotation_vector_from_quaternion(
        quaternion_multiply(quaternion_conjugate(quaternion[before]), quaternion[after])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        twists = np.concatenate([shift, turn], axis=1) / seconds[:, None]
    return torch.from_numpy(np.where(seconds[:, None] > 0, twists, np.nan).astype(np.float32))


def usual_twist(twists: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(6,)`` of twists ``(N, 6)``, and twice their standard deviation: robots exceed the training's motions."""
    known = twists[torch.isfinite(twists).all(dim=1)].double()
    if len(known) < 2:
        return torch.zeros(6), _LEAST_TWIST_STD
    return known.mean(dim=0).float(), torch.maximum(2 * known.std(dim=0).float(), _LEAST_TWIST_STD)


def _common_shapes(
    parts: Sequence[PreparedSource], modalities: tuple[str, ...]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape of a frame and data type by modality."""
    if not parts:
        raise DataError("the data hold no frame with a pose; check the topics, the split and the pose's time span")
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    owners: dict[str, str] = {}
    for part in parts:
        for name, x in part.tensors.items():
            shape = tuple(x.shape[1:])
            expected, _ = shapes.setdefault(name, (shape, x.dtype))
            first = owners.setdefault(name, part.name)
            if shape != expected:
                raise DataError(
                    f"{part.name}: {name} is {shape} after scaling, that of {first} {expected}; "
                    "train on data of one aspect ratio"
                )
    if missing := [name for name in modalities if name not in shapes]:
        raise DataError(f"the data hold no {', '.join(missing)}; found {', '.join(shapes)}; set preprocess.modalities")
    return {name: shapes[name] for name in modalities}


def _intrinsics(part: PreparedSource) -> Tensor:
    return torch.full((len(part), 3, 3), torch.nan) if part.intrinsics is None else part.intrinsics


def _sequences(parts: Sequence[PreparedSource]) -> Tensor:
    """A sequence number per row, which grows at every source, step back in time and gap."""
    breaks: list[Tensor] = []
    for part in parts:
        steps = torch.tensor(part.stamps_ns).diff()
        breaks += [torch.ones(1, dtype=torch.bool), (steps <= 0) | (steps > _MAX_GAP_NS)]
    return torch.cat(breaks).cumsum(0)
