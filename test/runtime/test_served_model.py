# SPDX-License-Identifier: Apache-2.0
"""Loading the node's model, with and without a working GPU."""

from __future__ import annotations

import pytest
import torch

from helpers import random_frame
from training.testing import write_random_checkpoint
from vmloc_ros.core.errors import ConfigError, ModelError
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.runtime.served_model import load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path)
    return str(path)


@pytest.fixture
def broken_gpu(monkeypatch, request) -> str:
    """A GPU that torch finds but that fails when it is selected, when the model is loaded or when it first runs."""
    stage, reason = request.param, "CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA"
    load, warm_up = Localizer.load, Localizer.warm_up

    def load_somewhere(path, device):
        if device == "cpu":
            return load(path, "cpu")
        if stage == "device":
            raise ModelError(reason)
        if stage == "load":
            raise RuntimeError(reason)
        localizer = load(path, "cpu")
        localizer.is_broken = True
        return localizer

    def fail_on_the_gpu(localizer):
        if getattr(localizer, "is_broken", False):
            raise RuntimeError(reason)
        warm_up(localizer)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Localizer, "load", load_somewhere)
    monkeypatch.setattr(Localizer, "warm_up", fail_on_the_gpu)
    return reason.splitlines()[0]


def feed(model, frame):
    return model.feed(frame, model.prepare(frame))


@pytest.mark.parametrize("broken_gpu", ["device", "load", "warm up"], indirect=True)
def test_auto_replaces_a_gpu_that_fails_by_the_cpu_with_a_warning(broken_gpu, checkpoint):
    warnings = []
    model = load_model(checkpoint, "auto", 0, warnings.append)
    assert warnings == [f"the model does not run on cuda ({broken_gpu}); falling back to the CPU"]
    assert model.localizer.device.type == "cpu"
    (estimate,) = feed(model, random_frame())
    assert estimate.modalities == ("image", "lidar")


@pytest.mark.parametrize("broken_gpu", ["load", "warm up"], indirect=True)
def test_a_chosen_gpu_that_fails_is_an_error_of_one_line(broken_gpu, checkpoint):
    with pytest.raises(ModelError, match=r"^the model does not run on cuda:0 \(CUDA error: no kernel .*\); .*use cpu$"):
        load_model(checkpoint, "cuda:0", 0, pytest.fail)


def test_an_error_on_the_cpu_is_raised_unchanged(monkeypatch, checkpoint):
    def fail(localizer):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Localizer, "warm_up", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        load_model(checkpoint, "cpu", 0, pytest.fail)


def test_a_lookahead_out_of_the_models_range_is_an_error(checkpoint):
    with pytest.raises(ConfigError, match="lookahead"):
        load_model(checkpoint, "cpu", 1, pytest.fail)


def test_reset_starts_a_new_clip(tmp_path):
    path = tmp_path / "vidloc.safetensors"
    write_random_checkpoint(path, system="vidloc")
    model = load_model(str(path), "cpu", 1, pytest.fail)
    first, second, third = (random_frame(i) for i in range(3))
    assert not feed(model, first)
    assert [estimate.stamp_ns for estimate in feed(model, second)] == [first.stamp_ns]
    model.reset()
    assert not feed(model, third)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_inference_has_a_cuda_stream_of_its_own(checkpoint, monkeypatch):
    model = load_model(checkpoint, "cuda", 0, pytest.fail)
    streams, localize = [], Localizer.localize

    def spy(localizer, frame, batch):
        streams.append(torch.cuda.current_stream())
        return localize(localizer, frame, batch)

    monkeypatch.setattr(Localizer, "localize", spy)
    feed(model, random_frame())
    assert streams[0] != torch.cuda.default_stream()
