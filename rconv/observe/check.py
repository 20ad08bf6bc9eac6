"""Refuses gradients that are no gradients of the model, before any work starts."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rconv.model.wrappers import unwrapped_name
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients, ordinary

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What gradients are computed and sent in. Eight bits are a compression of their own, with scales
beside them that a tensor does not carry."""

LARGEST = 1e300
"""The sums of more entries than memory holds must stay below the end of float64, 1.8e308."""


def check_gradients(
    model: nn.Module,
    gradients: Gradients | Sequence[Tensor],
    exact: Collection[str] | None = None,
    *,
    partial: bool = False,
) -> tuple[dict[str, Tensor], Noise]:
    """Gradients as the attack uses them: float64, on the model's device, leading axis N.

    Parameters
    ----------
    gradients : mapping or sequence of Tensor
        Name → tensor shaped as the parameter, or with a leading axis N; or the tensors alone in the
        order of ``model.parameters()``, as `torch.autograd.grad` returns them.
    exact : collection of str, optional
        Names of those that equations are made of, all by default; others may stay float32.
    partial : bool
        Whether some may be missing, or None, as those of frozen parameters are.

    Returns
    -------
    gradients : dict of str to Tensor, float64
        Name → `(N, *parameter shape)`, in the order of the parameters; of those that are there.
    noise : Noise
        The rounding of their coarsest dtype.

    Raises
    ------
    ValueError
        At a missing or unknown name, a wrong shape, unequal N, NaN, infinity or entries above
        `LARGEST`, and at what is no dense tensor of one of `DTYPES`.
    """
    parameters = dict(model.named_parameters())
    trained = [name for name, p in parameters.items() if p.requires_grad]
    gradients = _by_name(list(parameters), trained if partial else [], gradients)
    missing = [name for name in parameters if gradients.get(name) is None]
    unknown = [name for name in gradients if name not in parameters]
    if unknown:
        raise ValueError(f"the model has no parameter {unknown[0]!r}; are these its gradients?")
    if len(missing) == len(parameters) or (missing and not partial):
        raise ValueError(f"no gradient for {', '.join(missing)}: the attack needs all of them")
    parameters = {name: p for name, p in parameters.items() if name not in missing}
    checked, counts = {}, {}
    for name, parameter in parameters.items():
        gradient = gradients[name]
        _check_kind(name, gradient)
        counts[name] = _count(name, gradient, parameter)
        least = torch.float64 if exact is None or name in exact else torch.float32
        dtype = torch.promote_types(gradient.dtype, least)
        gradient = ordinary(gradient.detach()).to(parameter.device, dtype)
        checked[name] = gradient.reshape(-1, *parameter.shape)
        sound = (checked[name].abs() < min(LARGEST, torch.finfo(dtype).max)).flatten(1).all(dim=1)
        if not sound.all():
            raise ValueError(
                f"the gradient of {name} has NaN or infinite entries, or some above {LARGEST:g} "
                f"(image {int((~sound).nonzero()[0])})"
            )
    if len(set(counts.values())) > 1:
        raise ValueError(f"the gradients are of different numbers of images: {counts}")
    coarsest = max((gradients[name].dtype for name in parameters), key=lambda t: torch.finfo(t).eps)
    return checked, Noise.of(coarsest)


def declared_noise(
    model: nn.Module, rounding: Noise, relative_std: float | None = None, noise: Noise | None = None
) -> Noise:
    """What the attacker knows of the errors: what was declared, or else the rounding.

    The attacker may state the error relative to the root mean square of each parameter's gradient,
    in `relative_std`, or more than that in `noise`. Raises ValueError if either is invalid or
    names a parameter that the model does not have.
    """
    if relative_std is not None:
        if not 0 <= _number(relative_std) < math.inf:
            raise ValueError(
                f"relative_std must be a finite number, 0 or more, got {relative_std!r}"
            )
        rounding = Noise(relative_std=_number(relative_std), absolute=rounding.absolute)
    if noise is None:
        return rounding
    if not isinstance(noise, Noise):
        raise ValueError(f"the noise must be a Noise, got {type(noise).__name__}")
    parameters = dict(model.named_parameters())
    for name, deviation in noise.std.items():
        if name not in parameters:
            raise ValueError(f"the noise names {name!r}, which the model has no parameter of")
        deviation = torch.as_tensor(deviation, dtype=torch.float64)
        if not (deviation >= 0).all():
            raise ValueError(
                f"the noise of {name} must be 0 or more, or infinite where nothing is observed"
            )
        shape = parameters[name].shape
        ends = zip(reversed(deviation.shape), reversed(shape), strict=False)
        if deviation.dim() > len(shape) + 1 or any(n not in (1, full) for n, full in ends):
            raise ValueError(f"the noise of {name} does not fit its shape {tuple(shape)}")
    return noise


def check_value_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """Return the range of the pixels as two numbers.

    Raises ValueError unless they are finite, the first below the second.
    """
    try:
        low, high = map(_number, value_range)
    except (TypeError, ValueError):  # not two
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"the value range must be two finite numbers, the lower one first, got {value_range!r}"
        )
    return low, high


def _number(value: object) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _by_name(
    names: list[str], trained: list[str], gradients: Gradients | Sequence[Tensor]
) -> Gradients:
    if isinstance(gradients, Mapping):
        return {unwrapped_name(name, names): gradient for name, gradient in gradients.items()}
    if isinstance(gradients, str) or not isinstance(gradients, Sequence):
        raise ValueError(
            "gradients must be a mapping from parameter name to tensor, or a sequence in the "
            f"order of model.parameters(), got {type(gradients).__name__}"
        )
    if trained and len(gradients) == len(trained):
        names = trained
    if len(gradients) != len(names):
        raise ValueError(
            f"{len(gradients)} gradients for {len(names)} parameters: give one for each, in the "
            "order of model.parameters(); those of several images stand in one tensor each, with "
            "a leading axis N"
        )
    return dict(zip(names, gradients, strict=True))


def _check_kind(name: str, gradient: Tensor) -> None:
    if not torch.is_tensor(gradient) or not gradient.is_floating_point():
        raise ValueError(f"the gradient of {name} must be a floating-point tensor")
    if gradient.is_meta:
        raise ValueError(f"the gradient of {name} has no values, it is on the meta device")
    if gradient.layout is not torch.strided or gradient.is_nested:
        raise ValueError(f"the gradient of {name} is sparse or nested: use its to_dense()")
    if gradient.dtype not in DTYPES:
        kinds = ", ".join(str(t).removeprefix("torch.") for t in DTYPES)
        raise ValueError(f"the gradient of {name} is {gradient.dtype}: use one of {kinds}")


def _count(name: str, gradient: Tensor, parameter: Tensor) -> int:
    if gradient.shape == parameter.shape:
        return 1
    if gradient.shape[1:] == parameter.shape and len(gradient) > 0:
        return len(gradient)
    raise ValueError(
        f"the gradient of {name} has the shape {tuple(gradient.shape)}; expected "
        f"{tuple(parameter.shape)}, or (N, …) of the same for N images"
    )


def normalised_range(
    mean: Iterable[float] | Tensor, std: Iterable[float] | Tensor
) -> tuple[float, float]:
    """What pixels in [0, 1] lie between after (x - mean) / std, over all channels."""
    means, stds = ([float(x) for x in (v.flatten() if isinstance(v, Tensor) else v)]
                   for v in (mean, std))  # fmt: skip
    pairs = list(zip(means, stds, strict=True))
    return min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)
