# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.stats import kstest

from confidence_builders import SMALL, write_judged_checkpoint
from helpers import p_values, random_frame
from training.testing import write_random_checkpoint
from vmloc_ros.core.checkpoint import Residuals, load_checkpoint, load_confidence, save_checkpoint
from vmloc_ros.core.confidence import P_VALUES, Confidence, NullDistribution, neg_log_p_value, stack_outlier_scores
from vmloc_ros.core.errors import CheckpointError
from vmloc_ros.core.localizer import Localizer
from vmloc_ros.core.reference_features import ReferenceFeatures

pytestmark = pytest.mark.numeric

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


# --- null distributions ------------------------------------------------------------------------------------------


def test_p_values_of_other_samples_of_the_distribution_are_uniform() -> None:
    """Kolmogorov's distance of two empirical distributions of 5000: below 0.0326 with probability 0.99."""
    rng = np.random.default_rng(2)
    null = NullDistribution.fit(rng.gumbel(size=5000))
    p_values = np.exp(null.log_p_value(rng.gumbel(size=5000)))
    assert kstest(p_values, "uniform").statistic < 0.0326


def test_a_p_value_is_one_for_the_smallest_scores_and_decays_without_end_for_the_largest() -> None:
    null = NullDistribution.fit(np.linspace(0, 1, 101))
    values = null.log_p_value([-5.0, 0.0, 0.5, 0.9, 1.0, 2.0, 20.0])
    assert values[0] == values[1] == 0
    assert np.exp(values[2]) == pytest.approx(0.5)
    assert np.exp(values[3]) == pytest.approx(0.1)
    assert (np.diff(values[1:]) < 0).all()
    assert values[-1] < np.log(1e-6)


def test_equal_scores_have_the_p_value_of_all_that_are_as_large() -> None:
    """Most scores of in-distribution frames may be exactly zero: none of these is an outlier."""
    null = NullDistribution.fit(np.concatenate([np.zeros(75), np.linspace(0.1, 1, 25)]))
    assert null.log_p_value(0.0) == 0
    assert np.exp(null.log_p_value(0.1)) == pytest.approx(0.25, abs=0.05)
    assert np.exp(NullDistribution.fit(np.zeros(50)).log_p_value([0.0, 1e-3])).tolist() == [1.0, 0.0]


# --- outlier scores ----------------------------------------------------------------------------------------------


def some_references(frames: int = 400, offset_m: float = 0.0) -> tuple[ReferenceFeatures, np.ndarray, np.ndarray]:
    """References whose 12 features are a noisy smooth function of the place along a line; positions; features."""
    rng = np.random.default_rng(3)
    places = np.linspace(0, 50, frames)
    phases = np.outer(places / 5, np.arange(1, 7) / 3)
    features = np.concatenate([np.sin(phases), np.cos(phases)], axis=1) * np.linspace(3, 0.5, 12)
    features += rng.normal(scale=0.05, size=features.shape)
    positions = np.stack([places + offset_m, np.zeros(frames) + 10 * offset_m, np.zeros(frames)], axis=1)
    references = ReferenceFeatures.fit(features, features, positions, np.tile(UPRIGHT, (frames, 1)), 15.0, rank=4)
    return references, positions, features


def test_novelty_is_the_mahalanobis_distance_under_the_low_rank_gaussian() -> None:
    """Oracle: the full covariance, from the eigenvectors of the features' own."""
    references, positions, features = some_references()
    values, vectors = np.linalg.eigh(np.cov(features.T, bias=True))
    values[:-4] = values[:-4].mean()
    inverse = np.linalg.inv(vectors @ np.diag(values) @ vectors.T)
    queries = np.random.default_rng(4).normal(scale=4, size=(30, 12))
    centred = queries - features.mean(axis=0)
    expected = np.log(1 + np.einsum("ni,ij,nj->n", centred, inverse, centred))
    novelty = references.outlier_scores(queries, positions[:30], np.tile(UPRIGHT, (30, 1)))[:, 0]
    np.testing.assert_allclose(novelty, expected, atol=0.02)  # the basis is stored in half precision


