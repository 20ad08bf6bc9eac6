"""R-CONV beside the attacks that it is compared with: same images, same model, same gradients."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import client_gradients, model_settings, shared_model
from rconv.lab.methods import (
    AUTO,
    INVERTING,
    METHODS,
    OPTIMISED,
    PAPER,
    RGAP,
    SMOOTH,
    Method,
    prepared,
)
from rconv.lab.metrics import psnr
from rconv.lab.records import Record, finite, score
from rconv.model.read import UnsupportedModelError
from rconv.observe.observation import Gradients, per_sample_gradients

EXPLAINED = 1e-2
"""Relative residual of the gradients up to which an answer explains them, the same for every
attack: what an attacker can measure of its own success."""

FULL, ONLY_FEW = (AUTO, RGAP), (PAPER,)
"""The two closed forms that stack both kinds of constraints meet on every image. The paper's own
choice of constraints is slow only where it fails, and joins the optimisations on their images."""

VARIATIONS = (0.2, 0.1, 0.01, 0.001)
"""Weights of the total variation that are tried: the framework's, the paper's code's, and less."""

FIRST, STEP = 0.05, 2**0.5
"""CPU seconds of the first point, and their ratio from point to point: half an octave."""


@dataclass(frozen=True)
class Comparison:
    """What came out of `compare`: the N originals, and one record per method and image.

    `images` maps each method to its answers, (N, C, H, W), float64; NaN where it has none.
    """

    truth: datasets.Images
    images: dict[str, Tensor]
    records: list[Record]


def compare(
    dataset: str = datasets.DEFAULT,
    indices: Sequence[int] = (0,),
    architecture: str = "dlg_lenet",
    activation: str | None = None,
    *,
    seed: int = architectures.SEED,
    dtype: str = "float32",
    methods: Sequence[str] = METHODS,
    settings: Mapping[str, Record] | None = None,
) -> Comparison:
    """Attack the same gradients by R-CONV, R-GAP, DLG, iDLG and Inverting Gradients.

    Every attack receives the model and the gradients of one image at a time. Times are CPU seconds
    of this process: run it on one thread. `methods` are names out of `rconv.lab.methods.METHODS`,
    `settings` maps some of them to arguments in place of the published ones; the others are those
    of `rconv.lab.experiment.run`.
    """
    model = shared_model(dataset, architecture, activation, seed=seed, dtype=dtype)
    truth = datasets.load(dataset, indices)
    gradients = client_gradients(model, architecture, truth, dtype)
    shape = tuple(truth.images.shape[1:])
    attacks = {name: prepared(name, model, shape, settings) for name in methods}
    shared = {
        "dataset": dataset,
        **model_settings(architecture, activation, seed=seed),
        "dtype": dtype,
    }
    judge = Judge(model, architecture, truth, gradients)
    images, records = {name: [] for name in attacks}, []
    for n in range(len(truth)):
        for name, method in attacks.items():
            image, found = judge(method, n)
            images[name].append(image)
            records.append({**shared, "method": name, **found})
    return Comparison(truth, {name: torch.cat(each) for name, each in images.items()}, records)


class Judge:
    """Gives one image's gradients to an attack, and scores its answer.

    The N originals belong to gradients `(N, *parameter shape)`, as the clients send them.
    """

    def __init__(
        self, model: nn.Sequential, architecture: str, truth: datasets.Images, gradients: Gradients
    ):
        self.model = copy.deepcopy(model).double()
        self.targets = architectures.targets(architecture, truth.labels)
        self.truth, self.gradients = truth, gradients

    def __call__(self, method: Method, n: int) -> tuple[Tensor, Record]:
        """Answer to the gradients of image n, (1, C, H, W), float64, and its record."""
        truth, target = self.truth.images[n : n + 1], self.targets[n : n + 1]
        sent = {name: g[n : n + 1] for name, g in self.gradients.items()}
        trace, refusal, label = Trace(truth), None, None
        try:
            image, label = method.attack(sent, target, trace)
        except UnsupportedModelError as error:
            image, refusal = torch.full_like(truth, torch.nan), str(error)
        seconds = trace.seconds
        image = image.detach().cpu().double()
        trace.add(image, method.preparation + seconds)
        (scored,) = score(image, self.truth.select(slice(n, n + 1)), {})
        del scored["dataset"]
        return image, {
            **scored,
            "target": int(target),
            "settings": method.settings,
            "seconds": seconds,
            "preparation": method.preparation,
            "gradient_residual": finite(self.residual(image, label, sent)),
            "found_label": label,
            "refusal": refusal,
            "curve": trace.points,
        }

    def residual(self, image: Tensor, label: int | None, observed: Gradients) -> Tensor:
        """‖g(image, label) - g‖ / ‖g‖ over ALL parameters, in float64; () or NaN without a label.

        The certificate of R-CONV takes the logits' derivative as observed and stops at the first
        Linear. This one takes nothing from the attack but its image and its label.
        """
        if label is None or not image.isfinite().all():
            return torch.tensor(torch.nan)
        recomputed = per_sample_gradients(self.model, image, torch.tensor([label]))
        size = sum(g.double().square().sum() for g in observed.values())
        left = sum((recomputed[name] - g.double()).square().sum() for name, g in observed.items())
        return (left / size).sqrt()


