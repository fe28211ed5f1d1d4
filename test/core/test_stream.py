# SPDX-License-Identifier: Apache-2.0
"""Streams of frames, with a toy system whose estimates encode the frames that it received."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import ListSource, random_frame, yaw_pose
from training.evaluation.tracks import evaluate
from vmloc_ros.core.checkpoint import CheckpointHeader
from vmloc_ros.core.errors import ConfigError, ModelError
from vmloc_ros.core.frame import Estimate, Frame, Sample
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.models import ClipModel, ModelConfig, ModelInput, RegressionModel
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import PreprocessConfig

CLIP = 4
PERIOD_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000


class Witness(ClipModel):
    """Predicts x = the frame's own grey value, y = number of earlier frames of the clip, z = number of later ones.

    Copies of one frame count as one. ``clips`` holds the grey values of each clip. White frames overflow.
    """

    clip_length = CLIP

    def __init__(self) -> None:
        super().__init__(("image", "depth"))
        self.passes = 0
        self.clips: list[list[int]] = []

    def frame_features(self, batch: ModelInput) -> Tensor:
        if not bool(batch.present["image"].all()):
            raise ModelError("no image")
        self.passes += 1
        grey = (batch.tensors["image"].mean(dim=(2, 3))[:, :1] + 1) * 127.5
        return grey.masked_fill(grey > 254, torch.inf)

    def decode_clip(self, features: Tensor) -> Tensor:
        grey = features[..., 0]
        self.clips += grey.round().int().tolist()
        before = torch.nn.functional.pad((grey.diff(dim=1) != 0).cumsum(dim=1), (1, 0))
        after = torch.arange(grey.shape[1]).flip(0).expand_as(grey)
        vectors = torch.stack([grey, before, after], dim=-1)
        return torch.cat([vectors, torch.zeros_like(vectors)], dim=-1)


class Single(RegressionModel):
    """Answers x = the frame's own grey value."""

    def forward(self, batch: ModelInput) -> Tensor:
        grey = (batch.tensors["image"].mean(dim=(1, 2, 3)) + 1) * 127.5
        return torch.nn.functional.pad(grey.unsqueeze(1), (0, 5))


def make_localizer(model: RegressionModel) -> Localizer:
    header = CheckpointHeader(
        ModelConfig("witness"),
        PreprocessConfig(modalities=("image", "depth"), shortest_side=32),
        PoseCodec((0.0, 0.0, 0.0), 1.0, (1.0, 0.0, 0.0, 0.0)),
        "map",
        "base_link",
    )
    return Localizer(header, model)


def grey_frame(grey: int, stamp_ns: int | None = None) -> Frame:
    stamp_ns = START_NS + grey * PERIOD_NS if stamp_ns is None else stamp_ns
    return Frame(stamp_ns, np.full((32, 32, 3), grey, np.uint8))


def seen(estimates: list[Estimate]) -> list[tuple[int, int, int]]:
    """Of each estimate: the frame's grey value, number of frames before it, number of frames after it."""
    return [tuple(np.round(estimate.map_from_body.position_m).astype(int).tolist()) for estimate in estimates]


def whole(frames: list[int]) -> list[int]:
    """The newest clip: where there are too few frames, copies of the oldest come before it."""
    return ([frames[0]] * (CLIP - 1) + frames)[-CLIP:]


def test_without_lookahead_every_frame_is_localized_at_once_from_the_newest_clip() -> None:
    stream = make_localizer(Witness()).stream()
    estimated = [seen(stream.feed(grey_frame(i))) for i in range(7)]
    assert estimated == [[(i, min(i, CLIP - 1), 0)] for i in range(7)]
    assert stream.flush() == []


def test_the_first_frames_of_a_clip_follow_copies_of_the_oldest() -> None:
    model = Witness()
    stream = make_localizer(model).stream()
    for grey in range(20, 26):
        stream.feed(grey_frame(grey))
    assert model.clips == [
        [20, 20, 20, 20],
        [20, 20, 20, 21],
        [20, 20, 21, 22],
        [20, 21, 22, 23],
        [21, 22, 23, 24],
        [22, 23, 24, 25],
    ]


def test_with_lookahead_estimates_come_that_much_later_and_the_rest_at_the_end() -> None:
    stream = make_localizer(Witness()).stream(2)
    estimated = [seen(stream.feed(grey_frame(i))) for i in range(6)]
    assert estimated == [[], [], [(0, 0, 2)], [(1, 1, 2)], [(2, 1, 2)], [(3, 1, 2)]]
    assert seen(stream.flush()) == [(4, 2, 1), (5, 3, 0)]
    assert stream.flush() == []


def test_every_frame_passes_the_image_network_once() -> None:
    model = Witness()
    stream = make_localizer(model).stream(3)
    for i in range(9):
        stream.feed(grey_frame(i))
    stream.flush()
    assert model.passes == 9


@pytest.mark.parametrize("step_ns", [0, -1, -(10**12), 10**9 + 1, 10**15])
def test_a_break_in_time_localizes_waiting_frames_and_begins_a_new_clip(step_ns: int) -> None:
    stream = make_localizer(Witness()).stream(1)
    for i in range(3):
        stream.feed(grey_frame(i))
    after_ns = START_NS + 2 * PERIOD_NS + step_ns
    assert seen(stream.feed(grey_frame(100, after_ns))) == [(2, 2, 0)]
    assert seen(stream.feed(grey_frame(101, after_ns + 1))) == [(100, 0, 1)]


