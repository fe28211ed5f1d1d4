# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import helpers  # noqa: F401  # one torch thread
from training.data.dataset import PreparedDataset, PreparedSource
from training.data.prefetch import default_depth, prefetch
from vmloc_ros.core.geometry import Pose

CPU = torch.device("cpu")
SHAPES = {"image": ((3, 4, 6), torch.uint8), "depth": ((2, 4, 6), torch.float32)}
LENGTHS = (5, 1, 7)  # frames of the sources; the second has no depth, the third is a mapped file


def make_parts(folder: Path) -> list[PreparedSource]:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number, count in enumerate(LENGTHS):
        tensors = {
            name: torch.randint(1, 256, (count, *shape), generator=generator).to(dtype)
            for name, (shape, dtype) in SHAPES.items()
            if not (number == 1 and name == "depth")
        }
        present = {name: torch.rand(count, generator=generator) < 0.7 for name in SHAPES}
        if number == 2:
            for name, x in tensors.items():
                np.save(folder / f"{name}.npy", x.numpy())
                tensors[name] = torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))
        pose = Pose(np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))
        parts.append(PreparedSource(str(number), tensors, present, [pose] * count, list(range(count))))
    return parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedSource]:
    return make_parts(tmp_path_factory.mktemp("mapped"))


@pytest.fixture(scope="module")
def data(parts: list[PreparedSource]) -> PreparedDataset:
    return PreparedDataset(parts, tuple(SHAPES))


