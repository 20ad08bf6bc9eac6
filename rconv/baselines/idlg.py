"""iDLG, "Improved Deep Leakage from Gradients" (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610).

The label is read off the last layer's gradient; only the image is optimised.
"""

from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.descent import Descent, best_descent, finish
from rconv.baselines.labels import infer_labels
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
    """Reconstruct images by matching gradients, with the label that the gradients tell.

    Minimises the sum of squared differences of the gradients over the image alone, from a
    Gaussian start, with the label of `infer_labels` (algorithm 1), by L-BFGS as in DLG: steps of
    length 1, 300 iterations (the published code). That code also stops where the objective is
    below 1e-6; here the iterations go on, as those of DLG do. Several starts, heats and patience
    are not published: they let an attacker try again, and stop.

    Parameters
    ----------
    model : Module
        The shared model, twice differentiable and ending in a Linear; its device is used.
    gradients : mapping of str to Tensor
        Parameter name → gradient, shaped as the parameter or with a leading axis N; the dtype is
        that of the computation, float32 in the original.
    input_shape : tuple of int
        (C, H, W) of one image.
    loss : callable or None
        The clients' loss, given logits (1, K) and the label (1,), or logits (1,) where the model
        has one. Default: cross-entropy, or the logistic loss where it has one.
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
        start, or
        the model has no Linear.
    """
    replay = Replay(model, gradients, input_shape, loss)
    labels = infer_labels(replay.model, replay.named)

    def invert(n: int, bar: tqdm) -> Run:
        observed = replay.observed[n]

        def begin(number: int) -> Descent:
            (image,) = replay.start((1, *replay.input_shape), seed=seed + number)

            def objective() -> Tensor:
                return replay.squared_distance(image, labels[n : n + 1], observed)

            return Descent([image], objective, lr, patience, watch)

        best = best_descent(begin, restarts, heat, iterations, bar)
        return finish(best, int(labels[n]), squared_norm(observed))

    return replay.attack_each(invert, iterations, "iDLG", progress)
