"""Does THIS model leak? Its own weights, images, the attack, and the truth as the judge.

`rconv.audit` computes what the shapes allow at best. Here the attack is made: which share of the
images comes back as the only one possible, and how well the prior shows the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.audit import NOT_UNIQUE, TOO_LARGE
from rconv.data.datasets import photographs
from rconv.lab.experiment import as_dtype
from rconv.lab.features import Features, any_exact, features
from rconv.lab.intervals import rate_interval
from rconv.lab.metrics import flat, matched, psnr
from rconv.lab.records import SHOWN, score
from rconv.lab.scenarios import Scenario, client_model, sent
from rconv.model.wrappers import shared_copy, tensor_of
from rconv.observe.check import check_value_range
from rconv.observe.observation import Loss

VISIBLE = 10 * math.log10(2)
"""Decibels above a flat image from which on a picture counts as showing something: its mean
squared error is less than half the truth's variance."""

LEAKS, PARTLY, NOT_BY_THIS_ATTACK = RISKS = ("leaks", "partly", "not by this attack")
"""How much the attack shows of some image: all of it; a part, or the features that a Linear takes;
or nothing."""

LAYER_COLUMNS = ("layer", "unknowns", "equations leave", "signs close", "left open", "images short")


@dataclass(frozen=True)
class Trial:
    """What the attack made of N images, and the truth.

    Parameters
    ----------
    source : str
        Which images they are, in words.
    dtype : str
        Of the gradients that were sent.
    truth : Tensor
        (N, C, H, W), float64, the images.
    reconstruction : Reconstruction
        The attack's answer, which does not know them.
    psnr : Tensor
        (N,), in dB, of the reconstructions, cut to the pixels' range, whose width is the peak.
    flat : Tensor
        (N,), in dB: the PSNR of a flat image of the truth's mean grey, which shows nothing.
    false : Tensor
        (N,), bool: called unique and wrong (`rconv.lab.records.score`). There must be none.
    features : Features or None
        What the gradients of a Linear reveal, whatever became of the images.
    """

    source: str
    dtype: str
    truth: Tensor
    reconstruction: Reconstruction
    psnr: Tensor
    flat: Tensor
    false: Tensor
    features: Features | None = None

    @staticmethod
    def concatenate(parts: Sequence["Trial"]) -> "Trial":
        """Trials of one model in one scenario, one after the other."""
        first = parts[0]
        joined = {
            name: torch.cat([getattr(own, name) for own in parts])
            for name in ("truth", "psnr", "flat", "false")
        }
        known = None
        if first.features is not None:
            own = [part.features for part in parts]
            pairs = {n: torch.cat([getattr(f, n) for f in own]) for n in ("error", "labels")}
            known = replace(first.features, **pairs)
        whole = Reconstruction.concatenate([own.reconstruction for own in parts])
        return replace(first, reconstruction=whole, features=known, **joined)

    @property
    def unique(self) -> Tensor:
        """(N,), bool: the attack's own verdict, whether its image is the only one possible."""
        return self.reconstruction.unique

    @property
    def share(self) -> tuple[float, float, float]:
        """Share of images that are unique, and its 95 % interval for more images of their kind.

        The interval of Clopper and Pearson (`rconv.lab.intervals`), each image a draw of its own:
        the model is the one that is asked about.
        """
        unique = self.unique.int().tolist()
        low, high = rate_interval(unique, [1] * len(unique))
        return sum(unique) / len(unique), low, high

    @property
    def recovered(self) -> Tensor:
        """(N,), bool: shown at `SHOWN` or more, or called the only one possible and right."""
        return (self.psnr >= SHOWN) | (self.unique & ~self.false.to(self.psnr.device))

    @property
    def visible(self) -> Tensor:
        """(N,), bool: recovered, or at least `VISIBLE` dB above a flat image."""
        return self.recovered | (self.psnr - self.flat >= VISIBLE)

    @property
    def risk(self) -> str:
        """A value of `RISKS`, that of the image that is shown best."""
        if self.recovered.any():
            return LEAKS
        return PARTLY if any_exact(self.features) or self.visible.any() else NOT_BY_THIS_ATTACK

    @property
    def clear(self) -> int:
        """Images that are shown at 40 dB (`rconv.lab.records.SHOWN`) or more, unique or not."""
        return int((self.psnr >= SHOWN).sum())

    @property
    def layers(self) -> list[tuple[str, int, float, float, float, int]]:
        """Per layer, head first, what `LAYER_COLUMNS` name.

        Its name and unknowns; medians over the images of the directions that the equations leave
        open, that signs close of them, and that are left; and for how many images some are left.
        """
        return [
            (
                r.name,
                r.unknowns,
                *(_median(values) for values in (r.unknowns - r.rank, r.signs, r.open)),
                int((r.open > 0).sum()),
            )
            for r in self.reconstruction.layers
        ]

    @property
    def verdict(self) -> str:
        """The answer in one line, with the PSNR that is to be expected."""
        won, others = self.psnr[self.unique], ~self.unique
        text = f"{len(won)} of {len(self.psnr)} images reconstructed as the only ones possible"
        if len(won):
            text += f" ({_decibels(won)}, worst {float(won.min()):.0f})"
        if others.any():
            count = int(others.sum())
            several = f"the other {count} are" if len(won) else "all are"
            one = "the other is" if len(won) else "it is"
            text += f"; {one if count == 1 else several} shown at {self._shown(others)}"
        if self.false.any():
            text += f"; {int(self.false.sum())} CALLED UNIQUE AND WRONG, which is a fault of rconv"
        return text

    def _shown(self, which: Tensor) -> str:
        """How well the images are shown that are not unique."""
        psnr, flat = self.psnr[which], self.flat[which]
        best = f", best {float(psnr.max()):.0f}" if len(psnr) > 1 else ""
        text = f"{_decibels(psnr)}{best} (flat image: {_decibels(flat)}"
        seen = int((psnr - flat >= VISIBLE).sum())
        if not seen:
            return f"{text}; none has less than half its error): this attack shows next to nothing"
        return f"{text}; {seen} with less than half its error): not unique is not private"

    def beside(self, generic: str) -> str:
        """Which says what, where the generic verdict and the trial differ; "" where they agree.

        `generic` is `rconv.audit.overall` of the same model.
        """
        if generic == TOO_LARGE:
            return "The rank is too large to compute; the verdict is that of the trial."
        if generic == NOT_UNIQUE and self.unique.any():
            signs = any(int(r.signs[self.unique].max()) for r in self.reconstruction.layers)
            reason = "signs determine the rest" if signs else "more outputs are active than assumed"
            return (
                f"Rank and trial differ. The rank for random data says '{generic}'; with these "
                f"weights and images {reason}."
            )
        if generic == NOT_UNIQUE or self.unique.all():
            return ""
        first = int((~self.unique).nonzero()[0])
        return (
            f"Rank and trial differ. The rank for random data says '{generic}'; with these weights "
            f"some images are not unique. The first of them, image {first}: "
            f"{self.reconstruction.diagnostics[first]}."
        )


