# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import ListSource, random_frame, yaw_pose
from training.calibration import calibrate as recalibrate_module
from training.calibration.calibrate import recalibrate
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.errors import ConfigError, DataError, OutputError
from vmloc_ros.core.frame import Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.preprocessing import PreprocessConfig


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and two recordings that can be opened as ``drive`` and ``train``."""
    preprocess = PreprocessConfig(modalities=("image",), shortest_side=32)
    write_random_checkpoint(tmp_path / "old.safetensors", preprocess=preprocess, backbone="squeezenet1_1")
    header, model = load_checkpoint(tmp_path / "old.safetensors")
    record = {"config": {"validation": {"every": 2, "block": 10}}}
    save_checkpoint(tmp_path / "old.safetensors", replace(header, training=record), model.state_dict())
    sources = {
        name: ListSource([Sample(random_frame(first + i, (32, 40), ("image",)), yaw_pose(0.2 * i)) for i in range(120)])
        for name, first in (("drive", 0), ("train", 500))
    }
    monkeypatch.setattr(recalibrate_module, "open_sources", lambda path, *_: [sources[path.name]])
    return tmp_path


def test_a_checkpoint_is_calibrated_anew_and_keeps_its_weights(trained: Path) -> None:
    old, new = trained / "old.safetensors", trained / "new.safetensors"
    recalibrate(old, [Path("drive")], new, train_data=[Path("train")], device="cpu", progress=False)
    (before, first), (after, second) = load_checkpoint(old), load_checkpoint(new)
    assert all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())
    assert after.uncertainty != before.uncertainty
    assert after.metrics["held_out"] == 1
    assert after.metrics["frames"] == 120
    localizer = Localizer.load(new, "cpu")
    frames = [random_frame(2000 + i, (32, 40), ("image",)) for i in range(60)]
    confidences = np.array([localizer.localize(frame).confidence for frame in frames])
    assert 0.2 < np.median(confidences) < 0.8


def test_without_training_data_the_stored_reference_features_are_kept(trained: Path) -> None:
    first, second = trained / "first.safetensors", trained / "second.safetensors"
    recalibrate(
        trained / "old.safetensors", [], first, train_data=[Path("train")], device="cpu", progress=False
    )  # on the blocks that training held out: 60 frames
    assert load_checkpoint(first)[0].metrics["frames"] == 60
    recalibrate(first, [Path("drive")], second, device="cpu", progress=False)
    a, b = load_confidence(first), load_confidence(second)
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.references["image"].coordinates, b.references["image"].coordinates)
    assert a.null_distributions[("image",)][-1].decay != b.null_distributions[("image",)][-1].decay


def test_training_frames_are_not_taken_for_held_out_ones(trained: Path) -> None:
    """With folds the model itself was trained on all frames, whichever the folds held out."""
    old = trained / "old.safetensors"
    header, model = load_checkpoint(old)
    record = {"config": {"validation": {"every": 2, "block": 10, "folds": 3}}}
    save_checkpoint(old, replace(header, training=record), model.state_dict())
    with pytest.raises(DataError, match="training held out none of its data: give others with --data"):
        recalibrate(old, [], trained / "new.safetensors", train_data=[Path("train")], device="cpu", progress=False)


def test_a_calibration_that_is_not_possible_raises_and_writes_nothing(trained: Path) -> None:
    old, new = trained / "old.safetensors", trained / "new.safetensors"
    with pytest.raises(ConfigError, match="there is nothing to calibrate with: give --data, --train-data or both"):
        recalibrate(old, [], new)
    with pytest.raises(OutputError, match=r"old\.safetensors exists; add --overwrite"):
        recalibrate(old, [Path("drive")], old)
    with pytest.raises(OutputError, match=r"a checkpoint is named \*\.safetensors, got new\.pt"):
        recalibrate(old, [Path("drive")], Path("new.pt"))
    assert not new.exists()
