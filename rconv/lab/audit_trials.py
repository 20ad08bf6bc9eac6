"""Trials of a model in the scenarios of an audit, as many as a time limit has room for."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rconv.lab.features import Features, any_exact, features
from rconv.lab.records import Record, finite
from rconv.lab.scenarios import Scenario, client_model, matrix, sent
from rconv.lab.trial import NOT_BY_THIS_ATTACK, PARTLY, Trial, chosen, trial
from rconv.model.nodes import UnsupportedModelError
from rconv.model.wrappers import tensor_of

NOT_SUPPORTED, NOT_RUN = "not supported", "not run"

FIRST = 0.6
"""Share of the time limit that is left to the user's own setup, where others follow."""

PAIR = 2
"""Images of another scenario, where each has a gradient of its own; one under a time limit."""

SEVERER = ("Batch", "Sum over clients", "Local steps", "DP noise")
"""Respects whose values become harder for the attack from one to the next."""


@dataclass
class Budget:
    """A time limit, and what the trials have taken so far.

    Parameters
    ----------
    limit : float
        Seconds of wall time since this was made; infinite for no limit.
    spent, images : float, int
        Seconds that trials have taken, and on how many images.
    """

    limit: float
    start: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    images: int = 0

    def room(self, share: float = 1.0) -> float:
        """How many images there is time for, if each takes as long as those so far on average."""
        left = max(0.0, share * self.limit - (time.monotonic() - self.start))
        return left * self.images / self.spent if self.spent else torch.inf

    @contextmanager
    def timed(self, images: int) -> Iterator[None]:
        """Keep the time of the work on so many images."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent += time.monotonic() - begun
            self.images += images


@dataclass
class Outcome:
    """What came of one scenario: a trial; or why there is none, and the features all the same."""

    trial: Trial | None = None
    features: Features | None = None
    refusal: ValueError | None = None

    @property
    def risk(self) -> str:
        """The trial's level; `PARTLY` where there are features, and no image."""
        if self.trial is not None:
            return self.trial.risk
        return PARTLY if any_exact(self.features) else NOT_SUPPORTED

    @property
    def record(self) -> Record:
        """As `audit.schema.json` describes an entry of the scenarios."""
        tried, reason = self.trial, str(self.refusal or "")
        if tried is not None:
            reason = next((own for own in tried.reconstruction.diagnostics if own), "")
        elif self.features is not None and not any_exact(self.features):
            layer, error = self.features.layer, float(self.features.error.min())
            reason = f"features that enter {layer} inexact, relative error {error:.1g}; {reason}"
        return {
            "risk": self.risk,
            "tried": 0 if tried is None else len(tried.psnr),
            "recovered": 0 if tried is None else int(tried.recovered.sum()),
            "psnr": None if tried is None else finite(median(tried.psnr.tolist())),
            "features": None if self.features is None else int(self.features.exact.sum()),
            "reason": reason,
        }


