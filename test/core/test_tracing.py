# SPDX-License-Identifier: Apache-2.0
"""Traced networks predict as the Python ones do, for any set of sensors and any image size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import float32_tolerance, random_frame
from training.testing import write_random_checkpoint
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.tracing import trace_networks

pytestmark = pytest.mark.numeric

# Tracing folds batch norms into convolutions, which rounds differently; MobileNet v3 adds at most 576 products.
ROUNDING = float32_tolerance(576)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    write_random_checkpoint(path)
    return path


def test_every_network_of_vmloc_is_traced_and_predicts_as_before(path: Path) -> None:
    plain, traced = Localizer.load(path, "cpu"), Localizer.load(path, "cpu")
    names = trace_networks(traced.model, traced.warm_up)
    assert set(names) == {"encoders.image", "encoders.lidar", "attention", "position", "log_quaternion"}
    scale_m = plain.header.pose_codec.scale_m
    for sensors in (("image", "lidar"), ("image",), ("lidar",)):
        before, after = (localizer.localize(random_frame(3, names=sensors)) for localizer in (plain, traced))
        assert after.modalities == sensors
        wanted, got = before.map_from_body, after.map_from_body
        np.testing.assert_allclose(got.position_m, wanted.position_m, rtol=0, atol=ROUNDING * scale_m)
        np.testing.assert_allclose(got.rotation, wanted.rotation, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(after.covariance, before.covariance, rtol=0, atol=ROUNDING * before.covariance.max())


def test_pictures_of_another_size_than_the_example_get_the_same_answer(path: Path) -> None:
    plain, traced = Localizer.load(path, "cpu").model, Localizer.load(path, "cpu")
    trace_networks(traced.model, traced.warm_up)
    picture = torch.rand(1, 3, 75, 101)
    # A part of the picture alone would change the answer by half of itself.
    with torch.inference_mode():
        for wanted, got in zip(plain.encoders["image"](picture), traced.model.encoders["image"](picture), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=ROUNDING * float(wanted.abs().max()))


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if bool(x.sum() > 0) else x


def test_a_module_with_branches_on_values_is_not_traced_but_its_parts_are() -> None:
    model = nn.ModuleDict({"choosing": Choosing()}).eval()
    assert trace_networks(model, lambda: model["choosing"](torch.ones(2, 2))) == ["choosing.layer"]
    below = -torch.ones(2, 2)
    assert model["choosing"](below) is below


def test_a_model_that_does_not_run_on_traced_networks_keeps_its_own() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(2, 2)}).eval()

    def run() -> None:
        model["layer"](torch.ones(2, 2))
        assert isinstance(model["layer"], nn.Linear)

    assert trace_networks(model, run) == []
    assert isinstance(model["layer"], nn.Linear)