def trial(
    model: nn.Sequential,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    count: int = 4,
    value_range: tuple[float, float] = (0.0, 1.0),
    dtype: str | None = None,
    loss: Loss | None = None,
    scenario: Scenario | None = None,
    progress: bool = False,
) -> Trial:
    """Attack images through a model, as it is, and compare with the truth.

    Parameters
    ----------
    model : Sequential
        As `Attack` takes it, with the weights that are asked about. A trained model is asked with
        images and labels of its own kind: what it has learnt makes its gradients small.
    images : Tensor, optional
        (N, C, H, W), values in `value_range`; by default `photographs`.
    labels : Tensor, optional
        (N,), classes; needed with `images`. Photographs have classes 0, 1, 2, and so on.
    value_range : tuple of float
        Of the pixels, which the attacker knows.
    dtype : str, optional
        In which the clients compute, one of `rconv.lab.architectures.DTYPES`; float16 rounds
        float32 gradients. By default the model's own.
    loss : Callable, optional
        The clients' loss, unknown to the attacker. By default cross-entropy, or the
        logistic loss for one logit, of which it is.
    scenario : Scenario, optional
        How the gradients come about, in place of `dtype`; by default one step on each image, in
        the model's own mode.
    """
    low, high = check_value_range(value_range)
    scenario = scenario or Scenario(dtype=dtype, mode=None)
    if scenario.dtype is not None:
        as_dtype(scenario.dtype)
    client = client_model(model, scenario)
    stated = "cross-entropy" if loss is None else None
    attack = Attack(client, input_shape, value_range=(low, high), loss=stated)
    source = "given images"
    if images is None:
        images, labels, source = chosen(client, attack.network.input_shape, count)
        images = low + (high - low) * images
    truth = _checked(images, labels, attack.network.input_shape, (low, high))
    gradients, noise = sent(client, truth, labels, scenario, loss)
    found = attack(gradients, batch=scenario.together, noise=noise, progress=progress)
    if scenario.together > 1:
        found = found.select(matched(found.images.cpu(), truth).tolist())
    received = str(next(iter(gradients.values())).dtype).removeprefix("torch.")
    judged = _judged(source, received, truth.to(found.images.device), found, (low, high))
    return replace(judged, features=features(client, truth, labels, gradients, noise, scenario))


