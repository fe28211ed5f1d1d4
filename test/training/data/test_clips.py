# SPDX-License-Identifier: Apache-2.0
"""Clips: how training draws them, and how a system that reads them is validated and served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import ListSource, random_frame, yaw_pose
from training.config import TrainConfig, parse_config
from training.data.dataset import PreparedDataset, prepare_dataset
from training.data.model_input import batches
from training.data.sampler import clip_table, segments
from training.prediction import predict
from training.testing import write_random_checkpoint
from training.trainer.trainer import Trainer
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from vmloc_ros.core.errors import DataError
from vmloc_ros.core.frame import Estimate, Frame, Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ClipModel, ModelInput, build_model, model_config
from vmloc_ros.core.models.rotation import pose_vectors
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig, Preprocessor

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
PICTURES = PreprocessConfig(("image",), 32)
METRES = PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0))


# --- which frames form a clip ------------------------------------------------------------------------------------

drives = st.lists(st.integers(1, 12), min_size=1, max_size=4)  # frames of each sequence


def rows_of(lengths: list[int], held_out: set[int]) -> tuple[Tensor, Tensor]:
    sequences = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return sequences, torch.tensor([row for row in range(len(sequences)) if row not in held_out], dtype=torch.long)


def test_runs_end_at_the_end_of_a_sequence_and_at_missing_rows() -> None:
    sequences, rows = rows_of([4, 5], {1, 6})
    runs = segments(sequences, rows)
    assert [run.tolist() for run in runs] == [[0], [2, 3], [4, 5], [7, 8]]
    assert segments(sequences, rows[:0]) == []


@settings(max_examples=60, deadline=None)
@given(drives, st.sets(st.integers(0, 40)), st.integers(1, 5), st.integers(1, 4))
def test_a_clip_never_leaves_its_run_and_is_the_past_of_its_row_extended_by_the_first_of_the_run(
    lengths: list[int], held_out: set[int], length: int, spacing: int
) -> None:
    sequences, rows = rows_of(lengths, held_out)
    runs = segments(sequences, rows)
    clips = clip_table(runs, length, spacing)
    assert clips.shape == (len(rows), length)
    kept = set(rows.tolist())
    for row, clip in zip(rows.tolist(), clips.tolist(), strict=True):
        # Everything between its ends was kept and is of one sequence.
        assert kept.issuperset(range(clip[0], row + 1))
        assert sequences[clip[0]] == sequences[clip[-1]] == sequences[row]
        assert clip == sorted(clip)
        first = next(run[0].item() for run in runs if row in run)
        past = [first] * (length * spacing) + list(range(first, row + 1))
        assert clip == past[::-spacing][:length][::-1]


def test_clips_near_the_beginning_and_in_short_runs_repeat_the_first_frame() -> None:
    runs = [torch.arange(10, 16), torch.arange(30, 32)]
    assert clip_table(runs, 3, 2).tolist() == [
        [10, 10, 10],
        [10, 10, 11],
        [10, 10, 12],
        [10, 11, 13],
        [10, 12, 14],
        [11, 13, 15],
        [30, 30, 30],
        [30, 30, 31],
    ]


def test_frames_seen_singly_are_clips_of_one() -> None:
    sequences, rows = rows_of([3, 2], {1})
    assert clip_table(segments(sequences, rows), 1, 1).flatten().tolist() == rows.tolist()


# --- clips in training -------------------------------------------------------------------------------------------


def recording(count: int, break_before: Sequence[int] = ()) -> list[Sample]:
    """Frame i is a picture of the brightness 10 i; its pose lies at (i, 0, 0)."""
    samples, stamp_ns = [], 0
    for i in range(count):
        stamp_ns += 5_000_000_000 if i in break_before else 100_000_000
        samples.append(Sample(Frame(stamp_ns, np.full((32, 32, 3), 10 * i, np.uint8)), yaw_pose(float(i))))
    return samples


def prepared(count: int, break_before: Sequence[int] = ()) -> PreparedDataset:
    """A recording's frames as rows."""
    source = ListSource(recording(count, break_before))
    return prepare_dataset([source], Preprocessor(PICTURES), progress=False)


