"""How close a reconstruction is: MSE, PSNR, SSIM and the gain over a flat image, one per image.

All of them take two tensors of the same shape with axes (image N, channel C, row, column), of any
real dtype, and return float64 with axis (image N); other shapes are refused with a ValueError. An
image with a value that is not a number scores not a number. None of them clips: a value outside
the data range counts as the error that it is.

A data range R is the difference between the largest and the smallest value that an image can have:
1 for values in [0, 1]. It has no default on purpose: 255 instead of 1 adds 48.13 dB.
"""

import math

import scipy
import torch

WINDOW = 11
"""Rows and columns of SSIM's window: a Gaussian of σ = 1.5 pixels, cut off at 3.5 σ."""

SIGMA, K1, K2 = 1.5, 0.01, 0.03
"""Of SSIM: the width of its window, and its two constants, relative to the data range."""


def quality(x: torch.Tensor, y: torch.Tensor, data_range: float = 1.0) -> dict[str, torch.Tensor]:
    """All measures of reconstructions `x` of images `y`; of small ones SSIM is NaN."""
    small = min(y.shape[-2:]) < WINDOW
    return {
        "mse": mse(x, y),
        "psnr": psnr(x, y, data_range=data_range),
        "ssim": torch.full((len(y),), torch.nan) if small else ssim(x, y, data_range=data_range),
        "gain": gain(x, y),
    }


def mse(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, over its channels and pixels."""
    _check_shapes(x, y)
    return (x.double() - y.double()).square().mean(dim=(1, 2, 3))


def psnr(x: torch.Tensor, y: torch.Tensor, *, data_range: float) -> torch.Tensor:
    r"""Peak signal-to-noise ratio of each image, :math:`10 \log_{10} (R^2 / \mathrm{MSE})`.

    In decibels: 0 where the error is as large as the data range R, infinite where the images are
    equal.
    """
    _check_range(data_range)
    return 20 * math.log10(data_range) - 10 * mse(x, y).log10()


def flat(images: torch.Tensor) -> torch.Tensor:
    """Each image's mean over channels and pixels at every place: a picture that shows nothing."""
    return images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)


def gain(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    r"""Decibels above a flat mean-grey image, :math:`10 \log_{10} (\sigma^2 / \mathrm{MSE})`.

    The PSNR of the reconstruction `x` less that of the flat image that comes closest to the truth,
    its mean grey, off by its variance σ². The data range cancels. Photographs have a σ of 0.1 to
    0.25 of their range, so that a picture of nothing scores 12 to 20 dB in PSNR, and 0 here.
    Negative where the flat image is closer. Where the truth is flat itself, minus infinity, or not
    a number if the images are equal, too.
    """
    error = mse(x, truth)
    deviation = truth.double() - flat(truth.double())
    variance = deviation.square().mean(dim=(1, 2, 3))
    return 10 * (variance.log10() - error.log10())


def ssim(x: torch.Tensor, y: torch.Tensor, *, data_range: float) -> torch.Tensor:
    """Structural similarity of each image, the mean over its pixels and channels.

    From -1 to 1, and 1 only where the images are equal. The images have at least 11 rows and
    columns; the channels are compared one by one and averaged.

    References
    ----------
    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", IEEE Transactions on Image Processing 13 (2004),
    doi 10.1109/TIP.2003.819861: the Gaussian window, K1 = 0.01 and K2 = 0.03 of its section III,
    over all windows that lie inside the image. scikit-image gives the same.
    """
    _check_range(data_range)
    _check_shapes(x, y)
    if min(x.shape[2:]) < WINDOW:
        sides = tuple(x.shape[2:])
        raise ValueError(f"SSIM needs at least {WINDOW} × {WINDOW} pixels, not {sides}")
    x, y = x.detach().double(), y.detach().double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x.square()) - mean_x.square() + _blurred(y.square()) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    values = (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))
    sound = (x + y).flatten(1).isfinite().all(dim=1)
    return torch.where(sound, values, math.nan)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """Weighted mean of every window that lies inside an image, float64."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=images.device) - WINDOW // 2
    weights = (-0.5 * (offsets / SIGMA).square()).exp()
    weights = weights / weights.sum()
    rows = images.unfold(2, WINDOW, 1) @ weights
    return rows.unfold(3, WINDOW, 1) @ weights


def _check_shapes(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"the images have different shapes, {tuple(x.shape)} and {tuple(y.shape)}")
    if x.ndim != 4:
        raise ValueError(f"images have axes (N, C, row, column), not shape {tuple(x.shape)}")


def _check_range(data_range: float) -> None:
    if not 0 < data_range < math.inf:
        raise ValueError(f"the data range is {data_range}: it must be positive, 1 for [0, 1]")


def matched(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The order of the images `x` of a batch that fits `y` best: of least total squared error."""
    _check_shapes(x, y)
    costs = torch.cdist(y.double().flatten(1), x.double().flatten(1)).square().nan_to_num(1e300)
    _, order = scipy.optimize.linear_sum_assignment(costs.cpu().numpy())
    return torch.from_numpy(order).to(x.device)