@pytest.fixture(autouse=True)
def no_thread_remains() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class SlowDataset(PreparedDataset):
    """Makes as many batches as it is allowed to; stores which threads requested them."""

    def __init__(self, parts: list[PreparedSource], allowed: int = 100) -> None:
        super().__init__(parts, tuple(SHAPES))
        self.allowed, self.requested = threading.Semaphore(allowed), threading.Semaphore(0)
        self.threads: list[threading.Thread] = []

    def batch(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.threads.append(threading.current_thread())
        self.requested.release()
        assert self.allowed.acquire(timeout=30)
        return super().batch(rows, device)


def plan_of(*rows: int) -> list[Tensor]:
    return [torch.tensor([row]) for row in rows]


def everything(parts: list[PreparedSource]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All frames one after the other, zeros where a source lacks a modality."""
    tensors = {
        name: torch.cat([part.tensors.get(name, torch.zeros((len(part), *shape), dtype=dtype)) for part in parts])
        for name, (shape, dtype) in SHAPES.items()
    }
    return tensors, {name: torch.cat([part.present[name] for part in parts]) for name in SHAPES}


BATCHES = st.lists(st.lists(st.integers(0, sum(LENGTHS) - 1), max_size=6), max_size=8)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(0, 4))
def test_every_batch_of_the_plan_comes_in_order_with_the_frames_asked_for(
    parts: list[PreparedSource], data: PreparedDataset, batches: list[list[int]], depth: int
) -> None:
    plan = [torch.tensor(rows, dtype=torch.int64) for rows in batches]
    tensors, present = everything(parts)
    loaded = list(prefetch(data, iter(plan), CPU, depth))
    assert len(loaded) == len(plan)
    for rows, (got_rows, got_tensors, got_present) in zip(plan, loaded, strict=True):
        assert torch.equal(got_rows, rows)
        assert list(got_tensors) == list(got_present) == list(SHAPES)
        for name in SHAPES:
            assert got_tensors[name].dtype == tensors[name].dtype
            assert torch.equal(got_tensors[name], tensors[name][rows])
            assert torch.equal(got_present[name], present[name][rows])


@pytest.mark.parametrize("depth", [0, 2])
def test_a_batch_is_the_callers_own(data: PreparedDataset, depth: int) -> None:
    (_, first, _), (_, second, _) = prefetch(data, plan_of(6, 6), CPU, depth)
    expected = second["image"].clone()
    first["image"].zero_()
    assert torch.equal(second["image"], expected)
    assert torch.equal(data.batch(torch.tensor([6]), CPU)[0]["image"], expected)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_plan_is_read_so_far_ahead_as_depth_says(data: PreparedDataset, depth: int) -> None:
    read = []

    def plan() -> Iterator[Tensor]:
        for row in range(10):
            read.append((row, threading.current_thread()))
            yield torch.tensor([row])

    for step, _ in enumerate(prefetch(data, plan(), CPU, depth)):
        assert len(read) == min(10, step + 1 + depth)
    assert {thread for _, thread in read} == {threading.current_thread()}


def test_the_next_batches_are_made_while_the_caller_works(parts: list[PreparedSource]) -> None:
    slow = SlowDataset(parts)
    batches = prefetch(slow, plan_of(0, 1, 2), CPU, 2)
    next(batches)
    for _ in range(3):
        assert slow.requested.acquire(timeout=30)
    assert threading.current_thread() not in slow.threads
    assert len(list(batches)) == 2


def test_without_depth_the_caller_makes_the_batches(parts: list[PreparedSource]) -> None:
    slow = SlowDataset(parts)
    assert len(list(prefetch(slow, plan_of(0, 1), CPU, 0))) == 2
    assert set(slow.threads) == {threading.current_thread()}


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_an_error_comes_in_place_of_the_batch_that_failed(data: PreparedDataset, depth: int) -> None:
    batches = prefetch(data, plan_of(0, 1, sum(LENGTHS), 3), CPU, depth)
    assert [int(next(batches)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(IndexError):
        next(batches)
    assert list(batches) == []


@pytest.mark.parametrize("depth", [0, 2])
def test_a_failing_plan_is_reported(data: PreparedDataset, depth: int) -> None:
    def plan() -> Iterator[Tensor]:
        yield from plan_of(0, 1, 2, 3)
        raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        list(prefetch(data, plan(), CPU, depth))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_empty_plan_gives_nothing(data: PreparedDataset, depth: int) -> None:
    assert list(prefetch(data, [], CPU, depth)) == []


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_thread_ends_when_the_caller_stops_early(data: PreparedDataset) -> None:
    for _ in prefetch(data, plan_of(*range(10)), CPU):
        assert running()
        break
    assert not running()
    batches = prefetch(data, plan_of(*range(10)), CPU)
    next(batches)
    assert running()
    batches.close()
    assert not running()


def test_the_thread_ends_when_the_caller_fails(data: PreparedDataset) -> None:
    def train() -> None:
        for _ in prefetch(data, plan_of(*range(10)), CPU):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train()
    assert not running()


def test_the_thread_ends_when_waiting_for_a_batch_is_interrupted(parts: list[PreparedSource]) -> None:
    slow = SlowDataset(parts, allowed=1)
    batches = prefetch(slow, plan_of(*range(10)), CPU)
    next(batches)

    main = threading.main_thread().ident

    def cleans_up() -> bool:  # has dropped what waits, and waits itself for the batch that is being made
        names = {frame.name for frame in traceback.extract_stack(sys._current_frames()[main])}
        return {"shutdown", "join"} <= names

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        for _ in range(1000):
            if cleans_up():
                break
            time.sleep(0.01)
        slow.allowed.release(100)

    user = threading.Timer(0.2, interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ROS in this process may have put in another
    try:
        user.start()
        with pytest.raises(KeyboardInterrupt):
            list(batches)
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    assert not running()
    assert len(slow.threads) == 2  # what was not yet begun is dropped
    user.join()


def test_an_iterator_that_was_left_half_way_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    script = (
        "import itertools, pathlib, sys, torch, test_prefetch as t\n"
        "data = t.PreparedDataset(t.make_parts(pathlib.Path(sys.argv[1])), tuple(t.SHAPES))\n"
        "batches = t.prefetch(data, itertools.repeat(torch.tensor([1, 12])), t.CPU)\n"
        "print(next(batches)[0].tolist(), len(t.running()))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 12] 1\n", "")


def test_memory_of_a_batch_is_given_back_when_the_caller_drops_it(data: PreparedDataset) -> None:
    batches = prefetch(data, plan_of(*range(10)), CPU)
    _, tensors, _ = next(batches)
    held = weakref.ref(tensors["image"])
    del tensors, _
    assert held() is None
    batches.close()


def test_the_default_is_to_read_ahead_on_devices_whose_copies_are_tested() -> None:
    assert default_depth(CPU) > 0
    assert default_depth(torch.device("cuda", 1)) > 0
    assert default_depth(torch.device("mps")) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: side stream and pinned memory")
@pytest.mark.parametrize("busy", [False, True])  # reads that come before a copy has ended; after the next has begun
def test_on_a_gpu_the_caller_sees_whole_batches(parts: list[PreparedSource], busy: bool) -> None:
    large = [
        PreparedSource(
            "large",
            {
                name: torch.randint(0, 256, (64, *shape[:1], 256, 256)).to(dtype)
                for name, (shape, dtype) in SHAPES.items()
            },
            {name: torch.rand(64) < 0.5 for name in SHAPES},
            parts[0].poses[:1] * 64,
            list(range(64)),
        )
    ]
    data, gpu = PreparedDataset(large, tuple(SHAPES)), torch.device("cuda")
    plan = [torch.randperm(64)[:32] for _ in range(12)]
    weights = torch.rand(4096, 4096, device=gpu)
    sums = []
    for _, tensors, present in prefetch(data, plan, gpu):
        assert all(x.is_cuda for x in (*tensors.values(), *present.values()))
        if busy:
            weights = weights @ weights / 4096
        sums.append([x.double().sum() for x in (*tensors.values(), *present.values())])
    for rows, got in zip(plan, sums, strict=True):
        tensors, present = data.batch(rows, CPU)
        expected = [x.double().sum() for x in (*tensors.values(), *present.values())]
        assert torch.stack(got).cpu().tolist() == pytest.approx(torch.stack(expected).tolist())
