"""The attack inside the frameworks that people use: Flower, Opacus, breaching and LeakPro.

Each module translates what a framework hands over, and nothing else; it is not imported unless
asked for, and needs its framework installed. ``pip install 'rconv[adapters]'`` brings Flower and
Opacus. breaching and LeakPro pin other versions of their dependencies and want an environment of
their own; `rconv.adapters.breaching` and `rconv.adapters.leakpro` say how to make it.
"""

from collections.abc import Iterable

from torch import Tensor


def normalised_range(mean: Iterable[float] | Tensor, std: Iterable[float] | Tensor) -> tuple:
    """What pixels in [0, 1] lie between after (x - mean) / std, over all channels.

    Parameters
    ----------
    mean, std : iterable of float or Tensor
        Axis (channel C); a tensor may have axes of length 1 besides.

    Returns
    -------
    tuple of float
        Least and greatest value.
    """
    means, stds = ([float(x) for x in (v.flatten() if isinstance(v, Tensor) else v)]
                   for v in (mean, std))  # fmt: skip
    pairs = list(zip(means, stds, strict=True))
    return min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)
