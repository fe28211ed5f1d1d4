# SPDX-License-Identifier: Apache-2.0
"""Batches read ahead of the model: a thread gathers the next and copies them to a GPU during the present step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import Tensor

from training.data.training_data import TrainingData

# What a loaded batch consists of: tensors, presence, and the event after which they are on the GPU.
_Loaded = tuple[dict[str, Tensor], dict[str, Tensor], torch.cuda.Event | None]


def prefetch(
    data: TrainingData, plan: Iterable[Tensor], device: torch.device, depth: int = 2
) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """The plan's batches in its order, as ``(rows, *data.batch(rows, device))``.

    The thread ends with the iterator, however that ends. It draws no random numbers and never touches the plan, which
    is read ``depth`` items ahead in the caller's thread.

    Args:
        plan: rows of each batch, int64 on the CPU.
        depth: batches that are ready or being loaded while the caller works on one; up to ``depth + 2`` are in memory.
            0 loads each batch on demand, without a thread.

    Raises:
        Exception: what ``data.batch`` raised, where its batch would have come.
    """
    if depth == 0:
        for rows in plan:
            yield rows, *data.batch(rows, device)
        return
    load = partial(_load, data, device)
    waiting: deque[tuple[Tensor, Future[_Loaded]]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        for rows in plan:
            waiting.append((rows, thread.submit(load, rows)))
            if len(waiting) > depth:
                yield _receive(*waiting.popleft(), device)
        while waiting:
            yield _receive(*waiting.popleft(), device)
    finally:
        thread.shutdown(cancel_futures=True)  # waits for the one batch that is being made


def default_depth(device: torch.device) -> int:
    """Batches to read ahead.

    On the CPU too: the thread costs nothing measurable there, and waits for a slow disk hide behind the step.
    None for other accelerators: copies that a second thread makes to them are not tested.
    """
    return 2 if device.type in ("cpu", "cuda") else 0


def _load(data: TrainingData, device: torch.device, rows: Tensor) -> _Loaded:
    if device.type != "cuda":
        return *data.batch(rows, device), None
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        return *data.batch(rows, device), stream.record_event()


def _receive(
    rows: Tensor, loading: Future[_Loaded], device: torch.device
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    tensors, present, copied = loading.result()
    if copied is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)  # the GPU waits, not the caller
        for x in (*tensors.values(), *present.values()):
            x.record_stream(stream)  # else a later copy could get the memory before this stream has read it
    return rows, tensors, present


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for good: PyTorch keeps a pool of memory per stream, so that a new one in every epoch would pile them up."""
    return torch.cuda.Stream(device)
