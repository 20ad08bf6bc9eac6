"""DLG, "Deep Leakage from Gradients" (Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935).

A dummy image and a dummy label are moved until their gradients are the observed ones.
"""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.descent import Descent, best_descent, finish
from rconv.baselines.matching import Replay, squared_norm
from rconv.baselines.result import BaselineResult, Run, Watch
from rconv.observe.observation import Gradients, Loss


def attack(
    model: nn.Module,
    gradients: Gradients,
    input_shape: tuple[int, int, int],
    *,
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
    """Reconstruct images by matching gradients, the labels with them.

    Minimises the sum of squared differences of the gradients over the image and over the label's
    logits, of which the softmax is the label, from a Gaussian start (algorithm 1), by L-BFGS with
    steps of length 1, a history of 100 and 20 inner iterations (section 4). The 300 iterations
    are those of the published code; the paper goes on to 1,200. Several starts, heats and
    patience are not published: they let an attacker try again, and stop.

    Parameters
    ----------
    model : Module
        The shared model, twice differentiable; its device is used.
    gradients : mapping of str to Tensor
        Parameter name → gradient, shaped as the parameter or with a leading axis N; the dtype is
        that of the computation, float32 in the original.
    input_shape : tuple of int
        (C, H, W) of one image.
    loss : callable or None
        The clients' loss, which must take class probabilities (1, K) as its target, or one
        probability (1,) where the model has one logit. Default: cross-entropy, or the logistic
        loss where it has one.
    iterations : int
        Of L-BFGS.
    seed : int
        Of the first start, the same for each image; the others have the numbers that follow.
    lr : float
        Length of a step.
    restarts, heat : int
        Starts, and iterations after which only the best of them goes on.
    patience : int or None
        Iterations after which a start ends unless they have halved its lowest objective.
    watch : callable or None
        Called after each iteration with the image and its objective, whichever start they are of.
    progress : bool
        Show a progress bar.

    Returns
    -------
    BaselineResult
        Its images are not confined to any range of values.

    Raises
    ------
    ValueError
        If the gradients are not the model's, the input shape is bad, there is no iteration or no
        start.
    """
    replay = Replay(model, gradients, input_shape, loss)

    def invert(n: int, bar: tqdm) -> Run:
        observed = replay.observed[n]

        def begin(number: int) -> Descent:
            shapes = (1, *replay.input_shape), (1, replay.classes)
            image, label = replay.start(*shapes, seed=seed + number)

            def objective() -> Tensor:
                return replay.squared_distance(image, _probabilities(label), observed)

            return Descent([image, label], objective, lr, patience, watch)

        best = best_descent(begin, restarts, heat, iterations, bar)
        label = best.variables[1].detach()
        found = label.argmax() if replay.classes > 1 else label[0, 0] > 0
        return finish(best, int(found), squared_norm(observed))

    return replay.attack_each(invert, iterations, "DLG", progress)


def _probabilities(label: Tensor) -> Tensor:
    """Logits (1, K) of the label → class probabilities, or the one probability (1,)."""
    return torch.softmax(label, dim=1) if label.shape[1] > 1 else torch.sigmoid(label[:, 0])
