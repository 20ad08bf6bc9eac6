"""DLG and iDLG: a dummy image is moved until its gradients are the observed ones.

DLG, "Deep Leakage from Gradients" (Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935), moves a dummy
label with it. iDLG, "Improved Deep Leakage from Gradients" (Zhao, Mopuri, Bilen 2020, arXiv
2001.02610), reads the label from the last layer's gradient and optimises the image alone.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.matching import BaselineResult, Replay, Run, Watch, infer_labels, squared_norm
from rconv.observe.observation import Gradients, Loss


def attack(
    model: nn.Module,
    gradients: Gradients,
    input_shape: tuple[int, int, int],
    *,
    read_label: bool = False,
    loss: Loss | None = None,
    iterations: int = 300,
    seed: int = 0,
    lr: float = 1.0,
    restarts: int = 1,
    heat: int = 30,
    patience: int | None = None,
    watch: Watch | None = None,
    progress: bool = False,
) -> BaselineResult:
    """Reconstruct images by matching gradients.

    Minimises the sum of squared differences of the gradients from a Gaussian start, by L-BFGS with
    PyTorch's defaults: steps of length 1 without a line search, a history of 100 and up to 20 inner
    iterations (DLG, section 4). The 300 iterations are those of the published codes; DLG's paper
    goes on to 1,200, and iDLG's code stops below 1e-6. Several starts, heats and patience are not
    published: they let an attacker try again, and stop. The images are not confined to any range of
    values. Starts are numbered from `seed` on, which is the same for each image.

    Parameters
    ----------
    read_label : bool
        iDLG: the label is that of `infer_labels`, for which the model must end in a Linear. Else
        DLG: the label is the softmax of logits that are optimised too.
    loss : callable or None
        The clients' loss. For DLG it must take class probabilities (1, K) as its target, or one
        probability (1,) where the model has one logit; for iDLG the label (1,). Default:
        cross-entropy, or the logistic loss where the model has one logit.
    restarts, heat : int
        Starts, and iterations after which only the best of them goes on.
    patience : int or None
        Iterations after which a start ends unless they have halved its lowest objective.
    """
    if restarts < 1 or heat < 1:
        raise ValueError(
            f"{restarts} starts with heats of {heat} iterations: both must be positive, 1 start "
            "is the published attack"
        )
    replay = Replay(model, gradients, input_shape, loss)
    labels = infer_labels(replay.model, replay.named) if read_label else None

    def invert(n: int, bar: tqdm) -> Run:
        observed = replay.observed[n]

        def begin(number: int) -> Descent:
            shapes = [(1, *replay.input_shape), *([] if read_label else [(1, replay.classes)])]
            variables = replay.start(*shapes, seed=seed + number)

            def objective() -> Tensor:
                target = labels[n : n + 1] if read_label else _probabilities(variables[1])
                return replay.squared_distance(variables[0], target, observed)

            return Descent(variables, objective, lr, patience, watch)

        best = _best_descent(begin, restarts, heat, iterations, bar)
        history, image = best.history, best.variables[0].detach()
        label = labels[n] if read_label else _label(best.variables[1].detach())
        worthless = min(history[0], squared_norm(observed))
        return Run(image, int(label), history, history[-1], len(history) - 1, worthless)

    return replay.attack_each(invert, iterations, "iDLG" if read_label else "DLG", progress)


def _probabilities(label: Tensor) -> Tensor:
    """Logits (1, K) of the label → class probabilities, or the one probability (1,)."""
    return torch.softmax(label, dim=1) if label.shape[1] > 1 else torch.sigmoid(label[:, 0])


def _label(logits: Tensor) -> Tensor:
    """The class that logits (1, K) of the label say."""
    return logits.argmax() if logits.shape[1] > 1 else logits[0, 0] > 0


class Descent:
    """L-BFGS from one start, which can be continued.

    `variables` are optimised in place, the first being the image (1, C, H, W). The descent has
    `ended` where there is nothing more to be had: the objective is no finite number, an iteration
    has left every variable as it was (so would all that follow), or so many iterations as
    `patience` says have not halved the lowest objective; None goes on, as the published codes do.
    `history` is the objective at the start and after each iteration; then `watch` is called as
    well.
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


def _best_descent(
    begin: Callable[[int], Descent], restarts: int, heat: int, iterations: int, bar: tqdm
) -> Descent:
    """All starts run for a heat; the best of them goes on; the one whose objective ends lowest."""
    descents = [begin(number) for number in range(restarts)]
    for descent in descents:
        descent.run(min(heat, iterations), bar)
    min(descents, key=lambda d: d.value).run(iterations, bar)
    return min(descents, key=lambda d: d.value)
