"""R-CONV beside the attacks that it is compared with: same images, same model, same gradients."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.attack import Attack
from rconv.attack.certificate import EXPLAINED
from rconv.baselines import dlg, idlg, inverting_gradients, rgap
from rconv.data import datasets
from rconv.lab import architectures, metrics
from rconv.lab.experiment import client_gradients, model_settings, shared_model
from rconv.lab.records import Record, finite
from rconv.model.read import UnsupportedModelError
from rconv.observe.observation import Gradients

PAPER, AUTO = "R-CONV (paper)", "R-CONV (auto)"

Answer = tuple[Tensor, bool, Any]
"""An image (1, C, H, W), whether its attack sees no failure of its own, and the label found."""


@dataclass(frozen=True)
class Comparison:
    """What came out of `compare`.

    Attributes
    ----------
    truth : the N originals, which no attack has seen.
    images : method → its answers, (N, C, H, W), float64; not a number where it has none.
    records : one per method and image.
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
    seed: int = 50,
    dtype: str = "float32",
    filters: Sequence[int] | None = None,
    iterations: int = 300,
    smooth_iterations: int = 4800,
    data_dir: str | None = None,
    progress: bool = False,
) -> Comparison:
    """Attack the same gradients by R-CONV, R-GAP, DLG, iDLG and Inverting Gradients.

    Every attack receives the model and the gradients of one image at a time. What can be prepared
    from the model alone is prepared before; the seconds are those of the attack.

    Parameters
    ----------
    dataset, indices, data_dir, architecture, activation, seed, dtype, filters : as
        `rconv.lab.experiment.run` takes them.
    iterations : of L-BFGS, in DLG and iDLG; 300 in their published code.
    smooth_iterations : of Adam, in Inverting Gradients; 4,800 in its published code.
    progress : show a progress bar over images and methods.

    Returns
    -------
    Comparison.

    Raises
    ------
    ValueError : any setting that does not fit, with the reason.
    """
    model = shared_model(dataset, architecture, activation, seed=seed, dtype=dtype, filters=filters)
    truth = datasets.load(dataset, indices, data_dir=data_dir)
    gradients = client_gradients(model, architecture, truth, dtype)
    attacks = _attacks(model, tuple(truth.images.shape[1:]), iterations, smooth_iterations)
    shared = {
        "dataset": dataset,
        **model_settings(architecture, activation, seed=seed, filters=filters),
        "dtype": dtype,
    }
    targets = architectures.targets(architecture, truth.labels).tolist()
    who = [
        {"index": index, "label": label, "target": target}
        for index, label, target in zip(
            truth.indices.tolist(), truth.labels.tolist(), targets, strict=True
        )
    ]
    images, records = {name: [] for name in attacks}, []
    with tqdm(total=len(truth) * len(attacks), disable=not progress, unit="attack") as bar:
        for n in range(len(truth)):
            own = {name: g[n : n + 1] for name, g in gradients.items()}
            for name, (attack, settings) in attacks.items():
                bar.set_postfix_str(name)
                image, found = _judge(attack, own, truth.images[n : n + 1])
                images[name].append(image)
                records.append({**shared, **who[n], "method": name, "settings": settings, **found})
                bar.update()
    return Comparison(truth, {name: torch.cat(own) for name, own in images.items()}, records)


def _attacks(
    model: nn.Sequential, shape: tuple[int, int, int], iterations: int, smooth_iterations: int
) -> dict[str, tuple[Callable[[Gradients], Answer], dict]]:
    """Method → the attack on one image's gradients, and its settings."""

    def closed_form(constraints: str) -> Callable[[Gradients], Answer]:
        prepared = Attack(model, shape, constraints=constraints)

        def attack(gradients: Gradients) -> Answer:
            found = prepared(gradients)
            sound = bool(found.unique[0]) and float(found.gradient_residual[0]) < EXPLAINED
            return found.images, sound, int(found.labels[0])

        return attack

    def baseline(module: Any, settings: Record) -> Callable[[Gradients], Answer]:
        def attack(gradients: Gradients) -> Answer:
            found = module.attack(model, gradients, shape, **settings)
            return found.images, not bool(found.diverged[0]), int(found.labels[0])

        return attack

    steps = {"iterations": iterations, "seed": 0}
    smooth = {"iterations": smooth_iterations, "seed": 0, "total_variation": 0.2}
    baselines = {
        "R-GAP": (rgap, {}),
        "DLG": (dlg, steps),
        "iDLG": (idlg, steps),
        "Inverting Gradients": (inverting_gradients, smooth),
    }
    closed = {PAPER: "paper", AUTO: "auto"}
    return {
        **{name: (closed_form(kind), {"constraints": kind}) for name, kind in closed.items()},
        **{name: (baseline(*own), own[1]) for name, own in baselines.items()},
    }


def _judge(
    attack: Callable[[Gradients], Answer], gradients: Gradients, truth: Tensor
) -> tuple[Tensor, Record]:
    """The attack's answer to one image's gradients, and what it is worth."""
    start = time.perf_counter()
    try:
        image, sound, label = attack(gradients)
        refusal = None
    except UnsupportedModelError as error:
        image, sound, label = torch.full_like(truth, torch.nan), False, None
        refusal = str(error)
    seconds = time.perf_counter() - start
    image = image.detach().cpu().double()
    return image, {
        **{name: finite(own) for name, own in metrics.quality(image, truth).items()},
        "seconds": seconds,
        "sound": sound,
        "found_label": label,
        "refusal": refusal,
    }