class Trace:
    """Keeps, at growing times, the PSNR of the image that the attacker would hand over by then.

    That is the image of the lowest objective so far, whichever start it comes from. Called as the
    attacks call their `watch`. The truth (1, C, H, W), in [0, 1], stays here; `points` are pairs of
    CPU seconds since the start and PSNR in dB.
    """

    def __init__(self, truth: Tensor):
        self.truth = truth
        self.points: list[list[float]] = []
        self.start, self.due = time.process_time(), FIRST
        self.lowest, self.best = math.inf, None

    def __call__(self, image: Tensor, objective: float) -> None:
        """Take note of an iterate and its objective."""
        if objective < self.lowest:
            self.lowest, self.best = objective, image.clone()
        if self.seconds >= self.due and self.best is not None:
            self.add(self.best)
            while self.due <= self.points[-1][0]:
                self.due *= STEP

    @property
    def seconds(self) -> float:
        """CPU seconds since the start."""
        return time.process_time() - self.start

    def add(self, image: Tensor, seconds: float | None = None) -> None:
        """Append the PSNR of an image now, or at a given time; none where it is not finite."""
        seconds = self.seconds if seconds is None else seconds
        decibels = float(psnr(image.cpu(), self.truth, data_range=1.0))
        if math.isfinite(decibels):
            self.points.append([seconds, decibels])


def spread(indices: Sequence[int], seeds: Sequence[int], each: int, count: int) -> dict:
    """Images of each seed: `count` of them in a row, starting again after the last one.

    Seed number k begins with image k · `each`. So the seeds partition the images where the count is
    `each`, and every seed has all images where it is their number.
    """
    if not 0 < each <= count <= len(indices):
        raise ValueError(
            f"{len(indices)} images cannot give each seed {count} of them, {each} of its own"
        )
    return {
        seed: [indices[(k * each + j) % len(indices)] for j in range(count)]
        for k, seed in enumerate(seeds)
    }


def study(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    activation: str | None = None,
    *,
    seeds: Sequence[int],
    each: int,
    count: int,
    dtypes: Sequence[str] = ("float64", "float32"),
    settings: Mapping[str, Record] | None = None,
    **options: Any,
) -> list[Comparison]:
    """Compare over several models: two closed forms on more images than the others can afford.

    Parameters
    ----------
    seeds : sequence of int
        Of the models.
    each, count : int
        Images of each model that every attack gets, in the last dtype; and that R-CONV (auto) and
        R-GAP get, in every dtype; the former are among them.
    dtypes : sequence of str
        In which the clients compute; the last one is that of the published optimisations, float32.

    Returns
    -------
    list of Comparison
        Per seed: R-CONV (auto) and R-GAP dtype by dtype, R-CONV (paper) likewise, then the
        optimisations.
    """
    many, few = (spread(indices, seeds, each, number) for number in (count, each))
    runs = [*((many, dtype, FULL) for dtype in dtypes)]
    runs += [*((few, dtype, ONLY_FEW) for dtype in dtypes), (few, dtypes[-1], OPTIMISED)]
    model = {"architecture": architecture, "activation": activation}
    shared = {**model, "settings": settings, **options}
    return [
        compare(dataset, images[seed], seed=seed, dtype=dtype, methods=methods, **shared)
        for seed in seeds
        for images, dtype, methods in runs
    ]


def try_variations(
    dataset: str,
    indices: Sequence[int],
    architecture: str,
    activation: str | None = None,
    *,
    iterations: int = SMOOTH["iterations"],
    **options: Any,
) -> list[Record]:
    """`compare` with each of `VARIATIONS`, on images that nothing is tested on."""
    found = []
    for weight in VARIATIONS:
        settings = {INVERTING: {"iterations": iterations, "total_variation": weight}}
        found += compare(
            dataset,
            indices,
            architecture,
            activation,
            methods=[INVERTING],
            settings=settings,
            **options,
        ).records
    return found


def variation_medians(records: Sequence[Record]) -> dict[float, float]:
    """Weight of the total variation → median PSNR of its records, in dB."""
    weights = dict.fromkeys(r["settings"]["total_variation"] for r in records)
    return {
        weight: median(r["psnr"] for r in records if r["settings"]["total_variation"] == weight)
        for weight in weights
    }
