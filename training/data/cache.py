# SPDX-License-Identifier: Apache-2.0
"""Prepared frames on disk, mapped into memory: decoding and projection happen once per source, not once per run.

One folder per source and preprocessing: ``<modality>.npy`` as :meth:`Preprocessor.prepare` gives it, ``labels.npz``
with presence, intrinsics, poses and stamps, and ``entry.json``, a summary. An entry appears whole or not at all; any
entry may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import Allocate, PreparedDataset, PreparedSource, prepare_dataset, prepare_source
from training.sources.base import Source
from vmloc_ros.core.errors import OutputError
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.preprocessing import PREPARED_VERSION, PreprocessConfig, Preprocessor
from vmloc_ros.core.progress import progress_bar

logger = logging.getLogger(__name__)

_LAYOUT_VERSION = 2


def load_dataset(
    sources: Sequence[Source], preprocessor: Preprocessor, cache: Path | None = None, progress: bool = True
) -> PreparedDataset:
    """The sources' prepared frames, from the cache or read into memory.

    Entries that the cache lacks are built first. Processes that need the same entry at the same time wait for the
    first of them to build it.

    Args:
        cache: folder of the cache; None reads every frame into memory and writes nothing.

    Raises:
        DataError: a source is malformed, there are no samples, or their sizes differ.
        OutputError: the cache cannot be written.
    """
    if cache is None:
        return prepare_dataset(sources, preprocessor, progress)
    parts = [_load_or_build(source, preprocessor, cache, progress) for source in sources]
    return PreparedDataset(parts, preprocessor.config.modalities)


def entry_key(source: Source, config: PreprocessConfig) -> str:
    """Name of an entry: changes with everything that changes its content."""
    # Ranges and crop are applied later, to batches.
    fields = ("modalities", "shortest_side", "lidar_projection", "cylinder", "undistort")
    settings = {name: value for name, value in asdict(config).items() if name in fields}
    identity = [_LAYOUT_VERSION, PREPARED_VERSION, source.fingerprint(), settings]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _load_or_build(source: Source, preprocessor: Preprocessor, cache: Path, progress: bool) -> PreparedSource:
    folder = cache / entry_key(source, preprocessor.config)
    try:
        with _locked(folder):
            if (entry := _load(folder, source.mounts)) is not None:
                logger.info("%s: prepared frames are in %s", source.name, folder)
                return entry
            _build(source, preprocessor, folder, progress)
    except OSError as error:
        raise OutputError(
            f"the cache {cache} cannot be written: {error}; free space, choose another --cache, or use --no-cache"
        ) from error
    entry = _load(folder, source.mounts)
    if entry is None:
        raise OutputError(f"the cache entry {folder} cannot be read back; use --no-cache")
    return entry


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an entry's lock; the kernel releases it when the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(source: Source, preprocessor: Preprocessor, folder: Path, progress: bool) -> None:
    """Write the entry to a temporary folder and rename it; the caller holds the entry's lock."""
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
    building.mkdir(parents=True)
    try:
        with progress_bar(len(source), f"preparing {source.name}", "frames", disable=not progress) as bar:
            part = prepare_source(source, preprocessor, _in_files(building), bar)
        np.savez(
            building / "labels.npz",
            positions_m=np.array([pose.position_m for pose in part.poses]).reshape(-1, 3),
            quaternions_wxyz=np.array([pose.quaternion_wxyz for pose in part.poses]).reshape(-1, 4),
            stamps_ns=np.array(part.stamps_ns, np.int64),
            intrinsics=part.intrinsics,
            **{f"present_{name}": x.numpy() for name, x in part.present.items()},
        )
        size = sum(path.stat().st_size for path in building.iterdir())
        entry = {"source": source.name, "frames": len(part), "tensors": list(part.tensors), "bytes": size}
        (building / "entry.json").write_text(json.dumps(entry, indent=2) + "\n")
        del part
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    logger.info("%s: prepared frames cached in %s (%.0f MB)", source.name, folder, size / 1e6)


def _in_files(folder: Path) -> Allocate:
    def allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        path = folder / f"{name}.npy"
        numpy_type = torch.empty(0, dtype=dtype).numpy().dtype
        array = np.lib.format.open_memmap(path, "w+", numpy_type, shape)
        # Reserved now: running out of space later, in the mapped file, would kill the process with SIGBUS.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return torch.from_numpy(array)

    return allocate


def _load(folder: Path, mounts: Mapping[str, Pose]) -> PreparedSource | None:
    """The entry, its tensors mapped into memory; None where it is absent or damaged."""
    try:
        entry = json.loads((folder / "entry.json").read_text())
        with np.load(folder / "labels.npz") as labels:
            values = {name: labels[name] for name in labels.files}
        # Copy-on-write: PyTorch has no read-only tensors, and nothing shall ever change the files.
        tensors = {
            name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))[: entry["frames"]]
            for name in entry["tensors"]
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("the cache entry %s is damaged (%s); it is built again", folder, error)
        return None
    poses = [Pose(p, q) for p, q in zip(values["positions_m"], values["quaternions_wxyz"], strict=True)]
    present = {
        name.removeprefix("present_"): torch.from_numpy(x) for name, x in values.items() if name.startswith("present_")
    }
    intrinsics = torch.from_numpy(values["intrinsics"])
    return PreparedSource(entry["source"], tensors, present, poses, values["stamps_ns"].tolist(), intrinsics, mounts)
