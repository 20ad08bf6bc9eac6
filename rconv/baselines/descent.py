"""L-BFGS from several starts, as DLG and iDLG use it.

The optimiser is PyTorch's, with its defaults: steps without a line search, up to 20 evaluations
an iteration, a history of 100.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from rconv.baselines.result import Run, Watch


class Descent:
    """L-BFGS from one start, which can be continued.

    Parameters
    ----------
    variables : list of Tensor
        What is optimised, in place; the first is the image (1, C, H, W).
    objective : callable
        () → scalar.
    lr : float
        Length of a step.
    patience : int or None
        Iterations after which the descent ends unless they have halved the lowest objective; None
        goes on, as the published codes do.
    watch : callable or None
        Called after each iteration with the image and its objective.

    Attributes
    ----------
    history : list of float
        The objective at the start and after each iteration.
    ended : bool
        Whether there is nothing more to be had: the objective is no finite number, an iteration
        has left every variable as it was (so would all that follow), or the patience is at its
        end.
    """

    def __init__(
        self,
        variables: list[Tensor],
        objective: Callable[[], Tensor],
        lr: float = 1.0,
        patience: int | None = None,
        watch: Watch | None = None,
    ):
        self.variables, self.objective = variables, objective
        self.patience, self.watch = patience, watch
        self.optimizer = torch.optim.LBFGS(variables, lr=lr)
        self.history = [float(objective().detach())]
        self.ended = not math.isfinite(self.history[0])

    @property
    def value(self) -> float:
        """The objective where the descent stands; infinite where it is no number."""
        return self.history[-1] if math.isfinite(self.history[-1]) else math.inf

    def run(self, iterations: int, bar: tqdm) -> None:
        """Go on until `iterations` have been made in all, or the descent has ended."""
        while not self.ended and len(self.history) <= iterations:
            before = [v.detach().clone() for v in self.variables]
            self.optimizer.step(self._closure)
            self.history.append(float(self.objective().detach()))
            bar.update()
            bar.set_postfix(objective=f"{self.history[-1]:.1e}", refresh=False)
            if self.watch is not None:
                self.watch(self.variables[0].detach(), self.history[-1])
            stands = all(map(torch.equal, before, self.variables))
            self.ended = stands or not math.isfinite(self.history[-1]) or self._impatient()

    def _closure(self) -> Tensor:
        self.optimizer.zero_grad()
        value = self.objective()
        value.backward(inputs=self.variables)
        return value

    def _impatient(self) -> bool:
        if self.patience is None or len(self.history) <= self.patience:
            return False
        earlier = min(self.history[: -self.patience])
        return min(self.history[-self.patience :]) > earlier / 2


def best_descent(
    begin: Callable[[int], Descent], restarts: int, heat: int, iterations: int, bar: tqdm
) -> Descent:
    """Of several starts, the one whose objective ends lowest.

    All starts run for a heat; the best of them goes on.

    Parameters
    ----------
    begin : callable
        Number of the start → its descent.
    restarts : int
        Starts, at least one.
    heat : int
        Iterations that every start gets; `iterations` or more runs all of them to the end.
    iterations : int
        Iterations that the best one gets in all.
    bar : tqdm
        Advanced by each iteration.

    Returns
    -------
    Descent
        The one that stands lowest in the end.

    Raises
    ------
    ValueError
        If there is no start, or the heat has no iteration.
    """
    if restarts < 1 or heat < 1:
        raise ValueError(
            f"{restarts} starts with heats of {heat} iterations: both must be positive, 1 start "
            "is the published attack"
        )
    descents = [begin(number) for number in range(restarts)]
    for descent in descents:
        descent.run(min(heat, iterations), bar)
    min(descents, key=lambda d: d.value).run(iterations, bar)
    return min(descents, key=lambda d: d.value)


def finish(descent: Descent, label: int, nothing: float) -> Run:
    """What the attack on one image has come to.

    Parameters
    ----------
    descent : Descent
        The best one.
    label : int
        Class of the image.
    nothing : float
        Objective of an image whose gradients are zero.
    """
    history = descent.history
    worthless = min(history[0], nothing)
    image = descent.variables[0].detach()
    return Run(image, label, history, history[-1], len(history) - 1, worthless)
