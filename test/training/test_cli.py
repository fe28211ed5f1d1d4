# SPDX-License-Identifier: Apache-2.0
"""The command line in-process; one line for each user's error, never a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import without_padding, yaw_pose
from training.cli import main
from training.config import TrainConfig
from training.testing import write_random_checkpoint
from training_runs import as_earlier_versions_wrote_it
from vmloc_ros.bags.files import BagWriter
from vmloc_ros.bags.messages import image_message, pose_stamped_message
from vmloc_ros.core.checkpoint import load_checkpoint, read_header, save_checkpoint
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.preprocessing import PreprocessConfig

COMMANDS = (
    "simulate",
    "convert",
    "show",
    "extrinsics",
    "train",
    "evaluate",
    "calibrate",
    "confidence",
    "reproduce",
    "replay",
    "models",
    "info",
    "demo",
)
CONFIG = """
shared_by_systems: true
model: {backbone: squeezenet1_1, latent_dim: 16, hidden_dim: 16}
preprocess: {modalities: [image, depth], shortest_side: 32}
optimizer: {epochs: 1, batch_size: 4, learning_rate: 1e-4}
validation: {every: 2, block: 4}
pretrained: false
"""


def write_frame(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    stem = f"frame-{number:06d}"
    cv2.imwrite(str(folder / f"{stem}.color.png"), rng.integers(0, 256, (36, 48, 3), np.uint8))
    cv2.imwrite(str(folder / f"{stem}.depth.png"), rng.integers(500, 3000, (36, 48)).astype(np.uint16))
    np.savetxt(folder / f"{stem}.pose.txt", yaw_pose(0.1 * number, 0.0, number).matrix)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two sequences of eight frames: one for training, one for the test."""
    root = tmp_path / "scene"
    for sequence in (1, 2):
        (root / f"seq-0{sequence}").mkdir(parents=True)
        for number in range(8):
            write_frame(root / f"seq-0{sequence}", number)
    (root / "TrainSplit.txt").write_text("sequence1\n")
    (root / "TestSplit.txt").write_text("sequence2\n")
    return root


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the body of 7-Scenes."""
    path = tmp_path_factory.mktemp("cli") / "random.safetensors"
    preprocess = PreprocessConfig(modalities=("image", "depth"), shortest_side=32)
    write_random_checkpoint(path, preprocess=preprocess, backbone="squeezenet1_1", body_frame="camera_optical_frame")
    return path


def image_bag(path: Path, with_pose: bool = True) -> Path:
    with BagWriter(path) as bag:
        for i in range(3):
            stamp = 10**18 + i * 10**8
            bag.write("/image", image_message(stamp, "camera", np.zeros((36, 48, 3), np.uint8), "rgb8"), stamp)
            if with_pose:
                bag.write("/pose", pose_stamped_message(stamp, "map", yaw_pose(i)), stamp)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def assert_one_line(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    """Exit code 1, and beside progress bars and log lines exactly one line on stderr, with all parts in it."""
    error = capsys.readouterr().err
    assert code == 1
    assert "Traceback" not in error
    lines = [
        line
        for line in error.replace("\r", "\n").splitlines()
        if line.strip() and not re.search(r"\d+%\||/s\]", line) and not line.startswith(("INFO", "WARNING"))
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("vmloc ")
    for part in parts:
        assert part in lines[0]


# --- help and start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    assert f"usage: vmloc {command}" in capsys.readouterr().out


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [[], ["localise"], ["train"], ["train", "--data", "x"], ["info"], ["convert", "cityscapes", "x", "--out", "y"]],
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert "usage: vmloc" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_ros() -> None:
    code = (
        "import sys\n"
        "from training.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(', '.join(sorted(loaded & {'torch', 'rclpy', 'cv2', 'matplotlib'})) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_program_with_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.cli", "info", str(tmp_path / "none.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vmloc info: checkpoint ")


# --- the way through ---------------------------------------------------------------------------------------------


def test_train_evaluate_and_info_in_a_row(
    scene: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "model.safetensors", tmp_path / "results"
    assert run("train", "--config", config, "--data", scene, "--out", out, "--device", "cpu", "--set", "seed=5") == 0
    printed = capsys.readouterr().out
    assert "| validation | 4 |" in without_padding(printed)
    assert f"wrote {out}" in printed

    assert run("info", out, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["training"]["config"]["seed"] == 5
    assert info["training"]["frames"] == 4
    assert info["body_frame"] == "camera_optical_frame"
    assert run("info", out) == 0
    printed = capsys.readouterr().out
    assert "4 for training, 4 for validation" in printed
    assert "map -> camera_optical_frame" in printed

    assert run("evaluate", out, scene, "--out", results, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "| vmloc | 8 |" in without_padding(printed)
    metrics = json.loads((results / "metrics.json").read_text())
    assert f"{metrics['median_position_m']:.3f}" in printed
    assert len((results / "estimate.tum").read_text().splitlines()) == 8

    again = ("train", "--config", config, "--data", scene, "--out", out, "--device", "cpu", "--set", "seed=5")
    assert_one_line(capsys, run(*again), "model.safetensors exists; add --resume to go on, --overwrite to replace it")
    assert run(*again, "--resume") == 0
    assert run(*again, "--overwrite") == 0


def test_a_log_file_gets_lines_of_progress_and_no_redrawn_bar(scene: Path, config: Path, tmp_path: Path) -> None:
    arguments = ["train", "--config", config, "--data", scene, "--out", tmp_path / "m.safetensors", "--device", "cpu"]
    command = [sys.executable, "-m", "training.cli", *map(str, arguments), "--no-cache"]
    done = subprocess.run(command, capture_output=True, check=False)  # as bytes: text would turn \r into \n
    assert done.returncode == 0, done.stderr.decode()
    assert b"\r" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert any(re.match(r"INFO: reading: 100 % \(8 of 8 frames, .* in \d+ s\)$", line) for line in lines), lines
    assert any(re.match(r"INFO: training: 100 % \(4 of 4 img, .*\), epoch 1, loss ", line) for line in lines), lines


def test_evaluation_can_add_the_nearest_training_image(
    scene: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    weights = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
    options = ("--out", tmp_path / "results", "--device", "cpu", "--set", "source.stride=2", "--nearest", scene)
    code = run(
        "evaluate", checkpoint, scene, *options, "--nearest-backbone", "squeezenet1_1", "--nearest-weights", weights
    )
    assert code == 0
    table = without_padding(capsys.readouterr().out)
    assert "| vmloc | 4 |" in table
    # Both sequences hold the same pictures and poses.
    assert "| nearest training image | 4 | 0.000 | 0.000 | 0.000 | 0.00 |" in table


def test_the_nearest_image_is_trained_and_evaluated_like_any_system(
    scene: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nearest.safetensors"
    train = (
        "train",
        "--config",
        config,
        "--data",
        scene,
        "--out",
        out,
        "--device",
        "cpu",
        "--set",
        "model.name=nearest",
    )
    assert run(*train) == 0
    assert run(*train, "--resume") == 0
    capsys.readouterr()
    assert run("info", out) == 0
    assert "4 x 512 float32, stored" in capsys.readouterr().out
    assert run("evaluate", out, scene, "--split", "train", "--out", tmp_path / "r", "--device", "cpu") == 0
    assert "| nearest | 8 |" in without_padding(capsys.readouterr().out)
    errors = (tmp_path / "r" / "errors.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[1]) == 0 for line in errors] == [True] * 4 + [False] * 4  # the last four: held out


def test_evaluation_can_corrupt_the_input_and_reports_it(
    scene: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("evaluate", checkpoint, scene, "--device", "cpu")
    levels = ("--corrupt", "image=1", "--corrupt", "depth=2")
    assert run(*base, *levels, "--corruption-seed", "3") == 0
    printed = capsys.readouterr().out
    assert "| vmloc (image masked, depth missing, seed 3) | 8 |" in without_padding(printed)
    folder = Path("evaluation") / "random_image1_depth2"
    assert f"wrote {folder}" in printed
    first = (folder / "estimate.tum").read_text()
    assert json.loads((folder / "metrics.json").read_text())["corruption"]["seed"] == 3
    for seed, same in (("3", True), ("4", False)):
        assert run(*base, *levels, "--corruption-seed", seed) == 0
        assert ((folder / "estimate.tum").read_text() == first) == same
    capsys.readouterr()
    for wrong, match in (
        (("--corrupt", "image"), "not of the form modality=level"),
        (("--corrupt", "lidar=1"), "corruption of 'lidar': the model takes image, depth"),
        (("--corrupt", "image=2", "--corrupt", "depth=2"), "corruption removes all inputs of the model"),
        (("--corrupt", "image=1", "--corruption-seed", "-1"), "seed must not be negative"),
    ):
        assert_one_line(capsys, run(*base, *wrong), match)


def test_evaluation_of_several_checkpoints_gives_mean_and_deviation(
    scene: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess = PreprocessConfig(modalities=("image", "depth"), shortest_side=32)
    kind = {"backbone": "squeezenet1_1", "body_frame": "camera_optical_frame"}
    other, larger = tmp_path / "seed_1.safetensors", tmp_path / "larger.safetensors"
    write_random_checkpoint(other, preprocess=preprocess, seed=1, **kind)
    write_random_checkpoint(larger, preprocess=PreprocessConfig(("image", "depth"), 64), **kind)
    out = ("--out", tmp_path / "results", "--device", "cpu")
    assert run("evaluate", checkpoint, scene, *out, "--also", other) == 0
    printed = without_padding(capsys.readouterr().out)
    single = [
        json.loads((tmp_path / "results" / name / "metrics.json").read_text()) for name in ("1_random", "2_seed_1")
    ]
    medians = [metrics["median_position_m"] for metrics in single]
    assert f"| vmloc | 8 | {np.mean(medians):.3f} ± {np.std(medians, ddof=1):.3f} |" in printed
    assert f"| {other} | 8 | {medians[1]:.3f} |" in printed

    code = run("evaluate", checkpoint, scene, *out, "--also", larger)
    assert_one_line(capsys, code, "larger.safetensors differs from", "preprocess.shortest_side is 64, not 32", "seed")
    code = run("evaluate", checkpoint, scene, *out, "--also", checkpoint)
    assert_one_line(capsys, code, "a checkpoint is given twice")


def test_a_checkpoint_of_an_earlier_version_with_the_same_settings_differs_in_none(
    scene: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header, model = load_checkpoint(checkpoint)
    config = TrainConfig(model=header.model, preprocess=header.preprocess)
    mappings = {"new": to_mapping(config), "old": as_earlier_versions_wrote_it(config), "other": to_mapping(config)}
    mappings["other"]["objective"]["samples"] = 3
    for name, mapping in mappings.items():
        recorded = replace(header, training={**header.training, "config": mapping})
        save_checkpoint(tmp_path / f"{name}.safetensors", recorded, model.state_dict())
    new, old, other = (tmp_path / f"{name}.safetensors" for name in mappings)
    out = ("--out", tmp_path / "results", "--device", "cpu")
    assert run("evaluate", new, scene, *out, "--also", old) == 0
    assert "differs from" not in caplog.text
    assert run("evaluate", old, scene, *out, "--also", other) == 0
    assert "other.safetensors differs from" in caplog.text
    assert "objective.samples is 3, not 10" in caplog.text


def test_models_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    from vmloc_ros.core.models import REGISTRY

    assert run("models") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(REGISTRY)


def test_info_is_valid_json_and_equals_the_header(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", checkpoint, "--json") == 0
    info = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert info["pose_codec"]["scale_m"] == read_header(checkpoint).pose_codec.scale_m
    assert info["model"]["backbone"] == "squeezenet1_1"


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_a_missing_checkpoint(tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.safetensors"
    assert_one_line(capsys, run("info", path), "none.safetensors does not exist", "vmloc train")
    assert_one_line(capsys, run("evaluate", path, scene), "none.safetensors does not exist")


def test_a_damaged_checkpoint(
    tmp_path: Path, scene: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:5000])
    assert_one_line(capsys, run("info", path), "cut.safetensors is truncated or not a vmloc_ros checkpoint")
    assert_one_line(capsys, run("evaluate", path, scene), "cut.safetensors is truncated")


def test_a_checkpoint_for_another_body(tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "base.safetensors"
    write_random_checkpoint(path, ("image", "depth"), backbone="squeezenet1_1")
    code = run("evaluate", path, scene, "--out", tmp_path / "r", "--device", "cpu")
    assert_one_line(capsys, code, "'camera_optical_frame'", "'base_link'")
    assert not (tmp_path / "r").exists()


# --- bags --------------------------------------------------------------------------------------------------------


@pytest.fixture
def train_on_bag(config: Path, tmp_path: Path):
    def train(path: Path, *more: str) -> int:
        only_image = ("--set", "preprocess.modalities=[image]", *more)
        return run("train", "--config", config, "--data", path, "--out", tmp_path / "m.safetensors", *only_image)

    return train


def test_a_bag_without_the_pose_topic(train_on_bag, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(capsys, train_on_bag(image_bag(tmp_path / "bag", with_pose=False)), "has no pose topic", "/image")
    named = ("--set", "source.pose_topic=/gt")
    assert_one_line(capsys, train_on_bag(image_bag(tmp_path / "bag2"), *named), "has no pose topic /gt")


def test_a_topic_of_the_wrong_type(train_on_bag, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = train_on_bag(image_bag(tmp_path / "bag"), "--set", "source.image_topic=/pose")
    assert_one_line(capsys, code, "/pose is geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/Image")


def test_an_empty_bag(train_on_bag, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BagWriter(tmp_path / "bag"):
        pass
    assert_one_line(capsys, train_on_bag(tmp_path / "bag"), "bag", "is empty")


def test_a_bag_that_was_cut_off_is_used_on_request(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = image_bag(tmp_path / "bag").glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-100])
    command = "show", tmp_path / "bag", "--out", tmp_path / "show.png", "--set", "source.stride=1"
    assert_one_line(capsys, run(*command), "cut off after 6 messages, 0.2 s", "mcap recover", "--allow-truncated")
    assert run(*command, "--allow-truncated") == 0
    assert "bag: 3 frames" in capsys.readouterr().out
    assert (tmp_path / "show.png").exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "confidence", "calibrate", "show", "extrinsics", "replay"])
def test_every_command_that_reads_bags_can_be_told_to_use_what_is_there(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    assert "--allow-truncated" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bag.mcap", "bag.db3"])
def test_a_file_that_is_no_bag(train_on_bag, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"no bag at all" * 20)
    assert_one_line(capsys, train_on_bag(tmp_path / name), "cannot read bag", name)


def test_too_little_data_for_a_batch(train_on_bag, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(capsys, train_on_bag(image_bag(tmp_path / "bag")), "fewer than a batch of 4")


# --- 7-Scenes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "convert"])
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("corrupt image", "frame-000003.color.png"),
        ("missing depth", "frame-000003"),
        ("nan pose", "frame-000003.pose.txt"),
        ("missing pose", "frame-000003"),
    ],
)
def test_a_scene_with_a_broken_frame(
    scene: Path,
    config: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    fault: str,
    match: str,
) -> None:
    for sequence in ("seq-01", "seq-02"):
        stem = scene / sequence / "frame-000003"
        if fault == "corrupt image":
            stem.with_suffix(".color.png").write_bytes(b"not a picture")
        elif fault == "missing depth":
            stem.with_suffix(".depth.png").unlink()
        elif fault == "nan pose":
            np.savetxt(stem.with_suffix(".pose.txt"), np.full((4, 4), np.nan))
        else:
            stem.with_suffix(".pose.txt").unlink()
    out = tmp_path / "out.safetensors"
    code = {
        "train": lambda: run("train", "--config", config, "--data", scene, "--out", out),
        "evaluate": lambda: run("evaluate", checkpoint, scene, "--out", out, "--device", "cpu"),
        "convert": lambda: run("convert", "7scenes", scene, "--out", out),
    }[command]()
    assert_one_line(capsys, code, match)
    assert not out.exists()


def test_convert_rejects_what_is_no_scene_and_what_exists(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(capsys, run("convert", "7scenes", tmp_path / "nothing", "--out", tmp_path / "b"), "nothing")
    assert run("convert", "7scenes", scene, "--out", tmp_path / "bag") == 0
    capsys.readouterr()
    assert_one_line(capsys, run("convert", "7scenes", scene, "--out", tmp_path / "bag"), "exists already")
    assert run("convert", "7scenes", scene, "--out", tmp_path / "bag", "--overwrite") == 0
    capsys.readouterr()
    assert_one_line(capsys, run("convert", "7scenes", scene, "--out", tmp_path / "c", "--stride", "0"), "stride")


# --- other input -------------------------------------------------------------------------------------------------


def test_data_that_do_not_exist_or_are_of_no_known_kind(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    (tmp_path / "empty").mkdir()
    assert_one_line(capsys, run("train", "--data", tmp_path / "none", "--out", out), "none does not exist; give a bag")
    assert_one_line(capsys, run("train", "--data", tmp_path / "empty", "--out", out), "empty is neither a bag")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--config", "none.yaml"], "none.yaml is not a readable YAML file"),
        (["--set", "optimizer.epoch=3"], "unknown key epoch"),
        (["--set", "epochs"], "is not of the form key=value"),
        (["--device", "gpu"], "device 'gpu' does not work"),
        (["--set", "model.backbone=resnet33"], "'resnet33' is not a torchvision classification model"),
        (["--set", "pretrained=weights.pth"], "weights.pth does not exist"),
        (["--set", "preprocess.modalities=[image, lidar]"], "lidar"),
    ],
)
def test_wrong_settings_of_a_training_run(
    scene: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    base = ("train", "--config", config, "--data", scene, "--out", tmp_path / "m.safetensors", "--device", "cpu")
    assert_one_line(capsys, run(*base, *arguments), match)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_checkpoint_that_could_not_be_written_is_rejected_before_the_data_are_read(
    scene: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.trainer.train.load_dataset", None)
    base = ("train", "--config", config, "--data", scene, "--device", "cpu")
    assert_one_line(capsys, run(*base, "--out", tmp_path / "model.pth"), "a checkpoint is named *.safetensors")
    (tmp_path / "file").write_text("")
    assert_one_line(capsys, run(*base, "--out", tmp_path / "file" / "m.safetensors"), "could not be written")


def test_resuming_what_was_never_begun(
    scene: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("train", "--config", config, "--data", scene, "--device", "cpu")
    assert_one_line(capsys, run(*base, "--out", tmp_path / "m.safetensors", "--resume"), "nothing to resume")


def test_only_the_reading_of_data_can_be_overridden_in_evaluation(
    scene: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("evaluate", checkpoint, scene, "--set", "preprocess.shortest_side=64", "--device", "cpu")
    assert_one_line(capsys, code, "only source.KEY=VALUE can be set here")
    code = run("evaluate", checkpoint, scene, "--set", "source.strid=2", "--device", "cpu")
    assert_one_line(capsys, code, "unknown key strid")


def test_training_and_validation_data_of_different_bodies(
    scene: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = image_bag(tmp_path / "bag")
    only_image = ("--set", "preprocess.modalities=[image]")
    base = ("train", "--config", config, "--out", tmp_path / "m.safetensors", *only_image)
    assert_one_line(capsys, run(*base, "--data", scene, bag), "poses are of different frames", "base_link")
    assert_one_line(capsys, run(*base, "--data", scene, "--val-data", bag), "poses are of different frames")


def test_results_that_cannot_be_written(
    scene: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code = run("evaluate", checkpoint, scene, "--out", tmp_path / "file", "--device", "cpu")
    assert_one_line(capsys, code, "could not be written")
    code = run("demo", "--out", tmp_path / "file", "--checkpoint", checkpoint)
    assert_one_line(capsys, code, "file")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--traversals", "0"], "traversals, streets and jobs must be at least 1, got 0"),
        (["--laps", "0"], "laps must"),
        (["--streets", "0"], "traversals, streets and jobs must be at least 1, got 1, 0 and 1"),
        (["--image-size", "4x4"], "image_size must be at least 8x8 pixels, got 4x4"),
        (["--camera-rate", "0"], "camera_rate_hz must"),
        (["--beams", "1"], "beams must be 2 to 128, got 1"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_nothing_to_simulate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    assert_one_line(capsys, run("simulate", "--out", tmp_path / "bags", *arguments), match)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/data/x"), OSError(28, "No space left")])
def test_trouble_with_the_machine_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("training.commands.info._info", fail)
    assert_one_line(capsys, run("info", "x"), error.strerror)


def test_an_interrupt_ends_with_the_shells_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.commands.info._info", interrupt)
    assert run("info", "x") == 130
    assert capsys.readouterr().err == "vmloc info: interrupted\n"
