"""The attacks that are compared, each prepared on one model and asked the same question."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.baselines import dlg, inverting_gradients, rgap
from rconv.baselines.matching import BaselineResult, Watch
from rconv.lab.records import Record
from rconv.observe.observation import Gradients

PAPER, AUTO, RGAP = "R-CONV (paper)", "R-CONV (auto)", "R-GAP"
DLG, IDLG, INVERTING = "DLG", "iDLG", "Inverting Gradients"
CLOSED = (PAPER, AUTO, RGAP)
OPTIMISED = (DLG, IDLG, INVERTING)
METHODS = (*CLOSED, *OPTIMISED)

DESCENT = {"iterations": 300, "restarts": 3, "heat": 30, "patience": 50, "seed": 0}
"""DLG and iDLG: the iterations of the published codes, three starts of which the best goes on."""

SMOOTH = {"iterations": 4800, "total_variation": 0.1, "seed": 0}
"""Inverting Gradients: steps and prior of the paper's code; the later framework has 24,000, 0.2."""

SMALL = 16
"""Filters up to which PyTorch's own convolutions are faster than oneDNN's on one thread: a step of
matching the gradients of `dlg_lenet` (12 filters) takes 2.7 ms against 4.2, one of `cnn6` (up to
128 filters) 6.6 against 4.8."""

Answer = tuple[Tensor, int]
"""An image (1, C, H, W) and the label found."""


@dataclass(frozen=True)
class Method:
    """One attack on one model.

    `attack` takes the gradients of one image, its label and a `Watch`, and returns an `Answer`.
    Only attacks that assume the label as known look at it, and only optimisations call the watch.
    `settings` distinguish it from its defaults; `preparation` are the CPU seconds for what depends
    on the model alone, which no image's seconds contain.
    """

    attack: Callable[[Gradients, Tensor, Watch], Answer]
    settings: Record
    preparation: float = 0.0


def prepared(
    method: str,
    model: nn.Sequential,
    shape: tuple[int, int, int],
    settings: Mapping[str, Record] | None = None,
) -> Method:
    """Prepare one of `METHODS` on a model.

    `settings` has, per method, arguments in place of `DESCENT` and `SMOOTH`. The model is in the
    dtype of the clients.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    changed = (settings or {}).get(method, {})
    if method in (PAPER, AUTO):
        return _ours(model, shape, "paper" if method == PAPER else "auto")
    if method == RGAP:
        return _baseline(rgap.attack, model, shape, {}, watched=False, label_known=True)
    _load_optimisers()
    if method == INVERTING:
        return _baseline(
            inverting_gradients.attack, model, shape, {**SMOOTH, **changed}, label_known=True
        )
    attack = partial(dlg.attack, read_label=method == IDLG)
    return _baseline(attack, model, shape, {**DESCENT, **changed})


@cache
def _load_optimisers() -> None:
    """Take the first step of each optimiser: it loads modules, 4 s that are no attack's."""
    for optimiser in (torch.optim.Adam, torch.optim.LBFGS):
        x = torch.zeros(1, requires_grad=True)
        step = optimiser([x])
        (x * x).sum().backward()
        step.step(lambda x=x: (x * x).sum())


def _ours(model: nn.Sequential, shape: tuple[int, int, int], constraints: str) -> Method:
    start = time.process_time()
    attacker = Attack(model, shape, constraints=constraints, loss="cross-entropy")
    preparation = time.process_time() - start

    def attack(gradients: Gradients, label: Tensor, watch: Watch) -> Answer:
        found = attacker(gradients)
        return found.images, int(found.labels[0])

    return Method(attack, {"constraints": constraints}, preparation)


def _baseline(
    run: Callable[..., BaselineResult],
    model: nn.Sequential,
    shape: tuple[int, int, int],
    settings: Record,
    *,
    watched: bool = True,
    label_known: bool = False,
) -> Method:
    def attack(gradients: Gradients, label: Tensor, watch: Watch) -> Answer:
        known = {"labels": label} if label_known else {}
        seen = {"watch": watch} if watched else {}
        with convolutions_for(model):
            found = run(model, gradients, shape, **settings, **known, **seen)
        return found.images, int(found.labels[0])

    return Method(attack, settings)


@contextmanager
def convolutions_for(model: nn.Module) -> Iterator[None]:
    """Use the faster of PyTorch's two kinds of convolutions on a CPU, see `SMALL`."""
    filters = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    if max(filters, default=0) > SMALL:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False):
            yield