def test_place_mismatch_is_the_share_of_references_nearer_in_features_than_those_at_the_pose() -> None:
    references, positions, features = some_references()
    rows = np.array([20, 200, 390])
    poses = positions[rows] + [0.1, 0.0, 0.0], np.tile(UPRIGHT, (3, 1))
    right = references.outlier_scores(features[rows], *poses)[:, 1]
    wrong = references.outlier_scores(features[[300, 30, 150]], *poses)[:, 1]
    assert right.max() < 0.01
    assert wrong.min() > 0.05
    weight = references.variance.astype(float) ** -0.25
    others = references.coordinates.astype(float) * weight
    query = (features[300] - references.mean) @ references.basis.astype(float) * weight
    unlike = [float(np.sum((query - other) ** 2)) for other in others]
    around = sorted(range(400), key=lambda i: abs(positions[i, 0] - poses[0][0, 0]))[:4]
    assert wrong[0] == pytest.approx(np.mean([one < min(unlike[i] for i in around) for one in unlike]))


def test_a_heading_that_no_reference_frame_has_there_is_a_place_mismatch() -> None:
    rng = np.random.default_rng(5)
    forth, back = rng.normal(size=(2, 1, 8)) + rng.normal(scale=0.1, size=(2, 200, 8))
    positions = np.tile(np.stack([np.linspace(0, 30, 200)] + [np.zeros(200)] * 2, axis=1), (2, 1))
    turned = np.array([0.0, 0.0, 0.0, 1.0])
    quaternions = np.concatenate([np.tile(UPRIGHT, (200, 1)), np.tile(turned, (200, 1))])
    features = np.concatenate([forth, back])
    references = ReferenceFeatures.fit(features, features, positions, quaternions, 10.0)
    for heading, expected in ((UPRIGHT, 0.02), (-UPRIGHT, 0.02)):  # both signs are the same rotation
        assert references.outlier_scores(features[100:101], positions[100:101], heading[None])[0, 1] < expected
    assert references.outlier_scores(features[100:101], positions[100:101], turned[None])[0, 1] > 0.4


def test_the_origin_of_the_map_does_not_matter() -> None:
    (near, positions, features), (far, moved, _) = some_references(), some_references(offset_m=600_000.0)
    quaternions = np.tile(UPRIGHT, (len(features), 1))
    np.testing.assert_allclose(
        near.outlier_scores(features, positions, quaternions), far.outlier_scores(features, moved, quaternions)
    )


def test_fewer_reference_frames_than_features_work() -> None:
    features = np.random.default_rng(6).normal(size=(10, 40))
    references = ReferenceFeatures.fit(features, features, np.zeros((10, 3)), np.tile(UPRIGHT, (10, 1)), 1.0)
    assert np.isfinite(references.outlier_scores(features * 3, np.zeros((10, 3)), np.tile(UPRIGHT, (10, 1)))).all()


# --- confidence --------------------------------------------------------------------------------------------------


def confidence_of(references: ReferenceFeatures, positions: np.ndarray, features: np.ndarray) -> Confidence:
    quaternions = np.tile(UPRIGHT, (len(features), 1))
    scores = stack_outlier_scores({"image": references}, ("image",), {"image": features}, positions, quaternions)
    single = tuple(NullDistribution.fit(score) for score in scores.T)
    return Confidence(
        {"image": references}, {("image",): (*single, NullDistribution.fit(neg_log_p_value(scores, single)))}
    )


def test_confidence_is_uniform_on_in_distribution_frames_and_small_on_others() -> None:
    references, positions, features = some_references(1600)
    rng = np.random.default_rng(7)
    quaternions = np.tile(UPRIGHT, (len(features), 1))
    first, second = (features + rng.normal(scale=0.1, size=features.shape) for _ in range(2))
    confidence = confidence_of(references, positions, first)
    good = p_values(confidence, ("image",), {"image": second}, positions, quaternions)
    assert good is not None
    assert 0 <= good.min() <= good.max() <= 1
    assert np.mean(good < 0.05) == pytest.approx(0.05, abs=0.035)  # more than four standard errors of both draws
    assert np.mean(good < 0.5) == pytest.approx(0.5, abs=0.11)
    foreign = rng.normal(scale=3, size=features.shape)
    for bad, where in ((foreign, positions), (second, positions[::-1])):
        values = p_values(confidence, ("image",), {"image": bad}, where, quaternions)
        assert values is not None
        assert np.mean(values < 0.05) > 0.6


def test_sensors_without_null_distributions_have_no_confidence() -> None:
    references, positions, features = some_references()
    confidence = confidence_of(references, positions, features)
    assert p_values(confidence, ("lidar",), {"lidar": features}, positions, UPRIGHT[None]) is None


# --- in a checkpoint and on a robot ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judged_checkpoint(tmp_path_factory.mktemp("confidence") / "model.safetensors")


