"""R-CONV beside the attacks that it is compared with: same images, same model, same gradients."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.data import datasets
from rconv.lab import architectures, metrics
from rconv.lab.entrants import METHODS, Entrant, enter
from rconv.lab.experiment import client_gradients, model_settings, shared_model
from rconv.lab.records import Record, finite
from rconv.lab.trace import Trace
from rconv.model.read import UnsupportedModelError
from rconv.observe.observation import Gradients, per_sample_gradients

EXPLAINED = 1e-2
"""Relative residual of the gradients up to which an answer explains them, the same for every
attack: what an attacker can measure of its own success."""


@dataclass(frozen=True)
class Comparison:
    """What came out of `compare`.

    Parameters
    ----------
    truth : Images
        The N originals, which no attack has seen.
    images : dict of str to Tensor
        Method → its answers, (N, C, H, W), float64; not a number where it has none.
    records : list of Record
        One per method and image.
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
    data_dir: str | None = None,
    progress: bool = False,
) -> Comparison:
    """Attack the same gradients by R-CONV, R-GAP, DLG, iDLG and Inverting Gradients.

    Every attack receives the model and the gradients of one image at a time. Times are CPU
    seconds of this process: run it on one thread.

    Parameters
    ----------
    dataset, indices, data_dir, architecture, activation, seed, dtype
        As `rconv.lab.experiment.run` takes them.
    methods : sequence of str
        Names out of `rconv.lab.entrants.METHODS`.
    settings : mapping of str to dict or None
        Method → arguments in place of its published ones.
    progress : bool
        Show a progress bar over images and methods.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If a setting does not fit, with the reason.
    """
    model = shared_model(dataset, architecture, activation, seed=seed, dtype=dtype)
    truth = datasets.load(dataset, indices, data_dir=data_dir)
    gradients = client_gradients(model, architecture, truth, dtype)
    shape = tuple(truth.images.shape[1:])
    entrants = {name: enter(name, model, shape, settings) for name in methods}
    shared = {
        "dataset": dataset,
        **model_settings(architecture, activation, seed=seed),
        "dtype": dtype,
    }
    judge = Judge(model, architecture, truth, gradients)
    images, records = {name: [] for name in entrants}, []
    with tqdm(total=len(truth) * len(entrants), disable=not progress, unit="attack") as bar:
        for n in range(len(truth)):
            for name, entrant in entrants.items():
                bar.set_postfix_str(name)
                image, found = judge(entrant, n)
                images[name].append(image)
                records.append({**shared, "method": name, **found})
                bar.update()
    return Comparison(truth, {name: torch.cat(own) for name, own in images.items()}, records)


class Judge:
    """Puts one image's gradients to an attack, and says what its answer is worth.

    Parameters
    ----------
    model : Sequential
        The shared model.
    architecture : str
        Its name.
    truth : Images
        The N originals.
    gradients : dict of str to Tensor
        Name → `(N, *parameter shape)`, as the clients send them.
    """

    def __init__(
        self,
        model: nn.Sequential,
        architecture: str,
        truth: datasets.Images,
        gradients: Gradients,
    ):
        self.model = copy.deepcopy(model).double()
        self.targets = architectures.targets(architecture, truth.labels)
        self.truth, self.gradients = truth, gradients

    def __call__(self, entrant: Entrant, n: int) -> tuple[Tensor, Record]:
        """Answer to the gradients of image n, (1, C, H, W), float64, and its record."""
        truth, target = self.truth.images[n : n + 1], self.targets[n : n + 1]
        own = {name: g[n : n + 1] for name, g in self.gradients.items()}
        trace, refusal, label = Trace(truth), None, None
        try:
            image, label = entrant.attack(own, target, trace)
        except UnsupportedModelError as error:
            image, refusal = torch.full_like(truth, torch.nan), str(error)
        seconds = trace.seconds
        image = image.detach().cpu().double()
        trace.add(image, entrant.preparation + seconds)
        quality = metrics.quality(image, truth)
        return image, {
            "index": int(self.truth.indices[n]),
            "label": int(self.truth.labels[n]),
            "target": int(target),
            "settings": entrant.settings,
            **{name: finite(value) for name, value in quality.items()},
            "seconds": seconds,
            "preparation": entrant.preparation,
            "gradient_residual": finite(self.residual(image, label, own)),
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
        own = per_sample_gradients(self.model, image, torch.tensor([label]))
        size = sum(g.double().square().sum() for g in observed.values())
        left = sum((own[name] - g.double()).square().sum() for name, g in observed.items())
        return (left / size).sqrt()