def config(system: str, **model: Any) -> TrainConfig:
    values = {
        "shared_by_systems": True,
        "model": {"name": system, "backbone": "squeezenet1_1", "feature_dim": 8, "recurrent_dim": 8, **model},
        "preprocess": {"modalities": ["image"], "shortest_side": 32},
        "optimizer": {"epochs": 1, "batch_size": 8},
        "augment": {"colour_jitter": 0.0},
        "validation": {"every": 0},
        "pretrained": False,
    }
    return parse_config(values, None, "test")


def trainer(data: PreparedDataset, out: Path, configuration: TrainConfig) -> Trainer:
    return Trainer(configuration, data, out, map_frame="map", body_frame="camera", device=CPU)


@pytest.mark.parametrize(("system", "length", "spacing"), [("vidloc", 4, 1), ("mapnet", 2, 3)])
def test_training_shows_whole_clips_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, length: int, spacing: int
) -> None:
    run = trainer(prepared(24), tmp_path / "m.safetensors", config(system, clip_length=length, clip_spacing=spacing))
    shown = []
    terms = run._training.objective.terms

    def watch(model: ClipModel, batch: ModelInput, target: Tensor) -> dict[str, Tensor]:
        brightness = (batch.tensors["image"].mean(dim=(1, 2, 3)) + 1) * 127.5 / 10
        shown.append((brightness, target[:, 0]))
        return terms(model, batch, target)

    monkeypatch.setattr(run._training.objective, "terms", watch)
    run.run(progress=False)
    assert len(shown) == 3  # as many batches of 8 as there are frames
    rows = torch.stack([brightness for brightness, _ in shown]).view(-1, length)
    assert rows.shape == (24 // length, length)
    ends = rows[:, -1].round().int().tolist()
    assert len(set(ends)) == len(ends)
    past = [[max(0, end - spacing * i) for i in reversed(range(length))] for end in ends]
    torch.testing.assert_close(rows, torch.tensor(past, dtype=rows.dtype), atol=1e-3, rtol=0)
    # Targets are those of the frames shown: evenly spaced as the poses are.
    targets = torch.stack([target for _, target in shown]).view(-1, length)
    scale = float(np.sqrt(np.var(np.arange(24)) / 3))
    torch.testing.assert_close(targets, (rows - 11.5) / scale, atol=1e-3, rtol=1e-3)


def test_data_without_two_successive_frames_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MapNet trains on clips of 3 frames, but no two of the training frames follow"):
        trainer(prepared(8, break_before=range(8)), tmp_path / "m.safetensors", config("mapnet"))


# --- predictions on prepared data -----------------------------------------------------------------------------------


class Adder(ClipModel):
    """Predicts running sums of a clip's rows, which identify the frames of the clip; stores each clip's rows."""

    def __init__(self, clip_length: int = 3) -> None:
        super().__init__(("image",))
        self.clip_length = clip_length
        self.shown: list[list[int]] = []

    def frame_features(self, batch: ModelInput) -> Tensor:
        return ((batch.tensors["image"].mean(dim=(1, 2, 3)) + 1) * 12.75).unsqueeze(1)

    def decode_clip(self, features: Tensor) -> Tensor:
        self.shown += features[..., 0].round().int().tolist()
        return torch.cat([features.cumsum(dim=1), features.new_zeros(*features.shape[:2], 5)], dim=2)


def test_validation_looks_back_on_the_clip_and_never_across_a_break() -> None:
    rows = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])  # 4 is held out
    prediction = predict(Adder(), prepared(10, break_before=[6]), rows, Preprocessor(PICTURES), METRES, CPU)
    clips = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (5, 5, 5), (6, 6, 6), (6, 6, 7), (6, 7, 8), (7, 8, 9)]
    expected = [sum(clip) for clip in clips]
    np.testing.assert_allclose(prediction.positions_m[:, 0], expected, atol=1e-4)
    assert prediction.sample_positions_m.shape[0] == 0