def test_a_checkpoint_stores_the_confidence(checkpoint: Path) -> None:
    first, second = load_confidence(checkpoint), load_confidence(checkpoint)
    assert first is not None
    assert second is not None
    assert set(first.null_distributions) == {("image", "lidar"), ("image",), ("lidar",)}
    assert {"memory.image.remembered", "memory.image.rest", "tails.image+lidar"} <= set(first.to_tensors())  # as ever
    again = Confidence.from_tensors(first.to_tensors()).to_tensors()
    for name, array in second.to_tensors().items():
        np.testing.assert_array_equal(array, again[name])
        assert array.dtype == again[name].dtype


def test_a_confidence_changes_no_pose_and_no_weight(checkpoint: Path, tmp_path: Path) -> None:
    header, model = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "without.safetensors", header, model.state_dict())
    assert load_confidence(tmp_path / "without.safetensors") is None
    plain, confident = (Localizer.load(path, "cpu") for path in (tmp_path / "without.safetensors", checkpoint))
    frame = random_frame(3, (32, 40))
    a, b = plain.localize(frame), confident.localize(frame)
    np.testing.assert_array_equal(a.map_from_body.matrix, b.map_from_body.matrix)
    np.testing.assert_array_equal(a.covariance, b.covariance)
    assert a.confidence is None
    assert b.confidence is not None


@pytest.mark.parametrize("names", [("image", "lidar"), ("image",), ("lidar",)])
def test_the_localizer_and_a_batch_give_one_confidence_for_every_set_of_sensors(
    checkpoint: Path, names: tuple[str, ...]
) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    frame = random_frame(7, (32, 40), names)
    estimate = localizer.localize(frame)
    with torch.no_grad():
        prediction = localizer.model.locate(localizer.preprocess(frame), localizer.header.pose_codec)
    assert localizer.confidence is not None
    expected = p_values(
        localizer.confidence,
        names,
        {name: x.numpy() for name, x in prediction.features.items()},
        prediction.positions_m,
        prediction.quaternions_wxyz,
    )
    assert expected is not None
    assert estimate.confidence == pytest.approx(float(expected[0]))
    assert 0 <= estimate.confidence <= 1


def test_the_covariance_grows_with_the_negative_log_p_value(checkpoint: Path) -> None:
    frames = [
        random_frame(7, (32, 40)),
        dataclasses.replace(random_frame(7, (32, 40)), image=np.zeros((32, 40, 3), "u1")),
    ]
    even, growing = Localizer.load(checkpoint, "cpu"), Localizer.load(checkpoint, "cpu")
    uncertainty = dataclasses.replace(growing.header.uncertainty, growth=(0.2, 0.1))
    growing.header = dataclasses.replace(growing.header, uncertainty=uncertainty)
    even.drop_outlier_sensors = growing.drop_outlier_sensors = False
    grown = []
    for frame in frames:
        covariances = (localizer.localize(frame).covariance for localizer in (growing, even))
        grown.append(np.log(np.divide(*(matrix.diagonal() for matrix in covariances))))
    np.testing.assert_allclose(grown[0], np.repeat([0.4, 0.2], 3) * grown[0][0] / 0.4)
    assert 0 <= grown[0][0] / 0.4 < 5
    np.testing.assert_allclose(grown[1], np.repeat([0.4, 0.2], 3) * 5)  # the largest that factors are fitted to


def test_black_and_empty_input_has_less_confidence_than_nearly_all_in_distribution_frames(checkpoint: Path) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    localizer.drop_outlier_sensors = False
    good = random_frame(500, (32, 40))
    assert good.image is not None
    black = dataclasses.replace(good, image=np.zeros_like(good.image))
    for bad in (black, dataclasses.replace(black, cloud=None)):
        confidence = localizer.localize(bad).confidence
        assert confidence is not None
        assert confidence < 0.02


def test_a_sensor_with_outlier_features_is_dropped_as_if_it_were_missing(checkpoint: Path) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    good = random_frame(500, (32, 40))
    assert good.image is not None
    grey = dataclasses.replace(good, image=np.full_like(good.image, 128))
    found, alone = localizer.localize(grey), localizer.localize(dataclasses.replace(good, image=None))
    assert (found.modalities, found.dropped_sensors) == (("lidar",), ("image",))
    assert (alone.modalities, alone.dropped_sensors) == (("lidar",), ())
    np.testing.assert_array_equal(found.map_from_body.matrix, alone.map_from_body.matrix)
    np.testing.assert_array_equal(found.covariance, alone.covariance)
    assert found.confidence == alone.confidence
    assert alone.confidence is not None
    assert alone.confidence > 0.02