@dataclass
class Trials:
    """The attack on one model, scenario by scenario.

    Parameters
    ----------
    model : Module
        With the weights that are asked about.
    input_shape : tuple of int
        (C, H, W).
    images, labels : Tensor or None
        The user's own; None for photographs.
    count : int
        Images of the user's own scenario.
    limit : float
        Seconds.
    announce : callable or None
        Is called with what is tried next; trials then show progress bars.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    images: Tensor | None
    labels: Tensor | None
    count: int
    limit: float
    announce: Callable[[str], Any] | None

    def __post_init__(self):
        self.budget, self.source = Budget(self.limit), "given images"
        self.refusals: dict[str | None, UnsupportedModelError] = {}
        if self.images is not None:
            self.count = len(self.images)

    def own(self, scenario: Scenario, share: float = 1.0) -> Outcome:
        """The user's own scenario: one image, and more of them within a share of the time limit."""
        if scenario.together > 1:
            return self._tried(scenario, 0, scenario.together)
        if self.limit == torch.inf:
            return self._tried(scenario, 0, self.count)
        first = self._tried(scenario, 0, 1)
        if first.trial is None:
            return self._tried(scenario, 0, self.count)
        more = int(min(self.count - 1, self.budget.room(share)))
        if more < 1:
            return first
        rest = self._tried(scenario, 1, 1 + more)
        both = Trial.concatenate([first.trial, rest.trial])
        return Outcome(both, both.features)

    def others(self, base: Scenario, own: Record) -> list[Record]:
        """One entry for each scenario of the matrix; those without a trial say why.

        Of the respects in turn the first value, then the second, so that none is missing where
        time is short. A limit also leaves out what is harder than a scenario that showed nothing.
        """
        alike = modes_agree(self.model, self.input_shape)
        whole = [(name, *self.feasible(value, each)) for name, value, each in matrix(base)]
        whole = [cell for cell in whole if not cell[1].startswith("1 image,")]
        known = {_key(base, alike): own}
        respects = [respect for respect, *_ in whole]
        order = sorted(range(len(whole)), key=lambda i: i - respects.index(respects[i]))
        stopped: dict[str, str] = {}
        for respect, value, scenario in (whole[i] for i in order):
            key = _key(scenario, alike)
            if key not in known:
                known[key] = self._other(respect, value, scenario, stopped.get(respect))
            found = known[key]
            hidden = found["risk"] == NOT_BY_THIS_ATTACK
            if hidden and respect in SEVERER and self.limit < torch.inf:
                stopped.setdefault(respect, value)
        return [
            {"respect": respect, "value": value, **described(own), **known[_key(own, alike)]}
            for respect, value, own in whole
        ]

    def feasible(self, value: str, scenario: Scenario) -> tuple[str, Scenario]:
        """With two images behind a gradient where training mode does not take one."""
        one = scenario.mode == "training" and scenario.together == 1
        if not one or self.least_batch == 1:
            return value, scenario
        return f"{value}, {self.least_batch} images", replace(scenario, batch=self.least_batch)

    @cached_property
    def least_batch(self) -> int:
        """Images that a step in training mode needs: BatchNorm takes no channel of one value."""
        copied = copy.deepcopy(self.model).train()
        image = torch.zeros(1, *self.input_shape).to(next(copied.parameters(), torch.zeros(1)))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                copied(image)
        except ValueError:
            return 2
        return 1

    def _other(self, respect: str, value: str, scenario: Scenario, stopped: str | None) -> Record:
        room, together = self.budget.room(), scenario.together
        # An image of a batch mostly takes less than half as long as one by itself.
        reason = f"{NOT_RUN} within {self.limit:g} s" if room < max(1, together / 2) else ""
        if stopped is not None:
            reason = f"{NOT_RUN}: nothing was visible with {stopped} already"
        if reason:
            return {**Outcome(refusal=ValueError(reason)).record, "risk": NOT_RUN}
        if self.announce is not None:
            self.announce(f"trying {respect}: {value}")
        one = 1 if self.limit < torch.inf else min(PAIR, self.count)
        try:
            return self._tried(scenario, 0, one if together == 1 else together).record
        except ValueError as error:
            return Outcome(refusal=error).record

    def _tried(self, scenario: Scenario, start: int, stop: int) -> Outcome:
        """The attack on some of the images; where it is refused, on the features alone."""
        images, labels = self._images(stop)
        given, refusal = (images[start:stop], labels[start:stop]), self.refusals.get(scenario.mode)
        with self.budget.timed(stop - start):
            if refusal is None:
                options = {"scenario": scenario, "progress": self.announce is not None}
                try:
                    found = trial(self.model, self.input_shape, *given, **options)
                    return Outcome(replace(found, source=self.source), found.features)
                except UnsupportedModelError as error:
                    refusal = error
            if scenario.together == 1:
                self.refusals[scenario.mode] = refusal
            client = client_model(self.model, scenario)
            known = features(client, *given, *sent(client, *given, scenario), scenario)
        return Outcome(None, known, refusal)

    def _images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first so many images, and their labels."""
        if self.images is not None:
            return self.images, self.labels
        images, labels, self.source = chosen(self.model, self.input_shape, max(count, self.count))
        return images.double(), labels


def described(scenario: Scenario) -> Record:
    """A scenario as JSON values."""
    return {**vars(scenario), "epsilon": scenario.epsilon}


def modes_agree(model: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Whether the model computes the same in training mode and in evaluation mode."""
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    found = []
    for training in (False, True):
        copied = copy.deepcopy(model).train(training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                found.append(tensor_of(copied(images.to(next(copied.parameters())))))
            except ValueError:  # of a BatchNorm, as `Trials.least_batch`
                return False
    return torch.equal(*found)


def _key(scenario: Scenario, alike: bool) -> Scenario:
    """The same for scenarios between which the model makes no difference."""
    return replace(scenario, mode="evaluation") if alike else scenario
