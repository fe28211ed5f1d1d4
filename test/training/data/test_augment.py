# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import helpers  # noqa: F401 (one thread for torch)
from training.data.augment import AugmentConfig, augment, drop_modalities, zero_dropped
from vmloc_ros.core.projection import RANGE, VALIDITY, CylindricalConfig, cylindrical_points, cylindrical_projection

pytestmark = pytest.mark.numeric


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    generator = seeded(42)
    validity = (torch.rand(count, 1, 12, 16, generator=generator) < 0.8).float()
    return {
        "image": torch.randint(0, 256, (count, 3, 12, 16), generator=generator, dtype=torch.uint8),
        "depth": torch.cat([torch.rand(count, 1, 12, 16, generator=generator) * 9 * validity, validity], dim=1),
        "lidar": torch.cat([torch.rand(count, 4, 12, 16, generator=generator) * validity, validity], dim=1),
    }


def test_a_seed_gives_the_same_augmentation_and_another_seed_another() -> None:
    first, again = (augment(batch(), AugmentConfig(), seeded(1)) for _ in range(2))
    other = augment(batch(), AugmentConfig(), seeded(2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_global_random_state_neither_matters_nor_moves() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = augment(batch(), AugmentConfig(), seeded(1))
    drop_modalities({"image": torch.ones(9, dtype=torch.bool)}, 0.4, seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(first["image"], augment(batch(), AugmentConfig(), seeded(1))["image"])


def test_what_is_given_stays_as_it_was() -> None:
    data, copies = batch(), batch()
    augment(data, AugmentConfig(0.8, 0.8, 0.4), seeded())
    assert all(torch.equal(data[name], copies[name]) for name in data)


def test_strength_zero_changes_nothing() -> None:
    data = batch()
    result = augment(data, AugmentConfig(0.0, 0.0, 0.0), seeded())
    assert all(torch.equal(result[name], data[name]) for name in data)


def test_lost_measurements_lose_all_channels_and_their_validity_and_nothing_else_moves() -> None:
    data = batch()
    result = augment(data, AugmentConfig(measurement_dropout=0.5), seeded())
    for name in ("depth", "lidar"):
        kept = result[name][:, -1:] == 1
        assert torch.equal(result[name], data[name] * kept)
        assert bool((data[name][:, -1:][kept] == 1).all())  # nothing became valid
        assert bool((result[name][:, :-1][~kept.expand_as(result[name][:, :-1])] == 0).all())


def test_the_share_of_lost_measurements_varies_per_sample_up_to_the_limit() -> None:
    data = {"depth": torch.ones(400, 2, 20, 20)}
    lost = 1 - augment(data, AugmentConfig(measurement_dropout=0.3), seeded())["depth"][:, 1].mean(dim=(1, 2))
    assert float(lost.max()) < 0.3 + 4 * (0.3 * 0.7 / 400) ** 0.5
    assert float(lost.min()) < 0.02
    assert float(lost.mean()) == pytest.approx(0.15, abs=0.02)


def test_colours_stay_between_0_and_255_and_vary_per_sample() -> None:
    image = batch(32)["image"][:1].expand(32, -1, -1, -1)
    result = augment({"image": image}, AugmentConfig(colour_jitter=0.8), seeded())["image"]
    assert float(result.min()) >= 0
    assert float(result.max()) <= 255
    assert len({round(float(x.mean()), 3) for x in result}) == 32


def test_brightness_varies_within_the_strength() -> None:
    """A uniform grey has no contrast and no saturation to change, but for the channels' own gains."""
    image = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    means = augment({"image": image}, AugmentConfig(colour_jitter=0.4), seeded())["image"].mean(dim=(1, 2, 3)) / 100
    assert 1 - 0.4 * 1.1 - 0.1 <= float(means.min()) < 0.7
    assert 1.3 < float(means.max()) <= 1.4 * 1.1
    assert float(means.mean()) == pytest.approx(1.0, abs=0.05)


# --- Eq. 18 ------------------------------------------------------------------------------------------------------


def test_modalities_are_dropped_with_the_papers_probabilities() -> None:
    """p = 3/5, 1/5, 1/5; the bounds fail one correct program in a million."""
    count = 20_000
    present = {name: torch.ones(count, dtype=torch.bool) for name in ("image", "lidar")}
    result = drop_modalities(present, 0.4, seeded())
    image, lidar = result["image"], result["lidar"]
    for share, seen in ((0.6, image & lidar), (0.2, image & ~lidar), (0.2, ~image & lidar)):
        low, high = binom.interval(1 - 1e-6, count, share)
        assert low <= int(seen.sum()) <= high
    assert not bool((~image & ~lidar).any())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.floats(0, 0.99), st.integers(0, 10_000))
def test_no_sample_loses_its_last_modality_and_none_gains_one(count: int, probability: float, seed: int) -> None:
    generator = seeded(seed)
    present = {str(i): torch.rand(50, generator=generator) < 0.5 for i in range(count)}
    present["0"] |= ~torch.stack(list(present.values())).any(0)
    result = drop_modalities(present, probability, generator)
    assert list(result) == list(present)
    assert bool(torch.stack(list(result.values())).any(0).all())
    for name in present:
        assert not bool((result[name] & ~present[name]).any())


def test_probability_zero_keeps_all_and_presence_given_stays() -> None:
    present = {"image": torch.tensor([True, False, True]), "lidar": torch.tensor([True, True, False])}
    copies = {name: x.clone() for name, x in present.items()}
    result = drop_modalities(present, 0.0, seeded())
    drop_modalities(present, 0.9, seeded())
    for name in present:
        assert torch.equal(result[name], copies[name])
        assert torch.equal(present[name], copies[name])


def test_a_model_of_one_modality_never_loses_it() -> None:
    present = {"image": torch.ones(1000, dtype=torch.bool)}
    assert bool(drop_modalities(present, 0.9, seeded())["image"].all())


def test_noise_of_the_given_deviation_falls_on_measured_distances_and_on_nothing_else() -> None:
    validity = (torch.rand(40, 1, 30, 40, generator=seeded()) < 0.7).float()
    data = {"depth": torch.cat([torch.full((40, 1, 30, 40), 5.0) * validity, validity], dim=1)}
    result = augment(data, AugmentConfig(0.0, 0.0, 0.0, measurement_noise_m=0.1), seeded(1))["depth"]
    assert torch.equal(result[:, 1:], data["depth"][:, 1:])
    assert bool((result[:, :1][validity == 0] == 0).all())
    noise = result[:, :1][validity > 0] - 5.0
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)  # some 34 000 draws
    assert noise.mean().item() == pytest.approx(0.0, abs=0.003)


def test_noise_moves_a_lidar_point_along_its_beam() -> None:
    xyz = torch.randn(2, 300, 3, generator=seeded()) * 8
    picture = cylindrical_projection(xyz, torch.rand(2, 300, generator=seeded()), CylindricalConfig(16, 64))
    before = cylindrical_points(picture)
    result = augment({"lidar": picture}, AugmentConfig(0.0, 0.0, 0.0, measurement_noise_m=0.5), seeded(1))["lidar"]
    after = cylindrical_points(result)
    valid = (picture[:, VALIDITY] > 0) & (result[:, RANGE] > 0)
    directions = torch.nn.functional.cosine_similarity(before, after)[valid]
    torch.testing.assert_close(directions, torch.ones_like(directions))
    torch.testing.assert_close(torch.linalg.vector_norm(after, dim=1), result[:, RANGE], rtol=1e-5, atol=1e-4)
    assert 0.4 < (result[:, RANGE] - picture[:, RANGE])[valid].std() < 0.6
    assert torch.equal(result[:, 2:], picture[:, 2:])
    assert not bool(result.masked_select(picture[:, VALIDITY:] == 0).any())


def test_negative_noise_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"measurement_noise_m must not be negative, got -0\.1"):
        AugmentConfig(measurement_noise_m=-0.1)


def test_what_was_dropped_becomes_zero_and_what_was_never_there_stays_as_it_is() -> None:
    data = batch(3)
    present = {"image": torch.tensor([True, True, False]), "depth": torch.tensor([True, True, True])}
    kept = {"image": torch.tensor([True, False, False]), "depth": torch.tensor([False, True, True])}
    result = zero_dropped({name: data[name] for name in present}, present, kept)
    assert not bool(result["image"][1].any())
    assert not bool(result["depth"][0].any())
    for name, rows in (("image", [0, 2]), ("depth", [1, 2])):
        assert torch.equal(result[name][rows], data[name][rows])
        assert result[name].dtype == data[name].dtype
