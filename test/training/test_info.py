# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import helpers  # noqa: F401 (one thread for torch)
import vmloc_ros
from helpers import tiny_config
from training.config import parse_config
from training.info import checkpoint_text, count_parameters, report_text, systems_text
from training.testing import write_random_checkpoint
from training_runs import as_earlier_versions_wrote_it
from vmloc_ros.core.checkpoint import CheckpointHeader, Residuals, Uncertainty, load_checkpoint, save_checkpoint
from vmloc_ros.core.confidence import Confidence, NullDistribution
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.models import REGISTRY, build_model, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.reference_features import ReferenceFeatures

CONFIG = parse_config(
    {
        "model": {"backbone": "shufflenet_v2_x0_5", "latent_dim": 16, "hidden_dim": 8},
        "preprocess": {
            "shortest_side": 96,
            "crop": [64, 80],
            "cylinder": {"rows": 16, "columns": 256, "azimuth_min_deg": -90.0},
            "lidar_range_m": [0.0, 40.5],
        },
        "optimizer": {"learning_rate": 1e-3},
        "pretrained": False,
    },
    None,
    "test",
)
HEADER = CheckpointHeader(
    CONFIG.model,
    CONFIG.preprocess,
    PoseCodec((620_123.4567, -5.0, 0.25), 13.5, (1.0, 0.0, 0.0, 0.0)),
    "utm",
    "camera",
    Uncertainty((0.1, 0.25, 0.3, np.radians(1.5), np.radians(2.0), np.radians(0.25)), 16, growth=(0.0, 0.1)),
    {
        "data": [{"name": "monday", "frames": 30, "paired": 28, "image alone": 2, "dropped": 0}],
        "poses": {"poses": 30, "min_m": [-1.5, 0.0, 0.0], "max_m": [20.25, 7.0, 0.5], "mean_m": [0, 0, 0]},
        "frames": 24,
        "validation_frames": 6,
        "config": to_mapping(CONFIG),
        "torch": "2.9.9",
    },
    {"frames": 6.0, "median_position_m": 0.12345, "held_out": 1.0},
)
METADATA = {"version": "1", "vmloc_ros": "0.9.9"}


def report(header: CheckpointHeader = HEADER) -> str:
    torch.manual_seed(0)
    return report_text(header, build_model(header.model, Preprocessor(header.preprocess).channels), METADATA, 1_540_000)


def section(text: str, title: str) -> list[str]:
    """Lines under a title, with single blanks."""
    found = [block for block in text.split("\n\n") if block.partition("\n")[0] == title]
    assert len(found) == 1, text
    return [" ".join(line.split()) for line in found[0].splitlines()[1:]]


# --- models ------------------------------------------------------------------------------------------------------


def test_every_system_has_a_line_and_columns_are_aligned() -> None:
    lines = systems_text(REGISTRY).splitlines()
    assert len(lines) == 1 + len(REGISTRY)
    takes, summary = lines[0].index("takes"), lines[0].index("what it is")
    for line, (name, system) in zip(lines[1:], REGISTRY.items(), strict=True):
        assert line[:takes].rstrip() == name
        assert line[takes:summary].rstrip() == ", ".join(system.takes)
        assert line[summary:] == system.summary


# --- parameters --------------------------------------------------------------------------------------------------


def test_each_modalitys_encoder_is_counted_by_itself() -> None:
    model = build_model(CONFIG.model, {"image": 3, "lidar": 4})
    counts = count_parameters(model)
    assert list(counts) == ["encoders.image", "encoders.lidar", "attention", "position", "log_quaternion"]
    for name, count in counts.items():
        assert count == sum(x.numel() for key, x in model.named_parameters() if key.startswith(f"{name}."))
    # One more input channel for each of the first convolution's 24 kernels of 3 x 3.
    assert counts["encoders.lidar"] - counts["encoders.image"] == 24 * 9
    assert counts["position"] == 16 * 8 + 8 + 8 * 3 + 3


