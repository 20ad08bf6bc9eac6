"""Metrics: known values, invariants, and what is not a number."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rconv.lab.metrics import gain, mse, psnr, quality, ssim

pytestmark = pytest.mark.arithmetic

SYMMETRIC = [mse, lambda x, y: psnr(x, y, data_range=1), lambda x, y: ssim(x, y, data_range=1)]
METRICS = [*SYMMETRIC, gain]
NAMES = ["mse", "psnr", "ssim", "gain"]


def images(seed=0, shape=(3, 3, 16, 16)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mse_of_known_errors():
    x = torch.zeros(3, 1, 2, 2)
    y = x.clone()
    y[1] = 0.5
    y[2, 0, 0, 0] = 2
    assert mse(x, y).tolist() == [0, 0.25, 1]
    assert mse(x, y).dtype == torch.float64


def test_mse_does_not_wrap_8_bit_values():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert mse(x, x + 200).item() == 40_000


def test_psnr_of_known_errors():
    x = torch.zeros(4, 1, 2, 2, dtype=torch.float64)
    y = x + torch.tensor([0.0, 1.0, 0.1, 1e-3]).view(4, 1, 1, 1).double()
    expected = torch.tensor([math.inf, 0, 20, 60]).double()
    assert torch.allclose(psnr(x, y, data_range=1), expected, rtol=0, atol=1e-5)


def test_psnr_holds_where_the_error_is_tiny():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert psnr(x, x + 1e-155, data_range=1).item() == pytest.approx(3100)


@given(st.integers(0, 10**6), st.floats(1e-12, 10))
@settings(max_examples=50, deadline=None)
def test_psnr_is_minus_ten_log_mse_and_a_peak_of_255_adds_48_db(seed, size):
    x = images(seed, (2, 1, 4, 4))
    y = x + size * (images(seed + 1, (2, 1, 4, 4)) - 0.5)
    one = psnr(x, y, data_range=1)
    assert torch.allclose(one, -10 * mse(x, y).log10(), rtol=0, atol=1e-9)
    added = psnr(x, y, data_range=255) - one
    assert torch.allclose(added, torch.full_like(added, 48.1308036), rtol=0, atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0.1, 300))
@settings(max_examples=25, deadline=None)
def test_psnr_and_ssim_do_not_depend_on_the_unit(seed, unit):
    x, y = images(seed, (1, 1, 12, 12)), images(seed + 1, (1, 1, 12, 12))
    for metric in (psnr, ssim):
        scaled = metric(unit * x, unit * y, data_range=unit)
        assert torch.allclose(scaled, metric(x, y, data_range=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", SYMMETRIC, ids=NAMES[:3])
def test_metrics_are_symmetric(metric):
    x, y = images(0), images(1)
    assert torch.allclose(metric(x, y), metric(y, x), rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_metrics_keep_the_images_apart(metric):
    x, y = images(0), images(1)
    together = metric(x, y)
    assert together.shape == (3,)
    alone = torch.cat([metric(x[n : n + 1], y[n : n + 1]) for n in range(3)])
    # Sums over other shapes are in another order: a few units of rounding, in dB of 10 / ln 10.
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)


def test_ssim_of_known_images():
    x = images()
    assert torch.allclose(ssim(x, x, data_range=1), torch.ones(3).double())
    # Two constant images: only the luminance term remains, (2 a b + c) / (a² + b² + c).
    a, b, c = 0.25, 0.75, 0.01**2
    flat = torch.ones(1, 1, 16, 16)
    expected = (2 * a * b + c) / (a * a + b * b + c)
    assert ssim(a * flat, b * flat, data_range=1).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_is_wangs_with_a_gaussian_window():
    """An independent construction: the formula of Wang et al. with an explicit 11 × 11 window."""
    x, y = images(0, (1, 1, 24, 20)), images(1, (1, 1, 24, 20))
    y = 0.7 * x + 0.3 * y
    line = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 1.5) ** 2)
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(z):
        return torch.nn.functional.conv2d(z, window)

    c1, c2 = 0.01**2, 0.03**2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    expected = (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(x, y, data_range=1).item() == pytest.approx(expected.item(), abs=1e-12)


def test_ssim_averages_over_the_channels():
    x, y = images(0), images(1)
    each = [ssim(x[:, c : c + 1], y[:, c : c + 1], data_range=1) for c in range(3)]
    assert torch.allclose(ssim(x, y, data_range=1), torch.stack(each).mean(0), rtol=1e-12)


@given(st.integers(0, 10**6), st.floats(0.1, 300))
@settings(max_examples=50, deadline=None)
def test_gain_is_the_psnr_above_that_of_the_flat_image(seed, data_range):
    """An independent construction: the flat image is made, and measured as any other."""
    x, truth = (data_range * images(s, (2, 3, 4, 4)) for s in (seed, seed + 1))
    flat = torch.stack([torch.full_like(t, float(t.mean())) for t in truth])
    above = psnr(x, truth, data_range=data_range) - psnr(flat, truth, data_range=data_range)
    assert torch.allclose(gain(x, truth), above, rtol=0, atol=1e-9)
    assert gain(flat, truth).abs().max() < 1e-9


def test_no_flat_image_has_a_gain():
    truth = images()
    greys = torch.linspace(-1, 2, 31).double()
    gains = torch.stack([gain(torch.full_like(truth, float(g)), truth) for g in greys])
    assert gains.max() < 0.01


def test_gain_of_known_images():
    truth = torch.tensor([0.0, 1.0]).double().repeat(3, 1, 2, 1)  # mean and deviation are 1/2
    x = truth + torch.tensor([0.0, 0.05, 1.0]).double().view(3, 1, 1, 1)
    expected = torch.tensor([math.inf, 20, 20 * math.log10(0.5)]).double()
    assert torch.allclose(gain(x, truth), expected)


def test_a_flat_truth_leaves_nothing_to_gain():
    flat = torch.full((2, 1, 4, 4), 0.3)
    x = flat.clone()
    x[0, 0, 0, 0] = 0.4
    wrong, equal = gain(x, flat).tolist()
    assert wrong < -60 and not equal > 0


def test_quality_has_every_measure():
    x, y = images(0), images(1)
    found = quality(x, y)
    assert list(found) == NAMES
    for name, metric in zip(NAMES, METRICS, strict=True):
        assert torch.equal(found[name], metric(x, y))


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_an_image_that_is_not_a_number_spoils_only_itself(metric):
    x, y = images(0), images(1)
    clean = metric(x, y)
    y[1, 0, 0, 0] = math.nan
    value = metric(x, y)
    assert value[1].isnan()
    assert torch.equal(value[[0, 2]], clean[[0, 2]])


def test_an_infinite_value_is_an_infinite_error():
    x, y = images(0), images(1)
    y[0, 0, 0, 0] = math.inf
    assert mse(x, y)[0] == math.inf
    assert psnr(x, y, data_range=1)[0] == -math.inf
    assert ssim(x, y, data_range=1)[0].isnan()


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="different shapes"):
        metric(images(), images()[:1])  # would broadcast
    with pytest.raises(ValueError, match="axes"):
        metric(images()[0], images()[0])


def test_ssim_refuses_images_smaller_than_its_window():
    small = images(shape=(1, 1, 10, 16))
    with pytest.raises(ValueError, match="11 × 11"):
        ssim(small, small, data_range=1)
    assert ssim(images(shape=(1, 1, 11, 11)), images(shape=(1, 1, 11, 11)), data_range=1) == 1


@pytest.mark.parametrize("data_range", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_data_range_must_be_positive(metric, data_range):
    with pytest.raises(ValueError, match="data range"):
        metric(images(), images(), data_range=data_range)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_data_range_is_mandatory(metric):
    with pytest.raises(TypeError, match="data_range"):
        metric(images(), images())


def test_ssim_takes_tensors_that_require_gradients():
    x = images().requires_grad_()
    assert np.isfinite(ssim(x, images(1), data_range=1).numpy()).all()


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_ssim_is_scikit_images(noise):
    from skimage.metrics import structural_similarity

    x = images(shape=(1, 3, 20, 13))
    y = x + noise * images(1, shape=(1, 3, 20, 13))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    a, b = x[0].double().numpy(), y[0].double().numpy()
    expected = structural_similarity(a, b, data_range=1.0, channel_axis=0, **options)
    assert ssim(x, y, data_range=1).item() == pytest.approx(expected, abs=1e-12)