def chosen(
    model: nn.Module, input_shape: tuple[int, int, int], count: int
) -> tuple[Tensor, Tensor, str]:
    """Photographs (N, C, H, W) in [0, 1], classes for them (N,), and what they are, in words."""
    images, source = photographs(input_shape, count)
    with torch.no_grad():
        logits = tensor_of(shared_copy(model).eval()(images[:1].to(next(model.parameters()))))
    labels = torch.arange(count) % max(2, logits.shape[1])  # one logit is that of two classes
    return images, labels, f"{source}, labels 0 to {int(labels.max())}"


def _judged(
    source: str, dtype: str, truth: Tensor, found: Reconstruction, value_range: tuple[float, float]
) -> Trial:
    """The answer, cut to the range of the pixels, which the attacker knows, beside the truth."""
    peak = value_range[1] - value_range[0]
    reached = psnr(found.images.clamp(*value_range), truth, data_range=peak)
    return Trial(
        source,
        dtype,
        truth,
        found,
        reached.nan_to_num(-math.inf, math.inf, -math.inf),
        psnr(flat(truth), truth, data_range=peak),
        torch.tensor([r["false"] for r in score(found, truth, {}, data_range=peak)]),
    )


def _checked(
    images: Tensor,
    labels: Tensor | None,
    input_shape: tuple[int, int, int],
    value_range: tuple[float, float],
) -> Tensor:
    """The images in float64; ValueError where they are not what they are said to be."""
    if labels is None:
        raise ValueError("the images have no labels: give the class of each")
    shape = tuple(getattr(images, "shape", ()))
    if not torch.is_tensor(images) or 0 in shape or shape[1:] != tuple(input_shape):
        raise ValueError(f"the images must be a tensor (N, *{input_shape}), not of shape {shape}")
    low, high = float(images.min()), float(images.max())
    if not value_range[0] <= low <= high <= value_range[1]:
        raise ValueError(
            f"the images reach from {low:.3g} to {high:.3g}, and the value range is "
            f"{value_range}: state that of the images, which the attack relies on"
        )
    return images.detach().double()


def _median(values: Tensor) -> float:
    return float(median(values.tolist()))


def _decibels(values: Tensor) -> str:
    return f"{_median(values):.0f} dB" if len(values) == 1 else f"median {_median(values):.0f} dB"
