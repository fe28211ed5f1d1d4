# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helpers  # noqa: F401 (one thread for torch)
from training.testing import write_random_checkpoint
from vmloc_ros.core import checkpoint as checkpoint_module
from vmloc_ros.core.checkpoint import (
    CheckpointHeader,
    Residuals,
    Uncertainty,
    load_checkpoint,
    read_header,
    save_checkpoint,
)
from vmloc_ros.core.errors import CheckpointError, OutputError
from vmloc_ros.core.models import build_model, model_config
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor
from vmloc_ros.core.projection import CylindricalConfig

HEADER = CheckpointHeader(
    model_config(backbone="shufflenet_v2_x0_5", latent_dim=16, hidden_dim=8, dropout=0.25),
    PreprocessConfig(
        modalities=("depth", "lidar"),
        shortest_side=96,
        crop=(64, 80),
        depth_range_m=(0.25, 7.5),
        lidar_projection="pinhole",
        cylinder=CylindricalConfig(rows=16, columns=256, azimuth_min_deg=-90.0, azimuth_max_deg=90.0),
    ),
    # Numbers that JSON must carry without loss; the origin is in UTM.
    PoseCodec((620_123.123456789, 5_735_123.987654321, 0.1 + 0.2), 1 / 3, (0.5, 0.5, -0.5, 0.5)),
    "utm",
    "lidar_link",
    Uncertainty((0.1, 0.2, 0.3, 0.01, 0.02, 0.03), 16, missing=(Residuals((1.0,) * 6, (1.25, 1.0), ("depth",)),)),
    {"data": [{"name": "a", "frames": 3}], "note": "ü"},
    {"median_position_m": 0.12},
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(0)
    model = build_model(HEADER.model, Preprocessor(HEADER.preprocess).channels)
    save_checkpoint(path, HEADER, model.state_dict())
    return path


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """A copy with metadata and tensors changed by ``change``."""
    with safetensors.safe_open(source, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    safetensors.torch.save_file(tensors, target, metadata)
    return target


def edit_header(edit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(metadata: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        header = json.loads(metadata["header"])
        edit(header)
        metadata["header"] = json.dumps(header)

    return change


# --- round trip -----------------------------------------------------------------------------------------------


def test_the_header_comes_back_equal(good: Path) -> None:
    assert read_header(good) == HEADER
    assert load_checkpoint(good)[0] == HEADER


def test_frames_lose_their_leading_slash() -> None:
    header = dataclasses.replace(HEADER, map_frame="/utm", body_frame="/lidar_link")
    assert (header.map_frame, header.body_frame) == ("utm", "lidar_link")


def test_an_old_header_without_residuals_for_missing_sensors_gives_the_same_for_all_sensors(
    good: Path, tmp_path: Path
) -> None:
    old = rewrite(good, tmp_path / "old.safetensors", edit_header(lambda header: header["uncertainty"].pop("missing")))
    uncertainty = read_header(old).uncertainty
    for names in (("depth", "lidar"), ("depth",), ("lidar",)):
        found = uncertainty.residuals(names)
        assert (found.residual_std, found.inflation) == (HEADER.uncertainty.residual_std, (1.0, 1.0))
    assert HEADER.uncertainty.residuals(("depth",)).inflation == (1.25, 1.0)
    assert HEADER.uncertainty.residuals(("lidar", "depth")).residual_std == HEADER.uncertainty.residual_std


@pytest.mark.parametrize(
    "values", [((0.0,) * 6, (1.0, 1.0), (), 1.0), ((1.0,) * 6, (0.5, 1.0), (), 1.0), ((1.0,) * 6, (1.0, 1.0), (), 1.1)]
)
def test_residuals_out_of_range_are_an_error(values: Any) -> None:
    with pytest.raises(ValueError, match="residuals must be positive, inflation at least 1 and coupling in"):
        Residuals(*values)


def test_covariances_that_shrink_with_the_outlier_score_are_an_error() -> None:
    with pytest.raises(ValueError, match="growth must not be negative"):
        Residuals((1.0,) * 6, (1.0, 1.0), (), 1.0, (0.1, -0.1))


def test_an_old_header_without_rotation_and_bounds_has_those_of_its_time(good: Path, tmp_path: Path) -> None:
    """A default of today would give other outputs, or another number of them."""

    def edit(header: dict[str, Any]) -> None:
        for name in ("rotation", "log_variance_range", "log_variance_start"):
            del header["model"][name]

    model = read_header(rewrite(good, tmp_path / "old.safetensors", edit_header(edit))).model
    assert (model.rotation, model.log_variance_range) == ("log_quaternion", (-8.0, 8.0))


@pytest.mark.parametrize(("system", "expected"), [("vmloc_dense", True), ("vmloc", False)])
def test_an_old_header_undistorts_where_the_system_takes_its_camera_for_a_pinhole_camera(
    tmp_path: Path, system: str, expected: bool
) -> None:
    written = write_random_checkpoint(tmp_path / "new.safetensors", system=system, backbone="resnet18")
    assert written.preprocess.undistort == expected
    edit = edit_header(lambda header: header["preprocess"].pop("undistort"))
    assert read_header(rewrite(tmp_path / "new.safetensors", tmp_path / "old.safetensors", edit)) == written


def test_weights_come_back_bit_for_bit_in_evaluation_mode(good: Path) -> None:
    torch.manual_seed(0)
    model = build_model(HEADER.model, Preprocessor(HEADER.preprocess).channels)
    _, loaded = load_checkpoint(good)
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
        assert tensor.dtype == actual[name].dtype
    assert not any(module.training for module in loaded.modules())


def test_weights_in_channels_last_come_back_equal(tmp_path: Path, good: Path) -> None:
    model = load_checkpoint(good)[1].to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "model.safetensors", HEADER, model.state_dict())
    loaded = load_checkpoint(tmp_path / "model.safetensors")[1].state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_loading_touches_neither_the_network_nor_a_cache(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", forbidden)
    load_checkpoint(good)


def test_the_header_is_read_without_building_a_model_or_reading_weights(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "build_model", None)
    renamed = rewrite(good, tmp_path / "c.safetensors", lambda _, tensors: tensors.clear())
    assert read_header(renamed) == HEADER


def test_the_random_checkpoint_of_the_tests_is_valid_and_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_random_checkpoint(tmp_path / f"{name}.safetensors", ("image",), seed=3)
    (header, first), (_, second) = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert header.preprocess.modalities == ("image",)
    again = second.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.state_dict().items())


# --- atomic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error")])
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = Path(shutil.copy(good, tmp_path / "model.safetensors"))
    before = path.read_bytes()

    def fail(_: object, file: Path, *__: object) -> None:
        Path(file).write_bytes(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OutputError, match=r"model\.safetensors could not be written: .*left as it was"):
        save_checkpoint(path, HEADER, {"a": torch.zeros(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_can_be_read_until_the_new_one_is_complete(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(good, tmp_path / "model.safetensors"))
    write, seen = checkpoint_module.save_file, []

    def spy(*arguments: Any) -> None:
        write(*arguments)
        seen.append(read_header(path).map_frame)

    monkeypatch.setattr(checkpoint_module, "save_file", spy)
    weights = load_checkpoint(good)[1].state_dict()
    save_checkpoint(path, dataclasses.replace(HEADER, map_frame="new"), weights)
    assert seen == ["utm"]
    assert read_header(path).map_frame == "new"


# --- what it refuses ---------------------------------------------------------------------------------------------


def assert_unreadable(path: Path, match: str) -> None:
    """Reading header and checkpoint fails, with a message of one line that names the file."""
    for read in (read_header, load_checkpoint):
        with pytest.raises(CheckpointError, match=match) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_with_the_way_to_get_one(tmp_path: Path) -> None:
    assert_unreadable(tmp_path / "none.safetensors", "does not exist; train one with `vmloc train`")
    assert_unreadable(tmp_path, "does not exist|is a folder")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not a checkpoint", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04" + b"x" * 100, b"{}"],
)
def test_garbage_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    assert_unreadable(path, "truncated or not a vmloc_ros checkpoint")


def test_truncation_anywhere_is_an_error(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    path = tmp_path / "cut.safetensors"
    interesting = (0, 1, 7, 8, 9, header_end // 2, header_end - 1, header_end, header_end + 1)
    for length in (*interesting, (header_end + len(data)) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert_unreadable(path, "truncated or not a vmloc_ros checkpoint")


def test_appended_bytes_are_an_error(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(good.read_bytes() + b"tail")
    assert_unreadable(path, "truncated or not a vmloc_ros checkpoint")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_raises_checkpoint_errors_only(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(good.read_bytes())
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    # Only the bytes before the tensors' own entries: those hold everything that is ours.
    end = min(header_end, content.index(b"}", content.index(b'"__metadata__"')) + 200)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        read_header(path)


def test_a_foreign_safetensors_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    assert_unreadable(path, "is a safetensors file but not a vmloc_ros checkpoint")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    assert_unreadable(path, "is a safetensors file but not a vmloc_ros checkpoint")


@pytest.mark.parametrize("version", ["0", "2", "1.0", "", None])
def test_another_version_is_an_error_with_both_versions(good: Path, tmp_path: Path, version: str | None) -> None:
    def change(metadata: dict[str, Any], _: object) -> None:
        metadata["version"] = version
        if version is None:
            del metadata["version"]

    path = rewrite(good, tmp_path / "v.safetensors", change)
    assert_unreadable(
        path, f"has checkpoint version {version}, .* reads version 1; install the vmloc_ros that wrote it"
    )


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda h: h.pop("model"), "damaged header: header: .*missing .*'model'"),
        (lambda h: h.update(model=None), r"damaged header: header\.model: expected a mapping .*, got None"),
        (lambda h: h["model"].update(name=["vmloc"]), r"model \['vmloc'\] is not in the registry; known: "),
        (lambda h: h["model"].update(latent_dim=None), r"header\.model\.latent_dim: expected int, got None"),
        (lambda h: h.update(extra=1), "damaged header: .*unknown key extra"),
        (lambda h: h["model"].update(latent_dim="many"), r"damaged header: header\.model\.latent_dim: expected int"),
        (lambda h: h["model"].update(latent_dim=0), "damaged header: .*latent_dim, .* must be positive"),
        (lambda h: h["preprocess"].update(crop=[1, 2, 3]), r"damaged header: header\.preprocess\.crop"),
        (lambda h: h["preprocess"].update(modalities=["sonar"]), "damaged header: .*modalities must be"),
        (lambda h: h["preprocess"]["cylinder"].update(rows=-1), "damaged header: .*rows must be a positive"),
        (lambda h: h["pose_codec"].update(scale_m=0), "damaged header: .*scale positive"),
        (lambda h: h["pose_codec"].update(scale_m=float("nan")), "damaged header: .*scale_m"),
        (lambda h: h["pose_codec"].update(origin_m=[1, 2]), "damaged header: .*expected 3 values"),
        (lambda h: h["uncertainty"].update(residual_std=[0] * 6), "damaged header: .*residuals must be positive"),
        (lambda h: h.update(map_frame=3), r"damaged header: header\.map_frame: expected str"),
    ],
)
def test_a_tampered_header_is_an_error_with_the_key(
    good: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], match: str
) -> None:
    assert_unreadable(rewrite(good, tmp_path / "t.safetensors", edit_header(edit)), match)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', '{"model": 3}'])
def test_a_header_that_is_not_the_right_json_is_an_error(good: Path, tmp_path: Path, text: str) -> None:
    path = rewrite(good, tmp_path / "t.safetensors", lambda metadata, _: metadata.update(header=text))
    assert_unreadable(path, "damaged header: (Expecting|header: expected a mapping|header.model: expected a mapping)")
    path = rewrite(good, tmp_path / "t.safetensors", lambda metadata, _: metadata.pop("header"))
    assert_unreadable(path, "damaged header")


@pytest.mark.parametrize(("key", "value"), [("name", "vmloc9"), ("backbone", "resnet9000"), ("backbone", "swin_t")])
def test_a_model_that_this_version_does_not_know_is_an_error(good: Path, tmp_path: Path, key: str, value: str) -> None:
    path = rewrite(good, tmp_path / "t.safetensors", edit_header(lambda h: h["model"].update({key: value})))
    with pytest.raises(CheckpointError, match=rf"t\.safetensors.*{value}"):
        load_checkpoint(path)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "other backbone"])
def test_weights_that_do_not_fit_are_an_error(good: Path, tmp_path: Path, fault: str) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        if fault == "missing":
            del tensors["position.0.weight"]
        elif fault == "extra":
            tensors["surplus"] = torch.zeros(2)
        elif fault == "shape":
            tensors["position.0.weight"] = torch.zeros(2, 2)
        else:
            edit_header(lambda h: h["model"].update(backbone="squeezenet1_1"))(metadata, tensors)

    path = rewrite(good, tmp_path / "w.safetensors", change)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: weights do not fit model 'vmloc'") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("change", [{"residual_std": (0.0,) * 6}, {"residual_std": (-1.0,) * 6}, {"samples": 1}])
def test_an_uncertainty_that_gives_no_covariance_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"residuals must be positive|samples must be at least 2"):
        Uncertainty(**change)
