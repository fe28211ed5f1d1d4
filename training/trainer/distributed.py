# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training in several processes, one for each GPU or share of the CPUs, started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the processes that train one model.

    Attributes:
        rank: number of this process; rank 0 writes files and shows progress.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows; the concatenation of all parts, in order of rank, is the rows."""
        return rows.tensor_split(self.count)[self.rank]

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the module so that gradients are averaged over all processes, and batch norm is synchronised on GPUs.

        On CPUs each process normalises by its own part of the batch, because PyTorch synchronises batch norm on GPUs
        only.
        """
        if self.count == 1:
            return module
        if device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        # Modality dropout may leave an encoder unused in a process's part of the batch.
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.count
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank; every process gets them."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copy the first process's buffers, such as running statistics of batch norm, to all processes."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Connect to the processes that ``torchrun`` started; without ``torchrun``, this process is the only one.

    The backend is NCCL for GPUs and gloo for CPUs.

    Returns:
        The processes and this one's device: for ``cuda``, the GPU of its local rank.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count), device
    finally:
        dist.destroy_process_group()