def test_a_gap_of_a_second_is_no_break() -> None:
    stream = make_localizer(Witness()).stream()
    stream.feed(grey_frame(0, START_NS))
    assert seen(stream.feed(grey_frame(1, START_NS + 10**9))) == [(1, 1, 0)]


def test_flush_clears_the_clip() -> None:
    stream = make_localizer(Witness()).stream()
    stream.feed(grey_frame(0))
    stream.flush()
    assert seen(stream.feed(grey_frame(1))) == [(1, 0, 0)]


def test_streams_of_one_localizer_do_not_share_frames() -> None:
    localizer = make_localizer(Witness())
    first, second = localizer.stream(), localizer.stream()
    first.feed(grey_frame(0))
    assert seen(second.feed(grey_frame(1))) == [(1, 0, 0)]


def test_an_estimate_has_the_stamp_and_the_modalities_of_its_own_frame() -> None:
    stream = make_localizer(Witness()).stream(1)
    with_depth = replace(grey_frame(0), depth_m=np.ones((32, 32), np.float32))
    assert stream.feed(with_depth) == []
    (first,) = stream.feed(grey_frame(1))
    (second,) = stream.flush()
    assert (first.stamp_ns, first.modalities) == (START_NS, ("image", "depth"))
    assert (second.stamp_ns, second.modalities) == (START_NS + PERIOD_NS, ("image",))
    assert np.linalg.eigvalsh(first.covariance).min() > 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (replace(grey_frame(1), image=None, depth_m=np.ones((32, 32), np.float32)), "no image"),
        (replace(grey_frame(1), image=None), "the frame has nothing"),
        (grey_frame(255, START_NS + PERIOD_NS), "frame at 1700000000100000000 ns: .*not finite"),
    ],
)
def test_a_rejected_frame_is_no_part_of_the_clip(frame: Frame, reason: str) -> None:
    stream = make_localizer(Witness()).stream(1)
    stream.feed(grey_frame(0))
    with pytest.raises(ModelError, match=reason):
        stream.feed(frame)
    assert seen(stream.feed(grey_frame(2))) == [(0, 0, 1)]
    assert seen(stream.feed(grey_frame(3))) == [(2, 1, 1)]


def test_a_system_of_single_frames_estimates_as_localize_does_in_any_order() -> None:
    localizer = make_localizer(Single(("image", "depth")))
    stream = localizer.stream()
    for grey in (5, 3, 200):
        (estimate,) = stream.feed(grey_frame(grey))
        np.testing.assert_array_equal(
            estimate.map_from_body.matrix, localizer.localize(grey_frame(grey)).map_from_body.matrix
        )
        assert estimate.map_from_body.position_m[0] == pytest.approx(grey, abs=1e-3)
    assert stream.flush() == []


@pytest.mark.parametrize(
    ("model", "lookahead", "limit"), [(Witness, -1, CLIP), (Witness, CLIP, CLIP), (Single, 1, 1), (Single, -1, 1)]
)
def test_a_lookahead_not_less_than_the_clip_is_rejected(model: type, lookahead: int, limit: int) -> None:
    localizer = make_localizer(Witness() if model is Witness else Single(("image",)))
    with pytest.raises(ConfigError, match=rf"less than the {limit} frame\(s\) that witness .*, got {lookahead}$"):
        localizer.stream(lookahead)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([-(10**9), 0, PERIOD_NS, PERIOD_NS, PERIOD_NS, 10**10]), max_size=20), st.integers(0, 3)
)
def test_every_frame_is_localized_once_in_order_and_within_its_clip(steps: list[int], lookahead: int) -> None:
    model = Witness()
    stream = make_localizer(model).stream(lookahead)
    clips: list[list[int]] = [[]]
    estimated: list[tuple[int, int, int]] = []
    stamp_ns = START_NS
    for grey, step in enumerate([PERIOD_NS, *steps]):
        stamp_ns += step
        if grey and step != PERIOD_NS:
            clips.append([])
        clips[-1].append(grey)
        estimated += seen(stream.feed(grey_frame(grey, stamp_ns)))
    estimated += seen(stream.flush())
    expected = []
    for clip in clips:
        for i, grey in enumerate(clip):
            after = min(lookahead, len(clip) - 1 - i)
            expected.append((grey, min(i, CLIP - 1 - after), after))
    assert estimated == expected
    past = [whole(clip[: i + 1]) for clip in clips for i in range(len(clip))]
    assert all(clip in past for clip in model.clips)


@pytest.mark.parametrize("lookahead", [0, 2])
def test_evaluation_pairs_every_estimate_with_its_own_truth(lookahead: int) -> None:
    """The sources are shorter than, equal to and longer than the lookahead; one goes on where another ended."""
    greys = [list(range(5)), [5], [50, 51]]
    sources = [ListSource([Sample(grey_frame(g), yaw_pose(float(g))) for g in source]) for source in greys]
    result = evaluate(make_localizer(Witness()), sources, progress=False, lookahead=lookahead)
    estimates = seen(result.estimates)
    assert (
        [grey for grey, _, _ in estimates]
        == [pose.position_m[0] for pose in result.truth]
        == [g for source in greys for g in source]
    )
    assert [after for _, _, after in estimates] == [
        min(lookahead, len(g) - 1 - i) for g in greys for i in range(len(g))
    ]
    assert estimates[5] == (5, 0, 0)  # not a part of the source before it


def test_evaluation_rejects_a_lookahead_not_less_than_the_clip() -> None:
    source = ListSource([Sample(random_frame(0, names=("image",)), yaw_pose(0.0))])
    with pytest.raises(ConfigError, match="got 9"):
        evaluate(make_localizer(Witness()), [source], progress=False, lookahead=9)