@pytest.mark.parametrize("name", list(REGISTRY))
def test_the_parts_of_every_system_add_up(name: str) -> None:
    channels = {modality: {"image": 3, "depth": 2, "lidar": 4}[modality] for modality in REGISTRY[name].takes}
    config = tiny_config(name, latent_dim=16, hidden_dim=8, feature_dim=16, recurrent_dim=8)
    model = build_model(config, channels)
    assert sum(count_parameters(model).values()) == sum(x.numel() for x in model.parameters())


def test_parameters_outside_of_any_part_are_counted_and_parts_without_any_are_not_listed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    module.scale = nn.Parameter(torch.ones(5))
    assert count_parameters(module) == {"0": 9, "itself": 5}


# --- checkpoint --------------------------------------------------------------------------------------------------


def test_the_report_shows_what_the_header_holds() -> None:
    text = report()
    assert section(text, "model") == [f"system vmloc: {REGISTRY['vmloc'].summary}", "backbone shufflenet_v2_x0_5"]
    assert section(text, "input") == [
        "image RGB, shortest side 96 pixels, of which 64 x 80",
        "lidar range image of 16 x 256: range, height, intensity and validity",
        "elevation -25 to 15 deg, azimuth -90 to 180 deg",
        "range 0 to 40.5 m, height -3 to 12 m, intensity 0 to 255",
    ]
    assert section(text, "poses") == [
        "frames utm -> camera",
        "origin 620123.457, -5.000, 0.250 m",
        "scale 13.500 m",
        "extent x -1.5 to 20.25, y 0 to 7, z 0 to 0.5 m",
    ]
    assert section(text, "training data") == [
        "monday 30 frames, 28 paired, 2 image alone",
        "used 24 for training, 6 for validation",
    ]
    assert section(text, "metrics on held-out frames") == ["frames 6", "median_position_m 0.123"]
    assert section(text, "covariance") == [
        "position residual 0.100, 0.250, 0.300 m along the body's x, y, z",
        "rotation residual 1.50, 2.00, 0.25 deg about them",
        "inflation position 1.00, rotation 1.00",
        "coupling 1.00 of the correlations between position and rotation",
        "growth position x 1.00, rotation x 1.26 where the p-value of the outlier scores is 0.1",
        "samples 16",
    ]
    assert section(text, "confidence, and the training frames it stores") == [
        "fitted for nothing: estimates have none; `vmloc calibrate` adds it"
    ]
    assert section(text, "versions") == ["checkpoint format 1", "vmloc_ros 0.9.9", "torch 2.9.9"]


def test_the_covariance_of_every_set_of_sensors_and_the_confidence_are_shown() -> None:
    alone = Residuals((1.0, 2.0, 3.0, np.radians(4.0), np.radians(5.0), np.radians(6.0)), (1.5, 1.0), ("lidar",))
    header = dataclasses.replace(HEADER, uncertainty=dataclasses.replace(HEADER.uncertainty, missing=(alone,)))
    features = np.random.default_rng(0).normal(size=(60, 16))
    memory = ReferenceFeatures.fit(features, features[:40], features[:40, :3], np.eye(4)[[0] * 40], 1.0, rank=5)
    tails = tuple(NullDistribution.fit(np.arange(100.0)) for _ in range(3))
    judge = Confidence({"lidar": memory}, {("image", "lidar"): tails, ("lidar",): tails})
    text = report_text(header, build_model(header.model, Preprocessor(header.preprocess).channels), METADATA, 1, judge)
    assert section(text, "covariance")[5:10] == [
        "position residual, lidar alone 1.000, 2.000, 3.000 m along the body's x, y, z",
        "rotation residual, lidar alone 4.00, 5.00, 6.00 deg about them",
        "inflation, lidar alone position 1.50, rotation 1.00",
        "coupling, lidar alone 1.00 of the correlations between position and rotation",
        "growth, lidar alone position x 1.00, rotation x 1.00 where the p-value of the outlier scores is 0.1",
    ]
    assert section(text, "confidence, and the training frames it stores") == [
        "lidar 40 frames, 5 directions of 16 features",
        "fitted for image and lidar; lidar",
    ]


def test_parameters_are_listed_with_their_total_and_the_files_size() -> None:
    lines = section(report(), "parameters")
    *parts, total, size = lines
    assert size == "file 1.5 MB"
    numbers = [int(line.split()[-1].replace(",", "")) for line in parts]
    assert total == f"total {sum(numbers):,}"
    assert [line.split()[0] for line in parts][:2] == ["encoders.image", "encoders.lidar"]


