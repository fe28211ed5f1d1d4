# SPDX-License-Identifier: Apache-2.0
"""Size and cost of every system: parameters, operations and time per frame, as a Markdown table.

python benchmarks/models.py [--backbone resnet34] [--size 256] [--repeats 20] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads spoil timings on a busy machine

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.output import markdown_table
from training.testing import noise_input
from vmloc_ros.core.checkpoint import Uncertainty
from vmloc_ros.core.geometry import Pose
from vmloc_ros.core.models import REGISTRY, MemoryModel, ModelInput, PoseModel, build_model, model_config
from vmloc_ros.core.pose_codec import PoseCodec

CODEC = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))
CHANNELS = {"image": 3, "depth": 2}
STORED_FRAMES = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet34")
    parser.add_argument("--size", type=int, default=256, help="shortest side of a 4:3 image and depth image")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    systems = {name: _build(name, options.backbone).to(options.device) for name in REGISTRY}
    inputs = {name: _input(model, options.size, options.device) for name, model in systems.items()}
    times = _times_ms(systems, inputs, options.repeats)
    baseline = times["vmloc"]
    rows = []
    for name, model in systems.items():
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        gflops = _gflops(model, inputs[name])
        cells = [f"{count:.1f}", f"{gflops:.1f}", f"{times[name]:.1f}", f"{times[name] / baseline:.2f}"]
        rows.append([f"`{name}`", ", ".join(model.modalities), *cells])
    titles = ["system", "inputs", "parameters (M)", "GFLOPs", "ms per frame", "relative to vmloc"]
    print(markdown_table(titles, rows, labels=2))


def _build(name: str, backbone: str) -> PoseModel:
    takes = REGISTRY[name].takes
    channels = {modality: count for modality, count in CHANNELS.items() if modality in takes}
    # Every cell passes a dense system's hidden layers: its configurations make them half as wide.
    width = {"hidden_dim": 512} if REGISTRY[name].objective == "cells" else {}
    model = build_model(model_config(name, backbone, **width), channels).eval()
    model.set_mounts(dict.fromkeys(channels, Pose.identity()))
    if isinstance(model, MemoryModel):
        with torch.no_grad():
            width = model.describe(_input(model, 64, "cpu")).shape[1]
        identity = np.tile([1.0, 0.0, 0.0, 0.0], (STORED_FRAMES, 1))
        model.store_frames(torch.randn(STORED_FRAMES, width), np.zeros((STORED_FRAMES, 3)), identity)
    return model


def _input(model: PoseModel, size: int, device: str) -> ModelInput:
    shape = (size, round(size * 4 / 3))
    tensors = {name: torch.rand(1, CHANNELS[name], *shape, device=device) * 2 - 1 for name in model.modalities}
    return noise_input(tensors)


@torch.inference_mode()
def _times_ms(systems: dict[str, PoseModel], inputs: dict[str, ModelInput], repeats: int) -> dict[str, float]:
    """Median time of a prediction with covariance; systems take turns, so that other load affects all alike."""
    samples = Uncertainty().samples
    times: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 2):
        for name, model in systems.items():
            started = time.perf_counter()
            model.locate(inputs[name], CODEC, samples)  # the result is on the CPU, so a GPU has finished too
            if repeat >= 2:  # the first ones include lazy initialisation
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in times.items()}


@torch.no_grad()
def _gflops(model: PoseModel, batch: ModelInput) -> float:
    """Multiplications and additions of one prediction without samples, 1e9."""
    with FlopCounterMode(display=False) as counter:
        model.locate(batch, CODEC)
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