def test_no_sensor_is_dropped_in_distribution_or_where_none_would_remain(checkpoint: Path) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    dropped_sensors = [
        bool(localizer.localize(random_frame(seed, (32, 40))).dropped_sensors) for seed in range(600, 640)
    ]
    assert sum(dropped_sensors) <= 3  # one of two sensors, of one in a hundred each
    good = random_frame(500, (32, 40))
    assert good.image is not None
    grey = dataclasses.replace(good, image=np.full_like(good.image, 128), cloud=None)
    found = localizer.localize(grey)
    assert (found.modalities, found.dropped_sensors) == (("image",), ())
    assert found.confidence is not None
    assert found.confidence < 0.02


def test_no_sensor_is_dropped_where_the_rest_would_have_no_confidence(checkpoint: Path) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    assert localizer.confidence is not None
    kept = {names: nulls for names, nulls in localizer.confidence.null_distributions.items() if names != ("lidar",)}
    localizer.confidence = Confidence(localizer.confidence.references, kept)
    good = random_frame(500, (32, 40))
    assert good.image is not None
    found = localizer.localize(dataclasses.replace(good, image=np.full_like(good.image, 128)))
    assert (found.modalities, found.dropped_sensors) == (("image", "lidar"), ())


def test_an_outlier_sensor_stays_where_the_others_are_no_more_confident(checkpoint: Path) -> None:
    """A grey picture beside a scan whose own estimate has a confidence of zero."""
    localizer = Localizer.load(checkpoint, "cpu")
    good = random_frame(500, (32, 40))
    assert good.image is not None
    grey = dataclasses.replace(good, image=np.full_like(good.image, 128))
    localizer.drop_outlier_sensors = False
    whole = localizer.localize(grey)
    assert localizer.confidence is not None
    nulls = dict(localizer.confidence.null_distributions)
    never = NullDistribution(np.full(len(P_VALUES), -1e9), 1e-9)  # every score has a p-value of zero
    nulls["lidar",] = (never,) * len(nulls["lidar",])
    localizer.confidence, localizer.drop_outlier_sensors = Confidence(localizer.confidence.references, nulls), True
    found = localizer.localize(grey)
    assert (found.modalities, found.dropped_sensors) == (("image", "lidar"), ())
    assert found.confidence == whole.confidence


def test_an_outlier_sensor_stays_where_the_others_alone_are_far_less_precise(checkpoint: Path) -> None:
    localizer = Localizer.load(checkpoint, "cpu")
    good = random_frame(500, (32, 40))
    assert good.image is not None
    grey = dataclasses.replace(good, image=np.full_like(good.image, 128))
    assert localizer.localize(grey).dropped_sensors == ("image",)
    coarse = Residuals((100.0,) * 6, (1.0, 1.0), ("lidar",))
    uncertainty = dataclasses.replace(localizer.header.uncertainty, missing=(coarse,))
    localizer.header = dataclasses.replace(localizer.header, uncertainty=uncertainty)
    assert localizer.localize(grey).dropped_sensors == ()


@pytest.mark.parametrize("system", ["vmloc", "vmloc_dense"])
def test_features_alone_are_those_of_the_prediction(system: str, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "m.safetensors", system=system, backbone="shufflenet_v2_x0_5", preprocess=SMALL)
    localizer = Localizer.load(tmp_path / "m.safetensors", "cpu")
    for names in (("image", "lidar"), ("image",), ("lidar",)):
        batch = localizer.preprocess(random_frame(1, (32, 40), names))
        with torch.no_grad():
            alone = localizer.model.modality_features(batch)
            predicted = localizer.model.locate(batch, localizer.header.pose_codec).features
        assert set(names) <= set(alone)
        for name in names:
            torch.testing.assert_close(alone[name], predicted[name])


@pytest.mark.parametrize("damage", ["confidence.memory.lidar.basis", "confidence.tails.image", "memory"])
def test_a_damaged_confidence_is_an_error_that_names_the_file(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if damage == "memory":
        tensors = {name: x for name, x in tensors.items() if not name.startswith("confidence.memory.lidar")}
    elif "tails" in damage:
        tensors[damage] = tensors[damage][:, 1:].clone()
    else:
        del tensors[damage]
    safetensors.torch.save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors: the tensors of the confidence are damaged"):
        Localizer.load(tmp_path / "damaged.safetensors", "cpu")