def test_settings_that_only_other_systems_have_are_not_listed_for_a_checkpoint_of_an_earlier_version() -> None:
    recorded = {**HEADER.training, "config": as_earlier_versions_wrote_it(CONFIG)}
    assert report(dataclasses.replace(HEADER, training=recorded)) == report()


def test_the_configuration_lists_what_differs_from_the_defaults_and_nothing_else() -> None:
    title = "configuration, where it differs from the defaults"
    assert section(report(), title) == [
        'model.backbone "shufflenet_v2_x0_5"',
        "model.latent_dim 16",
        "model.hidden_dim 8",
        "preprocess.shortest_side 96",
        "preprocess.crop [64, 80]",
        "preprocess.cylinder.rows 16",
        "preprocess.cylinder.columns 256",
        "preprocess.cylinder.azimuth_min_deg -90.0",
        "preprocess.lidar_range_m [0.0, 40.5]",
        "optimizer.learning_rate 0.001",
        "pretrained false",
    ]
    unknown = dataclasses.replace(HEADER, training={"config": {"retired": {"key": None}}})
    assert "retired.key null" in section(report(unknown), title)


def test_depth_and_projected_points_name_their_own_preprocessing() -> None:
    preprocess = PreprocessConfig(("depth", "lidar"), 64, depth_range_m=(0.5, 7.25), lidar_projection="pinhole")
    assert section(report(dataclasses.replace(HEADER, preprocess=preprocess)), "input") == [
        "depth depth and validity, shortest side 64 pixels; 0.5 to 7.25 m",
        "lidar points in the camera's picture: depth and validity, shortest side 64 pixels; 0.5 to 7.25 m",
    ]


@pytest.mark.parametrize(
    ("metrics", "title"),
    [({"frames": 3.0, "held_out": 0.0}, "metrics on the training frames"), ({"frames": 3.0}, "metrics")],
)
def test_metrics_name_the_frames_that_they_were_measured_on(metrics: dict[str, float], title: str) -> None:
    assert section(report(dataclasses.replace(HEADER, metrics=metrics)), title) == ["frames 3"]


def test_a_checkpoint_without_records_is_reported_without_those_sections() -> None:
    text = report(dataclasses.replace(HEADER, training={}, metrics={}))
    titles = [block.partition("\n")[0] for block in text.split("\n\n")]
    assert not any(title.startswith(("training", "metrics")) for title in titles)
    assert section(text, "poses")[-1] == "scale 13.500 m"
    assert section(report(dataclasses.replace(HEADER, training={"data": "a street"})), "training data") == [
        "data a street"
    ]


def test_values_of_a_section_stand_in_one_column() -> None:
    versions = "versions\n  checkpoint format  1\n  vmloc_ros          0.9.9\n  torch              2.9.9"
    assert report().endswith(f"\n\n{versions}")


def test_a_file_is_read_with_its_versions_and_its_size(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_random_checkpoint(path, ("image",))
    text = checkpoint_text(path)
    assert f"file {path.stat().st_size / 1e6:.1f} MB" in section(text, "parameters")
    assert section(text, "versions") == ["checkpoint format 1", f"vmloc_ros {vmloc_ros.__version__}"]
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint_text(tmp_path / "none.safetensors")


def test_the_stored_frames_of_nearest_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    config = model_config("nearest", "squeezenet1_1")
    preprocess = PreprocessConfig(("image",), 64)
    model = build_model(config, {"image": 3})
    model.store_frames(torch.zeros(7, 512), np.zeros((7, 3)), np.tile([1.0, 0, 0, 0], (7, 1)))
    save_checkpoint(path, dataclasses.replace(HEADER, model=config, preprocess=preprocess), model.state_dict())
    lines = section(checkpoint_text(path), "parameters")
    assert "descriptors 7 x 512 float32, stored" in lines
    assert "positions_m 7 x 3 float64, stored" in lines
    assert not any("_mean" in line for line in lines)
    assert load_checkpoint(path)[1].descriptors.shape == (7, 512)