@pytest.mark.parametrize("length", [1, 3, 6, 20])
def test_training_shows_each_frame_with_the_history_that_validation_and_a_robots_stream_give_it(length: int) -> None:
    """Runs of 7, 1 and 4 frames: longer and shorter than the clip."""
    count, breaks = 12, [7, 8]
    data, rows = prepared(count, breaks), torch.arange(count)
    trained_on = clip_table(segments(data.sequences, rows), length, 1).tolist()
    assert [clip[-1] for clip in trained_on] == rows.tolist()

    robot, validated = Adder(length), Adder(length)
    sizes = model_config("vidloc", clip_length=length)
    stream = Localizer(CheckpointHeader(sizes, PICTURES, METRES, "map", "base_link"), robot).stream()
    for sample in recording(count, breaks):
        stream.feed(sample.frame)
    assert robot.shown == trained_on
    predict(validated, data, rows, Preprocessor(PICTURES), METRES, CPU)
    assert validated.shown == trained_on


def test_validation_and_a_robots_stream_give_the_same_estimates() -> None:
    """Prepared in batches and decoded run by run, or frame by frame through the localizer, with modalities lost."""
    sizes = model_config("vidloc", "squeezenet1_1", feature_dim=8, recurrent_dim=8, clip_length=3)
    preprocess = PreprocessConfig(("image", "lidar"), 32)
    preprocessor = Preprocessor(preprocess)
    frames, rows = drive(np.arange(6) * 0.1), torch.arange(6)
    source = ListSource([Sample(frame, yaw_pose(0.0)) for frame in frames])
    data = prepare_dataset([source], preprocessor, progress=False)
    torch.manual_seed(0)
    model = build_model(sizes, preprocessor.channels)
    with torch.no_grad():
        model(next(batches(data, rows, preprocessor, CPU)))  # a step of training, which sets the image's size
    prediction = predict(model, data, rows, preprocessor, METRES, CPU)

    stream = Localizer(CheckpointHeader(sizes, preprocess, METRES, "map", "base_link"), model).stream()
    estimates = [estimate for frame in frames for estimate in stream.feed(frame)]
    positions = [estimate.map_from_body.position_m for estimate in estimates]
    np.testing.assert_allclose(positions, prediction.positions_m, atol=1e-5)


# --- VidLoc in a stream ------------------------------------------------------------------------------------------

CLIP = 4


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    """A vidloc with random weights and clips of four frames."""
    path = tmp_path_factory.mktemp("vidloc") / "model.safetensors"
    write_random_checkpoint(path, system="vidloc")
    header, model = load_checkpoint(path)
    header = dataclasses.replace(header, model=dataclasses.replace(header.model, clip_length=CLIP))
    save_checkpoint(path, header, model.state_dict())
    return Localizer.load(path, "cpu")


def drive(stamps_s: Sequence[float]) -> list[Frame]:
    """Different frames; every third has lost its cloud, every third its image."""
    names = [("image", "lidar"), ("image",), ("lidar",)]
    frames = [random_frame(i, names=names[i % 3]) for i in range(len(stamps_s))]
    return [dataclasses.replace(f, stamp_ns=round(s * 1e9)) for f, s in zip(frames, stamps_s, strict=True)]


