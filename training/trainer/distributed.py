# SPDX-License-Identifier: Apache-2.0
"""Training in several processes, one for each GPU or share of the CPUs, started by ``torchrun``."""

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
    """This process among those that train one model together.

    Attributes:
        rank: 0 is the one that writes and prints.
        count: of all of them.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows; all parts together, in order of rank, are the rows."""
        return rows.tensor_split(self.count)[self.rank]

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with gradients averaged over all processes, and batch norm over their joint batch on GPUs.

        On the CPU each process normalises by its own part of the batch: PyTorch synchronises batch norm on GPUs only.
        """
        if self.count == 1:
            return module
        if device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        # By modality dropout a process's part of a batch may pass by one of the encoders.
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.count
        return values

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in order of rank, in every process."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def level_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers, such as the running statistics of batch norm."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that ``torchrun`` started, this one alone without it, and the device of this one.

    A plain ``cuda`` becomes a GPU for each process of a machine. NCCL connects GPUs, gloo connects CPUs.
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
