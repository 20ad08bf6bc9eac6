"""Noise: standard deviations from their causes, relative levels, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SEEDS, normal

from rconv.observe.noise import ARITHMETIC, Noise

SIZES = st.floats(1e-6, 1e3)


def test_rounding_is_half_the_spacing_of_the_dtype():
    noise = Noise.of(torch.float16)
    assert noise.relative == 2.0**-11
    assert noise.absolute == 2.0**-25  # half of the smallest subnormal number


@given(SEEDS, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@settings(max_examples=20, deadline=None)
def test_no_entry_is_rounded_by_more_than_the_deviation(seed, dtype):
    g = normal(2, 3, 4, seed=seed) * torch.logspace(-9, 0, 4).double()
    error = (g.to(dtype).double() - g).abs()
    assert (error <= 1.001 * Noise.of(dtype).entry_std("w", g)).all()


@given(SEEDS, SIZES, SIZES, SIZES)
@settings(max_examples=20, deadline=None)
def test_causes_are_independent_so_that_variances_add(seed, relative, spread, deviation):
    g = normal(2, 5, seed=seed)
    whole = Noise(relative, spread, 0.0, {"w": deviation}).entry_std("w", g)
    parts = [Noise(relative), Noise(relative_std=spread), Noise(std={"w": deviation})]
    expected = sum(part.entry_std("w", g) ** 2 for part in parts).sqrt()
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=0)


@given(SEEDS, st.floats(1e-6, 1e-2), st.floats(1e-100, 1e100))
@settings(max_examples=20, deadline=None)
def test_the_level_is_the_ratio_of_the_root_mean_squares(seed, deviation, unit):
    g = normal(3, 4, 2, seed=seed)
    noise = Noise(relative=1e-3, std={"w": deviation * unit})
    expected = noise.entry_std("w", g * unit).flatten(1).norm(dim=1) / (g * unit).flatten(1).norm(
        dim=1
    )
    level = noise.total_relative_std("w", g, torch.full((3,), unit, dtype=torch.float64))
    torch.testing.assert_close(level, expected, rtol=1e-9, atol=0)


def test_levels_of_zeros_of_small_gradients_and_of_float64():
    ones = torch.ones(1).double()
    noise = Noise.of(torch.float32)
    assert noise.total_relative_std("w", torch.zeros(1, 4).double(), ones).item() == noise.relative
    coarse = noise.total_relative_std("w", ones[:, None], torch.tensor([1e-45]).double())
    assert 0.5 < coarse.item() <= 1
    assert Noise.of(torch.float64).total_relative_std("w", ones[:, None], ones).item() == ARITHMETIC
    tiny = noise.total_relative_std("w", ones[:, None], torch.tensor([1e-80]).double())
    assert tiny.item() == 1


@pytest.mark.parametrize("name", ["relative", "relative_std", "absolute"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_deviation_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} noise is"):
        Noise(**{name: value})


def test_rows_have_their_own_deviation_only_where_it_is_told():
    g, unit = normal(2, 3, 4), torch.tensor([1.0, 0.5]).double()
    assert Noise(relative=1e-3, relative_std=1e-2).row_std("w", g, unit) is None
    assert Noise(std={"w": 0.1}).row_std("w", g, unit) is None
    own = 0.1 * normal(3, 4, seed=1).abs()
    rows = Noise(relative=1e-3, std={"w": own}).row_std("w", g, unit)
    size = g.flatten(1).square().mean(dim=1).sqrt()[:, None, None]
    expected = torch.hypot(1e-3 * size, own / unit[:, None, None])
    torch.testing.assert_close(rows, expected)
    level = Noise(relative=1e-3, std={"w": own}).total_relative_std("w", g, unit)
    torch.testing.assert_close(rows.flatten(1).square().mean(dim=1).sqrt() / size[:, 0, 0], level)