def decoded(localizer: Localizer, frames: Sequence[Frame]) -> np.ndarray:
    """Positions ``(T, 3)`` of the newest frames, cut by hand; a clip is made of them with copies of the oldest."""
    clip = [frames[0]] * (CLIP - len(frames)) + list(frames)
    with torch.no_grad():
        features = torch.cat([localizer.model.frame_features(localizer.preprocess(frame)) for frame in clip])
        vectors = localizer.model.decode_clip(features.unsqueeze(0))[0]
    return localizer.header.pose_codec.decode(pose_vectors(vectors).numpy())[0][-len(frames) :]


def assert_at(estimate: Estimate, frame: Frame, position_m: np.ndarray) -> None:
    assert estimate.stamp_ns == frame.stamp_ns
    assert estimate.modalities == frame.modalities
    np.testing.assert_allclose(estimate.map_from_body.position_m, position_m, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_only_a_bidirectional_vidloc_uses_the_future(bidirectional: bool) -> None:
    torch.manual_seed(0)
    sizes = model_config("vidloc", "squeezenet1_1", feature_dim=8, recurrent_dim=8, bidirectional=bidirectional)
    model = build_model(sizes, {"image": 3}).eval()
    features = torch.randn(1, 5, 8)
    changed = features.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        before, after = model.decode_clip(features), model.decode_clip(changed)
    moved = ((before - after).abs() > 1e-6).any(dim=-1)[0].tolist()
    assert moved == ([True] * 5 if bidirectional else [False, False, False, True, True])


def test_without_lookahead_each_frame_is_estimated_at_once_from_the_past_window(localizer: Localizer) -> None:
    frames = drive(np.arange(7) * 0.1)
    stream = localizer.stream()
    moved = 0.0
    for i, frame in enumerate(frames):
        (estimate,) = stream.feed(frame)
        expected = decoded(localizer, frames[max(0, i - CLIP + 1) : i + 1])[-1]
        assert_at(estimate, frame, expected)
        moved = max(moved, float(np.abs(expected - decoded(localizer, [frame])[0]).max()))
    assert moved > 1e-3  # the window matters
    assert stream.flush() == []


def test_a_frame_by_itself_is_estimated_as_the_first_of_a_stream(localizer: Localizer) -> None:
    for frame in drive(np.arange(3) * 0.1):
        assert_at(localizer.localize(frame), frame, decoded(localizer, [frame])[0])
        assert_at(localizer.stream().feed(frame)[0], frame, decoded(localizer, [frame])[0])


@pytest.mark.parametrize("lookahead", [1, 3])
def test_with_lookahead_each_frame_waits_for_its_future(localizer: Localizer, lookahead: int) -> None:
    frames = drive(np.arange(7) * 0.1)
    stream = localizer.stream(lookahead)
    for newest, frame in enumerate(frames):
        due = stream.feed(frame)
        assert len(due) == (newest >= lookahead)
        if due:
            clip = frames[max(0, newest - CLIP + 1) : newest + 1]
            assert_at(due[0], frames[newest - lookahead], decoded(localizer, clip)[-1 - lookahead])
    rest = stream.flush()
    expected = decoded(localizer, frames[-CLIP:])[-lookahead:]
    for estimate, frame, position in zip(rest, frames[-lookahead:], expected, strict=True):
        assert_at(estimate, frame, position)


@pytest.mark.parametrize("jump_s", [-0.05, 3.0], ids=["back", "gap"])
def test_a_break_in_time_estimates_what_waits_and_begins_anew(localizer: Localizer, jump_s: float) -> None:
    frames = drive([0.0, 0.1, 0.2, jump_s, jump_s + 0.1, jump_s + 0.2])
    stream = localizer.stream(lookahead=1)
    estimates = [stream.feed(frame) for frame in frames]
    assert [len(due) for due in estimates] == [0, 1, 1, 1, 1, 1]
    before, after = frames[:3], frames[3:]
    assert_at(estimates[3][0], before[2], decoded(localizer, before)[2])
    assert_at(estimates[4][0], after[0], decoded(localizer, after[:2])[0])
    assert_at(estimates[5][0], after[1], decoded(localizer, after)[1])
