"""DLG, "Deep Leakage from Gradients" (Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935).

A dummy image and a dummy label are moved until their gradients are the observed ones.
"""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.matching import Replay, lbfgs, squared_norm
from rconv.baselines.result import BaselineResult, Run
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
    progress: bool = False,
) -> BaselineResult:
    """Reconstruct images by matching gradients, the labels with them.

    Minimises the sum of squared differences of the gradients over the image and over the label's
    logits, of which the softmax is the label, from a Gaussian start (algorithm 1), by L-BFGS with
    steps of length 1, a history of 100 and 20 inner iterations (section 4). The 300 iterations
    are those of the published code; the paper goes on to 1,200.

    Parameters
    ----------
    model : the shared model, twice differentiable; its device is used.
    gradients : parameter name → gradient, shaped as the parameter or with a leading axis N; the
        dtype is that of the computation, float32 in the original.
    input_shape : (C, H, W) of one image.
    loss : the clients' loss, which must take class probabilities (1, K) as its target, or
        one probability (1,) where the model has one logit. Default: cross-entropy, or the
        logistic loss where it has one.
    iterations : of L-BFGS.
    seed : seeds the start, the same for each image.
    lr : length of a step.
    progress : show a progress bar.

    Returns
    -------
    BaselineResult; its images are not confined to any range of values.

    Raises
    ------
    ValueError : gradients that are not the model's, a bad input shape, no iterations.
    """
    replay = Replay(model, gradients, input_shape, loss)

    def invert(n: int, bar: tqdm) -> Run:
        observed = replay.observed[n]
        image, label = variables = replay.start(
            (1, *replay.input_shape), (1, replay.classes), seed=seed
        )

        def objective() -> Tensor:
            return replay.squared_distance(image, _probabilities(label), observed)

        history = lbfgs(variables, objective, iterations, lr, bar)
        found = label.argmax() if replay.classes > 1 else label[0, 0] > 0
        steps, nothing = len(history) - 1, min(history[0], squared_norm(observed))
        return Run(image.detach(), int(found), history, history[-1], steps, nothing)

    return replay.attack_each(invert, iterations, "DLG", progress)


def _probabilities(label: Tensor) -> Tensor:
    """Logits (1, K) of the label → class probabilities, or the one probability (1,)."""
    return torch.softmax(label, dim=1) if label.shape[1] > 1 else torch.sigmoid(label[:, 0])
